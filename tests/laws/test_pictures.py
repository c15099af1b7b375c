"""Pretraining on clips and pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import AUDIO, AUDIO_WIDTH, KnowingDenoiser, knowing_batch, learning_denoiser
from torch import nn

from flowact.conditioning.dropout import ConditionDropout
from flowact.stages import FlowMatchingPretraining

SIZES = {"chunk_frames": 2, "num_chunks": 2, "dropout": ConditionDropout(0.0, 0.0)}


class Watching(KnowingDenoiser):
    """Notes what it is shown, and knows that clean pictures are all ones."""

    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        self.seen = latents_BFCHW, sigma_BF, conditions, layout
        frames = layout.num_stream_frames
        stream, sigma = latents_BFCHW[:, -frames:], sigma_BF[:, -frames:, None, None, None]
        return (stream - 1) / sigma + self.bias


def flow_matching(stage, batch, seed=0):
    torch.manual_seed(seed)
    return stage.flow_matching(batch)


def test_a_picture_is_one_latent_frame_without_sound_and_reference():
    stage = FlowMatchingPretraining(Watching(), pictures=1.0, **SIZES)
    batch = knowing_batch(4)
    batch = replace(batch, reference_BFCHW=torch.ones_like(batch.reference_BFCHW))
    error_BF, sigma_BF, loss = flow_matching(stage, batch)
    latents, _, conditions, layout = stage.denoiser.seen
    assert [segment.kind for segment in layout.segments] == ["reference", "stream"]
    assert layout.num_frames == 2
    assert not latents[:, 0].any()
    assert not conditions.audio_BFAD.any()
    assert conditions.audio_BFAD.shape[2:] == (AUDIO, AUDIO_WIDTH)
    assert torch.equal(conditions.text_BSLD[:, 1], batch.text_BNLD[:, 0])  # in force in the first chunk
    assert error_BF.shape == sigma_BF.shape == (2, 1)
    assert float(loss.detach()) < 1e-8  # the target is noise minus the picture


def test_without_pictures_it_is_what_it_was():
    batch = knowing_batch(4)
    plain = FlowMatchingPretraining(learning_denoiser(), **SIZES)
    assert float(flow_matching(plain, batch)[2].detach()) == float(
        flow_matching(FlowMatchingPretraining(learning_denoiser(), pictures=0.0, **SIZES), batch)[2].detach()
    )


def test_validation_is_on_clips():
    stage = FlowMatchingPretraining(Watching(), pictures=1.0, **SIZES).eval()
    assert flow_matching(stage, knowing_batch(4))[0].shape == (2, 4)


def test_steps_are_on_pictures_as_often_as_asked():
    stage, batch = FlowMatchingPretraining(Watching(), pictures=0.3, **SIZES), knowing_batch(4, batch=1)
    torch.manual_seed(0)
    frames = [stage.flow_matching(batch)[0].shape[1] for _ in range(300)]
    assert 60 <= frames.count(1) <= 120  # 300 draws of 0.3: 90, standard deviation 8


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"pictures is a share of the training steps in \[0, 1\]"):
        FlowMatchingPretraining(nn.Identity(), pictures=share)

"""Audio-motion alignment: what is weighted, and what moves when."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from oracle import PerfectDenoiser, knowing_batch, learning_denoiser
from torch import nn

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory import StructuredMemory
from flowact.stages import AudioMotionAlignment, ChunkwiseDiffusionForcing
from flowact.stages.audio_motion import cell_shares

N, W = 2, 2
SIZES = {"chunk_frames": N, "num_chunks": W, "dropout": ConditionDropout(0.0, 0.0), "start": 0.0}
FRAMES = (2 + W) * N


def memory():
    return StructuredMemory(long=1, short=1, chunk_frames=N)


def boxes(face, mouth, batch=2):
    return torch.tensor([face, mouth]).expand(batch, FRAMES, 2, 4)


def loss_of(stage, batch, seed=0):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stage without a trainer cannot log
        return stage.flow_matching(batch)[0]


# --- the weights


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.35, 0.9), (0.4, 0.4, 0.4, 0.4), (0.99, 0.0, 1.0, 0.01)])
def test_shares_add_up_to_the_area_of_the_box(box):
    shares = cell_shares(torch.tensor(box).expand(1, 1, 1, 4), 5, 8)
    left, top, right, bottom = box
    assert shares.shape == (1, 1, 1, 5, 8)
    assert shares.min() >= 0
    assert shares.max() <= 1 + 1e-6
    assert float(shares.sum()) == pytest.approx((right - left) * (bottom - top) * 5 * 8, abs=1e-4)


def test_a_box_covers_the_cells_it_lies_on():
    shares = cell_shares(torch.tensor([0.25, 0.5, 0.75, 1.0]).expand(1, 1, 1, 4), 4, 4)[0, 0, 0]
    assert shares.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]


def test_an_unknown_box_covers_nothing():
    assert not cell_shares(torch.full((1, 2, 2, 4), float("nan")), 3, 3).any()


def test_without_weights_it_is_diffusion_forcing():
    batch = replace(knowing_batch(FRAMES), boxes_BFX4=boxes((0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 0.5, 0.5)))
    plain = ChunkwiseDiffusionForcing(learning_denoiser(), memory(), **SIZES)
    ours = AudioMotionAlignment(learning_denoiser(), memory(), **SIZES)
    assert torch.allclose(loss_of(ours, batch), loss_of(plain, batch), rtol=1e-6)


def test_a_cell_counts_by_its_share_of_the_boxes():
    stage = AudioMotionAlignment(learning_denoiser(), memory(), face=1.0, mouth=3.0, **SIZES)
    batch = replace(knowing_batch(FRAMES), boxes_BFX4=boxes((0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 0.5, 0.25)))
    squared = torch.zeros(2, W * N, 2, 2, 2)
    squared[..., 0, 0] = 1.0
    # cells: (0, 0) inside the face and half inside the mouth, (0, 1) inside the face, the lower two outside
    top_left, top_right = 1 + 1.0 + 3.0 * 0.5, 1 + 1.0
    expected = top_left / (top_left + top_right + 2)
    assert torch.allclose(stage.frame_error(squared, batch), torch.full((2, W * N), expected))


def test_an_even_error_weighs_the_same_wherever_the_boxes_are():
    stage = AudioMotionAlignment(learning_denoiser(), memory(), face=1.0, mouth=3.0, **SIZES)
    batch = replace(knowing_batch(FRAMES), boxes_BFX4=boxes((0.1, 0.2, 0.6, 0.9), (0.3, 0.3, 0.4, 0.5)))
    assert torch.allclose(stage.frame_error(torch.full((2, W * N, 2, 2, 2), 0.7), batch), torch.full((2, W * N), 0.7))


def test_a_perfect_denoiser_has_no_loss():
    stage = AudioMotionAlignment(PerfectDenoiser(), memory(), face=1.0, mouth=3.0, **SIZES)
    batch = replace(knowing_batch(FRAMES), boxes_BFX4=boxes((0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 0.5, 0.25)))
    assert float(loss_of(stage, batch).detach().abs().max()) < 1e-4


# --- who may lack sound, and which numbers are refused


def test_a_parent_may_lack_the_parameters_of_sound_and_no_others():
    deaf = {name for name, _ in learning_denoiser().named_parameters()}
    stage = AudioMotionAlignment(learning_denoiser(), memory(), **SIZES)
    sound = stage.parameters_of_sound()
    assert {"audio_in.0.weight", "double_blocks.0.towers.audio.qkv.weight"} <= set(sound) < deaf
    assert stage.parent_may_lack == stage.denoiser.audio_parameters


@pytest.mark.parametrize("options", [{"face": -1.0}, {"mouth": -0.1}, {"audio_warmup": -1}])
def test_negative_numbers_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is -.*0 or more"):
        AudioMotionAlignment(nn.Identity(), **options)

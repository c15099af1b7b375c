"""The audio warm-up under strategies, and what `setup` refuses."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import pytest
import torch
from stage_data import WindowData, denoiser, trainer, write_parent

from flowact.errors import UserError
from flowact.memory import StructuredMemory
from flowact.stages import AdamW, AudioMotionAlignment
from flowact.strategies import full_fp32_weights
from flowact.strategies.deepspeed import DeepSpeed

SIZES = {"chunk_frames": 2, "num_chunks": 2, "optimizer": AdamW(lr=1e-2, warmup_steps=0, weight_decay=0.1)}
WARMUP, STEPS = 2, 3


class Moved(pl.Callback):
    """Which parameters have moved since the start, after each step."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.start, self.steps = full_fp32_weights(pl_module.denoiser), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = full_fp32_weights(pl_module.denoiser)
        self.steps.append({name for name in now if not torch.equal(now[name], self.start[name])})


def fit(stage, tmp_path, boxes=None, **options):
    stage.initialise_from(write_parent(tmp_path / "parent", denoiser(seed=1)))
    data = WindowData.of(stage, folder=tmp_path / "ae")
    if boxes is not None:
        data.boxes = boxes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(max_steps=STEPS, limit_val_batches=0, **options).fit(stage, datamodule=data)


@pytest.mark.parametrize("strategy", ["auto", "zero-2", "zero-3"])
def test_until_the_warm_up_ends_only_sound_moves(strategy, tmp_path):
    stage, moved = AudioMotionAlignment(denoiser(), StructuredMemory(1, 1, chunk_frames=2), audio_warmup=WARMUP, **SIZES), Moved()
    sound = set(stage.parameters_of_sound())
    fit(stage, tmp_path, callbacks=[moved], strategy=strategy if strategy == "auto" else DeepSpeed(stage=int(strategy[-1])))
    for found in moved.steps[:WARMUP]:
        assert found
        assert found <= sound
    assert moved.steps[WARMUP] - sound


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mouth": 2.0}, r"weighted inside boxes.*data\.boxes to true"),
        ({"audio_warmup": STEPS}, r"audio_warmup is 3 of trainer\.max_steps 3"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        fit(AudioMotionAlignment(denoiser(), StructuredMemory(1, 1, chunk_frames=2), **options, **SIZES), tmp_path)


def test_a_warm_up_of_nothing_is_refused(tmp_path):
    stage = AudioMotionAlignment(denoiser(), StructuredMemory(1, 1, chunk_frames=2), audio_warmup=1, **SIZES)
    for name, parameter in stage.denoiser.named_parameters():
        parameter.requires_grad_("audio" not in name)
    with pytest.raises(UserError, match="no trainable parameter of MMDiT is named like"):
        fit(stage, tmp_path)

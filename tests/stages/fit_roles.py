"""Distribution matching under every strategy: `python fit_roles.py FOLDER` with two processes, where FOLDER holds `parent`. Started by a test.

Data, noise and levels are drawn for two samples; each of two processes takes one of them, a single process both. So all strategies train alike.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lora_run import ResumableWindows
from stage_data import denoiser, trainer
from torch import Tensor

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.callbacks.randomness import seed_generators
from flowact.checkpoints import open_checkpoint
from flowact.memory import StructuredMemory
from flowact.schedulers import UniformLevel
from flowact.stages import AdamW, DistributionMatching
from flowact.stages import distribution_matching as module
from flowact.strategies import full_fp32_weights
from flowact.strategies.deepspeed import DeepSpeed
from flowact.types import Batch

STEPS, STOP = 4, 3


def new_stage(**options: Any) -> DistributionMatching:
    """Small, quick to move, with a student that is updated in every second step."""
    fast = AdamW(lr=1e-2, warmup_steps=1, final_lr=0.5)
    settings = {
        "chunk_frames": 2, "num_chunks": 2, "guidance": 2.0, "student_every": 2, "clip": 0.5, "start": 0.0, "optimizer": fast,
        "fake_score_optimizer": fast,
    }  # fmt: skip
    return DistributionMatching(denoiser(seed=5), memory=StructuredMemory(long=1, short=1, chunk_frames=2), **(settings | options))


class Losses(pl.Callback):
    """The losses of both roles, and the weights at the end."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        losses = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/") and name.endswith(("_loss", "_norm"))}
        self.values.append({name: float(trainer.strategy.reduce(value.clone(), reduce_op="mean")) for name, value in losses.items()})

    def on_train_end(self, trainer, pl_module) -> None:
        self.weights = full_fp32_weights(pl_module.denoiser) | {f"fake.{k}": v for k, v in full_fp32_weights(pl_module.fake_score).items()}


class SharedWindows(ResumableWindows):
    """The same two windows on every process, of which each of two takes its own."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        own = own_rows(self.trainer.world_size)
        keep = {name: getattr(batch, name)[own] for name in ("latents_BFCHW", "reference_BFCHW", "audio_BFAD", "text_BNLD", "text_index_BF")}
        return Batch(**keep, keys=batch.keys[own])

    def loader(self, first_seed: int):
        return ResumableWindows.loader(self, first_seed - 100 * self.trainer.global_rank)


def own_rows(world_size: int) -> slice:
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return slice(rank, rank + 1) if world_size == 2 else slice(None)


class SharedLevel(UniformLevel):
    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        return super().sample(2, num_chunks, generator)[own_rows(2 // batch)]


def shared_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(2, *like.shape[1:], generator=generator)[own_rows(2 // like.shape[0])].to(like)


class SharedSeed(pl.Callback):
    """Every process draws the same."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        seed_generators(7, 0, trainer.fit_loop.total_batch_idx)


def fit(parent: Path, *, strategy: Any = "auto", devices: int = 1, rollout: int = 2, **options: Any) -> Losses:
    """Four steps; the figures of all processes together."""
    torch.manual_seed(0)
    stage, losses = new_stage(rollout=rollout, score_levels=SharedLevel(0.02, 0.98)), Losses()
    stage.initialise_from(parent)
    run = trainer(max_steps=STEPS, strategy=strategy, devices=devices, callbacks=[SharedSeed(), losses], limit_val_batches=0, **options)
    with warnings.catch_warnings(), mock.patch.object(module, "gaussian", shared_noise):
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=SharedWindows.of(stage, folder=parent.parent / "ae"))
    return losses


def fit_in_parts(folder: Path, name: str, max_steps: int, *, resume: bool = False, **options: Any) -> Losses:
    """A run that writes a checkpoint with an average of the weights, or goes on with it, as `flowact fit` does."""
    stage, losses = new_stage(start=0.5, rollout=1), Losses()
    stage.recipe = {"init_from": str(folder / "parent")}
    if not resume:
        stage.initialise_from(folder / "parent")
    pl.seed_everything(7, verbose=False)
    callbacks = [CheckpointFolder(str(folder / name)), ExponentialMovingAverage(decay=0.5), losses]
    # the schedule's length is part of the run, so a first part is a run that stops early
    run = trainer(max_steps=STEPS, callbacks=[*callbacks, StopAt(max_steps)], enable_checkpointing=True, limit_val_batches=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = str(open_checkpoint(folder / name).engine) if resume else None
        run.fit(stage, datamodule=ResumableWindows.of(stage, folder=folder / "ae"), ckpt_path=engine)
    return losses


class StopAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def main() -> None:
    folder = Path(sys.argv[1])
    figures = {f"zero-{stage}": fit(folder / "parent", strategy=DeepSpeed(stage=stage), devices=2).values for stage in (0, 1, 2, 3)}
    two = {"strategy": DeepSpeed(stage=2), "devices": 2}
    whole = fit_in_parts(folder, "whole", STEPS, **two)
    fit_in_parts(folder, "parts", STOP, **(two | {"strategy": DeepSpeed(stage=2)}))
    resumed = fit_in_parts(folder, "parts", STEPS, resume=True, **(two | {"strategy": DeepSpeed(stage=2)}))
    figures["whole"], figures["resumed"] = whole.values, resumed.values
    figures["ddp"] = fit(folder / "parent", strategy="ddp_find_unused_parameters_true", devices=2).values
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        same = all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
        (folder / "figures.json").write_text(json.dumps({**figures, "same weights": same}))


if __name__ == "__main__":
    main()

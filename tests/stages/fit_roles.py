"""Distribution matching under every strategy: `python fit_roles.py FOLDER` with two processes, where FOLDER holds `parent`. Started by a test."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lora_run import ResumableWindows
from shared_rows import SharedDraws, SharedLevels, SharedWindows, shared_noise
from stage_data import denoiser, trainer
from torch import Tensor

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import open_checkpoint
from flowact.memory import StructuredMemory
from flowact.schedulers import UniformLevel
from flowact.stages import AdamW, DistributionMatching
from flowact.strategies import full_fp32_weights
from flowact.strategies.deepspeed import DeepSpeed

STEPS, STOP, LONG = 4, 3, 20


def new_stage(**options: Any) -> DistributionMatching:
    """Small, quick to move, with a student that is updated in every second step."""
    fast = AdamW(lr=5e-3, warmup_steps=1, final_lr=0.5)
    settings = {
        "chunk_frames": 2, "num_chunks": 2, "guidance": 2.0, "student_every": 2, "clip": 0.5, "start": 0.0, "optimizer": fast,
        "fake_score_optimizer": fast,
    }  # fmt: skip
    return DistributionMatching(denoiser(seed=5), memory=StructuredMemory(long=1, short=1, chunk_frames=2), **(settings | options))


class Losses(pl.Callback):
    """The losses of both roles in each step, and the weights at the end."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.step = 0
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            return  # accumulates
        self.step = trainer.global_step
        losses = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/") and name.endswith(("_loss", "_norm"))}
        self.values.append({name: float(trainer.strategy.reduce(value.clone(), reduce_op="mean")) for name, value in losses.items()})

    def on_train_end(self, trainer, pl_module) -> None:
        self.weights = full_fp32_weights(pl_module.denoiser) | {f"fake.{k}": v for k, v in full_fp32_weights(pl_module.fake_score).items()}


def fit(parent: Path, *, strategy: Any = "auto", devices: int = 1, steps: int = STEPS, accumulate: int = 1) -> Losses:
    """The figures of all processes together."""
    torch.manual_seed(0)
    stage, losses = new_stage(rollout=2, accumulate=accumulate, score_levels=SharedLevels(UniformLevel(0.02, 0.98))), Losses()
    stage.initialise_from(parent)
    callbacks = [SharedDraws(accumulate), losses]
    run = trainer(max_steps=steps, strategy=strategy, devices=devices, callbacks=callbacks, limit_val_batches=0)
    data = SharedWindows.of(stage, folder=parent.parent / "ae")
    data.accumulate = accumulate
    with warnings.catch_warnings(), shared_noise():
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=data)
    return losses


def fit_in_parts(folder: Path, name: str, max_steps: int, *, resume: bool = False, of_stage: dict[str, Any] | None = None, **options: Any) -> Losses:
    """A run that writes a checkpoint with an average of the weights, or goes on with it, as `flowact fit` does."""
    stage, losses = new_stage(start=0.5, rollout=1, **(of_stage or {})), Losses()
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
    figures = {}
    for steps, accumulate, names in ((LONG, 1, ("zero-0", "zero-1", "zero-2", "zero-3", "ddp")), (STEPS, 2, ("zero-0", "zero-2", "zero-3", "ddp"))):
        for name in names:
            strategy: Any = "ddp_find_unused_parameters_true" if name == "ddp" else DeepSpeed(stage=int(name[-1]))  # type: ignore[arg-type]
            losses = fit(folder / "parent", strategy=strategy, devices=2, steps=steps, accumulate=accumulate)
            figures[name if accumulate == 1 else f"{name} accumulates"] = losses.values
    two = {"strategy": DeepSpeed(stage=2), "devices": 2}
    whole = fit_in_parts(folder, "whole", STEPS, **two)
    fit_in_parts(folder, "parts", STOP, **(two | {"strategy": DeepSpeed(stage=2)}))
    resumed = fit_in_parts(folder, "parts", STEPS, resume=True, **(two | {"strategy": DeepSpeed(stage=2)}))
    figures["whole"], figures["resumed"] = whole.values, resumed.values
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        same = all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
        (folder / "figures.json").write_text(json.dumps({**figures, "same weights": same}))


if __name__ == "__main__":
    main()

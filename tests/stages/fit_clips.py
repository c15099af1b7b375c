"""Distribution matching on clips of several windows, with an adversarial head: `python fit_clips.py FOLDER` with two processes, see `fit_roles`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fit_roles import STEPS, STOP, Losses, StopAt, new_stage
from lora_run import ResumableWindows
from shared_rows import SharedDraws, SharedLevels, SharedWindows, shared_noise
from stage_data import trainer

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.checkpoints import open_checkpoint
from flowact.schedulers import UniformLevel
from flowact.stages import DistributionMatching
from flowact.stages.adversarial import Adversarial
from flowact.strategies.deepspeed import DeepSpeed

#: one chunk at a time, and a stream that keeps its stairs
SELF_FORCING = {"num_chunks": 1, "micro_steps": 3, "windows": 2, "solver": "renoise"}
ROLLING = {"num_chunks": 2, "windows": 2, "rollout": 1}


def clip_stage(**options: Any) -> DistributionMatching:
    return new_stage(**({"adversarial": Adversarial(0.1, 0.1)} | options))


def data_of(stage: DistributionMatching, folder: Path, cls: type[ResumableWindows]) -> ResumableWindows:
    return cls(stage.history_frames, stage.window_frames, folder=folder / "ae")


def fit(folder: Path, geometry: dict[str, Any], *, strategy: Any = "auto", devices: int = 1) -> list[dict[str, float]]:
    """The figures of all processes together."""
    torch.manual_seed(0)
    stage, losses = clip_stage(score_levels=SharedLevels(UniformLevel(0.02, 0.98)), **geometry), Losses()
    stage.initialise_from(folder / "parent")
    run = trainer(max_steps=STEPS, strategy=strategy, devices=devices, callbacks=[SharedDraws(), losses], limit_val_batches=0)
    with warnings.catch_warnings(), shared_noise():
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=data_of(stage, folder, SharedWindows))
    return losses.values


def fit_in_parts(folder: Path, name: str, max_steps: int, *, resume: bool = False, **options: Any) -> Losses:
    """A run that writes a checkpoint, or goes on with it."""
    stage, losses = clip_stage(start=0.5, **SELF_FORCING), Losses()
    stage.recipe = {"init_from": str(folder / "parent")}
    if not resume:
        stage.initialise_from(folder / "parent")
    pl.seed_everything(7, verbose=False)
    callbacks = [CheckpointFolder(str(folder / name)), losses, StopAt(max_steps)]
    run = trainer(max_steps=STEPS, callbacks=callbacks, enable_checkpointing=True, limit_val_batches=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = str(open_checkpoint(folder / name).engine) if resume else None
        run.fit(stage, datamodule=data_of(stage, folder, ResumableWindows), ckpt_path=engine)
    return losses


def whole_and_resumed(folder: Path, options: Any) -> dict[str, Any]:
    """A run at once, and in two parts."""
    whole = fit_in_parts(folder, "whole", STEPS, **options())
    fit_in_parts(folder, "parts", STOP, **options())
    resumed = fit_in_parts(folder, "parts", STEPS, resume=True, **options())
    same = bool(whole.weights) and all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    heads = any(".heads." in name for name in whole.weights)
    return {"whole": whole.values, "resumed": resumed.values, "same weights": same, "heads": heads}


def main() -> None:
    folder = Path(sys.argv[1])
    figures = {
        "self_forcing": fit(folder, SELF_FORCING, strategy=DeepSpeed(stage=2), devices=2),
        "rolling": fit(folder, ROLLING, strategy=DeepSpeed(stage=3), devices=2),
        **whole_and_resumed(folder, lambda: {"strategy": DeepSpeed(stage=2), "devices": 2}),
    }
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        (folder / "clips.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

"""Guidance and consistency distillation, whole and in parts: `python fit_teacher_distillations.py FOLDER` with two processes, where FOLDER holds
`parent`. Started by a test.
"""

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
from stage_data import denoiser, trainer
from torch import Tensor

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import open_checkpoint
from flowact.memory import StructuredMemory
from flowact.stages import AdamW, CFGDistillation, ConsistencyDistillation, SelfForcing
from flowact.strategies import full_fp32_weights
from flowact.strategies.deepspeed import DeepSpeed

STEPS, STOP = 4, 2


def new_stage(name: str) -> SelfForcing:
    """Small and quick to move; the consistency target lags from the second update on."""
    settings: dict[str, Any] = {
        "memory": StructuredMemory(long=1, short=1, chunk_frames=2), "chunk_frames": 2, "num_chunks": 2,
        "optimizer": AdamW(lr=1e-2, warmup_steps=1, final_lr=1.0),
    }  # fmt: skip
    if name == "cfg_distillation":
        return CFGDistillation(denoiser(seed=5, guidance_embedding=True), **settings)
    return ConsistencyDistillation(denoiser(seed=5), grid_points=6, guidance=2.0, target_decay=0.5, target_start=1, **settings)


class Figures(pl.Callback):
    """Losses, and at the end the weights and the target's average."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module) -> None:
        self.weights = full_fp32_weights(pl_module.denoiser)
        if isinstance(pl_module, ConsistencyDistillation):
            self.weights |= {f"target.{name}": value.clone() for name, value in pl_module.target.state()["averages"].items()}


def fit(folder: Path, name: str, run_name: str, max_steps: int = STEPS, *, resume: bool = False, **options: Any) -> Figures:
    """A run that writes a checkpoint, or goes on with it, as `flowact fit` does."""
    stage, figures = new_stage(name), Figures()
    stage.recipe = {"init_from": str(folder / "parent")}
    if not resume:
        stage.initialise_from(folder / "parent")
    pl.seed_everything(7, verbose=False)
    every = [CheckpointFolder(str(folder / run_name)), ExponentialMovingAverage(decay=0.5), figures]
    run = trainer(max_steps=max_steps, callbacks=every, enable_checkpointing=True, limit_val_batches=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = str(open_checkpoint(folder / run_name).engine) if resume else None
        run.fit(stage, datamodule=ResumableWindows.of(stage, folder=folder / "ae"), ckpt_path=engine)
    return figures


def whole_and_resumed(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """Losses of a whole run and of a resumed one, and whether they end with the same weights."""
    whole = fit(folder, name, f"{name}-whole", **_anew(options))
    fit(folder, name, f"{name}-parts", STOP, **_anew(options))
    resumed = fit(folder, name, f"{name}-parts", resume=True, **_anew(options))
    same = whole.weights.keys() == resumed.weights.keys() and all(torch.equal(value, resumed.weights[key]) for key, value in whole.weights.items())
    return {"whole": whole.losses, "resumed": resumed.losses, "same": same, "num_weights": len(whole.weights)}


def _anew(options: dict[str, Any]) -> dict[str, Any]:
    zero = options.get("zero")
    rest = {key: value for key, value in options.items() if key != "zero"}
    return rest if zero is None else rest | {"strategy": DeepSpeed(stage=zero)}


def main() -> None:
    folder = Path(sys.argv[1])
    figures = {name: whole_and_resumed(folder, name, devices=2, zero=2) for name in ("cfg_distillation", "consistency_distillation")}
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    (folder / f"rank-{rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

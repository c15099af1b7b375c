"""Pretraining under every strategy: `python fit_curves.py FOLDER` with two processes. Started by a test."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from shared_rows import SharedDraws, SharedLevels, SharedWindows, shared_noise
from stage_data import denoiser, trainer

from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.conditioning.dropout import ConditionDropout
from flowact.schedulers import UniformLevel
from flowact.stages import AdamW, FlowMatchingPretraining
from flowact.strategies.deepspeed import DeepSpeed

STEPS, CLIP = 2, 0.01


class Logged(pl.Callback):
    """The curves of each step, and the norm of the gradients that lie on the weights before the step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.norms: list[float] = []
        self.held_out: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        squares = [float(p.grad.double().square().sum()) for p in pl_module.denoiser.parameters() if p.grad is not None]
        self.norms.append(sum(squares) ** 0.5)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        names = ("train/grad_norm", "train/lr", "train/updates", "ema/decay", "ema/distance")
        self.steps.append({name: float(trainer.callback_metrics[name]) for name in names})

    def on_validation_end(self, trainer, pl_module) -> None:
        self.held_out = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def fit(strategy: Any = "auto", devices: int = 1, **options: Any) -> Logged:
    """Two steps with clipping far below the norms, and a validation."""
    pl.seed_everything(3, verbose=False)
    logged = Logged()
    never = ConditionDropout(0.0, 0.0)
    fast = AdamW(lr=1e-2, warmup_steps=2)
    stage = FlowMatchingPretraining(denoiser(), SharedLevels(UniformLevel()), chunk_frames=2, num_chunks=2, dropout=never, optimizer=fast)
    validation = {"limit_val_batches": 3, "val_check_interval": STEPS, "num_sanity_val_steps": 0}
    settings = {"max_steps": STEPS, "gradient_clip_val": CLIP} | validation | options
    run = trainer(strategy=strategy, devices=devices, callbacks=[SharedDraws(), ExponentialMovingAverage(decay=0.5), logged], **settings)
    with warnings.catch_warnings(), shared_noise():
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=SharedWindows.of(stage))
    return logged


def main() -> None:
    folder = Path(sys.argv[1])
    strategies = {f"zero-{stage}": DeepSpeed(stage=stage) for stage in (2, 3)} | {"ddp": "ddp"}
    figures = {}
    for name, strategy in strategies.items():
        logged = fit(strategy, 2)
        figures[name] = {"steps": logged.steps, "held_out": logged.held_out}
    (folder / f"curves-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

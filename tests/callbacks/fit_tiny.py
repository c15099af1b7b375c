"""Fit the tiny stage with two processes, at once and in parts: `python fit_tiny.py FOLDER ZERO_STAGE PRECISION`. Started by a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning.pytorch as L
from tiny import Data, TinyStage

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import open_checkpoint
from flowact.strategies.deepspeed import DeepSpeed


def fit(folder: Path, steps: int, zero_stage: int, precision: str, *, resume: bool = False) -> tuple[TinyStage, int]:
    L.seed_everything(7, workers=True, verbose=False)
    engine = str(open_checkpoint(folder).engine) if resume else None
    stage = TinyStage()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DeepSpeed(stage=zero_stage),
        precision=precision,
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CheckpointFolder(str(folder)), ExponentialMovingAverage(decay=0.9)],
    )
    trainer.fit(stage, datamodule=Data(), ckpt_path=engine)
    return stage, trainer.global_rank


def main() -> None:
    folder, zero_stage, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    whole, rank = fit(folder / "whole", 7, zero_stage, precision)
    first, _ = fit(folder / "parts", 3, zero_stage, precision)
    second, _ = fit(folder / "parts", 7, zero_stage, precision, resume=True)
    seen = [{"inputs": stage.inputs, "losses": stage.losses} for stage in (whole, first, second)]
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()

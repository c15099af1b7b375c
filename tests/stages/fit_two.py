"""Fit a self-forcing stage with two processes: `python fit_two.py FOLDER`, where FOLDER holds `parent`. Started by a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
from stage_data import WindowData, denoiser, trainer

from flowact.memory import GeneratedMemory, StructuredMemory
from flowact.stages import AdamW, SelfForcing
from flowact.strategies.deepspeed import DeepSpeed


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def main() -> None:
    folder = Path(sys.argv[1])
    pl.seed_everything(3, verbose=False)
    memory = StructuredMemory(long=1, short=1, chunk_frames=2)
    stage = SelfForcing(denoiser(), memory, corruptor=GeneratedMemory(0.5), chunk_frames=2, num_chunks=2, optimizer=AdamW(lr=1e-2, warmup_steps=1))
    stage.initialise_from(folder / "parent")
    start = stage.denoiser.out.weight.flatten().tolist()
    losses = Losses()
    run = trainer(devices=2, strategy=DeepSpeed(stage=2), max_steps=3, callbacks=[losses], gradient_clip_val=1.0)
    run.fit(stage, datamodule=WindowData.of(stage))
    report = {"start": start, "weights": stage.denoiser.out.weight.flatten().tolist(), "losses": losses.values}
    (folder / f"rank-{run.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()

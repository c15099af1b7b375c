"""A run that trains a LoRA and writes checkpoints. `python lora_run.py FOLDER` does it with two processes; started by a test."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from stage_data import AUDIO_WIDTH, CHANNELS, TEXT_WIDTH, WindowData, denoiser, trainer
from torchdata.stateful_dataloader import StatefulDataLoader

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import open_checkpoint
from flowact.memory import StructuredMemory
from flowact.models import LoRA
from flowact.stages import AdamW, ChunkwiseDiffusionForcing, DenoiserStage
from flowact.strategies.deepspeed import DeepSpeed

#: of `stage_data.denoiser`, as a recipe says it
SPEC = {
    "class_path": "MMDiT",
    "init_args": {
        "latent_channels": CHANNELS, "text_width": TEXT_WIDTH, "audio_width": AUDIO_WIDTH, "width": 16, "num_heads": 2, "num_double_blocks": 1,
        "num_single_blocks": 1, "mlp_ratio": 2.0, "initial_gate": 0.5,
    },
}  # fmt: skip
STEPS, STOP = 4, 2


def lora(**options: Any) -> LoRA:
    return LoRA(**({"rank": 2, "alpha": 4.0, "dropout": 0.1, "exclude": ["out"], "train_also": ["out.*"]} | options))


class ResumableWindows(WindowData):
    """Windows whose position a checkpoint keeps."""

    def loader(self, first_seed: int) -> StatefulDataLoader:
        return StatefulDataLoader(super().loader(first_seed).dataset, batch_size=None)


def new_stage(parent: Path | None, cls: type[DenoiserStage] = ChunkwiseDiffusionForcing, **options: Any) -> DenoiserStage:
    """A stage as `flowact fit` makes it from a recipe."""
    settings = {"chunk_frames": 2, "num_chunks": 2, "optimizer": AdamW(lr=1e-2, warmup_steps=1, final_lr=1.0), "adapter": lora()} | options
    stage = cls(denoiser(seed=5), StructuredMemory(long=1, short=1, chunk_frames=2), **settings)
    stage.recipe = {"init_from": str(parent) if parent else None, "model": {"class_path": cls.__name__, "init_args": {"denoiser": SPEC}}}
    return stage


def fit(
    stage: DenoiserStage, folder: Path, max_steps: int = STEPS, *, resume: bool = False, callbacks: tuple[pl.Callback, ...] = (), **options: Any
) -> None:
    """Train to `max_steps`, anew or from the checkpoint in `folder`, as `flowact fit` does."""
    pl.seed_everything(7, workers=True, verbose=False)
    if not resume and stage.recipe["init_from"]:
        stage.initialise_from(stage.recipe["init_from"])
    every = [CheckpointFolder(str(folder)), ExponentialMovingAverage(decay=0.5), *callbacks]
    run = trainer(max_steps=max_steps, callbacks=every, enable_checkpointing=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = str(open_checkpoint(folder).engine) if resume else None
        run.fit(stage, datamodule=ResumableWindows.of(stage, folder=folder.parent / "ae"), ckpt_path=engine)


def main() -> None:
    folder = Path(sys.argv[1])
    fit(new_stage(folder / "parent"), folder / "whole", strategy=DeepSpeed(stage=2), devices=2)
    fit(new_stage(folder / "parent"), folder / "parts", STOP, strategy=DeepSpeed(stage=2), devices=2)
    fit(new_stage(folder / "parent"), folder / "parts", resume=True, strategy=DeepSpeed(stage=2), devices=2)


if __name__ == "__main__":
    main()

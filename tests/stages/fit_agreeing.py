"""Stages with one network under every strategy, and resumed.

`python fit_agreeing.py FOLDER`, where FOLDER holds `parent`, does it with two processes; started by a test.
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
from lora_run import fit as fit_in_parts
from lora_run import new_stage
from shared_rows import SharedDraws, SharedLevels, SharedWindows, shared_noise
from stage_data import FrameData, denoiser, trainer
from torchdata.stateful_dataloader import StatefulDataLoader

from flowact.autoencoders import CausalVideoAutoencoder
from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import open_checkpoint
from flowact.conditioning.dropout import ConditionDropout
from flowact.memory import StructuredMemory
from flowact.schedulers import MixedLevels
from flowact.stages import AdamW, AutoencoderTraining, ChunkwiseDiffusionForcing, FlowMatchingPretraining, SelfForcing, Stage, StepDistillation
from flowact.strategies.deepspeed import DeepSpeed
from flowact.strategies.fully_sharded import FullySharded

STEPS, STOP, LONG = 4, 2, 20
_SHARE_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # small parameters too
FAST = AdamW(lr=5e-3, warmup_steps=1, final_lr=1.0)
SIZES: dict[str, Any] = {"chunk_frames": 2, "num_chunks": 2, "optimizer": FAST}
#: name -> strategy and accumulated batches; compared with one process
STRATEGIES: dict[str, tuple[Any, int]] = {
    **{f"zero-{stage}": (lambda stage=stage: DeepSpeed(stage=stage), 1) for stage in (0, 1, 2, 3)},
    "zero-1 accumulates": (lambda: DeepSpeed(stage=1), 2),
    "fsdp": (FullySharded, 1),
    "ddp": (lambda: "ddp", 1),
}
#: strategies under which a frozen teacher is evaluated
TEACHERS: dict[str, Any] = {"whole": lambda: DeepSpeed(stage=3), "partitioned": lambda: DeepSpeed(stage=3, partition_frozen=True, extra=_SHARE_ALL)}


class Figures(pl.Callback):
    """The mean loss of each step over processes and accumulated batches, and how large the teacher is on this process."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.teacher_size = 0
        self._parts: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._parts.append(outputs["loss"].detach())
        if trainer.global_step > len(self.losses):
            # Lightning has divided the losses of accumulated batches by their number
            self.losses.append(float(trainer.strategy.reduce(torch.stack(self._parts).sum(), reduce_op="mean")))
            self._parts = []
        teacher = getattr(pl_module, "intermediate", None)
        if teacher is not None:
            self.teacher_size = sum(parameter.numel() for parameter in teacher.network.parameters())


def fit(folder: Path, *, strategy: Any = "auto", devices: int = 1, accumulate: int = 1, steps: int = LONG, teacher: bool = False) -> Figures:
    """Diffusion forcing, or step distillation, on batches of four rows."""
    torch.manual_seed(0)
    bank, figures = StructuredMemory(long=1, short=1, chunk_frames=2), Figures()
    stage: Any
    if teacher:
        stage = StepDistillation(denoiser(), bank, teacher_steps=2, guidance=2.0, start=0.0, **SIZES)
        stage.initialise_from(folder / "parent")
    else:
        stage = ChunkwiseDiffusionForcing(denoiser(), bank, MixedLevels(), start=0.0, dropout=ConditionDropout(0.0, 0.0), **SIZES)
    stage.levels = SharedLevels(stage.levels)
    run = trainer(
        max_steps=steps, strategy=strategy, devices=devices, accumulate_grad_batches=accumulate, gradient_clip_val=0.5, limit_val_batches=0,
        callbacks=[SharedDraws(accumulate), figures],
    )  # fmt: skip
    data = SharedWindows.of(stage, folder=folder / "ae")
    data.accumulate = accumulate
    with warnings.catch_warnings(), shared_noise():
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=data)
    return figures


class ResumableFrames(FrameData):
    def loader(self, split: str) -> StatefulDataLoader:
        return StatefulDataLoader(super().loader(split).dataset, batch_size=None)


def fit_autoencoder(folder: Path, max_steps: int = STEPS, *, resume: bool = False, **options: Any) -> None:
    pl.seed_everything(7, workers=True, verbose=False)
    stage = AutoencoderTraining(CausalVideoAutoencoder(latent_channels=2, width=8), latent_noise=0.1, principal_clips=0, optimizer=FAST)
    callbacks = [CheckpointFolder(str(folder)), ExponentialMovingAverage(decay=0.5)]
    run = trainer(max_steps=max_steps, callbacks=callbacks, enable_checkpointing=True, limit_val_batches=0, **options)
    engine = str(open_checkpoint(folder).engine) if resume else None
    run.fit(stage, datamodule=ResumableFrames(), ckpt_path=engine, weights_only=True)


def train(name: str, folder: Path, *arguments: Any, **options: Any) -> None:
    """Train a stage, or go on with it."""
    if name == "autoencoder":
        fit_autoencoder(folder, *arguments, **options)
        return
    fit_in_parts(STAGES[name](folder.parent / "parent"), folder, *arguments, limit_val_batches=0, **options)


def pretraining(parent: Path) -> Stage:
    stage = FlowMatchingPretraining(denoiser(), **SIZES)
    stage.recipe = {"init_from": None}
    return stage


STAGES: dict[str, Any] = {
    "pretraining": pretraining,
    "diffusion_forcing": lambda parent: new_stage(None, ChunkwiseDiffusionForcing, adapter=None),
    "self_forcing": lambda parent: new_stage(parent, SelfForcing, adapter=None),
    "distillation": lambda parent: new_stage(parent, StepDistillation, adapter=None, teacher_steps=2, guidance=2.0),
}
#: runs that are resumed: name -> stage, strategy
RESUMED: dict[str, tuple[str, Any]] = {name: (name, lambda: DeepSpeed(stage=2)) for name in (*STAGES, "autoencoder")}
RESUMED |= {"fsdp, diffusion_forcing": ("diffusion_forcing", FullySharded), "fsdp, autoencoder": ("autoencoder", FullySharded)}


def main() -> None:
    folder = Path(sys.argv[1])
    figures: dict[str, Any] = {}
    for name, (make, accumulate) in STRATEGIES.items():
        figures[name] = fit(folder, strategy=make(), devices=2, accumulate=accumulate).losses
    for name, make in TEACHERS.items():
        seen = fit(folder, strategy=make(), devices=2, steps=STEPS, teacher=True)
        figures[name] = {"losses": seen.losses, "size": seen.teacher_size}
    for name, (stage, make) in RESUMED.items():
        train(stage, folder / f"{name}-whole", strategy=make(), devices=2)
        train(stage, folder / f"{name}-parts", STOP, strategy=make(), devices=2)
        train(stage, folder / f"{name}-parts", resume=True, strategy=make(), devices=2)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

"""Trainings that meet batches which are not finite.

`python fit_bad_steps.py FOLDER`, where FOLDER holds `parent`, does it with two processes; started by a test.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from stage_data import WindowData, denoiser, random_batch, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from flowact.callbacks import CheckpointFolder, ExponentialMovingAverage, NonFiniteGuard
from flowact.callbacks.randomness import seed_generators
from flowact.errors import UserError
from flowact.memory import StructuredMemory
from flowact.schedulers import UniformLevel
from flowact.stages import AdamW, ChunkwiseDiffusionForcing, DistributionMatching
from flowact.strategies import local_values
from flowact.strategies.deepspeed import DeepSpeed
from flowact.types import Batch

SIZES: dict[str, Any] = {"chunk_frames": 2, "num_chunks": 2, "start": 0.0}
FAST = AdamW(lr=1e-2, warmup_steps=4, final_lr=0.5)
#: what is wrong with a batch, by a letter: its numbers, or its loss, or only the gradient of its loss; "." is a good batch
KINDS = ".nlg"


class Script(WindowData):
    """A batch for each letter of `letters`. Good batches are the same in the same order, however many bad ones stand between them."""

    letters = ""
    #: process that gets the bad batches; the other gets good ones in their place
    bad_rank = 0

    def train_dataloader(self) -> DataLoader:
        rank = self.trainer.global_rank
        batches, good = [], 0
        for letter in self.letters:
            batch = random_batch(self.history_frames + self.window_frames, seed=10 * good + rank)
            kind = letter if rank == self.bad_rank else "."
            if kind == "n":
                batch = replace(batch, latents_BFCHW=batch.latents_BFCHW * math.nan)
            batches.append(replace(batch, keys=(f"{kind}{good}@{rank}",)))
            good += letter == "."
        return DataLoader(batches, batch_size=None)


class SeedOfBatch(pl.Callback):
    """Random numbers are a function of the batch, not of its place."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        seed_generators(3, trainer.global_rank, int(batch.keys[0][1:].partition("@")[0]))


def spoilt(loss: Tensor, batch: Batch) -> Tensor:
    """A loss as the first letter of the batch's key says."""
    kind = batch.keys[0][0]
    if kind == "l":
        return loss + math.inf  # with a finite gradient
    return loss + (0 * loss).sqrt() if kind == "g" else loss  # a finite loss, 0 * inf in its gradient


class OneRole(ChunkwiseDiffusionForcing):
    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return spoilt(super().training_step(batch, batch_index), batch)


class TwoRoles(DistributionMatching):
    """The student's loss is spoilt, the fake score's is where the batch's numbers are."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.batch = batch
        return super().training_step(batch, batch_index)

    def student_loss(self, *arguments: Any) -> Tensor:
        return spoilt(super().student_loss(*arguments), self.batch)


class Watch(pl.Callback):
    """What the steps change, of all that this process holds: weights, moments, rates and counts of each network, and the average."""

    def __init__(self, average: ExponentialMovingAverage) -> None:
        self.average = average
        self.changes: list[list[str]] = []
        self.state: dict[str, list[Tensor]] = {}
        self.step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.state = self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            return  # accumulates
        before, self.state, self.step = self.state, self.look(trainer, pl_module), trainer.global_step
        self.changes.append([name for name in before if not same(before[name], self.state[name])])

    def look(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, list[Tensor]]:
        roles = pl_module.roles() if hasattr(pl_module, "roles") else {"network": pl_module}
        state = {}
        for (name, role), optimizer, schedule in zip(roles.items(), trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            network = getattr(role, "network", role)
            tensors = [local_values(parameter) for parameter in network.parameters()]
            tensors += [value for values in getattr(optimizer, "optimizer", optimizer).state.values() for value in values.values()]
            numbers = [group["lr"] for group in optimizer.param_groups] + [schedule.scheduler.last_epoch, role.num_updates]
            state[name] = [tensor.clone() for tensor in tensors] + [torch.tensor(numbers)]
        return state | {"average": [tensor.clone() for tensor in self.average._averages]}


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@dataclass
class Outcome:
    """What a process saw.

    Attributes:
        changes: what each step changed.
        state: at the end.
        skipped: steps that the guard counted.
        steps: as the trainer counts.
        error: that ended the run.
    """

    changes: list[list[str]]
    state: dict[str, list[Tensor]]
    skipped: int
    steps: int
    error: str


def new_stage(folder: Path, *, roles: bool, accumulate: int = 1) -> pl.LightningModule:
    memory = StructuredMemory(long=1, short=1, chunk_frames=2)
    if not roles:
        return OneRole(denoiser(), memory, optimizer=FAST, **SIZES)
    settings = SIZES | {"optimizer": FAST, "fake_score_optimizer": FAST, "score_levels": UniformLevel(0.1, 0.9)}
    stage = TwoRoles(denoiser(seed=5), memory=memory, student_every=1, clip=0.5, accumulate=accumulate, **settings)
    stage.initialise_from(folder / "parent")
    return stage


def fit(
    folder: Path,
    letters: str,
    *,
    roles: bool = False,
    accumulate: int = 1,
    bad_rank: int = 0,
    callbacks: tuple[pl.Callback, ...] = (),
    **options: Any,
) -> Outcome:
    """Train on the batches that the letters name, under a guard that stops at the third skipped step in a row."""
    torch.manual_seed(0)
    stage = new_stage(folder, roles=roles, accumulate=accumulate)
    guard, average = NonFiniteGuard(), ExponentialMovingAverage(decay=0.5)
    watch = Watch(average)
    if not roles:
        options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5} | options
    run = trainer(
        max_steps=99, max_epochs=1, callbacks=[SeedOfBatch(), average, guard, watch, *callbacks], enable_checkpointing=bool(callbacks),
        limit_val_batches=0, default_root_dir=folder, **options,
    )  # fmt: skip
    data = Script.of(stage, folder=folder / "ae")
    data.letters, data.bad_rank = letters, bad_rank
    error = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run.fit(stage, datamodule=data)
        except UserError as problem:
            error = str(problem)
    return Outcome(watch.changes, watch.state, guard.num_skipped, run.global_step, error)


#: name -> strategy, roles, batches of a step; with every place where a gradient may live
TWO_PROCESSES: dict[str, tuple[Any, bool, int]] = {
    **{f"zero-{stage}": (stage, False, 2) for stage in (0, 1, 2, 3)},
    **{f"zero-{stage}, two roles": (stage, True, 1) for stage in (0, 2)},
    "zero-2": (2, False, 1),
    "zero-3, two roles": (3, True, 2),
    "ddp": ("ddp_find_unused_parameters_true", False, 2),
    "ddp, two roles": ("ddp_find_unused_parameters_true", True, 2),
}
SINGLE, DOUBLE = ".nl.g.", "..n..l.....g.."


def main() -> None:
    """Only the second process meets bad batches."""
    folder, rank = Path(sys.argv[1]), int(os.environ.get("LOCAL_RANK", "0"))
    figures: dict[str, Any] = {}
    for name, (kind, roles, accumulate) in TWO_PROCESSES.items():
        strategy = DeepSpeed(stage=kind) if isinstance(kind, int) else kind
        seen = fit(folder, SINGLE if accumulate == 1 else DOUBLE, roles=roles, accumulate=accumulate, bad_rank=1, strategy=strategy, devices=2)
        figures[name] = {"changes": seen.changes, "skipped": seen.skipped, "steps": seen.steps, "error": seen.error}
    checkpoint = CheckpointFolder(str(folder / "stopped"))
    stopped = fit(folder, ".nnn..", callbacks=(checkpoint,), bad_rank=1, strategy=DeepSpeed(stage=2), devices=2)
    figures["stopped"] = {"error": stopped.error, "steps": stopped.steps}
    (folder / f"rank-{rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

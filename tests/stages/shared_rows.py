"""One global batch of four rows, dealt out to processes and to accumulated batches, with noise and levels: every layout trains alike."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lora_run import ResumableWindows
from stage_data import random_batch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from flowact.callbacks.randomness import seed_generators
from flowact.sampling.window import gaussian
from flowact.schedulers.base import NoiseScheduler
from flowact.types import Batch

ROWS = 4
_own = slice(0, ROWS)


def share(rank: int, processes: int, part: int, parts: int) -> slice:
    """The rows of a process in one of so many accumulated batches."""
    count = ROWS // (processes * parts)
    first = (part * processes + rank) * count
    return slice(first, first + count)


class SharedWindows(ResumableWindows):
    """Six global batches, each in `accumulate` parts."""

    accumulate = 1

    def loader(self, first_seed: int) -> StatefulDataLoader:
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        frames = self.history_frames + self.window_frames
        batches = []
        for seed in range(first_seed, first_seed + self.num_batches):
            whole = random_batch(frames, batch=ROWS, seed=seed)
            for part in range(self.accumulate):
                own = share(rank, processes, part, self.accumulate)
                names = ("latents_BFCHW", "reference_BFCHW", "audio_BFAD", "text_BNLD", "text_index_BF")
                batches.append(Batch(**{name: getattr(whole, name)[own] for name in names}, keys=whole.keys[own]))
        return StatefulDataLoader(batches, batch_size=None)


class SharedDraws(pl.Callback):
    """Every process draws for all rows, the same in each of the accumulated batches, and takes its own."""

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        global _own
        _own = share(trainer.global_rank, trainer.world_size, batch_idx % self.accumulate, self.accumulate)
        seed_generators(7, 0, trainer.global_step)


class SharedLevels(NoiseScheduler):
    """Levels of another law."""

    def __init__(self, law: NoiseScheduler) -> None:
        self.law = law

    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        return self.law.sample(ROWS, num_chunks, generator)[_own] if generator is None else self.law.sample(batch, num_chunks, generator)


def _noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(ROWS, *like.shape[1:], generator=generator)[_own].to(like)


@contextmanager
def shared_noise() -> Iterator[None]:
    """Gaussian noise of stages is drawn for all rows."""
    modules: list[Any] = [module for name, module in sys.modules.items() if name.startswith("flowact.") and vars(module).get("gaussian") is gaussian]
    patches = [mock.patch.object(module, "gaussian", _noise) for module in modules]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()

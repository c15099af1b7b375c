"""How fast training runs, and what it waits for."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowact.errors import UserError
from flowact.types import TensorRecord

_GIB = 1 << 30


@dataclass(frozen=True)
class _Mark:
    """Running totals at the end of a batch."""

    seconds: float
    steps: int
    samples: int
    frames: int
    waited: float
    batches: int


class Throughput(Callback):
    """Log speed over the last batches, at the trainer's log interval, summed over processes.

    Logged are `throughput/steps_per_second`, `samples_per_second`, `latent_frames_per_second` (for batches that have latents),
    `data_wait_share` and `data_wait_seconds` (share of the time, and seconds a batch, that this process waited for its data loader) and
    `peak_memory_gib`. A data module that mixes several sets adds how far it has come in each: `data/NAME/windows`, `data/NAME/epochs`.

    Args:
        window: batches to average over.

    Attributes:
        interrupted: set by whoever does something else between two batches, such as a preview or a checkpoint: a new window begins.

    Raises:
        UserError: a window below 1.
    """

    def __init__(self, window: int = 20) -> None:
        if window < 1:
            raise UserError(f"window of Throughput is {window}; it is at least 1 batch.")
        self.window = window
        self._marks: deque[_Mark] = deque(maxlen=window + 1)
        self._samples = self._frames = 0
        self._waited = 0.0
        self._batches = 0
        self._resting_since = 0.0
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._restart(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.interrupted = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.interrupted:
            self._restart(trainer)
        self._waited += time.perf_counter() - self._resting_since

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        samples, frames = batch_size(batch)
        self._samples += samples * trainer.world_size
        self._frames += frames * trainer.world_size
        self._batches += 1
        self._resting_since = time.perf_counter()
        self._marks.append(self._mark(trainer))
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and trainer.global_step % interval == 0 and trainer.global_step != self._marks[0].steps:
            figures = self.rates() | _counters(trainer)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

    def rates(self) -> dict[str, float]:
        """The figures over the present window; empty before the first batch has ended."""
        first, last = self._marks[0], self._marks[-1]
        seconds = last.seconds - first.seconds
        if seconds <= 0:
            return {}
        figures = {
            "steps_per_second": (last.steps - first.steps) / seconds,
            "samples_per_second": (last.samples - first.samples) / seconds,
            "data_wait_share": (last.waited - first.waited) / seconds,
            "data_wait_seconds": (last.waited - first.waited) / (last.batches - first.batches),
            "peak_memory_gib": peak_memory_bytes() / _GIB,
        }
        if last.frames > first.frames:
            figures["latent_frames_per_second"] = (last.frames - first.frames) / seconds
        return {f"throughput/{name}": value for name, value in figures.items()}

    def _restart(self, trainer: Trainer) -> None:
        """Begin a new window, so that it holds training only."""
        self.interrupted = False
        self._resting_since = time.perf_counter()
        self._marks.clear()
        self._marks.append(self._mark(trainer))

    def _mark(self, trainer: Trainer) -> _Mark:
        return _Mark(self._resting_since, trainer.global_step, self._samples, self._frames, self._waited, self._batches)


def _counters(trainer: Trainer) -> dict[str, float]:
    """What the data module counts; only the first process's loggers write, so no other needs to ask."""
    counters = getattr(getattr(trainer, "datamodule", None), "counters", None)
    return counters() if counters is not None and trainer.loggers and trainer.is_global_zero else {}


def batch_size(batch: Any) -> tuple[int, int]:
    """Samples of a batch, and its latent frames over all samples (0 if it has no latents)."""
    if isinstance(batch, TensorRecord):
        latents_BFCHW = getattr(batch, "latents_BFCHW", None)
        if latents_BFCHW is not None:
            return latents_BFCHW.shape[0], latents_BFCHW.shape[0] * latents_BFCHW.shape[1]
        batch = list(vars(batch).values())
    if isinstance(batch, Tensor):
        return (batch.shape[0] if batch.ndim else 1), 0
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return next((batch_size(part) for part in batch if isinstance(part, Tensor)), (1, 0))
    return 1, 0


def peak_memory_bytes() -> int:
    """Most memory that this process ever held: on its GPU if it has one in use, else in RAM."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

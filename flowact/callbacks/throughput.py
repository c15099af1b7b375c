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

from flowact.callbacks.operations import OperationCounter, can_be_counted
from flowact.devices import device_at_hand
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

    The first steps are also counted, operation by operation: `throughput/model_tflops` is how many operations of the model (without what
    checkpoints compute again) this process's device does in a second, in units of 10^12, and `throughput/mfu` its share of the device's peak in the
    number type of training (model FLOPs utilisation, Chowdhery et al. 2022). A CPU's peak is measured when training starts; for a GPU whose peak is
    not known here there is no share. A network under torch.compile or FlexAttention cannot be counted: `flowact fit` has it planned instead.

    Args:
        window: batches to average over.
        count_steps: batches whose operations are counted, and their mean taken; 0 counts none.

    Attributes:
        interrupted: set by whoever does something else between two batches, such as a preview or a checkpoint: a new window begins.
        operations: of the model for one batch on this process; None until it is known. Whoever knows it before may set it.

    Raises:
        UserError: a window below 1 or a negative number of steps.
    """

    def __init__(self, window: int = 20, count_steps: int = 10) -> None:
        if window < 1:
            raise UserError(f"window of Throughput is {window}; it is at least 1 batch.")
        if count_steps < 0:
            raise UserError(f"count_steps of Throughput is {count_steps}; it is 0 or more.")
        self.window = window
        self.count_steps = count_steps
        self.operations: float | None = None
        self._to_count = 0
        self._counts: list[float] = []
        self._counter: OperationCounter | None = None
        self._peak: float | None = None
        self._marks: deque[_Mark] = deque(maxlen=window + 1)
        self._samples = self._frames = 0
        self._waited = 0.0
        self._batches = 0
        self._resting_since = 0.0
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.count_steps and self.operations is None and can_be_counted(pl_module):
            self._to_count = self.count_steps
        if self._to_count or self.operations is not None:
            self._peak = _peak(trainer)
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
        if self._to_count:
            self._counter = OperationCounter()
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_count()
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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end_count()

    def _end_count(self) -> None:
        if self._counter is None:
            return
        self._counter.__exit__(None, None, None)
        if not self.interrupted:  # else a preview was counted with it
            self._to_count -= 1
            self._counts.append(self._counter.model)
            self.operations = sum(self._counts) / len(self._counts)
        self._counter = None

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
        if self.operations:
            done = self.operations * (last.batches - first.batches) / seconds
            figures["model_tflops"] = done / 1e12
            if self._peak:
                figures["mfu"] = done / self._peak
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


def _peak(trainer: Trainer) -> float | None:
    """Operations a second that this process's device reaches at most in the number type of training; None if unknown."""
    device = device_at_hand(trainer.strategy.root_device)
    if device is None:
        return None
    precision = str(trainer.precision)
    if precision.startswith(("bf16", "16")):
        return device.bf16_flops
    uses_tf32 = not device.is_cpu and torch.backends.cuda.matmul.allow_tf32
    return device.bf16_flops / 2 if uses_tf32 else device.fp32_flops  # on tensor cores TF32 is half as fast as bfloat16


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

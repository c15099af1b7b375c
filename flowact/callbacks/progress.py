"""One line that says how far a fit is."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from flowact.errors import UserError

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_REFRESHES = 0.25


class StepProgress(Callback):
    """Steps, loss, speed and remaining time: a bar on a terminal, a plain line now and then elsewhere. On rank 0 only.

    It takes the place of the trainer's own bar. `trainer.enable_progress_bar: false`, which `--quiet` sets, silences it too.

    Args:
        name: what stands in front; None is the stage's name.
        every_percent: where there is no terminal, a line each time so much more is done.

    Raises:
        UserError: a percentage outside (0, 100].
    """

    def __init__(self, name: str | None = None, every_percent: float = 10.0) -> None:
        if not 0.0 < every_percent <= 100.0:
            raise UserError(f"every_percent of StepProgress is {every_percent}; it is above 0 and at most 100.")
        self.name = name
        self.every_percent = every_percent
        self._stream: TextIO | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._validation: TaskID | None = None
        self._label = ""
        self._total = 0.0
        self._started = self._shown = 0.0
        self._first_step = 0
        self._next_line = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own_bar = trainer.progress_bar_callback
        self._stream = sys.stderr if own_bar is not None and trainer.is_global_zero and stage in ("fit", "validate") else None
        self._label = self.name or getattr(pl_module, "name", None) or type(pl_module).__name__
        if own_bar is not None:
            own_bar.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stream is None:
            return
        self._total = _total_steps(trainer)
        self._first_step = trainer.global_step
        self._started = self._shown = time.monotonic()
        self._next_line = self._percent(trainer.global_step) + self.every_percent
        self._open_bar()
        if self._bar is not None:
            total = self._total if math.isfinite(self._total) else None
            self._task = self._bar.add_task(self._label, total=total, completed=self._first_step, status="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._stream is None:
            return
        step, now = trainer.global_step, time.monotonic()
        if self._bar is not None and self._task is not None:
            if now - self._shown >= _SECONDS_BETWEEN_REFRESHES or step >= self._total:
                self._shown = now
                self._bar.update(self._task, completed=step, status=self._status(step, now, outputs), refresh=True)
        elif self._percent(step) >= self._next_line or step >= self._total:
            print(f"{self._label}: {self._count(step)}, {self._status(step, now, outputs)}", file=self._stream, flush=True)
            while self._next_line <= self._percent(step):
                self._next_line += self.every_percent
            if step >= self._total:
                self._stream = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = sum(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)
        if self._stream is not None and not trainer.training and not trainer.sanity_checking:
            self._open_bar()
        if self._bar is not None:
            total = batches if math.isfinite(batches) else None
            self._validation = self._bar.add_task(f"{self._label}, validation", total=total, status="")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._bar is not None and self._validation is not None:
            self._bar.update(self._validation, advance=1, refresh=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None and self._validation is not None:
            self._bar.remove_task(self._validation)
        self._validation = None
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._close()
        elif trainer.is_global_zero and not trainer.sanity_checking and (loss := trainer.callback_metrics.get("val/loss")) is not None:
            log.info("step %d: val/loss %.4g", trainer.global_step, float(loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open_bar(self) -> None:
        """Begin a bar, where there is a terminal."""
        if self._stream is not None and self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=Console(file=self._stream), auto_refresh=False)
            self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _percent(self, step: int) -> float:
        """Share that is done; with an open end a thousand steps stand for all."""
        return 100.0 * step / (self._total if math.isfinite(self._total) else 1000)

    def _count(self, step: int) -> str:
        return f"step {step} of {int(self._total)}" if math.isfinite(self._total) else f"step {step}"

    def _status(self, step: int, now: float, outputs: Any) -> str:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        parts = [f"loss {float(loss):.4g}"] if loss is not None else []
        speed = (step - self._first_step) / max(now - self._started, 1e-9)
        if speed > 0:
            parts.append(f"{speed:.3g} steps/s")
            if math.isfinite(self._total):
                parts.append(f"{_duration((self._total - step) / speed)} left")
        return ", ".join(parts)


def _total_steps(trainer: Trainer) -> float:
    """Optimizer steps until the end, as far as known without touching the data loader."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    if trainer.max_epochs and trainer.max_epochs > 0 and math.isfinite(trainer.num_training_batches):
        return trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return math.inf


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

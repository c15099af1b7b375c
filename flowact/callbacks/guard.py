"""Keep a loss or a gradient that is not finite away from the weights."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowact.callbacks.run_record import run_folder
from flowact.errors import UserError
from flowact.strategies import skip_unless_finite, step_was_skipped

if TYPE_CHECKING:
    from flowact.stages.roles import SeveralRoles

log = logging.getLogger(__name__)


class NonFiniteGuard(Callback):
    """Skip a step whose loss or gradient is NaN or infinite on any process, and stop the run after several in a row.

    A skipped step changes no weight, moment, moving average, schedule or buffer, on all processes together; a bad batch spoils all batches that
    are accumulated with it. It counts as a training step (`trainer.global_step`) but not as an update. Stages with several roles skip the
    update of the role whose loss or gradient it is; its count and schedule stay.

    Logged is `train/skipped_steps`, so far. The samples of a skipped step, with the loss of each of their batches, become a line of
    `skipped.jsonl` in the run's log folder. The run stops in order: the last checkpoint is written before the error is raised. On a GPU the look
    at the gradient waits for the device once a step.

    Args:
        max_in_a_row: stop at so many skipped updates of a network one after the other.

    Raises:
        UserError: from fit, naming step and samples; or for a number below 1.
    """

    def __init__(self, max_in_a_row: int = 3) -> None:
        if max_in_a_row < 1:
            raise UserError(f"max_in_a_row of NonFiniteGuard is {max_in_a_row}; it is at least 1, which stops at the first step that is not finite.")
        self.max_in_a_row = max_in_a_row
        self.num_skipped = 0
        self._in_a_row: dict[str, int] = {}
        self._file = Path()
        self._step = 0
        self._batches: list[dict[str, Any]] = []  # of the step that is under way, on this process
        self._stepped: list[Any] = []  # its optimizers
        self._buffers: list[tuple[Tensor, Tensor]] = []  # and their values before it
        self._problem: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file = (run_folder(trainer) or Path(trainer.default_root_dir)) / "skipped.jsonl"  # a collective operation, so not later
        self._batches, self._stepped, self._problem = [], [], None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._batches:
            self._step = trainer.global_step
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        keys = getattr(batch, "keys", ())
        self._batches.append({"keys": list(keys) if isinstance(keys, tuple) else [], "losses": []})

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        value = loss.detach()
        self._batches[-1]["losses"].append(value)
        # a loss may be infinite and its gradient not; one look at the gradient, which all processes share, then sees either
        loss.register_hook(lambda gradient: torch.where(value.isfinite(), gradient, torch.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        skip_unless_finite(optimizer, trainer.strategy)
        self._stepped.append(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._stepped:
            return  # gradients are still being accumulated
        names = list(cast("SeveralRoles", pl_module).roles()) if hasattr(pl_module, "roles") else ["network"]
        skipped = {name: step_was_skipped(own) for name, own in zip(names, trainer.optimizers, strict=True) if own in self._stepped}
        self._in_a_row |= {name: self._in_a_row.get(name, 0) + 1 if bad else 0 for name, bad in skipped.items()}
        if any(skipped.values()):
            self.num_skipped += 1
            self._restore_buffers()
            self._report(trainer, [name for name, bad in skipped.items() if bad])
        pl_module.log("train/skipped_steps", float(self.num_skipped))
        self._batches, self._stepped = [], []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._problem is not None:
            raise UserError(self._problem)

    def state_dict(self) -> dict[str, Any]:
        return {"num_skipped": self.num_skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_skipped, self._in_a_row = state_dict["num_skipped"], dict(state_dict["in_a_row"])

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for buffer, before in self._buffers:
            buffer.copy_(before)

    def _report(self, trainer: Trainer, names: list[str]) -> None:
        """Write down what was skipped, and stop if it was once too often. Every process calls it."""
        own = [batch | {"losses": [_as_json(loss) for loss in batch["losses"]]} for batch in self._batches]
        processes: list[Any] = [own]
        if trainer.world_size > 1:
            processes = [None] * trainer.world_size
            torch.distributed.all_gather_object(processes, own)
        batches = [batch for process in processes for batch in process]
        suspects = [batch for batch in batches if any(isinstance(loss, str) for loss in batch["losses"])] or batches
        samples = ", ".join(key for batch in suspects for key in batch["keys"]) or "unknown"
        what = "loss" if suspects is not batches else "gradient"
        if trainer.is_global_zero:
            log.warning("step %d of %s is skipped: its %s is not finite; samples %s", self._step, " and ".join(names), what, samples)
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self._step, "networks": names, "processes": processes}) + "\n")
            except OSError as error:
                log.warning("%s is not written: %s", self._file, error)
        name, count = max(self._in_a_row.items(), key=lambda item: item[1])
        if count >= self.max_in_a_row:
            trainer.should_stop = True
            self._problem = (
                f"the {what} was not finite in {count} updates of the {name} in a row, the last at step {self._step} (samples {samples}). "
                f"They were skipped, so the weights are still good; {self._file} lists them all. "
                "Look at the samples, lower the learning rate, or set trainer.gradient_clip_val."
            )


def _as_json(loss: Tensor) -> float | str:
    """Numbers that JSON does not have as text."""
    value = float(loss)
    return value if math.isfinite(value) else str(value)

"""Stop before a loss that is not finite reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowact.errors import UserError


class NonFiniteGuard(Callback):
    """Stop training at a loss that is NaN or infinite, before its gradients exist.

    The weights are then those of the last good step, which `CheckpointFolder` still writes when a single process trains. On a
    GPU each look at the loss waits for the device.

    Args:
        every_n_batches: look at every n-th batch.

    Raises:
        UserError: from fit, naming step and samples; or for a number below 1.
    """

    def __init__(self, every_n_batches: int = 1) -> None:
        if every_n_batches < 1:
            raise UserError(f"every_n_batches of NonFiniteGuard is {every_n_batches}; it is at least 1.")
        self.every_n_batches = every_n_batches
        self._keys: tuple[str, ...] = ()
        self._looks = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        keys = getattr(batch, "keys", ())
        self._keys = keys if isinstance(keys, tuple) else ()
        self._looks = batch_idx % self.every_n_batches == 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._looks and not bool(torch.isfinite(loss.detach()).all()):
            samples = f"; samples {', '.join(self._keys)}" if self._keys else ""
            raise UserError(
                f"the loss is {float(loss.detach())} at step {trainer.global_step} (process {trainer.global_rank}{samples}). "
                "The weights are still good. Look at these samples, lower the learning rate, or set trainer.gradient_clip_val."
            )

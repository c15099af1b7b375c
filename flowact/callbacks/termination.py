"""SIGTERM in a run of several processes."""

from __future__ import annotations

from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class AgreedTermination(Callback):
    """After SIGTERM reached any process, all of them end after the same batch, so that they can write a checkpoint together.

    Lightning's own handler communicates wherever a process happens to be, and each process then ends by itself: where the signal comes to all at
    once, as from SLURM and torchrun, collective operations no longer match and the run hangs until it is killed. Here the handler takes a note,
    and after each batch the processes ask each other. One process alone ends Lightning's way. `flowact fit` adds this to every run.
    """

    def __init__(self) -> None:
        self._asked = False
        self._trainer: Trainer | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked, self._trainer = False, trainer
        if trainer.world_size > 1:
            trainer._signal_connector._sigterm_notifier_fn = self._note  # type: ignore[assignment, method-assign]  # registered after this hook

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._agree(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.training or trainer.validating or trainer.sanity_checking:
            self._agree(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        launcher = self._trainer.strategy.launcher
        if not self._asked and launcher is not None:
            launcher.kill(number)  # the processes that this one started
        self._asked = True

    def _agree(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            trainer._signal_connector.received_sigterm = True  # Lightning looks at it after each batch

"""Checkpoint folders at intervals, at the end, and when training is interrupted; and what makes resuming from them exact."""

from __future__ import annotations

import copy
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowact.callbacks.ema import moving_average
from flowact.callbacks.randomness import seed_generators
from flowact.callbacks.run_page import run_pages
from flowact.checkpoints import SCHEMA, check_replaceable, check_writable, remove_unfinished, write_checkpoint
from flowact.errors import UserError
from flowact.provenance import gather

if TYPE_CHECKING:
    from flowact.stages.base import Stage

log = logging.getLogger(__name__)

_LOADERS = "flowact_loaders"
_EPOCHS = 1 << 30  # stream of the seeds of epochs, apart from those of processes


class CheckpointFolder(Checkpoint):
    """Write the run's checkpoint folder (see `flowact.checkpoints`).

    Resuming from a folder, `trainer.fit(ckpt_path=checkpoint.engine)`, continues the run bit for bit with as many processes as
    before: the engine holds weights, optimizer and schedule, the position of every process's data loader (if the loader has a
    `state_dict`, such as torchdata's StatefulDataLoader) and the run's seed. Python's, NumPy's and torch's generators are set
    before every batch from the seed, the batch's number and the process, so they need no place in the checkpoint, and previews,
    validation or an interruption do not change what training draws.

    An interruption (SIGTERM, Ctrl-C, an exception) writes a checkpoint of the last finished step where it can: not in the middle
    of an optimizer step, and with several processes only on SIGTERM, which they all agree on.

    Args:
        dirpath: the checkpoint folder. It always holds the newest checkpoint.
        every_n_steps: optimizer steps between checkpoints. None: only at the end and on interruption.
        keep_last: how many checkpoints to keep; older ones stand beside the newest as `DIRPATH@STEP`.

    Raises:
        UserError: an interval or number below 1, a folder that holds something else, or weights that are not finite.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None, keep_last: int = 1) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps of CheckpointFolder is {every_n_steps}; it is at least 1, or null for the end of training only.")
        if keep_last < 1:
            raise UserError(f"keep_last of CheckpointFolder is {keep_last}; it is at least 1.")
        self.dirpath = dirpath
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self._seed: int | None = None
        self._epoch: int | None = None  # of the run that is resumed
        self._position: dict[str, Any] | None = None  # of the fit loop after the last finished batch
        self._in_optimizer_step = False
        self._saved_step: int | None = None
        self._provenance: dict[str, Any] = {}  # of the first process: the code is what it was when the run started

    @property
    def folder(self) -> Path:
        return Path(self.dirpath)

    # --- when -----------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def prepare() -> None:
            lineage = cast("Stage", pl_module).lineage()
            check_replaceable(self.folder, str(lineage["stage"]))
            self._check_base(lineage.get("base"))
            remove_unfinished(self.folder)
            self._provenance = gather(cast("Stage", pl_module).recipe)

        _agree(trainer, prepare)
        if self._seed is None:
            seed = os.environ.get("PL_GLOBAL_SEED")
            self._seed = trainer.strategy.broadcast(int(seed) if seed else secrets.randbits(32))
        if self._epoch is not None:  # the data loader's first iterator is made before any other hook
            seed_generators(self._seed, _EPOCHS + trainer.global_rank, self._epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step  # a run that is resumed at its end writes nothing new
        if self._epoch is not None and trainer.is_global_zero:
            log.info("resumed at step %d from %s", trainer.global_step, Path(str(trainer.ckpt_path)).parent)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._seed is not None
        seed_generators(self._seed, _EPOCHS + trainer.global_rank, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._seed is not None
        seed_generators(self._seed, trainer.global_rank, trainer.fit_loop.total_batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        self._in_optimizer_step = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._in_optimizer_step = False
        self._position = trainer.fit_loop.state_dict()
        step = trainer.global_step
        if step == self._saved_step:
            return
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        at_end = step == trainer.max_steps or (trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs)
        if at_end:
            self._save(trainer, pl_module)
        elif due:
            try:
                self._save(trainer, pl_module)
            except OSError as error:
                log.warning("no checkpoint at step %d, training goes on: %s", step, error)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._position is not None and trainer.global_step != self._saved_step:  # stopped early by another callback
            self._save(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self._position is None or trainer.global_step == self._saved_step:
            return
        reason = None
        if self._in_optimizer_step:
            reason = "it came in the middle of an optimizer step"
        elif trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            reason = "the other processes cannot take part"
        if reason is None:
            try:
                self._save(trainer, pl_module)
            except Exception as error:  # the first exception is the one to report
                reason = str(error)
        if reason is not None:
            log.warning("interrupted at step %d and no checkpoint written: %s", trainer.global_step, reason)

    # --- what -----------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._position is None:
            return
        position = copy.deepcopy(self._position)
        loaders = position["state_dict"].pop("combined_loader", None)
        checkpoint["loops"]["fit_loop"] = position
        checkpoint[_LOADERS] = _gather(trainer, loaders)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loaders = checkpoint.get(_LOADERS)
        if loaders is None:
            return
        if len(loaders) != trainer.world_size:
            raise UserError(f"the run was saved by {len(loaders)} processes and resumes only with as many, now there are {trainer.world_size}.")
        own = loaders[trainer.global_rank]
        if own is not None:
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = own

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "epoch": self._next_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seed = state_dict["seed"]
        self._epoch = state_dict["epoch"]

    @property
    def _next_epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        if self._position is None:
            return 0
        progress, batches = self._position["epoch_progress"]["current"], self._position["epoch_loop.batch_progress"]
        return progress["processed"] + int(batches["is_last_batch"])

    def _check_base(self, base: Mapping[str, Any] | None) -> None:
        """Keep a run from replacing, and in the end removing, the checkpoint that its own cannot be read without."""
        own = self.folder.resolve()
        if base is not None and Path(base["path"]).parent == own.parent and Path(base["path"]).name.partition("@")[0] == own.name:
            raise UserError(f"checkpoints in {self.folder} would replace {base['path']}, whose weights they need. Choose another dirpath.")

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder. Every process calls it; the first one writes."""
        stage, average = cast("Stage", pl_module), moving_average(trainer)
        weights = stage.checkpoint_weights()
        ema = average.averages() if average is not None else {}
        lineage = {**stage.lineage(), "step": trainer.global_step}
        lineage = {"schema": SCHEMA, **lineage, **self._provenance, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        _agree(trainer, lambda: check_writable(self.folder, str(lineage["stage"]), weights, ema))

        def write() -> None:
            write_checkpoint(
                self.folder,
                weights=weights,
                ema=ema,
                recipe=stage.recipe,
                lineage=lineage,
                autoencoder_folder=stage.autoencoder_folder,
                engine_saver=trainer.save_checkpoint,
                weights_name=stage.weights_name,
                documents=stage.documents(),
                keep=self.keep_last,
            )

        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.folder)  # takes part; strategies that write on every process follow the first one's path
        _agree(trainer, write)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            log.info("step %d: checkpoint in %s", trainer.global_step, self.folder)
            for page in run_pages(trainer):
                page.checkpoint_written(trainer, self.folder)


def _agree(trainer: Trainer, action: Callable[[], None]) -> None:
    """Run `action` on the process with rank 0 and raise its error on all of them, so that none waits for the others."""
    problem: Exception | None = None
    if trainer.is_global_zero:
        try:
            action()
        except (UserError, OSError) as error:
            problem = error
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise problem


def _gather(trainer: Trainer, value: Any) -> list[Any]:
    if trainer.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


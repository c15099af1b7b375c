"""The run folder says what ran: the resolved recipe, versions, git state and command line of every launch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from flowact.provenance import record_launch
from flowact.stages.base import Stage

log = logging.getLogger(__name__)


def run_folder(trainer: Trainer) -> Path | None:
    """Folder of a run's logs: its first logger's own one, else the trainer's `default_root_dir`.

    Every process has to call it. None without a logger in the working folder, where files of several runs would lie among the user's own.
    """
    logger = trainer.logger
    if logger is None:
        root = Path(trainer.default_root_dir)
        return None if root.resolve() == Path.cwd() else root
    own = getattr(logger, "log_dir", None)
    if own is None:  # such as Weights & Biases: laid out as Lightning lays out its checkpoints
        own = os.path.join(logger.save_dir or trainer.default_root_dir, *(str(part) for part in (logger.name, logger.version) if part is not None))
    return Path(trainer.strategy.broadcast(own))


class RunRecord(Callback):
    """Write `recipe.yaml` and `provenance.json` into the run folder when training starts (see `flowact.provenance`).

    `flowact fit` adds it to every run. A disk that refuses is a warning: training goes on.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write, on the first process."""
        if stage != "fit":
            return
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        try:
            record_launch(folder, cast(Stage, pl_module).recipe)
        except OSError as error:
            log.warning("recipe and versions cannot be written to %s: %s", folder, error)

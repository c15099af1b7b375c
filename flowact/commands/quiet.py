"""Library messages that a user of FlowAct can do nothing about are not shown."""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    r".*does not have many workers.*",
    r".*is deprecated.*",
    r".*Consider setting `persistent_workers.*",
    r".*GPU available but not used.*",
    r".*pkg_resources.*",
    r".*It is recommended to use `self.log.*loss_sigma.*",
    r".*isinstance\(treespec, LeafSpec\).*",
)
MESSAGES = (
    "Tip:",
    "litlogger",
    "litmodels",
    "PU available",
    "Setting accelerator to CPU",
    "`weights_only` was not set",
    "initializing deepspeed",
    "`Trainer.fit` stopped",
)
LOGGERS = (
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.strategies.deepspeed",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.rank_zero",
)


def silence_libraries() -> None:
    """Hide advertisements, deprecations and progress notes of Lightning, DeepSpeed and torch; their warnings about the run stay."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_tells_of_the_run)
    for name in ("DeepSpeed", "torch.distributed", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_warns)  # a filter, since DeepSpeed sets its level when it is imported


def _tells_of_the_run(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(words in message for words in MESSAGES)


def _warns(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and _tells_of_the_run(record)

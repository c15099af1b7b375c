"""What is printed of a run: its events and warnings, one line each; library messages that a user can do nothing about are not shown."""

from __future__ import annotations

import logging
import sys
import warnings

WARNINGS = (
    r".*does not have many workers.*",
    r".*is deprecated.*",
    r".*Consider setting `persistent_workers.*",
    r".*GPU available but not used.*",
    r".*pkg_resources.*",
    r".*It is recommended to use `self.log.*sync_dist=True.*",
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
    "was configured so",
    "Restored all states from the checkpoint",
    "Restoring states from the checkpoint",
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
    print_events(quiet=True)


def print_events(quiet: bool = False) -> None:
    """Let FlowAct's own loggers print a line to stderr for each event and warning.

    Args:
        quiet: warnings only.
    """
    logger = logging.getLogger("flowact")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())


class _Lines(logging.Handler):
    """Lines in the program's voice, on whatever stderr is at the moment: above a progress bar while there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(f"flowact: {kind}{' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)


def _tells_of_the_run(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(words in message for words in MESSAGES)


def _warns(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and _tells_of_the_run(record)

from __future__ import annotations

import logging
import warnings

import pytest

from flowact.commands.quiet import print_events, silence_libraries


@pytest.fixture(autouse=True)
def restored():
    loggers = [logging.getLogger(name) for name in ("DeepSpeed", "lightning.pytorch.utilities.rank_zero", "flowact")]
    before = [(list(logger.filters), list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (filters, handlers, level) in zip(loggers, before, strict=True):
        logger.filters, logger.handlers, logger.level = filters, handlers, level


def test_noise_goes_and_warnings_about_the_run_stay(caplog):
    silence_libraries()
    for name in ("DeepSpeed", "lightning.pytorch.utilities.rank_zero"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(caplog.handler)
        logger.info("Tip: try our product")
        logger.warning("Setting accelerator to CPU")
        logger.warning("the loss is not finite")
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records].count("the loss is not finite") >= 2
    assert not any("Tip" in record.getMessage() or "accelerator" in record.getMessage() for record in caplog.records)


def test_deprecations_go_and_other_warnings_stay():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_libraries()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn("the dataloader does not have many workers which may be slow", UserWarning, stacklevel=1)
        warnings.warn("the loss is not finite", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["the loss is not finite"]


@pytest.mark.parametrize(("quiet", "events"), [(False, ["flowact: step 4: checkpoint in runs"]), (True, [])])
def test_events_and_warnings_are_a_line_each(capsys, quiet, events):
    for _ in range(2):  # a second command in one process prints nothing twice
        silence_libraries()
        print_events(quiet)
    logger = logging.getLogger("flowact.callbacks.checkpoint")
    logger.info("step %d: checkpoint in %s", 4, "runs")
    logger.warning("two\n  lines")
    assert capsys.readouterr().err.splitlines() == [*events, "flowact: warning: two lines"]
    print_events(quiet=True)

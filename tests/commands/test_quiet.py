from __future__ import annotations

import logging
import warnings

import pytest

from flowact.commands.quiet import silence_libraries


@pytest.fixture(autouse=True)
def restored():
    loggers = [logging.getLogger(name) for name in ("DeepSpeed", "lightning.pytorch.utilities.rank_zero")]
    before = [list(logger.filters) for logger in loggers]
    yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters = filters


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

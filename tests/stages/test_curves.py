"""What stages log while they train is true, whatever the strategy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fit_curves import CLIP, STEPS, Logged, fit

from flowact.strategies.deepspeed import DeepSpeed


@pytest.fixture(scope="module")
def alone() -> Logged:
    return fit()


@pytest.fixture(scope="module")
def two(tmp_path_factory, run_script) -> list[dict]:
    """What each of two processes logged, by strategy."""
    folder = tmp_path_factory.mktemp("curves")
    script = Path(__file__).with_name("fit_curves.py")
    run_script(script, folder, timeout=250)
    return [json.loads((folder / f"curves-{rank}.json").read_text()) for rank in (0, 1)]


def test_the_norm_is_that_of_the_gradient_before_it_is_clipped(alone):
    assert [step["train/grad_norm"] for step in alone.steps] == pytest.approx(alone.norms, rel=1e-5)
    assert min(alone.norms) > 2 * CLIP


@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_with_an_engine_logs_the_same(stage, alone):
    steps = fit(DeepSpeed(stage=stage)).steps
    for found, expected in zip(steps, alone.steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("strategy", ["zero-2", "zero-3", "ddp"])
def test_two_processes_log_what_one_does(strategy, alone, two):
    for rank in (0, 1):
        for found, expected in zip(two[rank][strategy]["steps"], alone.steps, strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert two[rank][strategy]["held_out"] == pytest.approx(alone.held_out, rel=1e-3)


def test_every_level_is_held_out(alone):
    bins = {f"val/loss_sigma_{low}" for low in ("0.00", "0.25", "0.50", "0.75")}
    assert alone.held_out.keys() == {"val/loss", *bins, "val/saturation", "val/beyond_range", "val/motion"}


def test_rates_and_updates_are_those_of_the_step(alone):
    assert [step["train/lr"] for step in alone.steps] == pytest.approx([0.5e-2, 1e-2], rel=1e-4)
    assert [step["train/updates"] for step in alone.steps] == list(range(1, STEPS + 1))
    assert [step["ema/decay"] for step in alone.steps] == pytest.approx([0.1, 2 / 11])
    assert alone.steps[0]["ema/distance"] > 0

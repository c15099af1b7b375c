"""A step whose loss or gradient is not finite changes nothing, wherever gradients live and whichever process met it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fit_bad_steps import DOUBLE, SINGLE, TWO_PROCESSES, fit, same
from stage_data import denoiser, write_parent

from flowact.checkpoints import open_checkpoint
from flowact.strategies.deepspeed import DeepSpeed

pytestmark = pytest.mark.timeout(900)  # two processes may share their cores with others

ONE, STUDENT, SCORE, AVERAGE = "network", "student", "fake_score", "average"
#: what each step of `SINGLE`, and of `DOUBLE`, changes: a bad loss or gradient of the student leaves the fake score its update
EXPECTED = {
    (False, 1): [[ONE, AVERAGE], [], [], [ONE, AVERAGE], [], [ONE, AVERAGE]],
    (False, 2): [[ONE, AVERAGE], [], [], [ONE, AVERAGE], [ONE, AVERAGE], [], [ONE, AVERAGE]],
    (True, 1): [[STUDENT, SCORE, AVERAGE], [], [SCORE], [STUDENT, SCORE, AVERAGE], [SCORE], [STUDENT, SCORE, AVERAGE]],
    (True, 2): [[STUDENT, SCORE, AVERAGE], [], [SCORE], *[[STUDENT, SCORE, AVERAGE]] * 2, [SCORE], [STUDENT, SCORE, AVERAGE]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_parent(folder / "parent", denoiser(seed=1))
    return folder


@pytest.fixture(scope="module")
def ranks(folder, run_script) -> list[dict]:
    """What two processes saw, of which only the second met bad batches."""
    script = Path(__file__).with_name("fit_bad_steps.py")
    run_script(script, folder, timeout=600)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_a_bad_batch_of_one_process_moves_nobody(name, ranks):
    _, roles, accumulate = TWO_PROCESSES[name]
    expected = EXPECTED[roles, accumulate]
    for rank in ranks:
        assert rank[name] == {"changes": expected, "skipped": 3, "steps": len(expected), "error": ""}


def test_all_processes_stop_together_and_keep_the_last_good_step(ranks, folder):
    for rank in ranks:
        assert rank["stopped"]["steps"] == 4
        assert "the loss was not finite in 3 updates of the network in a row, the last at step 3 (samples n1@1)" in rank["stopped"]["error"]
    assert open_checkpoint(folder / "stopped").step == 4
    last = json.loads((folder / "skipped.jsonl").read_text().splitlines()[-1])
    own, other = last["processes"]
    assert last["step"] == 3
    assert (own[0]["keys"], other) == ([".1@0"], [{"keys": ["n1@1"], "losses": ["nan"]}])
    assert isinstance(own[0]["losses"][0], float)


@pytest.mark.parametrize(("roles", "accumulate"), EXPECTED)
def test_one_process(roles, accumulate, folder):
    seen = fit(folder, SINGLE if accumulate == 1 else DOUBLE, roles=roles, accumulate=accumulate)
    assert seen.changes == EXPECTED[roles, accumulate]
    assert (seen.skipped, seen.steps) == (3, len(seen.changes))


@pytest.mark.parametrize(("precision", "zero"), [("bf16-true", 2), ("bf16-mixed", 2), ("32-true", 3)])
def test_one_process_with_an_engine(precision, zero, folder):
    seen = fit(folder, SINGLE, strategy=DeepSpeed(stage=zero), precision=precision)
    assert seen.changes == EXPECTED[False, 1]


def test_offloaded_optimizers_skip_too(folder):
    assert fit(folder, SINGLE, strategy=DeepSpeed(stage=2, offload_optimizer=True)).changes == EXPECTED[False, 1]


@pytest.mark.parametrize("roles", [False, True])
def test_a_run_with_bad_batches_ends_where_the_run_without_them_ends(roles, folder):
    clean, met = fit(folder, "...", roles=roles), fit(folder, ".n.nn.", roles=roles)
    assert (clean.steps, met.steps, met.skipped) == (3, 6, 3)
    assert clean.state.keys() == met.state.keys()
    assert all(same(tensors, met.state[name]) for name, tensors in clean.state.items())

"""Every strategy trains as one process does, and every stage goes on as if it had never stopped. Stages with several roles: test_roles.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fit_agreeing import LONG, RESUMED, STEPS, STRATEGIES, fit
from fit_roles import new_stage
from lora_run import new_stage as new_lora
from safetensors.torch import load_file
from stage_data import WindowData, denoiser, trainer, write_parent

from flowact.checkpoints import open_checkpoint
from flowact.errors import UserError
from flowact.strategies.fully_sharded import FullySharded

pytestmark = pytest.mark.timeout(900)  # two processes may share their cores with others


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_script) -> Path:
    """With the results of two processes."""
    folder = tmp_path_factory.mktemp("agree")
    write_parent(folder / "parent", denoiser(seed=1))
    script = Path(__file__).with_name("fit_agreeing.py")
    run_script(script, folder, timeout=600)
    return folder


@pytest.fixture(scope="module")
def figures(folder) -> dict:
    return json.loads((folder / "figures.json").read_text())


@pytest.fixture(scope="module")
def alone(folder) -> list[float]:
    return fit(folder).losses


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_of_twenty_steps_are_those_of_one_process(strategy, figures, alone):
    assert len(alone) == LONG
    assert figures[strategy] == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert alone[-1] != alone[0]


def test_a_partitioned_teacher_teaches_what_a_whole_one_teaches(figures, folder):
    whole, partitioned = figures["whole"], figures["partitioned"]
    assert len(whole["losses"]) == STEPS
    assert partitioned["losses"] == pytest.approx(whole["losses"], rel=1e-6, abs=1e-6)
    assert partitioned["size"] < whole["size"], "outside of an evaluation a process has only what is too small to share"


@pytest.mark.parametrize("run", RESUMED)
def test_a_resumed_run_is_the_whole_run(run, folder):
    whole, parts = (open_checkpoint(folder / f"{run}-{kind}") for kind in ("whole", "parts"))
    assert (whole.step, parts.step) == (STEPS, STEPS)
    for ema in (False, True):
        expected, found = whole.weights(ema=ema), parts.weights(ema=ema)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    averaged = load_file(folder / f"{run}-whole" / "ema.safetensors")
    assert any(not torch.equal(value, whole.weights(ema=False)[name]) for name, value in averaged.items())


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda parent: new_stage(), {}, "trains several networks, which FullySharded"),
        (lambda parent: new_lora(parent), {}, "beside frozen weights"),
        (lambda parent: new_lora(parent, adapter=None), {"precision": "bf16-true"}, "32-true or bf16-mixed"),
    ],
    ids=["roles", "lora", "bf16"],
)
def test_what_fully_sharded_cannot_train_is_refused(make, options, words, tmp_path):
    parent = write_parent(tmp_path / "parent", denoiser(seed=1))
    stage = make(parent)
    stage.initialise_from(parent)
    with pytest.raises(UserError, match=words):
        trainer(strategy=FullySharded(), **options).fit(stage, datamodule=WindowData.of(stage, folder=tmp_path / "ae"))

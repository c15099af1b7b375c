"""Guidance and consistency distillation train from `init_from` to a checkpoint, with two processes too, and resume bit-identically."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from fit_teacher_distillations import STEPS, STOP, fit, new_stage, whole_and_resumed
from stage_data import WindowData, denoiser, trainer, write_parent

from flowact.checkpoints import open_checkpoint
from flowact.errors import UserError
from flowact.strategies.deepspeed import DeepSpeed

NAMES = ("cfg_distillation", "consistency_distillation")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, run_script) -> list[dict]:
    """What two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    write_parent(folder / "parent", denoiser(seed=1))
    script = Path(__file__).with_name("fit_teacher_distillations.py")
    run_script(script, folder, timeout=240)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_and_resume_bit_identically(name, ranks):
    for rank in ranks:
        found = rank[name]
        assert len(found["whole"]) == STEPS
        assert found["resumed"] == found["whole"][STOP:]
        assert found["same"]
    assert ranks[0][name]["num_weights"]
    assert ranks[0][name]["whole"] != ranks[1][name]["whole"], "each process has windows of its own"


@pytest.mark.parametrize(("name", "zero"), [(NAMES[0], None), (NAMES[1], None), (NAMES[1], 3)])
def test_one_process_resumes_too(name, zero, tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    found = whole_and_resumed(tmp_path, name, zero=zero)
    assert found["resumed"] == found["whole"][STOP:]
    assert found["same"]


@pytest.mark.parametrize(("strategy", "precision"), [("auto", "bf16-mixed"), ("deepspeed", "bf16-mixed"), ("deepspeed", "bf16-true")])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_trains_and_validates(name, strategy, precision, tmp_path):
    stage = new_stage(name)
    stage.initialise_from(write_parent(tmp_path / "parent", denoiser(seed=1)))
    run = trainer(precision=precision, strategy=DeepSpeed(stage=2) if strategy == "deepspeed" else strategy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=WindowData.of(stage, folder=tmp_path / "ae"))
    assert run.global_step == 2
    assert {"train/loss", "val/loss"} <= run.callback_metrics.keys()
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())


def test_the_lineage_tells_a_stream_how_to_ask(tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    for name in NAMES:
        fit(tmp_path, name, name, 1)
    guided, consistent = (open_checkpoint(tmp_path / name).lineage for name in NAMES)
    assert guided["guidance_ranges"] == {"text": [1.0, 4.0], "audio": [1.0, 4.0]}
    assert guided["solver"] == "euler"
    assert consistent["solver"] == "renoise"
    assert "guidance_ranges" not in consistent


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_takes_scales_is_no_parent(name, tmp_path):
    parent = write_parent(tmp_path / "parent", denoiser(seed=1, guidance_embedding=True), guidance_ranges={"text": [1, 4], "audio": [1, 4]})
    with pytest.raises(UserError, match="takes guidance scales as inputs"):
        new_stage(name).initialise_from(parent)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_without_a_parent_says_so(name):
    stage = new_stage(name)
    with pytest.raises(UserError, match="needs the checkpoint of an earlier stage: set init_from"):
        trainer(max_steps=4).fit(stage, datamodule=WindowData.of(stage))

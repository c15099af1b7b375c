"""Distribution matching on clips of several windows, with an adversarial head, from `init_from` to a checkpoint that is resumed and streamed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fit_clips import ROLLING, SELF_FORCING, STEPS, STOP, clip_stage, data_of, fit, fit_in_parts, whole_and_resumed
from lora_run import ResumableWindows, lora
from stage_data import denoiser, trainer, write_parent

from flowact.checkpoints import open_checkpoint
from flowact.errors import UserError
from flowact.stages.adversarial import Adversarial

OFF = Adversarial()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_script) -> Path:
    """With the results of two processes."""
    folder = tmp_path_factory.mktemp("clips")
    write_parent(folder / "parent", denoiser(seed=1))
    script = Path(__file__).with_name("fit_clips.py")
    run_script(script, folder, timeout=400)
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict:
    return json.loads((folder / "clips.json").read_text())


@pytest.mark.parametrize(("name", "geometry"), [("self_forcing", SELF_FORCING), ("rolling", ROLLING)])
def test_two_processes_train_clips_and_head_as_one_does(name, geometry, figures, folder):
    """Self-Forcing under ZeRO 2, rolling windows under ZeRO 3."""
    alone = fit(folder, geometry)
    assert len(alone) == len(figures[name]) == STEPS
    for step, expected in enumerate(alone):
        found = figures[name][step]
        assert {"train/critic_loss", "train/fake_score_loss"} <= found.keys()
        assert ("train/student_loss" in found) == ("train/generator_loss" in found) == (step > 0)
        for key in found:
            assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-5), f"{key} at step {step}"


def test_two_processes_resume_the_head_too(figures):
    assert figures["resumed"] == figures["whole"][STOP:]
    assert figures["same weights"]
    assert figures["heads"]


def test_one_process_resumes_the_head_too(tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    found = whole_and_resumed(tmp_path, dict)
    assert found["resumed"] == found["whole"][STOP:]
    assert found["same weights"]
    assert found["heads"]


def test_a_checkpoint_says_how_it_is_streamed(tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    fit_in_parts(tmp_path, "run", 2)
    checkpoint = open_checkpoint(tmp_path / "run")
    wanted = {"stream_chunks": 1, "micro_steps": 3, "solver": "renoise", "memory": "StructuredMemory", "num_chunks": 1}
    assert wanted.items() <= checkpoint.lineage.items()
    assert checkpoint.weights().keys() == denoiser().state_dict().keys(), "the student alone"


@pytest.mark.parametrize(("sees", "words"), [("memory", "never saw StructuredMemory"), ("reference", None)])
def test_a_base_model_judges_what_it_was_trained_to_see(sees, words, tmp_path):
    write_parent(tmp_path / "student", denoiser(seed=1), stage="diffusion_forcing", memory="StructuredMemory", stream_chunks=2)
    write_parent(tmp_path / "base", denoiser(seed=2), memory="NoMemory")
    stage = clip_stage(scores=str(tmp_path / "base"), scores_see=sees, adversarial=OFF, **ROLLING)
    stage.initialise_from(tmp_path / "student")
    run = trainer(max_steps=2)
    if words:
        with pytest.raises(UserError, match=words):
            run.fit(stage, datamodule=data_of(stage, tmp_path, ResumableWindows))
        return
    run.fit(stage, datamodule=data_of(stage, tmp_path, ResumableWindows))
    assert {"val/loss", "train/student_loss"} <= run.callback_metrics.keys()


def test_an_adapter_trains_student_and_fake_score_but_no_head(tmp_path):
    with pytest.raises(ValueError, match="adversarial trains a head"):
        clip_stage(adapter=lora())

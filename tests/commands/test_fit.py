from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowact import cli
from flowact.checkpoints import write_checkpoint
from flowact.commands import fit as fit_command
from flowact.commands.build import Run, build, engine_of
from flowact.errors import UserError
from flowact.recipe import load_recipe

NO_EARLY = "trainer.callbacks.early=null"


@pytest.fixture
def fit(toy, tmp_path):
    """Run `flowact fit` on the toy; returns the exit code and what the callback saw."""

    def run(*argv: str) -> tuple[int, str]:
        witness = tmp_path / "witness.txt"
        witness.unlink(missing_ok=True)
        code = cli.main(
            ["fit", "--config", str(toy / "toy.yaml"), "--quiet", NO_EARLY, f"trainer.callbacks.progress.init_args.path={witness}", *argv]
        )
        return code, witness.read_text().strip() if witness.exists() else ""

    return run


def test_fit_trains_and_the_stage_knows_its_recipe(fit):
    assert fit("vars.width=5", "trainer.max_steps=3") == (0, "3 5 5")


def test_fit_takes_weights_of_another_stage(fit, capsys):
    assert fit("init_from=some/folder")[0] == 0
    assert "initialised from some/folder" in capsys.readouterr().out


def test_fit_refuses_before_it_builds(fit, capsys):
    code, seen = fit("model.init_args.widht=5")
    assert (code, seen) == (2, "")
    assert "Did you mean width?" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["model.init_args.memory={class_path: OtherBank, init_args: {width: -1}}"])
def test_a_constructor_that_refuses_is_one_line(fit, capsys, override):
    assert fit(override)[0] == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(
        "model.init_args.memory.init_args.width (command line): OtherBank: width -1.0 is not positive"
    )


@pytest.mark.parametrize(("precision", "native", "warned"), [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)])
def test_bfloat16_on_a_cpu_that_does_not_compute_it_is_warned_of(toy, monkeypatch, capsys, precision, native, warned):
    monkeypatch.setattr("flowact.commands.build.computes_bfloat16", lambda: native)
    build(load_recipe(toy / "toy.yaml", [f"trainer.precision={precision}", "trainer.accelerator=cpu"]))
    assert ("does not compute bfloat16" in capsys.readouterr().err) == warned


def test_builds_are_reproducible_by_seed(toy):
    def first_weight(*overrides: str) -> float:
        return build(load_recipe(toy / "toy.yaml", [NO_EARLY, *overrides]), quiet=True).stage.linear.weight[0, 0].item()

    assert first_weight() == first_weight()
    assert first_weight() != first_weight("seed=8")


def test_callbacks_are_built_from_their_names(toy):
    run = build(load_recipe(toy / "toy.yaml", ["trainer.callbacks.early.init_args.patience=5"]), quiet=True)
    named = {type(callback).__name__: callback for callback in run.trainer.callbacks}
    assert named["EarlyStopping"].patience == 5
    assert named["ToyWitness"].every == 3
    assert "SaveConfigCallback" not in named


def test_no_value_is_read_as_a_file(toy, tmp_path):
    (tmp_path / "bank.yaml").write_text("class_path: flowact_plugin_toy.OtherBank")
    for override in (f"model.init_args.memory.init_args.inner={tmp_path}/bank.yaml", f"trainer.logger={tmp_path}/bank.yaml"):
        with pytest.raises(UserError):
            build(load_recipe(toy / "toy.yaml", [override]), quiet=True)


@pytest.fixture
def checkpoint(toy, tmp_path):
    """Write a checkpoint of the toy recipe."""

    def write(name: str = "run", engine: Callable[[Path], object] | None = Path.touch) -> Path:
        recipe = load_recipe(toy / "toy.yaml").config
        weights = {"w": torch.zeros(1)}
        return write_checkpoint(
            tmp_path / name,
            weights=weights,
            ema=None,
            recipe=recipe,
            lineage={"stage": "toy", "step": 2, "ancestors": [{"stage": "first"}]},
            autoencoder_folder=None,
            engine_saver=engine,
        )

    return write


def test_resume_wants_the_same_data_model_and_seed(toy, checkpoint):
    folder = checkpoint()
    assert engine_of(folder, load_recipe(toy / "toy.yaml", ["trainer.max_steps=9"])) == folder / "engine"
    changed = load_recipe(toy / "toy.yaml", ["seed=8", "data.init_args.batch_size=4"])
    with pytest.raises(UserError, match=r"(?s)another recipe:\n  seed: 7 -> 8\n  data.init_args.batch_size: 2 -> 4\n.*--allow-changes"):
        engine_of(folder, changed)
    assert engine_of(folder, changed, allow_changes=True) == folder / "engine"


def test_resume_refuses_what_training_cannot_continue_from(toy, checkpoint, tmp_path):
    recipe = load_recipe(toy / "toy.yaml")
    with pytest.raises(UserError, match="no trainer state; start a new run"):
        engine_of(checkpoint("weights", engine=None), recipe)
    with pytest.raises(UserError, match="no checkpoint in"):
        engine_of(tmp_path / "gone", recipe)
    damaged = checkpoint("damaged")
    (damaged / "engine").write_text("x")
    with pytest.raises(UserError, match="damaged"):
        engine_of(damaged, recipe)


def test_fit_continues_a_run(fit, checkpoint, toy, tmp_path):
    def save(path: Path) -> None:
        run = build(load_recipe(toy / "toy.yaml", [NO_EARLY, "trainer.callbacks.progress=null"]), quiet=True)
        run.trainer.fit(run.stage, datamodule=run.data)
        run.trainer.save_checkpoint(path)

    folder = checkpoint(engine=save)
    assert fit("--resume", str(folder), "trainer.max_steps=5") == (0, "5 4 4")
    assert fit("--resume", str(folder), "model.init_args.mode=b")[0] == 2


def test_a_continued_run_keeps_its_ancestors(fit, checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(fit_command, "_fit", lambda built, engine: seen.append(built.stage.ancestors) or 0)
    assert fit("--resume", str(checkpoint()))[0] == 0
    assert seen == [[{"stage": "first"}]]


def test_validate_prints_metrics(toy, capsys):
    argv = ["validate", "--config", str(toy / "toy.yaml"), NO_EARLY, "--json"]
    assert cli.main(argv) == 2
    assert "validate needs trained weights" in capsys.readouterr().err
    assert cli.main([*argv, "--checkpoint", "some/folder"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["val/loss"] >= 0


@pytest.mark.parametrize(("interrupted", "raised"), [(True, KeyboardInterrupt), (False, SystemExit)])
def test_an_interrupted_training_is_an_interrupt(interrupted, raised):
    class Trainer:
        def fit(self, *args: object, **kwargs: object) -> None:
            raise SystemExit(1)

    Trainer.interrupted = interrupted
    with pytest.raises(raised):
        fit_command._fit(Run(recipe=None, trainer=Trainer(), stage=None, data=None), None)


@pytest.mark.slow
@pytest.mark.parametrize("program", [[sys.executable, "-m", "flowact"], ["flowact"]], ids=["module", "script"])
def test_two_processes_start_themselves(toy, tmp_path, program):
    witness = tmp_path / "witness.txt"
    argv = [
        "fit",
        "--config",
        str(toy / "toy.yaml"),
        "--plugin",
        str(toy / "toy.py"),
        NO_EARLY,
        "--quiet",
        "trainer.devices=2",
        "trainer.strategy=ddp",
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([*program, *argv, f"trainer.callbacks.progress.init_args.path={witness}"], check=True, env=environment, timeout=240)
    assert witness.read_text().splitlines() == ["2 4 4", "2 4 4"]

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from flowact import cli
from flowact.callbacks.run_record import run_folder
from flowact.commands.build import build
from flowact.provenance import read_launches
from flowact.recipe import load_recipe


def trainer_with(logger, root):
    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(logger=logger, default_root_dir=str(root), strategy=strategy)


def test_the_folder_is_the_loggers_own_and_never_the_bare_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(trainer_with(TensorBoardLogger(tmp_path, name=None, version="a"), tmp_path)) == tmp_path / "a"
    assert run_folder(trainer_with(CSVLogger(tmp_path, name="n", version=3), tmp_path)) == tmp_path / "n" / "version_3"
    board = SimpleNamespace(save_dir=str(tmp_path), name="project", version="k3x")
    assert run_folder(trainer_with(board, tmp_path)) == tmp_path / "project" / "k3x"
    assert run_folder(trainer_with(None, tmp_path / "root")) == tmp_path / "root"
    assert run_folder(trainer_with(None, tmp_path)) is None


@pytest.mark.parametrize("refuses", [False, True])
def test_every_run_stores_its_resolved_recipe_and_what_ran(toy, tmp_path, monkeypatch, refuses):
    logs = tmp_path / "logs"
    if refuses:
        logs.write_text("a file where the folder should be")
    words = [
        *("fit", "--config", str(toy / "toy.yaml"), "--quiet", "trainer.max_steps=1", "trainer.callbacks.early=null"),
        *(f"trainer.callbacks.progress.init_args.path={tmp_path / 'witness.txt'}", "trainer.logger=false", f"trainer.default_root_dir={logs}"),
    ]
    monkeypatch.setattr("sys.argv", ["/somewhere/flowact", *words])
    assert cli.main(words) == 0
    if refuses:
        return
    (launch,) = read_launches(logs)
    assert launch["command"] == ["flowact", *words]
    assert launch["versions"]["toy.py"].startswith("sha256:")
    assert load_recipe(logs / "recipe.yaml").config == load_recipe(toy / "toy.yaml", words[4:]).config


def test_validation_is_no_launch(toy, tmp_path):
    run = build(load_recipe(toy / "toy.yaml", [f"trainer.default_root_dir={tmp_path}", "trainer.callbacks.early=null"]), quiet=True)
    run.trainer.callbacks[0].setup(run.trainer, run.stage, "validate")
    assert not list(tmp_path.iterdir())

"""The run folder says what ran, how far it came and how to go on, however it ends."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tiny import Data, TinyStage

from flowact import cli
from flowact.callbacks import CheckpointFolder
from flowact.callbacks.curves import CurveRecord, draw, panels, read_lines, smoothed
from flowact.callbacks.run_page import LINES, PAGE, PICTURE, Page, RunPage, duration_text
from flowact.callbacks.run_record import RunRecord
from flowact.checkpoints import open_checkpoint


def fit(folder: Path, stage: TinyStage, steps: int = 6, resume: bool = False, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=CSVLogger(folder, name=None, version="logs"), log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[RunPage(), RunRecord(), CheckpointFolder(str(folder / "checkpoint"))], **options,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Data(), ckpt_path=str(open_checkpoint(folder / "checkpoint").engine) if resume else None)
    return trainer


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in read_lines(folder / "logs" / LINES) if "loss" in line]


def test_a_finished_run_has_page_lines_and_picture(tmp_path: Path) -> None:
    fit(tmp_path, stage := TinyStage())
    page = (tmp_path / "logs" / PAGE).read_text()
    assert "**Finished** at step 6 of 6" in page
    assert f"`{tmp_path}/checkpoint`, step 6" in page
    assert "| `loss` |" in page
    assert "[recipe.yaml](recipe.yaml)" in page
    assert re.search(r"\| versions \| python .*torch ", page)
    assert "--resume" not in page
    lines = list(read_lines(tmp_path / "logs" / LINES))
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(stage.losses)
    with Image.open(tmp_path / "logs" / PICTURE) as picture:
        assert picture.width > 1000
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (tmp_path / "logs" / target).is_file(), target


@pytest.mark.parametrize(
    ("error", "said"), [(RuntimeError("the experiment's own failure"), "**Failed** at step 3"), (KeyboardInterrupt(), "**Interrupted** at step 3")]
)
def test_a_run_that_breaks_says_so_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str) -> None:
    class Breaks(TinyStage):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 3:
                raise error
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("sys.argv", ["/somewhere/flowact", "fit", "--config", "my recipe.yaml", "--resume", "old"])
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        fit(tmp_path, Breaks())
    page = (tmp_path / "logs" / PAGE).read_text()
    assert said in page
    assert f"`{tmp_path}/checkpoint`, step 3" in page  # written after the exception
    assert f"flowact fit --config 'my recipe.yaml' --resume {tmp_path}/checkpoint\n" in page
    assert (tmp_path / "logs" / PICTURE).is_file()
    assert not [handler for handler in logging.getLogger("flowact").handlers if type(handler).__name__ == "_Warnings"]


def test_without_a_logger_of_its_own_the_page_lies_in_the_root_folder(tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[RunPage(), RunRecord()], default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(TinyStage(), datamodule=Data())
    assert {PAGE, LINES, PICTURE, "recipe.yaml", "provenance.json"} == {path.name for path in tmp_path.iterdir()}
    assert trainer.log_dir == str(tmp_path)


def test_a_resumed_run_keeps_what_was_before_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    fit(tmp_path, TinyStage(), steps=3)
    with (tmp_path / "logs" / LINES).open("a") as file:
        file.write(json.dumps({"step": 9, "loss": 1.0}) + "\n{cut off")  # a crash after the last checkpoint
    fit(tmp_path, TinyStage(), steps=6, resume=True)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert "**Finished** at step 6 of 6" in (tmp_path / "logs" / PAGE).read_text()
    fit(tmp_path, TinyStage(), steps=2)
    assert steps_of(tmp_path) == [0, 1]


def test_a_disk_that_refuses_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("flowact.callbacks.run_page.draw", refuse)
    with caplog.at_level(logging.WARNING):
        assert fit(tmp_path, TinyStage()).global_step == 6
    assert "README.md is not written: OSError: no space left" in caplog.text


def test_warnings_of_the_run_are_on_the_page(tmp_path: Path) -> None:
    class Warns(TinyStage):
        def on_train_batch_end(self, *args: Any) -> None:
            logging.getLogger("flowact.callbacks.health").warning("the loss\nstands still")

    fit(tmp_path, Warns())
    assert (tmp_path / "logs" / PAGE).read_text().count("- the loss stands still") == 1


def test_the_page_s_commands_are_commands() -> None:
    launch = {"command": ["flowact", "fit", "--config", "debug/pretraining.yaml", "vars.run=a b"]}
    page = Page(Path("logs"), "Title", "pretraining", streams=True, launch=launch, steps=2, max_steps=4, checkpoint=(Path("c d"), 2))
    block = re.search(r"```sh\n(.*?)\n```", page.text(), re.S)
    assert block
    lines = block[1].splitlines()
    assert [line.split()[1] for line in lines] == ["fit", "generate", "evaluate"]
    for line in lines:
        cli.PROGRAM.parse(shlex.split(line)[1:])


# --- curves ---


def test_lines_are_json_and_curves_hold_finite_values(tmp_path: Path) -> None:
    record = CurveRecord(tmp_path / LINES, tmp_path)
    record.log_metrics({"train/loss": math.nan, "epoch": 0}, 1)
    record.log_metrics({"train/loss": 2.0}, 2)
    record.log_metrics({"epoch": 1}, 3)
    assert record.curves == {"train/loss": [(2, 2.0)]}
    assert (tmp_path / LINES).read_text() == '{"step": 1, "train/loss": null}\n{"step": 2, "train/loss": 2.0}\n'
    record.begin(1)
    record.log_metrics({"train/loss": 3.0}, 2)
    assert [line["train/loss"] for line in read_lines(tmp_path / LINES)] == [None, 3.0]
    assert record.curves == {"train/loss": [(2, 3.0)]}


def test_panels_are_grouped_and_levels_share_one() -> None:
    names = ["val/loss", "train/loss", "train/loss_sigma_0.00", "train/loss_sigma_0.50", "loss", "data/anna/windows", "zzz/more", "preview/drift"]
    found = panels({name: [(1, 1.0)] for name in names})
    assert list(found) == ["train", "val", "preview", "data", "others", "zzz"]
    assert list(found["train"]) == ["loss", "loss by noise level"]
    assert list(found["train"]["loss by noise level"]) == ["0.00", "0.50"]
    assert list(found["data"]) == ["anna/windows"]


def test_many_points_are_drawn_smooth(tmp_path: Path) -> None:
    assert smoothed((1.0, 3.0)) == [1.0, 3.0]
    late = smoothed(tuple(float(i % 2) for i in range(400)))[-1]
    assert late == pytest.approx(0.5, abs=0.05)
    draw({"train/loss": [(i, 1 / (i + 1)) for i in range(100)], "val/loss": [(50, 1.0)]}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.height > 200
    with pytest.raises(ValueError, match="no curve"):
        draw({}, tmp_path / "none.png")


@pytest.mark.parametrize(("seconds", "text"), [(8.6, "9 s"), (252, "4 min 12 s"), (3900, "1 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text

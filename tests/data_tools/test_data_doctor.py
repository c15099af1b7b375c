from __future__ import annotations

import json
import shutil

import pytest
from made_dataset import run_killed, write_dataset_folder

from data_tools import doctor
from data_tools.cli import main


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_dataset_folder(tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def dataset(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


def findings(capsys, *words):
    capsys.readouterr()
    code = main(["doctor", *map(str, words), "--json"])
    return code, {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_a_sound_dataset_has_no_problem(dataset, capsys):
    code, found = findings(capsys, dataset)
    assert code == 0
    assert found["train shards"]["status"] == "ok"
    assert found["license stated"]["status"] == found["consent stated"]["status"] == "ok"
    assert sum(name.startswith("column") for name in found) == 2


def test_shards_are_compared_with_ranks_and_workers(dataset, capsys):
    for ranks, status in ((1, "ok"), (2, "note")):
        assert findings(capsys, dataset, "--ranks", ranks, "--workers", 2)[1]["train shards"]["status"] == status


def test_what_is_unfinished_is_found_with_the_command(dataset, capsys):
    [column] = (dataset / "columns").glob("text-*")
    (column / "train" / "000000.json").unlink()
    (dataset / "val" / "000000.json").unlink()
    code, found = findings(capsys, dataset)
    assert code == 1
    assert "flowact-data encode text" in found[f"column {column.name}"]["fix"]
    assert "flowact-data index" in found["val indexes"]["fix"]


def test_a_stopped_change_is_found_by_doctor_and_lint(dataset, capsys):
    command = ["edit", str(dataset), "rename-identity", "p0", "anna"]
    call = 1
    while run_killed(command, call) and not (dataset / "work" / "change" / "commit.json").exists():
        call += 1
    assert findings(capsys, dataset)[1]["change"]["status"] == "problem"
    assert main(["lint", str(dataset), "-j", "1", "--no-columns"]) == 1
    assert "stopped in the middle" in capsys.readouterr().out
    assert main(command) == 0
    assert findings(capsys, dataset)[0] == 0


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    for finding in doctor.libraries():
        if finding.what not in ("steps", "detectors"):
            assert finding.status == "note"
            assert "pip install 'flowact[" in finding.fix


def test_without_pyarrow_the_extra_is_named(dataset, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert main(["stats", str(dataset), "--write"]) == 2
    assert "pip install 'flowact[data]'" in capsys.readouterr().err


def test_lint_proves_that_recordings_are_in_one_split(dataset, tmp_path, capsys):
    from clip_folder import write_clip
    from made_dataset import describe

    for number, split in ((0, "train"), (1, "val")):
        path = write_clip(tmp_path / "clips", f"x{number}", identity=f"q{number}", split=split, frames=20 + number)
        describe(path.with_suffix(".json"), 7)  # both from recording 7
    assert main(["pack", str(tmp_path / "clips"), "--out", str(tmp_path / "torn")]) == 0
    capsys.readouterr()
    assert main(["lint", str(tmp_path / "torn"), "-j", "1", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert any("recording" in problem["message"] for problem in said["problems"])
    assert said["notes"] == {"not_4n_plus_1": 1}

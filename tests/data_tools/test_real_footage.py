"""Real clips of people, shipped by packages, beside clips of the synthetic actor: become shards and train. Run: tox -e py311,assets."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from real_clips import need_mesh, real_clip
from recordings import metadata

from data_tools.cli import main
from data_tools.manifest import read_rows
from flowact.data import open_split

#: clip -> person in the folder
PEOPLE = {"langer": "langer", "single_face": "webcam", "no_face": "webcam", "face_noface": "webcam", "noface_face": "webcam", "carphone": "carphone"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    need_mesh()
    clips = {name: real_clip(name) for name in PEOPLE}
    target = tmp_path_factory.mktemp("real") / "raw"
    for name, person in PEOPLE.items():
        (target / person).mkdir(parents=True, exist_ok=True)
        shutil.copy(clips[name], target / person / clips[name].name)
    actors = target.parent / "actors"
    assert main(["synth", "--out", str(actors), "--train-identities", "2", "--val-identities", "1", "--seconds", "10", "-j", "1"]) == 0
    for path in (actors / "train").iterdir():
        person = target / path.name.partition(".")[0]
        person.mkdir(exist_ok=True)
        shutil.copy(path, person / path.name)
    return target


@pytest.fixture(scope="module")
def dataset(raw) -> Path:
    recipe = raw.parent / "build.yaml"
    assert main(["init", str(raw), "--out", str(recipe), "--size", "64"]) == 0
    overrides = ["steps.Container.sound=false", "output.val_identities=[puppet-train-00001]", "steps.Sync.max_offset=null"]
    assert main(["build", str(recipe), "--out", str(raw.parent / "run" / "shards"), *overrides]) == 0
    return raw.parent / "run" / "shards"


def test_people_are_kept_and_title_cards_are_not(dataset):
    kept = {entry["source"]["uri"]: entry for entry in metadata(dataset).values()}
    assert {"langer/WolfgangLanger_Pexels.mp4", "webcam/face_noface.mov", "carphone/carphone_pristine.mp4"} <= set(kept)
    assert kept["webcam/face_noface.mov"]["source"]["end_s"] < 4.0  # up to its cut
    reasons = {row["key"]: row["reason"] for row in read_rows(dataset / "rejected.parquet")}
    assert "no face" in reasons["webcam--no_face-000000"]
    assert "shows like webcam--face_noface" in reasons["webcam--single_face-000000"]  # the same take, encoded anew


def test_the_face_is_in_the_crop(dataset):
    for split in (open_split(dataset / name) for name in ("train", "val")):
        for clip in split.clips:
            boxes_TX4 = split.decode(clip, "boxes.npy")
            face_T4 = boxes_TX4[:, 0]
            seen = (face_T4 == face_T4).all(axis=1)
            assert seen.mean() >= 0.9, clip.key
            heights = face_T4[seen, 3] - face_T4[seen, 1]
            assert 0.15 < heights.mean() < 0.8, clip.key


def test_the_actors_truth_is_found(dataset):
    actors = [entry for entry in metadata(dataset).values() if entry["identity"].startswith("puppet")]
    assert len(actors) == 2
    for entry in actors:
        assert abs(entry["sync"]["offset_frames"]) <= 1
        assert {run["state"] for run in entry["states"]} <= {"speaking", "listening", "thinking", "idle"}
        assert entry["scores"]["Labels"]["labelled"] == 1.0


def test_lint_report_and_two_steps_of_training(dataset, capsys):
    run = dataset.parent
    assert main(["lint", str(dataset), "-j", "1"]) in (0, 1)
    assert main(["report", str(dataset)]) == 0
    assert (dataset / "report" / "index.html").stat().st_size > 10_000
    for command in (
        ["flowact", "fit", "--config", "debug/autoencoder.yaml", f"vars.run={run}", "vars.steps=2"],
        ["flowact-data", "encode", "all", str(dataset), "--autoencoder", str(run / "checkpoints" / "autoencoder")],
        ["flowact", "fit", "--config", "debug/pretraining.yaml", f"vars.run={run}", "vars.steps=2"],
    ):
        program = Path(sys.executable).with_name(command[0])
        done = subprocess.run([str(program), *command[1:]], capture_output=True, text=True, check=False, cwd=run)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert list((run / "checkpoints").glob("pretraining*"))


def test_datasets_of_hugging_face_reads_the_shards(dataset, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: tox -e py311,assets")
    found = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path / "card"))
    assert {name: part.num_rows for name, part in found.items()} == {"train": len(open_split(dataset / "train")), "validation": 1}
    if importlib.util.find_spec("torchcodec") is None:
        pytest.skip("datasets decodes sound by torchcodec only, which is not installed")
    files = {"train": sorted(map(str, (dataset / "train").glob("*.tar")))}
    plain = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path / "plain"))["train"]
    plain = plain.cast_column("wav", datasets.Audio(decode=False)).cast_column("mp4", datasets.Video(decode=False))
    assert json.loads(json.dumps(plain[0]["json"]))["key"] == plain[0]["__key__"]

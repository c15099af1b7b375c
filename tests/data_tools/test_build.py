"""Laws of a build: the dataset is a function of recordings and recipe, nothing is measured twice, and no clip is lost without a reason."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_dataset import run_killed
from recordings import FACE, members, metadata, shards, write_people, write_recipe, write_recording

from data_tools.building import engine
from data_tools.building.ledger import Ledger
from data_tools.building.making import without_nothing
from data_tools.building.packing import Packer
from data_tools.cli import main
from data_tools.manifest import read_rows
from flowact.data import open_split
from flowact.data.media import decode_sound, decode_video


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    return write_people(tmp_path_factory.mktemp("raw") / "raw")


@pytest.fixture(scope="module")
def built(tmp_path_factory, people) -> tuple[Path, Path]:
    """A recipe and what it made."""
    folder = tmp_path_factory.mktemp("built")
    recipe = write_recipe(folder / "recipe.yaml", people)
    assert build(recipe, folder / "dataset") == 0
    return recipe, folder / "dataset"


def build(recipe: Path, out: Path, *options: str) -> int:
    return main(["build", str(recipe), "--out", str(out), "-j", "0", *options])


def copy(built: tuple[Path, Path], target: Path) -> Path:
    return Path(shutil.copytree(built[1], target))


def test_every_recording_is_in_or_out_with_a_reason(tmp_path, capsys):
    raw = write_people(tmp_path / "raw", people=2, takes=1)
    (raw / "p0" / "broken.mp4").write_bytes(b"\0" * 100)
    write_recording(raw / "p1" / "brief", frames=10)
    write_recording(raw / "p1" / "mute", sound=False)
    (raw / "notes.md").write_text("no recording")
    assert build(write_recipe(tmp_path / "r.yaml", raw), tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == 2
    steps = {entry["key"]: entry["step"] for entry in result["rejected"]}
    assert steps == {"p0--broken": "Reading", "p1--brief": "Container", "p1--mute": "Container"}
    rows = {row["key"]: row for row in read_rows(tmp_path / "out" / "rejected.parquet")}
    assert set(rows) == set(steps)
    assert "0.4" in rows["p1--brief"]["reason"]
    assert rows["p1--brief"]["score"] == "seconds"
    assert sum(counts["samples"] for counts in result["splits"].values()) == 2


def test_a_clip_holds_what_its_recording_held(built, people):
    split = open_split(built[1] / "val")
    assert {clip.key for clip in split.clips} == {"p1--take0-000000", "p1--take1-000000"}
    clip = next(clip for clip in split.clips if clip.key == "p1--take0-000000")
    assert clip.frames == 57  # 60 frames brought to 4 n + 1
    entry = split.decode(clip, "json")
    assert entry["identity"] == "p1"
    assert (entry["width"], entry["height"]) == (32, 32)
    sound = decode_sound(split.decode(clip, "wav"), clip.key)
    with open(people / "p1" / "take0.wav", "rb") as file:
        assert (sound == np.frombuffer(file.read()[44:], "<i2")[: 57 * 640]).all()
    assert len(decode_video(split.decode(clip, "mp4"), clip.key)) == 57
    boxes_TX4 = split.decode(clip, "boxes.npy")
    assert boxes_TX4.shape == (57, 2, 4)
    assert np.isfinite(boxes_TX4).all()
    left, top, right, bottom = entry["crop"]
    expected = (np.array(FACE) * 48 - [left, top, left, top]) / ([right - left, bottom - top] * 2)
    np.testing.assert_allclose(boxes_TX4[0, 0], expected, atol=1e-5)


def test_people_are_in_one_split_only(built):
    where: dict[str, set[str]] = {}
    for entry in metadata(built[1]).values():
        where.setdefault(entry["identity"], set()).add(entry["split"])
    assert where == {"p0": {"train"}, "p1": {"val"}, "p2": {"train"}}


def test_the_number_of_processes_changes_nothing(built, tmp_path):
    assert main(["build", str(built[0]), "--out", str(tmp_path / "out"), "-j", "2"]) == 0
    assert shards(tmp_path / "out") == shards(built[1])


def test_clips_made_while_looking_are_those_made_later(built, tmp_path, monkeypatch):
    later: list[int] = []
    made = Packer._samples

    def counted(self, clips, cached, split):
        later.append(sum(clip.made not in cached for clip in clips))
        return made(self, clips, cached, split)

    monkeypatch.setattr(Packer, "_samples", counted)
    for room, expected in ((1 << 30, 0), (0, 6)):
        later.clear()
        monkeypatch.setattr(engine, "KEEP_BYTES", room)
        assert build(built[0], tmp_path / str(room)) == 0
        assert sum(later) == expected
        assert shards(tmp_path / str(room)) == shards(built[1])
        assert not (tmp_path / str(room) / "work" / "previous").exists()


def test_an_address_gives_what_the_folder_gives(built, people, tmp_path, capsys):
    fsspec = pytest.importorskip("fsspec", reason="addresses need fsspec: pip install 'flowact[data]'")
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{people}/", "/bucket/takes", recursive=True)
    recipe = write_recipe(tmp_path / "r.yaml", "memory://bucket/takes")
    assert build(recipe, tmp_path / "out") == 0
    ours, theirs = metadata(tmp_path / "out"), metadata(built[1])
    assert set(ours) == set(theirs)
    for key, entry in ours.items():
        assert entry["source"]["sha256"] == theirs[key]["source"]["sha256"]
        assert entry["source"]["uri"] == theirs[key]["source"]["uri"]
        assert entry["scores"] == theirs[key]["scores"]
    assert not (tmp_path / "out" / "work" / "remote").exists()
    capsys.readouterr()
    assert build(recipe, tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 0


def test_a_table_names_people_moments_and_splits(people, tmp_path):
    rows = ["video,person,start,end,license,split", "p0/take0.mp4,anna,0.4,2.0,CC0-1.0,train", "p1/take1.mp4,bob,,,MIT,val"]
    (people / "takes.csv").write_text("\n".join(rows))
    try:
        recipe = write_recipe(tmp_path / "r.yaml", people / "takes.csv", output={"size": 32})
        assert build(recipe, tmp_path / "out") == 0
    finally:
        (people / "takes.csv").unlink()
    found = {entry["identity"]: entry for entry in metadata(tmp_path / "out").values()}
    assert set(found) == {"anna", "bob"}
    assert found["anna"]["source"]["license"] == "CC0-1.0"
    assert (found["anna"]["source"]["start_s"], found["anna"]["frames"]) == (0.4, 37)
    assert [found[name]["split"] for name in ("anna", "bob")] == ["train", "val"]


def test_shards_are_recordings_too(built, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", built[1] / "train" / "000000.tar", output={"size": 32, "val_fraction": 0.0})
    assert build(recipe, tmp_path / "out") == 0
    assert len(metadata(tmp_path / "out")) == 4


def test_a_second_build_makes_nothing(built, tmp_path, capsys):
    again = copy(built, tmp_path / "again")
    before = {path: path.stat().st_mtime_ns for path in again.glob("*/*.tar")}
    assert build(built[0], again, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["measured"], result["made"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in again.glob("*/*.tar")} == before
    assert shards(again) == shards(built[1])


def test_a_threshold_measures_nothing_again(built, tmp_path, capsys):
    again = copy(built, tmp_path / "again")
    signals = {path: path.stat().st_mtime_ns for path in again.glob("work/recordings/*/*")}
    assert signals
    sharpness = {key: entry["scores"]["Sharpness"]["sharpness"] for key, entry in metadata(again).items()}
    bound = sorted(sharpness.values())[2]
    assert build(built[0], again, f"steps.Sharpness.min_sharpness={bound}", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["measured"] == 0
    assert result["made"] == 0
    assert {entry["key"] for entry in result["rejected"]} == {key for key, value in sharpness.items() if value < bound}
    assert {path: path.stat().st_mtime_ns for path in again.glob("work/recordings/*/*")} == signals
    assert set(metadata(again)) == {key for key, value in sharpness.items() if value >= bound}
    assert build(built[0], again) == 0  # and back
    assert shards(again) == shards(built[1])


def test_a_changed_argument_measures_only_that_step(built, tmp_path):
    again = copy(built, tmp_path / "again")
    signals = {path.name for path in again.glob("work/recordings/*/*.npz")}
    assert build(built[0], again, "steps.FaceTracks.median=3") == 0
    fresh = {path.name for path in again.glob("work/recordings/*/*.npz")} - signals
    assert {name.partition("-")[0] for name in fresh} == {"FaceTracks"}


def test_nothing_kept_is_an_error_with_the_funnel(people, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", people)
    assert build(recipe, tmp_path / "out", "steps.Length.min_seconds=5", "steps.Length.max_seconds=9") == 2
    err = capsys.readouterr().err
    assert "not one clip is left of 6 recordings" in err
    assert "Length: 6 of 6 out" in err
    assert not list((tmp_path / "out").glob("*/*.tar"))


def test_scores_only_rejects_nothing(people, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", people)
    assert build(recipe, tmp_path / "out", "steps.Sharpness.min_sharpness=1e9", "--score-only", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 6
    explained = read_rule(tmp_path / "out", "p0--take0-000000", capsys)
    assert explained["Sharpness"][0]["kept"] is False


def read_rule(dataset: Path, key: str, capsys) -> dict:
    assert main(["explain", str(dataset), key, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    return found["rules"]


def test_a_dry_run_writes_no_shard_and_a_limit_takes_the_first(people, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", people)
    assert build(recipe, tmp_path / "out", "output.val_identities=[p0]", "--limit", "3", "--dry-run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kept"], result["to_make"], result["splits"]) == (3, 3, {})
    assert not list((tmp_path / "out").glob("*/*.tar"))
    assert main(["status", str(tmp_path / "out")]) == 1
    assert "examined, not packed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": {}}, "there is none"),
        ({"steps": {"Lenght": {}}}, "Did you mean Length"),
        ({"steps": {"Length": {"min_second": 1}}}, "min_second"),
        ({"steps": {"Length": {"min_seconds": 9, "max_seconds": 3}}}, "longest is at least the shortest"),
        ({"output": {"size": 31}}, "even"),
        ({"output": {"val_fraction": 1.5}}, "share of people"),
        ({"input": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"nmae": "x"}, "nmae"),
        ({"tracks": "both"}, "both"),
    ],
)
def test_a_wrong_recipe_is_refused_before_any_work(people, tmp_path, capsys, changes, message):
    assert build(write_recipe(tmp_path / "r.yaml", people, **changes), tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list((tmp_path / "out").glob("work/recordings/*"))


def test_appended_recordings_leave_shards_as_they_are(built, people, tmp_path, capsys):
    again = copy(built, tmp_path / "again")
    before = {path.name: path.read_bytes() for path in (again / "train").iterdir()}
    more = tmp_path / "more"
    write_recording(more / "p7" / "take0", seed=77)
    write_recording(more / "p1" / "take9", seed=79)
    assert main(["append", str(again), str(more), "-j", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["made"] == 2
    after = {path.name: path.read_bytes() for path in (again / "train").iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    placed = {key: entry["split"] for key, entry in metadata(again).items()}
    assert placed["p1--take9-000000"] == "val"  # a person stays in one split
    assert main(["append", str(again), str(more), "-j", "0"]) == 2
    assert "already" in capsys.readouterr().err


def test_recordings_that_vanish_are_an_error_not_a_smaller_dataset(tmp_path, capsys):
    raw = write_people(tmp_path / "raw", people=2, takes=2)
    recipe = write_recipe(tmp_path / "r.yaml", raw)
    assert build(recipe, tmp_path / "out") == 0
    before = shards(tmp_path / "out")
    for path in (raw / "p0").glob("take1*"):
        path.unlink()
    assert build(recipe, tmp_path / "out") == 2
    assert "p0--take1" in capsys.readouterr().err
    assert shards(tmp_path / "out") == before
    assert build(recipe, tmp_path / "out", "--drop-missing") == 0
    assert set(metadata(tmp_path / "out")) == {"p0--take0-000000", "p1--take0-000000", "p1--take1-000000"}


def test_edits_by_hand_outlive_a_build(built, tmp_path, capsys):
    again = copy(built, tmp_path / "again")
    assert main(["edit", str(again), "delete", "p0--take0-000000"]) == 0
    assert main(["edit", str(again), "relabel", "p0--take1-000000", "--caption", "waves"]) == 0
    more = tmp_path / "more"
    write_recording(more / "p8" / "take0", seed=78)
    capsys.readouterr()
    assert main(["append", str(again), str(more), "-j", "0", "--json"]) == 0
    rejected = {entry["key"]: entry["step"] for entry in json.loads(capsys.readouterr().out)["rejected"]}
    assert rejected == {"p0--take0-000000": "Deleted"}
    found = metadata(again)
    assert "p0--take0-000000" not in found
    assert "p8--take0-000000" in found
    assert [entry["text"] for entry in found["p0--take1-000000"]["captions"]] == ["waves"]


def test_columns_go_with_shards_that_change(built, tmp_path, capsys):
    again = copy(built, tmp_path / "again")
    assert main(["encode", "audio", str(again)]) == 0
    [column] = (again / "columns").iterdir()
    assert build(built[0], again) == 0
    assert (column / "train" / "000000.tar").is_file()
    assert build(built[0], again, "output.crf=30") == 0
    assert not (column / "train" / "000000.tar").exists()
    capsys.readouterr()
    assert main(["encode", "audio", str(again)]) == 0
    assert main(["lint", str(again), "-j", "1"]) == 0


def test_a_build_killed_anywhere_ends_the_same(tmp_path):
    raw = write_people(tmp_path / "raw", people=2, takes=2, frames=40)
    recipe = write_recipe(tmp_path / "r.yaml", raw, output={"size": 32, "val_identities": ["p1"], "shard_clips": 1})
    assert build(recipe, tmp_path / "whole") == 0
    expected = shards(tmp_path / "whole")
    arguments = ["build", str(recipe), "--out", str(tmp_path / "out"), "-j", "0"]
    kills = 0
    for call in (1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66, 78):  # each run goes on where the last one died
        kills += run_killed(arguments, call)
    assert kills >= 5
    assert main(arguments) == 0
    assert shards(tmp_path / "out") == expected
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_build_with_processes_killed_from_outside_ends_the_same(built, tmp_path):
    command = [str(Path(sys.executable).with_name("flowact-data")), "build", str(built[0]), "--out", str(tmp_path / "out"), "-j", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list((tmp_path / "out").glob("work/recordings/*/*.npz")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "dataset.yaml").exists()
    assert build(built[0], tmp_path / "out") == 0
    assert shards(tmp_path / "out") == shards(built[1])


@pytest.mark.slow
def test_a_build_killed_fifty_times_at_random_ends_the_same(built, tmp_path):
    command = [str(Path(sys.executable).with_name("flowact-data")), "build", str(built[0]), "--out", str(tmp_path / "out"), "-j", "2"]
    generator = random.Random(0)
    killed = 0
    for _ in range(50):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(timeout=generator.uniform(1.0, 9.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        for tar in (tmp_path / "out").glob("*/*.tar"):
            assert tar.with_suffix(".json").is_file() or not (tmp_path / "out" / "dataset.yaml").is_file()
        if killed and (tmp_path / "out" / "dataset.yaml").is_file():
            shutil.rmtree(tmp_path / "out")  # it was finished: begin anew
    assert killed >= 25
    assert build(built[0], tmp_path / "out") == 0
    assert shards(tmp_path / "out") == shards(built[1])


@pytest.mark.parametrize("limit", [3_000, 20_000, 90_000])
def test_a_full_disk_ends_with_a_message_and_the_next_build_ends_the_same(built, tmp_path, capfd, limit):
    child = os.fork()
    if child == 0:  # files may not grow beyond the limit, as on a disk that is full
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            code = build(built[0], tmp_path / "out")
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    err = capfd.readouterr().err
    assert "make room and run the same command again" in err
    assert "Traceback" not in err
    for tar in (tmp_path / "out").glob("*/*.tar"):
        assert tar.with_suffix(".json").is_file()
    assert build(built[0], tmp_path / "out") == 0
    assert shards(tmp_path / "out") == shards(built[1])


def test_two_builds_in_one_folder(built, tmp_path, capsys):
    from data_tools.workplace import locked

    with locked(tmp_path / "out"):
        assert build(built[0], tmp_path / "out") == 2
    assert "another flowact-data run works in" in capsys.readouterr().err


def test_members_are_the_same_in_every_sample(built):
    for shard in built[1].glob("*/*.tar"):
        suffixes: dict[str, set[str]] = {}
        for name in members(shard):
            key, _, suffix = name.partition(".")
            suffixes.setdefault(key, set()).add(suffix)
        assert len(set(map(frozenset, suffixes.values()))) == 1
        assert not any(name.endswith((".pkl", ".pickle", ".pth", ".pt", ".pyd")) for name in members(shard))


def test_table_readers_infer_one_type(built):
    """`datasets` guesses the type of KEY.json from the first five clips of a shard; it must hold for all others."""
    pyarrow = pytest.importorskip("pyarrow")
    entries = list(metadata(built[1]).values())
    assert len(entries) == 6
    for first in range(len(entries)):
        rotated = entries[first:] + entries[:first]
        schema = pyarrow.Table.from_pylist(rotated[:1]).schema
        assert pyarrow.Table.from_pylist(rotated, schema).num_rows == len(entries)
        assert not any(pyarrow.types.is_null(field.type) for field in schema)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"a": None, "b": 1}, {"b": 1}),
        ({"a": {"b": None}}, {}),
        ({"a": [], "b": [{"c": None}]}, {"b": [{}]}),
        ({"a": False, "b": 0}, {"a": False, "b": 0}),
    ],
)
def test_entries_that_hold_nothing_are_left_out(value, left):
    assert without_nothing(value) == left


def test_explain_tells_a_clips_life(built, tmp_path, capsys):
    assert main(["explain", str(built[1]), "p0--take0-000000"]) == 0
    out = capsys.readouterr().out
    for words in ("kept, in train/000000", "take0.mp4", "Sharpness", "at least 1", "crop"):
        assert words in out
    assert main(["explain", str(built[1]), "p0--take00"]) == 2
    assert "Did you mean p0--take0" in capsys.readouterr().err
    assert main(["explain", str(tmp_path), "x"]) == 2
    assert "was not made by `flowact-data build`" in capsys.readouterr().err


def test_status_of_a_finished_build(built, capsys):
    assert main(["status", str(built[1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "finished"
    assert not found["running"]
    assert found["clips"] == {"all": 6, "kept": 6, "packed": 6, "out": 0}


def test_the_ledger_says_who_measured_what(built):
    ledger = Ledger.open(built[1])
    try:
        assert {record.frames for record in ledger.sources()} == {60}
        assert all(len(record.sha256) == 64 for record in ledger.sources())
        assert set(ledger.spent()) >= {"FaceTracks", "Length", "Sharpness"}
    finally:
        ledger.close()


def test_init_writes_a_recipe_that_builds(people, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    assert main(["init", str(people), "--out", str(recipe), "--size", "32"]) == 0
    text = recipe.read_text()
    assert "6 recordings of 3 people" in text
    assert '{"class_path": "SidecarBoxes"}' in text
    assert build(recipe, tmp_path / "out", "--dry-run", "--json") == 0
    capsys.readouterr()
    assert main(["init", str(people), "--out", str(recipe)]) == 2
    assert "--force" in capsys.readouterr().err

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_dataset import contents, run_killed, write_dataset_folder

from data_tools.cli import main
from data_tools.split import assign, groups_of
from flowact.data import open_split, read_dataset


def clip(identity, sha=None, uri=None):
    return {"identity": identity, "source": {"sha256": sha, "uri": uri}}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_dataset_folder(tmp_path_factory.mktemp("split"))


@pytest.fixture
def dataset(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


def everything(root):
    """key -> (members apart from json, json without split, features of both columns)."""
    found = {}
    for name in read_dataset(root).splits:
        split = open_split(root / name)
        columns = [split.column(root / "columns" / folder) for folder in read_dataset(root).columns]
        for at in split.clips:
            entry = split.shards[at.shard].entries[at.sample]
            members = {suffix: split.read(at, suffix) for suffix in entry.members if suffix != "json"}
            metadata = split.decode(at, "json")
            assert metadata.pop("split", name) == name
            features = [column.read(at, suffix) for column in columns for suffix in column.shards[at.shard].entries[at.sample].members]
            found[at.key] = (members, metadata, features)
    return found


def people(root):
    return {
        name: {open_split(root / name).decode(at, "json")["identity"] for at in open_split(root / name).clips} for name in read_dataset(root).splits
    }


def test_clips_move_whole_and_columns_with_them(dataset):
    before, columns = everything(dataset), read_dataset(dataset).columns
    assert people(dataset) == {"train": {"p0", "p2"}, "val": {"p1"}}
    assert main(["split", str(dataset), "--val-identities", "p2", "--shard-clips", "3"]) == 0
    assert people(dataset) == {"train": {"p0", "p1"}, "val": {"p2"}}
    assert everything(dataset) == before
    assert read_dataset(dataset).columns == columns
    assert read_dataset(dataset).splits["train"] == {"shards": 2, "samples": 4, "frames": 84}
    assert main(["lint", str(dataset), "-j", "1"]) == 0


def test_there_and_back_gives_the_same_bytes_as_there_at_once(dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    for names in ("p2", "p0"):
        assert main(["split", str(dataset), "--val-identities", names]) == 0
    assert main(["split", str(other), "--val-identities", "p0"]) == 0
    tars = [{name: data for name, data in contents(root).items() if name.startswith(("train", "val", "columns"))} for root in (dataset, other)]
    assert tars[0] == tars[1]


def test_exclusions_follow_their_clips(dataset):
    from flowact.data.schema import write_dataset

    info = read_dataset(dataset)
    write_dataset(dataset, type(info)(**{**vars(info), "exclude": ("val/000000",)}))
    assert main(["split", str(dataset), "--val-identities", "p2", "--shard-clips", "3"]) == 0
    kept = {at.key for name in ("train", "val") for at in open_split(dataset / name).clips}
    assert kept == {f"c{number}" for number in (0, 1, 4, 5)}


def test_nothing_to_move_touches_nothing(dataset, capsys):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.tar")}
    assert main(["split", str(dataset), "--val-identities", "p1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"] == 0
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*.tar")} == before


def test_dry_run_touches_nothing(dataset, capsys):
    before = contents(dataset)
    assert main(["split", str(dataset), "--val-identities", "p2", "--dry-run"]) == 0
    assert "4 clips would move" in capsys.readouterr().out
    assert contents(dataset) == before


@pytest.mark.parametrize("call", [*range(1, 12), *range(12, 120, 7)])
def test_killed_anywhere_a_rerun_gives_the_same_bytes(dataset, split_once, call):
    command = ["split", str(dataset), "--val-identities", "p2"]
    run_killed(command, call)
    assert main(command) == 0
    assert contents(dataset) == split_once


@pytest.fixture(scope="module")
def split_once(packed, tmp_path_factory):
    root = shutil.copytree(packed, tmp_path_factory.mktemp("once") / "shards")
    assert main(["split", str(root), "--val-identities", "p2"]) == 0
    return contents(root)


def test_people_of_one_recording_stay_together():
    clips = [clip("a", "1"), clip("b", "1"), clip("b", "2"), clip("c", "2"), clip("d", None, "take1.mp4"), clip("e", None, "take1.mp4")]
    assert groups_of(clips) == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e"}  # a bare file name tells nothing
    assert set(assign(clips, ["b"], 0).values()) == {"train", "val"}
    assert [name for name, split in assign(clips, ["b"], 0).items() if split == "val"] == ["a", "b", "c"]


def test_more_people_move_nobody():
    generator = np.random.default_rng(0)
    names = [f"person-{number}" for number in generator.permutation(400)]
    few, many = assign(map(clip, names[:200]), None, 0.2), assign(map(clip, names), None, 0.2)
    assert all(many[name] == split for name, split in few.items())
    assert 0.1 < np.mean([split == "val" for split in many.values()]) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-identities", "p9"], "nobody is called 'p9'"),
        (["--val-identities", "p0,p1,p2"], "nobody is left to train on"),
        (["--val-fraction", "1"], "share of people"),
        (["--shard-mb", "0"], "positive numbers"),
    ],
)
def test_what_can_not_be_is_refused(dataset, capsys, options, message):
    before = contents(dataset)
    assert main(["split", str(dataset), *options]) == 2
    assert message in capsys.readouterr().err
    assert contents(dataset) == before

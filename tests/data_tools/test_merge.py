from __future__ import annotations

import json
import shutil

import pytest
from made_dataset import contents, run_killed, write_dataset_folder

from data_tools.cli import main
from flowact.data import open_split, read_dataset
from flowact.data.schema import write_dataset


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("merge")
    return write_dataset_folder(root / "a", 4, val="p1"), write_dataset_folder(root / "b", 6, val="p3", start=4, prefix="d")


@pytest.fixture(scope="module")
def clashing(tmp_path_factory):
    """The second dataset has the keys and people of the first."""
    root = tmp_path_factory.mktemp("clashing")
    return write_dataset_folder(root / "a", 4, val="p1"), write_dataset_folder(root / "b", 4, val="p0")


def clips(root):
    found = {}
    for name in read_dataset(root).splits:
        split = open_split(root / name)
        columns = [split.column(root / "columns" / folder) for folder in sorted(read_dataset(root).columns)]
        for at in split.clips:
            entry = split.shards[at.shard].entries[at.sample]
            features = [column.read(at, suffix) for column in columns for suffix in column.shards[at.shard].entries[at.sample].members]
            found[name, at.key] = ({suffix: split.read(at, suffix) for suffix in entry.members}, features)
    return found


def test_the_whole_is_the_sum_of_its_parts(two, tmp_path, capsys):
    assert main(["merge", *map(str, two), "--out", str(tmp_path / "c"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert clips(tmp_path / "c") == clips(two[0]) | clips(two[1])
    assert len(said["columns"]) == 2
    assert said["left_out"] == []
    assert read_dataset(tmp_path / "c").splits == {
        "train": {"shards": 3, "samples": 6, "frames": 126},
        "val": {"shards": 2, "samples": 4, "frames": 84},
    }
    assert main(["lint", str(tmp_path / "c"), "-j", "1"]) == 0


def test_prefixes_keep_apart_what_has_one_name(clashing, tmp_path, capsys):
    options = ["--prefix-keys", "--prefix-identities"]
    assert main(["merge", *map(str, clashing), "--out", str(tmp_path / "refused"), *options]) == 2
    assert "is in val of" in capsys.readouterr().err  # nor may one recording be in two splits
    train = shutil.copytree(clashing[1], tmp_path / "b")
    assert main(["split", str(train), "--val-identities", "p1"]) == 0
    assert main(["merge", str(clashing[0]), str(train), "--out", str(tmp_path / "c"), *options]) == 0
    assert {key for _, key in clips(tmp_path / "c")} == {f"{name}-c{number}" for name in "ab" for number in range(4)}
    split = open_split(tmp_path / "c" / "val")
    assert {split.decode(at, "json")["identity"] for at in split.clips} == {"a-p1", "b-p1"}
    assert main(["lint", str(tmp_path / "c"), "-j", "1"]) == 0


def test_equal_names_are_asked_about(clashing, tmp_path, capsys):
    command = ["merge", *map(str, clashing), "--out", str(tmp_path / "c"), "--prefix-keys"]
    assert main(command) == 2
    assert "--same-identities" in capsys.readouterr().err
    assert main([*command, "--same-identities"]) == 2
    assert "a person is in one split only" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_equal_keys_are_refused(clashing, tmp_path, capsys):
    train = shutil.copytree(clashing[1], tmp_path / "b")
    assert main(["split", str(train), "--val-identities", "p1"]) == 0
    capsys.readouterr()
    assert main(["merge", str(clashing[0]), str(train), "--out", str(tmp_path / "c"), "--same-identities"]) == 2
    assert "--prefix-keys" in capsys.readouterr().err


def test_columns_of_other_encoders_stay_behind(two, tmp_path, capsys):
    other = shutil.copytree(two[1], tmp_path / "b")
    [text] = (other / "columns").glob("text-*")
    info = read_dataset(other)
    write_dataset(other, type(info)(**{**vars(info), "columns": tuple(name for name in info.columns if name != text.name)}))
    shutil.rmtree(text)
    assert main(["encode", "text", str(other), "--encoder", "HashedText", "num_tokens=4"]) == 0
    assert main(["merge", str(two[0]), str(other), "--out", str(tmp_path / "c")]) == 0
    assert [name.partition("-")[0] for name in read_dataset(tmp_path / "c").columns] == ["audio"]
    assert "flowact-data encode text" in capsys.readouterr().out


def test_exclusions_are_named_where_the_clips_are(two, tmp_path):
    roots = [shutil.copytree(root, tmp_path / root.parent.name) for root in two]
    info, split = read_dataset(roots[1]), open_split(two[1] / "train")
    left_out = {split.clips[0].key, *(at.key for at in split.clips if at.shard == 1)}
    write_dataset(roots[1], type(info)(**{**vars(info), "exclude": (f"train/000000/{split.clips[0].key}", "train/000001")}))
    assert main(["merge", *map(str, roots), "--out", str(tmp_path / "c")]) == 0
    assert {key for _, key in clips(tmp_path / "c")} == {key for root in two for _, key in clips(root)} - left_out


@pytest.mark.parametrize("change", [{"states": ("speaking", "idle")}, {"fps": 20}, {"character": {"class_path": "Puppet"}}])
def test_other_formats_are_refused(two, tmp_path, capsys, change):
    other = shutil.copytree(two[1], tmp_path / "b")
    info = read_dataset(other)
    write_dataset(other, type(info)(**{**vars(info), **change}))
    assert main(["merge", str(two[0]), str(other), "--out", str(tmp_path / "c")]) == 2
    assert f"has {next(iter(change))}" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_members_that_some_lack_are_dropped_by_name(two, tmp_path, capsys):
    other = write_dataset_folder(tmp_path / "b", 4, val="p3", start=4, prefix="d", truth=True)
    command = ["merge", str(two[0]), str(other), "--out", str(tmp_path / "c")]
    assert main(command) == 2
    assert "--drop boxes.npy" in capsys.readouterr().err
    assert main([*command, "--drop", "boxes.npy", "--drop", "truth.npy"]) == 0
    assert main(["lint", str(tmp_path / "c"), "-j", "1"]) == 0


@pytest.fixture(scope="module")
def merged_once(two, tmp_path_factory):
    out = tmp_path_factory.mktemp("once") / "c"
    assert main(["merge", *map(str, two), "--out", str(out)]) == 0
    return contents(out)


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_a_rerun_gives_the_same_bytes(two, merged_once, tmp_path, stride):
    for call in range(1, 400, stride):
        command = ["merge", *map(str, two), "--out", str(tmp_path / str(call))]
        if not run_killed(command, call):
            break
        assert main(command) == 0
        assert contents(tmp_path / str(call)) == merged_once, call
    assert call > 30


def test_another_merge_does_not_land_in_the_folder(two, tmp_path, capsys):
    assert main(["merge", *map(str, two), "--out", str(tmp_path / "c")]) == 0
    assert main(["merge", *map(str, two), "--out", str(tmp_path / "c"), "--prefix-keys"]) == 2
    assert "prefix_keys was False" in capsys.readouterr().err
    assert main(["merge", *map(str, two), "--out", str(two[0])]) == 2

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_dataset import contents, run_killed, write_dataset_folder

from data_tools.cli import main
from data_tools.edit import relabelled
from flowact.data import ShardIndex, open_split, read_dataset
from flowact.data.schema import from_entries, write_dataset


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_dataset_folder(tmp_path_factory.mktemp("edit"), 8)


@pytest.fixture
def dataset(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


def keys(root, split="train"):
    return [at.key for at in open_split(root / split).clips]


def shard_of(root, key):
    return next(path for path in root.glob("*/*.tar") if key in ShardIndex.read(path.with_suffix(".json")).keys)


def stamps(root):
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*.tar")}


def test_deletion_leaves_every_other_clip_and_shard_as_it_was(dataset):
    before, split = stamps(dataset), open_split(dataset / "train")
    members = {at.key: split.read(at, "mp4") for at in split.clips}
    gone = split.clips[0].key
    touched = shard_of(dataset, gone).stem
    assert main(["edit", str(dataset), "delete", gone]) == 0
    split = open_split(dataset / "train")
    assert {at.key: split.read(at, "mp4") for at in split.clips} == {key: data for key, data in members.items() if key != gone}
    for column in read_dataset(dataset).columns:
        assert [at.key for at in split.column(dataset / "columns" / column).clips] == keys(dataset)
    changed = {name for name, stamp in stamps(dataset).items() if before[name] != stamp}
    assert changed == {name for name in before if name.endswith(f"train/{touched}.tar")}
    assert main(["lint", str(dataset), "-j", "1"]) == 0


def test_an_emptied_shard_leaves_no_gap(dataset):
    first = ShardIndex.read(dataset / "train" / "000000.json").keys
    left = [key for key in keys(dataset) if key not in first]
    assert main(["edit", str(dataset), "delete", *first]) == 0
    assert sorted(path.name for path in (dataset / "train").glob("*.tar")) == ["000000.tar", "000001.tar"]
    assert sorted(keys(dataset)) == sorted(left)
    assert ShardIndex.read(dataset / "train" / "000000.json").tar == "000000.tar"
    assert main(["lint", str(dataset), "-j", "1"]) == 0


def test_a_split_may_vanish_but_not_train(dataset, capsys):
    assert main(["edit", str(dataset), "delete", *keys(dataset, "val")]) == 0
    assert set(read_dataset(dataset).splits) == {"train"}
    assert not (dataset / "val").exists()
    before = contents(dataset)
    assert main(["edit", str(dataset), "delete", *keys(dataset)]) == 2
    assert "nothing would be left" in capsys.readouterr().err
    assert main(["edit", str(dataset), "delete", "c77"]) == 2  # what the refused change had begun is dropped by the next run
    assert {name: data for name, data in contents(dataset).items() if "work/change/" not in name} == before


def test_exclusions_of_a_deleted_clip_go_and_others_stay(dataset):
    info = read_dataset(dataset)
    first = ShardIndex.read(dataset / "train" / "000000.json").keys
    exclude = (f"train/000000/{first[0]}", f"train/000000/{first[1]}", "train/000002")
    write_dataset(dataset, type(info)(**{**vars(info), "exclude": exclude}))
    assert main(["edit", str(dataset), "delete", first[0]]) == 0
    assert set(read_dataset(dataset).exclude) == {"train/000000", "train/000002"}  # all that is left of shard 0 is excluded


def test_a_new_state_reaches_frames_captions_and_segments(dataset):
    key = keys(dataset)[0]
    assert main(["edit", str(dataset), "relabel", key, "--state", "listening", "--frames", "5:15"]) == 0
    split = open_split(dataset / "train")
    at = next(at for at in split.clips if at.key == key)
    names = read_dataset(dataset).states
    states_T = split.decode(at, "states.npy")
    assert [names[index] for index in states_T] == ["speaking"] * 5 + ["listening"] * 10 + ["idle"] * 6
    metadata = split.decode(at, "json")
    assert from_entries("states", metadata) == [(0, 5, "speaking"), (5, 15, "listening"), (15, 21, "idle")]
    assert [entry[2] for entry in from_entries("captions", metadata) for _ in range(entry[1] - entry[0])] == [names[index] for index in states_T]
    assert main(["lint", str(dataset), "-j", "1", "--no-columns"]) == 0


def test_a_new_caption_drops_its_text_features_and_says_how_to_redo_them(dataset, packed, capsys):
    key = keys(dataset)[0]
    shard = shard_of(dataset, key).stem
    assert main(["edit", str(dataset), "relabel", key, "--caption", "waves"]) == 0
    out = capsys.readouterr().out
    assert "flowact-data encode text" in out
    info = read_dataset(dataset)
    assert [name.partition("-")[0] for name in info.columns] == ["audio"]
    [text] = (dataset / "columns").glob("text-*")
    assert not (text / "train" / f"{shard}.tar").exists()
    assert open_split(dataset / "train").decode(open_split(dataset / "train").clips[0], "txt") == "waves"
    assert main(["encode", "text", str(dataset)]) == 0
    assert {name.partition("-")[0] for name in read_dataset(dataset).columns} == {"audio", "text"}
    assert main(["lint", str(dataset), "-j", "1"]) == 0


def test_the_same_caption_keeps_the_text_features(dataset):
    key = keys(dataset)[0]
    assert main(["edit", str(dataset), "relabel", key, "--state", "thinking", "--frames", "0:10"]) == 0
    assert {name.partition("-")[0] for name in read_dataset(dataset).columns} == {"audio", "text"}


def test_a_person_is_renamed_everywhere(dataset):
    assert main(["edit", str(dataset), "rename-identity", "p0", "anna"]) == 0
    split = open_split(dataset / "train")
    assert {split.decode(at, "json")["identity"] for at in split.clips} == {"anna", "p2", "p3"}
    assert main(["edit", str(dataset), "rename-identity", "anna", "p2"]) == 0  # the same person after all
    assert main(["lint", str(dataset), "-j", "1"]) == 0


def test_records_follow(dataset):
    pytest.importorskip("pyarrow")
    from data_tools.manifest import read_rows

    assert main(["stats", str(dataset), "--write"]) == 0
    gone = keys(dataset)[0]
    assert main(["edit", str(dataset), "delete", gone]) == 0
    assert [row["key"] for row in read_rows(dataset / "manifest.parquet") if row["split"] == "train"] == keys(dataset)
    assert json.loads((dataset / "stats.json").read_bytes())["splits"]["train"]["clips"] == 5
    assert "edit delete" in (dataset / "README.md").read_text()


OPERATIONS = {
    "delete": ["delete", "c0", "c1", "c2"],
    "relabel": ["relabel", "c4", "--caption", "waves"],
    "rename": ["rename-identity", "p2", "anna"],
}


@pytest.fixture(scope="module")
def recorded(packed, tmp_path_factory):
    root = shutil.copytree(packed, tmp_path_factory.mktemp("recorded") / "shards")
    assert main(["stats", str(root), "--write"]) == 0
    return root


@pytest.fixture(scope="module")
def edited_once(recorded, tmp_path_factory):
    found = {}
    for name, words in OPERATIONS.items():
        root = shutil.copytree(recorded, tmp_path_factory.mktemp(name) / "shards")
        assert main(["edit", str(root), *words]) == 0
        found[name] = contents(root)
    return found


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_anywhere_a_rerun_gives_the_same_bytes(recorded, edited_once, tmp_path, operation, stride):
    command = OPERATIONS[operation]
    for call in range(1 + list(OPERATIONS).index(operation) % stride, 400, stride):
        root = shutil.copytree(recorded, tmp_path / str(call))
        if not run_killed(["edit", str(root), *command], call):
            break
        code = main(["edit", str(root), *command])
        assert code in (0, 2)  # 2: it was killed when all was done, asking again finds nothing to do
        assert contents(root) == edited_once[operation], call
        shutil.rmtree(root)
    assert call > 20


def test_captions_of_part_of_a_clip():
    captions = [[0, 10, "speaking", "a"], [10, 20, "idle", "b"]]
    assert relabelled(captions, 0, 20, None, "c") == [[0, 10, "speaking", "c"], [10, 20, "idle", "c"]]
    assert relabelled(captions, 0, 20, "idle", "c") == [[0, 20, "idle", "c"]]
    assert relabelled(captions, 5, 12, "idle", "b") == [[0, 5, "speaking", "a"], [5, 20, "idle", "b"]]
    for first, end in np.random.default_rng(0).integers(0, 21, (50, 2)):
        pieces = relabelled(captions, int(first), int(end), "thinking", None)
        assert [piece[0] for piece in pieces] == [0, *(piece[1] for piece in pieces[:-1])]
        assert pieces[-1][1] == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["delete", "c99"], "no clip has the key 'c99'"),
        (["relabel", "c0"], "relabel changes nothing"),
        (["relabel", "c0", "--state", "idle", "--frames", "10:21"], "says so already"),
        (["relabel", "c0", "--state", "speeking"], "Did you mean speaking?"),
        (["relabel", "c0", "--caption", "x", "--frames", "5:99"], "FIRST < END <= 21"),
        (["rename-identity", "nobody", "x"], "nobody is called 'nobody'"),
        (["rename-identity", "p0", "p1"], "one person is in one split only"),
        (["rename-identity", "p0", " "], "not an empty one"),
    ],
)
def test_what_can_not_be_is_refused(dataset, capsys, words, message):
    before = contents(dataset)
    assert main(["edit", str(dataset), *words]) == 2
    assert message in capsys.readouterr().err
    assert contents(dataset) == before

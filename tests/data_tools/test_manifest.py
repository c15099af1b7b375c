from __future__ import annotations

import json
import shutil

import pytest
from made_dataset import write_dataset_folder

from data_tools.cli import main
from data_tools.manifest import read_rows, write_manifest, write_rejected, write_shard_lists, write_stats
from flowact.data import open_split
from flowact.data.schema import read_dataset, write_dataset
from flowact.errors import UserError

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_dataset_folder(tmp_path_factory.mktemp("manifest"))


@pytest.fixture
def dataset(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


def test_one_row_a_clip_with_every_score(dataset):
    rows = read_rows(write_manifest(dataset))
    clips = [(split, clip) for split in (open_split(dataset / "train"), open_split(dataset / "val")) for clip in split.clips]
    assert [row["key"] for row in rows] == [clip.key for _, clip in clips]
    for row, (split, clip) in zip(rows, clips):
        metadata = split.decode(clip, "json")
        number = int(clip.key[1:])
        assert (row["split"], row["shard"]) == (split.name, split.shards[clip.shard].path.stem)
        assert (row["identity"], row["frames"], row["seconds"]) == (metadata["identity"], 21, 21 / 25)
        assert (row["license"], row["uri"], row["sync_offset_frames"]) == ("CC0-1.0", f"takes/{number}.mp4", number % 3 - 1)
        assert (row["score.Sync.confidence"], row["score.Scenes.cuts"]) == (0.5 + number / 100, number)
        assert (row["score.Scenes.mode"], row["score.Scenes.flash"]) == ("content", False)
        assert row["speech_seconds"] == 0.4
        assert sum(row[f"state.{name}"] for name in read_dataset(dataset).states) == pytest.approx(1)
        assert row["state.speaking"] == pytest.approx(10 / 21)
        assert row["bytes"] == sum(len(split.read(clip, suffix)) for suffix in split.shards[clip.shard].entries[clip.sample].members)


def test_records_are_a_function_of_the_dataset(dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "elsewhere")
    for root in (dataset, other):
        write_manifest(root)
        write_stats(root)
        write_shard_lists(root)
    for name in ("manifest.parquet", "stats.json", "index-train.json", "index-val.json"):
        assert (dataset / name).read_bytes() == (other / name).read_bytes()


def test_clips_without_the_records_of_build_have_empty_cells(tmp_path):
    from clip_folder import write_folder

    write_folder(tmp_path / "clips", 2)
    assert main(["pack", str(tmp_path / "clips"), "--out", str(tmp_path / "shards"), "--val-fraction", "0"]) == 0
    rows = read_rows(write_manifest(tmp_path / "shards"))
    assert [(row["sync_offset_frames"], row["speech_seconds"], row["sha256"]) for row in rows] == [(None, None, None)] * 2


def test_exclusions_are_marked(dataset):
    info = read_dataset(dataset)
    first = open_split(dataset / "train").clips[0].key
    write_dataset(dataset, type(info)(**{**vars(info), "exclude": (f"train/000000/{first}",)}))
    assert [row["key"] for row in read_rows(write_manifest(dataset)) if row["excluded"]] == [first]
    assert write_stats(dataset)["splits"]["train"]["excluded"] == 1


def test_rejections_keep_order_and_values_as_text(tmp_path):
    path = tmp_path / "rejected.parquet"
    row = {"key": "a", "source": "a.mp4", "step": "Sync", "score": "confidence", "value": 0.1, "rule": "min", "threshold": 0.3, "reason": "low"}
    write_rejected(path, [row, {"key": "b", "reason": "no face"}])
    rows = read_rows(path)
    assert [entry["key"] for entry in rows] == ["a", "b"]
    assert (rows[0]["value"], rows[0]["threshold"], rows[1]["value"]) == ("0.1", "0.3", None)
    write_rejected(path, [])
    assert read_rows(path) == []
    with pytest.raises(UserError, match="entry 'why'"):
        write_rejected(path, [{"why": "x"}])


def test_numbers_agree_with_the_shards(dataset):
    numbers = write_stats(dataset)
    assert json.loads((dataset / "stats.json").read_bytes()) == numbers
    for name, split in numbers["splits"].items():
        opened = open_split(dataset / name)
        assert split["clips"] == len(opened)
        assert split["shards"] == {shard.path.name: shard.path.stat().st_size for shard in opened.shards}
        assert sum(split["seconds_of_identity"].values()) == pytest.approx(21 / 25 * len(opened), abs=0.02)


def test_shard_lists_name_every_shard(dataset):
    for path in write_shard_lists(dataset):
        listed = json.loads(path.read_bytes())
        assert listed["wids_version"] == 1
        assert [(dataset / shard["url"]).stat().st_size for shard in listed["shardlist"]] == [shard["filesize"] for shard in listed["shardlist"]]


def test_wids_reads_the_shard_lists(dataset):
    wids = pytest.importorskip("wids", reason="wids is not installed: pip install --no-deps wids")
    [path] = [path for path in write_shard_lists(dataset) if path.name == "index-train.json"]
    read = wids.ShardListDataset(str(path), base=str(dataset), transformations=[], cache_dir=str(dataset / "cache"))
    split = open_split(dataset / "train")
    assert [sample["__key__"] for sample in read] == [clip.key for clip in split.clips]
    assert read[1][".mp4"].read() == split.read(split.clips[1], "mp4")


def test_stats_writes_all_records(dataset, capsys):
    assert main(["stats", str(dataset), "--write", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["consents"] == {"synthetic": 4}
    for name in ("manifest.parquet", "stats.json", "index-train.json", "README.md"):
        assert (dataset / name).is_file()

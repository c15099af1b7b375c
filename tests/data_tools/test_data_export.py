from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import tarfile
from itertools import pairwise

import pytest
import yaml
from made_dataset import contents, run_killed, write_dataset_folder

from data_tools.cli import main
from flowact.data import ShardReader, open_split, read_dataset
from flowact.data.schema import write_dataset


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = write_dataset_folder(tmp_path_factory.mktemp("export"), 8)
    info = read_dataset(root)
    first = open_split(root / "train").clips[0].key
    write_dataset(root, type(info)(**{**vars(info), "exclude": (f"train/000000/{first}", "train/000001")}))
    return root


def clips(root):
    return {at.key: open_split(root / name).read(at, "mp4") for name in read_dataset(root).splits for at in open_split(root / name).clips}


@pytest.mark.parametrize("target", ["hf", "energon"])
def test_the_copy_is_a_dataset_without_exclusions(packed, tmp_path, target):
    assert main(["export", str(packed), "--to", target, "--out", str(tmp_path / "copy")]) == 0
    assert clips(tmp_path / "copy") == clips(packed)
    info = read_dataset(tmp_path / "copy")
    assert (info.exclude, info.columns) == ((), ())
    assert [path.name for path in sorted((tmp_path / "copy" / "train").glob("*.tar"))] == ["000000.tar", "000001.tar"]
    assert main(["lint", str(tmp_path / "copy"), "-j", "1"]) == 0
    for path in (tmp_path / "copy").glob("*/*.tar"):
        with tarfile.open(path) as archive:
            assert {name.partition(".")[0] for name in archive.getnames()} <= set(clips(packed))  # other readers know no `exclude`


def test_whole_shards_are_links_unless_copies_are_asked_for(packed, tmp_path):
    for options, links in ([], True), (["--copy"], False):
        out = tmp_path / str(links)
        assert main(["export", str(packed), "--to", "hf", "--out", str(out), *options]) == 0
        assert (out / "val" / "000000.tar").samefile(packed / "val" / "000000.tar") is links
    assert contents(tmp_path / "True") == contents(tmp_path / "False")


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["hf", "energon"])
def test_killed_anywhere_a_rerun_gives_the_same_bytes(packed, tmp_path, target, stride):
    assert main(["export", str(packed), "--to", target, "--out", str(tmp_path / "once")]) == 0
    once = contents(tmp_path / "once")
    for call in range(1, 200, stride):
        command = ["export", str(packed), "--to", target, "--out", str(tmp_path / str(call))]
        if not run_killed(command, call):
            break
        assert main(command) == 0
        assert contents(tmp_path / str(call)) == once, call
    assert call > 10


def test_energon_finds_every_sample_and_member(packed, tmp_path):
    out = tmp_path / "copy"
    assert main(["export", str(packed), "--to", "energon", "--out", str(out)]) == 0
    counts = json.loads((out / ".nv-meta" / ".info.json").read_bytes())["shard_counts"]
    parts = yaml.safe_load((out / ".nv-meta" / "split.yaml").read_bytes())["split_parts"]
    assert [name for names in parts.values() for name in names] == list(counts)
    database = sqlite3.connect(out / ".nv-meta" / "index.sqlite")
    for tar, name in enumerate(counts):
        shard, data = ShardReader(out / name), (out / name).read_bytes()
        assert counts[name] == len(shard.entries)
        offsets = struct.unpack(f"<{len(shard.entries) + 1}Q", (out / name).with_suffix(".tar.idx").read_bytes())
        rows = list(database.execute("SELECT * FROM samples WHERE tar_file_id = ? ORDER BY sample_index", (tar,)))
        assert [row[1] for row in rows] == list(shard.index.keys)
        assert [(row[3], row[3] + row[4]) for row in rows] == list(pairwise(offsets))
        assert data[offsets[-1] : offsets[-1] + 1024] == bytes(1024)
        query = "SELECT part_name, content_byte_offset, content_byte_size FROM sample_parts WHERE tar_file_id = ? AND sample_index = ?"
        for number, entry in enumerate(shard.entries):
            assert data[offsets[number] :].startswith(entry.key.encode())
            found = {name: data[first : first + size] for name, first, size in database.execute(query, (tar, number))}
            assert found == {suffix: shard.read(number, suffix) for suffix in entry.members}


def test_energon_reads_it(packed, tmp_path):
    energon = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed: pip install megatron-energon", exc_type=ImportError)
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    out, theirs = tmp_path / "copy", tmp_path / "theirs"
    assert main(["export", str(packed), "--to", "energon", "--out", str(out), "--copy"]) == 0
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    read = energon.get_val_dataset(str(out), split_part="train", batch_size=1, worker_config=worker, task_encoder=_task_encoder(energon))
    assert {sample["key"]: sample["mp4"] for sample in energon.get_loader(read)} == {
        at.key: open_split(out / "train").read(at, "mp4") for at in open_split(out / "train").clips
    }
    # and its own tool would have written the same
    shutil.copytree(out, theirs, ignore=shutil.ignore_patterns(".nv-meta", "*.idx"))
    names = list(json.loads((out / ".nv-meta" / ".info.json").read_bytes())["shard_counts"])
    WebdatasetPreparator.prepare_dataset(theirs, names, split_parts_patterns=[("train", "train/.*"), ("val", "val/.*")], workers=1)
    for name in names:
        assert (out / name).with_suffix(".tar.idx").read_bytes() == (theirs / name).with_suffix(".tar.idx").read_bytes()
    for table in ("samples", "sample_parts"):
        ours, its = (sorted(sqlite3.connect(root / ".nv-meta" / "index.sqlite").execute(f"SELECT * FROM {table}")) for root in (out, theirs))
        assert ours == its


def _task_encoder(energon):
    @energon.stateless
    def cook(sample):
        return {**energon.basic_sample_keys(sample), "key": sample["__key__"].rpartition("/")[2], "mp4": sample["mp4"]}

    class Plain(energon.DefaultTaskEncoder):
        cookers = [energon.Cooker(cook)]
        decoder = None

        @energon.stateless
        def batch(self, samples):
            return samples[0]

    return Plain()


def test_hugging_face_reads_it(packed, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'datasets>=4.7'")
    assert main(["export", str(packed), "--to", "hf", "--out", str(tmp_path / "copy")]) == 0
    found = datasets.load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))
    assert {row["__key__"]: row["mp4"] for split in ("train", "validation") for row in found[split]} == clips(packed)


def test_the_copy_is_not_put_into_the_dataset(packed, capsys):
    for out in (packed, packed / "copy", packed.parent):
        assert main(["export", str(packed), "--to", "hf", "--out", str(out)]) == 2
        assert "a folder of its own" in capsys.readouterr().err

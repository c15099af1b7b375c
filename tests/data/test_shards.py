from __future__ import annotations

import json
import pickle
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ramp_dataset import write_clip

from flowact.data.schema import DatasetInfo, check_key, parse_captions, read_column, read_dataset, write_dataset
from flowact.data.shards import (
    ShardError,
    ShardIndex,
    ShardReader,
    ShardWriter,
    build_index,
    decode,
    encode_array,
    iterate_samples,
    open_split,
)
from flowact.errors import UserError


def write_split(folder: Path, clips: int = 4, **options) -> ShardWriter:
    with ShardWriter(folder, **options) as writer:
        for number in range(clips):
            write_clip(writer, f"clip-{number}", 20 + number)
    return writer


def test_what_is_written_is_read(tmp_path):
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    with ShardWriter(tmp_path / "train") as writer:
        writer.write("a_b-1", {"json": b'{"frames": 7}', "txt": "größe".encode(), "x.npy": encode_array(array), "bin": bytes(range(256))}, 7)
    split = open_split(tmp_path / "train")
    [(clip, members)] = list(iterate_samples(split))
    assert (clip.key, clip.frames, set(members)) == ("a_b-1", 7, {"json", "txt", "x.npy", "bin"})
    assert split.decode(clip, "json") == {"frames": 7}
    assert split.decode(clip, "txt") == "größe"
    assert split.decode(clip, "bin") == bytes(range(256))
    read = split.decode(clip, "x.npy")
    assert read.dtype == np.float16
    np.testing.assert_array_equal(read, array)


def test_rewriting_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        write_split(tmp_path / folder, 7, max_samples=3)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["000000.json", "000000.tar", "000001.json", "000001.tar", "000002.json", "000002.tar"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_every_tar_reader_sees_the_same_members(tmp_path):
    write_split(tmp_path / "train", 3)
    with tarfile.open(tmp_path / "train" / "000000.tar") as archive:
        names = archive.getnames()
        assert all(info.mtime == 0 and info.uid == 0 for info in archive)
    suffixes = ["json", "mp4", "ref.png", "states.npy", "txt", "wav"]  # the same in every sample and adjacent, as the Hugging Face loader demands
    assert names == [f"clip-{number}.{suffix}" for number in range(3) for suffix in suffixes]


def test_size_target_is_kept_before_the_write(tmp_path):
    one = write_split(tmp_path / "one", 1).finished[0].stat().st_size
    writer = write_split(tmp_path / "many", 7, max_bytes=3 * one)
    sizes = [path.stat().st_size for path in writer.finished]
    assert len(sizes) == 4
    assert max(sizes) <= 3 * one
    assert len(write_split(tmp_path / "tiny", 3, max_bytes=1).finished) == 3  # a sample larger than the target gets a shard of its own


def test_an_exception_leaves_no_shard(tmp_path):
    def fail() -> None:
        with ShardWriter(tmp_path / "train", max_samples=1) as writer:
            write_clip(writer, "a", 5)
            write_clip(writer, "b", 5)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["000000.json", "000000.tar"]


@pytest.mark.parametrize(
    ("key", "members", "match"),
    [
        ("a.b", {"txt": b""}, "dot"),
        ("../a", {"txt": b""}, "key"),
        ("first", {"txt": b""}, "twice"),
        ("a", {}, "no members|at least one"),
        ("a", {"txt": b"", "wav": b""}, "wav.*same members"),
    ],
)
def test_writer_refuses(tmp_path, key, members, match):
    writer = ShardWriter(tmp_path / "train")
    writer.write("first", {"txt": b"x"}, 1)
    with pytest.raises(UserError, match=match):
        writer.write(key, members, 1)
    writer.abort()


def test_any_changed_byte_is_detected(tmp_path):
    """Payload bits by the crc of their member at reading; header and padding bits by the sha256 that lint compares."""
    path = write_split(tmp_path / "train", 3).finished[0]
    good = path.read_bytes()
    rng = random.Random(0)
    index = ShardIndex.read(path.with_suffix(".json"))
    payload = [(number, suffix, *place[:2]) for number, entry in enumerate(index.samples) for suffix, place in entry.members.items() if place[1]]
    for _ in range(60):
        number, suffix, offset, size = rng.choice(payload)
        position = offset + rng.randrange(size)
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << rng.randrange(8))]) + good[position + 1 :])
        reader = ShardReader(path)
        with pytest.raises(ShardError, match=f"clip-{number}.*{suffix}.*train/000000/clip-{number}"):
            reader.read(number, suffix)
    for _ in range(20):
        position = rng.randrange(len(good))
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(ShardError, match="sha256"):
            ShardReader(path).verify()


def test_truncation_at_every_block_is_detected(tmp_path):
    path = write_split(tmp_path / "train", 1).finished[0]
    good = path.read_bytes()
    for size in [*range(0, len(good), 512), len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(ShardError, match="bytes"):
            ShardReader(path)
    path.write_bytes(good + good)
    with pytest.raises(ShardError, match="bytes"):
        ShardReader(path)


def test_cut_while_reading(tmp_path):
    path = write_split(tmp_path / "train", 2).finished[0]
    reader = ShardReader(path)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(ShardError, match="was cut"):
        reader.read(1, "wav")


def test_a_damaged_index_is_named(tmp_path):
    path = write_split(tmp_path / "train", 2).finished[0].with_suffix(".json")
    good = json.loads(path.read_bytes())
    damages = [
        b"{",
        b"[]",
        json.dumps({**good, "schema": 2}).encode(),
        json.dumps({**good, "num_samples": 1}).encode(),
        json.dumps({**good, "bytes": 600}).encode(),
        json.dumps({**good, "samples": [good["samples"][0]] * 2}).encode(),
        json.dumps({**good, "samples": [{**s, "key": "../x"} for s in good["samples"]]}).encode(),
        b"[" * 100_000,
    ]
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(UserError):
            ShardIndex.read(path)


def test_missing_shards_are_named(tmp_path):
    write_split(tmp_path / "train", 4, max_samples=1)
    (tmp_path / "train" / "000001.tar").unlink()
    with pytest.raises(ShardError, match=r"000001.tar is missing"):
        open_split(tmp_path / "train")
    (tmp_path / "train" / "000001.json").unlink()
    write_dataset(tmp_path, DatasetInfo("x", splits={"train": {"shards": 4}}))
    with pytest.raises(ShardError, match=r"holds 3 shards.*says 4"):
        open_split(tmp_path / "train")


def test_brace_string_and_hints(tmp_path):
    write_split(tmp_path / "train", 4, max_samples=1)
    assert [clip.key for clip in open_split(f"{tmp_path}/train/{{000001..000002}}.tar").clips] == ["clip-1", "clip-2"]
    with pytest.raises(UserError, match=r"1 of 5 shards are missing.*000004.tar"):
        open_split(f"{tmp_path}/train/{{000000..000004}}.tar")
    with pytest.raises(UserError, match=r"Did you mean .*train"):
        open_split(tmp_path / "trian")
    for spec in ("pipe:touch canary", "http://example.org/000000.tar", "s3://bucket/x.tar"):
        with pytest.raises(UserError, match="local paths"):
            open_split(spec)


def test_excluded_clips_are_not_seen(tmp_path):
    write_split(tmp_path / "train", 6, max_samples=2)
    write_dataset(tmp_path, DatasetInfo("x", exclude=("train/000000", "train/000002/clip-5")))
    assert [clip.key for clip in open_split(tmp_path / "train").clips] == ["clip-2", "clip-3", "clip-4"]


def test_without_an_index_webdataset_reads(tmp_path):
    write_split(tmp_path / "train", 3)
    indexed = {clip.key: members for clip, members in iterate_samples(open_split(tmp_path / "train"))}
    (tmp_path / "train" / "000000.json").unlink()
    with pytest.warns(UserWarning, match=r"no index.*flowact-data index"):
        split = open_split(tmp_path / "train")
    assert not split.indexed
    assert {clip.key: members for clip, members in iterate_samples(split)} == indexed
    assert [clip.frames for clip in split.clips] == [20, 21, 22]


def test_an_index_can_be_made_again(tmp_path):
    path = write_split(tmp_path / "train", 3).finished[0]
    assert build_index(path).to_bytes() == path.with_suffix(".json").read_bytes()


def test_unindexed_garbage_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "000000.tar"
    for data in (b"", b"garbage" * 500, b"\x1f\x8b" + bytes(600)):
        path.write_bytes(data)
        with pytest.warns(UserWarning, match="no index"), pytest.raises(UserError):
            open_split(tmp_path / "train")


def test_nothing_is_unpickled(tmp_path):
    canary = tmp_path / "canary"

    class Gadget:
        def __reduce__(self):
            return (Path.touch, (canary,))

    assert decode("pkl", pickle.dumps(Gadget())) == pickle.dumps(Gadget())
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([Gadget()], dtype=object), allow_pickle=True)
    with pytest.raises(ShardError, match="refused"):
        decode("x.npy", buffer.getvalue(), "here")
    assert not canary.exists()


def test_an_array_claims_no_more_than_it_holds():
    good = encode_array(np.zeros((2, 3), np.float32))
    for data in (good[:-1], good + b"x", good.replace(b"(2, 3)", b"(9, 3)"), good[:20], b"", good.replace(b"'<f4'", b"'|O4'")):
        with pytest.raises(ShardError, match=r"here.*x\.npy"):
            decode("x.npy", data, "here")


def test_reader_survives_pickling(tmp_path):
    reader = ShardReader(write_split(tmp_path / "train", 1).finished[0])
    data = reader.read(0, "wav")
    assert pickle.loads(pickle.dumps(reader)).read(0, "wav") == data


def test_column_of_other_shards_is_refused(ramp, tmp_path):
    root = tmp_path / "shards"
    shutil.copytree(ramp, root)
    column = next((root / "columns").glob("audio-*"))
    split = open_split(root / "train")
    assert len(split.column(column)) == 7
    shutil.copy(column / "train" / "000001.tar", column / "train" / "000000.tar")
    shutil.copy(column / "train" / "000001.json", column / "train" / "000000.json")
    with pytest.raises(UserError, match="other clips"):
        split.column(column)
    (column / "train" / "000000.json").unlink()
    with pytest.raises(UserError, match="flowact-data encode"):
        split.column(column)


def test_dataset_file(ramp, tmp_path):
    info = read_dataset(ramp)
    assert info.states == ("speaking", "listening", "thinking", "idle")
    assert info.samples_per_frame == 640
    for text, match in [
        ("nam: x", "unknown entry 'nam'.*name"),
        ("name: x\nschema: 9", "schema 9"),
        ("[1, 2]", "list"),
        ("name: x\nexclude: train/0", "exclude"),
        ("name: x\nfps: 24", "no whole multiple"),
        ("a: !!python/object/apply:os.system ['touch canary']", "tag"),
        ("schema: 1", "name"),
        ("name: x\nname: y", "twice"),
        ("[" * 5000, "deep"),
    ]:
        (tmp_path / "dataset.yaml").write_text(text)
        with pytest.raises(UserError, match=match):
            read_dataset(tmp_path)
    with pytest.raises(UserError, match="flowact-data pack"):
        read_dataset(tmp_path / "nowhere")


def test_renamed_column_is_refused(ramp, tmp_path):
    column = next((ramp / "columns").glob("audio-*"))
    other = tmp_path / "audio-LogMel-ffffffff"
    other.mkdir()
    shutil.copy(column / "column.yaml", other)
    with pytest.raises(UserError, match="renamed or mixed"):
        read_column(other)


def test_keys():
    assert check_key("A-b_9") == "A-b_9"
    for key in ("", "a.b", "a/b", "ü", "a\n", "a" * 81):
        with pytest.raises(UserError):
            check_key(key)


@pytest.mark.parametrize(
    "captions",
    [
        None,
        [],
        "text",
        [[0, 5, "idle"]],
        [[1, 10, "idle", "x"]],
        [[0, 4, "idle", "x"], [5, 10, "idle", "x"]],
        [[0, 9, "idle", "x"]],
        [[0, 0, "idle", "x"]],
    ],
)
def test_captions_cover_the_clip(captions):
    with pytest.raises(UserError, match="here"):
        parse_captions({"frames": 10, "captions": captions}, "here")

"""`flowact-data export DATASET --to hf|energon --out DIR`: a copy without the excluded clips, with the files that another reader looks for.

    hf        README.md, by which `datasets.load_dataset(DIR)` finds the shards and the types of their members
    energon   .nv-meta/ and an index beside each tar, as `energon prepare` would write them, for a crude dataset

Shards without excluded clips are hard links where the disk allows it, so a copy takes no room. Columns stay behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import struct
import tarfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.card import write_card
from data_tools.manifest import open_indexed
from data_tools.rewrite import Taken, write_shard
from data_tools.workplace import check_room, claim, locked, progress, remove_unfinished
from flowact.data.schema import DatasetInfo, read_dataset, sync_folder, write_atomically, write_dataset
from flowact.data.shards import ShardReader, padded, split_folders
from flowact.errors import UserError
from flowact.strict_yaml import to_yaml

RECORD_FILE = "export.json"
META_FOLDER = ".nv-meta"
#: of Megatron-Energon, whose files these are
ENERGON_VERSION = "7.4.1"


@dataclass(frozen=True)
class Part:
    """A shard of the copy.

    Attributes:
        name: 'train/000003'.
        source: the shard it is made of.
        kept: numbers of the samples that are not excluded.
    """

    name: str
    source: ShardReader
    kept: tuple[int, ...]

    @property
    def whole(self) -> bool:
        return len(self.kept) == len(self.source.entries)

    def write(self, out: Path, copy: bool) -> None:
        """Link, copy or write it, with its index."""
        target = out / f"{self.name}.tar"
        if target.with_suffix(".json").is_file():
            return
        if not self.whole:
            samples = [Taken(self.source.path, number, self.source.entries[number].key) for number in self.kept]
            write_shard(target.parent, int(target.stem), samples)
            return
        part = target.with_name(target.name + ".part")
        if copy or not _linked(self.source.path, part):
            shutil.copyfile(self.source.path, part)
        os.replace(part, target)
        sync_folder(target.parent)
        write_atomically(target.with_suffix(".json"), replace(self.source.index, tar=target.name).to_bytes())


class Format(ABC):
    """What a reader looks for beside the shards."""

    @abstractmethod
    def finish(self, out: Path, info: DatasetInfo) -> None:
        """Write it; every shard is there."""

    @abstractmethod
    def how(self, out: Path) -> str:
        """How to read it."""


class HuggingFace(Format):
    """A folder for `datasets.load_dataset`, and to upload to the hub."""

    def finish(self, out: Path, info: DatasetInfo) -> None:
        write_card(out)

    def how(self, out: Path) -> str:
        return f'datasets.load_dataset("{out}", split="train", streaming=True)'


class Energon(Format):
    """A crude WebDataset of Megatron-Energon: samples come as they are, and a cooker of the task encoder makes of them what it needs."""

    def finish(self, out: Path, info: DatasetInfo) -> None:
        meta = out / META_FOLDER
        meta.mkdir(exist_ok=True)
        paths = [path for split in info.splits for path in sorted((out / split).glob("*.tar"))]
        offsets = {path: list(_offsets(path)) for path in progress(paths, len(paths), "index", "shards")}
        for path, places in offsets.items():
            write_atomically(path.with_suffix(".tar.idx"), struct.pack(f"<{len(places)}Q", *places))
        names = [path.relative_to(out).as_posix() for path in paths]
        self._write_database(meta / "index.sqlite", [(ShardReader(path), offsets[path]) for path in paths])
        counts = {name: len(offsets[path]) - 1 for name, path in zip(names, paths)}
        digest = hashlib.sha256("".join(ShardReader(path).index.sha256 for path in paths).encode()).digest()
        parts = {split: [name for name in names if name.startswith(f"{split}/")] for split in info.splits}
        files = {
            ".info.json": json.dumps({"energon_version": ENERGON_VERSION, "shard_counts": counts}, indent=2),
            "split.yaml": to_yaml({"split_parts": parts, "exclude": []}),
            "dataset.yaml": to_yaml({"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}),
            "index.uuid": str(uuid.UUID(bytes=digest[:16])),
        }
        for name, text in files.items():
            write_atomically(meta / name, text.encode())

    def how(self, out: Path) -> str:
        return f"energon info {out}, and get_train_dataset({str(out)!r}, ...) with a cooker in the task encoder"

    @staticmethod
    def _write_database(path: Path, shards: Sequence[tuple[ShardReader, list[int]]]) -> None:
        """Offsets of every sample and of every member, under the table names that energon reads."""
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        with closing(sqlite3.connect(part)) as database, database:
            samples = "tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL"
            database.execute(f"CREATE TABLE samples ({samples}, byte_offset INTEGER, byte_size INTEGER)")
            members = "tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER, content_byte_size INTEGER"
            database.execute(f"CREATE TABLE sample_parts ({members})")
            for tar, (shard, offsets) in enumerate(shards):
                for number, entry in enumerate(shard.entries):
                    first, end = offsets[number], offsets[number + 1]
                    database.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", (tar, entry.key, number, first, end - first))
                    places = sorted((place[0], place[1], suffix) for suffix, place in entry.members.items())
                    rows = [(tar, number, suffix, offset, size) for offset, size, suffix in places]
                    database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", rows)
            columns = "tar_file_id, sample_index"
            database.execute(f"CREATE INDEX idx_samples_by_tar_and_idx ON samples({columns})")
            database.execute(f"CREATE INDEX idx_sample_parts_seq ON sample_parts({columns}, content_byte_offset)")
            full = f"{columns}, part_name, content_byte_offset, content_byte_size"
            database.execute(f"CREATE INDEX idx_sample_parts_full ON sample_parts({full})")
        os.replace(part, path)


FORMATS: dict[str, Format] = {"hf": HuggingFace(), "energon": Energon()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data export`."""
    parser.add_argument("dataset", type=Path, help="folder of a dataset")
    parser.add_argument("--to", choices=sorted(FORMATS), required=True, help="who is to read it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the copy; one begun from the same dataset is continued")
    parser.add_argument("--copy", action="store_true", help="copy the shards, even where they could be hard links")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the copy.

    Raises:
        UserError: no dataset, a damaged shard, or a folder that holds something else.
    """
    info = read_dataset(args.dataset)
    source, out = args.dataset.resolve(), args.out.resolve()
    if out == source or source in out.parents or out in source.parents:
        raise UserError(f"--out {args.out} is in the dataset {args.dataset}, or holds it; give a folder of its own")
    parts = list(_parts(args.dataset, info))
    digest = hashlib.sha256("".join(f"{part.name} {part.source.index.sha256} {part.kept}\n" for part in parts).encode()).hexdigest()
    with locked(args.out):
        (args.out / f"{RECORD_FILE}.part").unlink(missing_ok=True)  # of a run that was killed at once
        claim(args.out, RECORD_FILE, {"kind": "flowact-export", "schema": 1, "to": args.to, "parts_sha256": digest})
        same_disk = os.stat(args.out).st_dev == os.stat(args.dataset).st_dev
        written = [part for part in parts if args.copy or not same_disk or not part.whole]
        missing = [part for part in written if not (args.out / f"{part.name}.json").is_file()]
        check_room(args.out, 1.02 * sum(part.source.index.num_bytes for part in missing), f"exporting {len(parts)} shards")
        for split in dict.fromkeys(part.name.partition("/")[0] for part in parts):
            (args.out / split).mkdir(parents=True, exist_ok=True)
            remove_unfinished(args.out / split)
        for part in progress(parts, len(parts), "export", "shards"):
            part.write(args.out, args.copy)
        copied = replace(info, splits=_counts(parts), columns=(), exclude=())
        write_dataset(args.out, copied)
        FORMATS[args.to].finish(args.out, copied)
    if args.json:
        print(json.dumps({"out": str(args.out), "to": args.to, "splits": copied.splits}))
    else:
        clips = sum(split["samples"] for split in copied.splits.values())
        print(f"{args.out}: {clips} clips in {len(parts)} shards\nread it with: {FORMATS[args.to].how(args.out)}")
    return 0


def _parts(root: Path, info: DatasetInfo) -> Iterator[Part]:
    exclude = set(info.exclude)
    for folder in split_folders(root):
        number = 0
        for path in sorted(folder.glob("*.tar")):
            name = f"{folder.name}/{path.stem}"
            if name in exclude:
                continue
            shard = open_indexed(path)
            kept = tuple(n for n, entry in enumerate(shard.entries) if f"{name}/{entry.key}" not in exclude)
            if kept:
                yield Part(f"{folder.name}/{number:06d}", shard, kept)
                number += 1


def _counts(parts: Sequence[Part]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        split = counts.setdefault(part.name.partition("/")[0], {"shards": 0, "samples": 0, "frames": 0})
        split["shards"] += 1
        split["samples"] += len(part.kept)
        split["frames"] += sum(part.source.entries[number].frames for number in part.kept)
    return counts


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False  # another disk, or one without links
    return True


def _offsets(path: Path) -> Iterator[int]:
    """Where each sample begins in a tar, and where the last one ends: headers are walked, as one may take more than a block."""
    last, end = None, 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            key = member.name.rpartition("/")[2].partition(".")[0]
            if key != last:
                yield member.offset
            last, end = key, member.offset_data + padded(member.size)
    yield end

"""Shards are read by position through their index, every byte checked; a tar without one is read from front to back."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from flowact.data.index import IndexEntry, ShardIndex, is_video, stated_frames
from flowact.data.media import count_frames
from flowact.data.members import ShardError, decode, file_sha256, lacking
from flowact.data.schema import DATASET_FILE, check_key
from flowact.errors import UserError

_LARGEST_UNINDEXED = 2 << 30


class Shard(Protocol):
    """Samples of one tar, by number."""

    @property
    def path(self) -> Path: ...

    @property
    def entries(self) -> Sequence[IndexEntry]: ...

    def read(self, sample: int, suffix: str) -> bytes: ...


class ShardReader:
    """Random access to a tar through its index; every read is checked against the crc32.

    Picklable and safe after fork: reads are positioned and share no file offset.

    Args:
        path: of the tar; the index lies beside it.

    Raises:
        ShardError: no tar, a damaged index, or a tar of another size than indexed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.index = ShardIndex.read(self.path.with_suffix(".json"))
        self.entries = self.index.samples
        self._descriptor: int | None = None
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise ShardError(f"shard {self.path} can not be read: {error.strerror}; its index {self.path.stem}.json is there") from error
        if size != self.index.num_bytes:
            raise ShardError(
                f"shard {self.path} has {size} bytes, its index says {self.index.num_bytes}: it was cut or changed; "
                f"copy it again, or exclude '{self.path.parent.name}/{self.path.stem}' in {DATASET_FILE}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def read(self, sample: int, suffix: str) -> bytes:
        """Bytes of a member.

        Raises:
            ShardError: no such member, or bytes that are not those that were written.
        """
        entry = self.entries[sample]
        where = f"shard {self.path}, sample {entry.key}, member .{suffix}"
        if suffix not in entry.members:
            raise ShardError(f"{where}: not in the index; {lacking(suffix, entry.members)}")
        offset, size, crc = entry.members[suffix]
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            data = _read_fully(self._descriptor, size, offset)
        except OSError as error:
            raise ShardError(f"{where}: {error.strerror}") from error
        if len(data) != size:
            raise ShardError(f"{where}: {len(data)} of {size} bytes could be read: the shard was cut; {_exclude_hint(self.path, entry.key)}")
        if zlib.crc32(data) != crc:
            raise ShardError(
                f"{where}: damaged, its crc32 is {zlib.crc32(data):08x} and was written as {crc:08x}; {_exclude_hint(self.path, entry.key)}"
            )
        return data

    def verify(self) -> None:
        """Compare the whole file with the index's sha256.

        Raises:
            ShardError: any byte differs, headers and padding included.
        """
        digest = file_sha256(self.path)
        if digest != self.index.sha256:
            raise ShardError(
                f"shard {self.path}: sha256 is {digest[:12]}…, indexed {self.index.sha256[:12]}…: the file was changed after it was written"
            )


class SequentialShard:
    """A tar without an index, read once from front to back by WebDataset's own reader and kept in memory.

    Nothing can be checked: WebDataset reads a tar that was cut between samples to its end without a word.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        size = self.path.stat().st_size
        if size > _LARGEST_UNINDEXED:
            raise UserError(f"{self.path} has no index and {size >> 20} MiB, too much to read at once; run: flowact-data index {self.path.parent}")
        if not tarfile.is_tarfile(self.path) or self.path.open("rb").read(262)[257:262] != b"ustar":
            raise ShardError(f"{self.path} is no uncompressed tar; WebDataset shards are plain .tar files")
        import webdataset

        self._samples: list[dict[str, bytes]] = []
        entries = []
        try:
            for sample in webdataset.DataPipeline(webdataset.SimpleShardList([str(self.path)]), webdataset.tarfile_to_samples()):
                members = {name: data for name, data in sample.items() if not name.startswith("__")}
                key = check_key(sample["__key__"].rpartition("/")[2])
                metadata = decode("json", members["json"], f"shard {self.path}, sample {key}") if "json" in members else {}
                frames = stated_frames(metadata)
                if not frames:
                    frames = next((count_frames(data) for name, data in members.items() if is_video(name)), 0)
                entries.append(IndexEntry(key, frames, {name: (0, len(data), 0) for name, data in members.items()}))
                self._samples.append(members)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise ShardError(f"shard {self.path} is damaged: {error}") from error
        self.entries = tuple(entries)

    def read(self, sample: int, suffix: str) -> bytes:
        """Bytes of a member, as WebDataset's reader found them."""
        members = self._samples[sample]
        if suffix not in members:
            raise ShardError(f"shard {self.path}, sample {self.entries[sample].key}, member .{suffix}: missing; {lacking(suffix, members)}")
        return members[suffix]


def open_shard(path: Path) -> Shard:
    """One tar: through its index, or from front to back where there is none."""
    return ShardReader(path) if path.with_suffix(".json").is_file() else SequentialShard(path)


def _read_fully(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # one read returns 2 GiB at most
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _exclude_hint(path: Path, key: str) -> str:
    return f"copy it again, or add '{path.parent.name}/{path.stem}/{key}' to exclude in {DATASET_FILE}"

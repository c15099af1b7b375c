"""Shards are written whole or not at all, and the same samples give the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowact.data.index import END, IndexEntry, ShardIndex, padded, sample_bytes
from flowact.data.schema import check_key, sync_folder, write_atomically
from flowact.errors import UserError


class ShardWriter:
    """Writes samples into shards of bounded size; the same samples give the same bytes.

    A shard appears under its final name only when complete, and its index after it, so a shard with an index is finished.

    Args:
        folder: of the split; created.
        max_bytes: a shard never grows beyond this, unless one sample alone is larger.
        max_samples: samples a shard at most; None for no bound.
        first: number of the first shard.

    Use as a context manager: leaving it normally finishes the last shard, leaving it by an exception drops the unfinished one.
    """

    def __init__(self, folder: Path | str, *, max_bytes: int = 256 << 20, max_samples: int | None = None, first: int = 0) -> None:
        if max_bytes < 1 or (max_samples is not None and max_samples < 1):
            raise UserError(f"a shard needs room for one sample, got max_bytes={max_bytes}, max_samples={max_samples}; use positive values")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.max_samples = max_samples
        self.number = first
        self.finished: list[Path] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file: Any = None
        self._suffixes: tuple[str, ...] | None = None
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @property
    def path(self) -> Path:
        """The tar that the next sample goes to, if it fits."""
        return self.folder / f"{self.number:06d}.tar"

    def write(self, key: str, members: Mapping[str, bytes], frames: int) -> None:
        """Append a sample.

        Args:
            key: unique in the split.
            members: suffix without leading dot ('mp4', 'states.npy') -> bytes.
            frames: pixel frames of the clip.

        Raises:
            UserError: a bad or repeated key, no members, or other suffixes than the samples before.
        """
        check_key(key)
        if key in self._keys:
            raise UserError(f"key {key!r} occurs twice in {self.folder}; keys are unique in a split")
        suffixes = tuple(sorted(members))
        if not suffixes or any(not re.fullmatch(r"[a-z0-9_.]+", suffix) for suffix in suffixes):
            raise UserError(f"sample {key!r} has members {suffixes}; suffixes are lower-case letters, digits, _ and dots, and there is at least one")
        if self._suffixes is not None and suffixes != self._suffixes:
            difference = sorted(set(suffixes) ^ set(self._suffixes))
            raise UserError(
                f"sample {key!r} differs in members {difference} from the samples before it; every sample of a dataset has the same members"
            )
        size = sample_bytes(map(len, members.values()))
        if self._file is not None and (self._offset + size + END > self.max_bytes or len(self._samples) == self.max_samples):
            self.close()
        if self._file is None:
            self._open()
        self._suffixes = suffixes
        self._keys.add(key)
        places = {}
        for suffix in suffixes:
            data = members[suffix]
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size, info.mtime, info.mode = len(data), 0, 0o644
            self._put(info.tobuf(format=tarfile.USTAR_FORMAT))
            places[suffix] = (self._offset, len(data), zlib.crc32(data))
            self._put(data)
            self._put(bytes(padded(len(data)) - len(data)))
        self._samples.append(IndexEntry(key, int(frames), places))

    def close(self) -> None:
        """Finish the shard that is open: end of archive, to disk, to its final name, then its index."""
        if self._file is None:
            return
        self._put(bytes(END))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        path = self.path
        os.replace(path.with_name(path.name + ".part"), path)
        sync_folder(self.folder)
        index = ShardIndex(path.name, self._offset, self._sha256.hexdigest(), tuple(self._samples))
        write_atomically(path.with_suffix(".json"), index.to_bytes())
        self.finished.append(path)
        self.number += 1

    def abort(self) -> None:
        """Drop the shard that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.path.with_name(self.path.name + ".part").unlink(missing_ok=True)

    def _open(self) -> None:
        path = self.path
        if path.exists() or path.with_suffix(".json").exists():
            raise UserError(f"{path} exists; write to another folder, or remove the shard with its index")
        self._file = path.with_name(path.name + ".part").open("wb")
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._samples: list[IndexEntry] = []

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)

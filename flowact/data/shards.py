"""Shards: tar files with an index beside each, written whole or not at all and read by position with every byte checked.

A tar alone cannot say that it was cut at a sample boundary or that a payload bit flipped; the index can. Members are decoded only
as JSON, text and arrays without pickled objects; everything else stays bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowact.data.schema import (
    COLUMNS_FOLDER,
    DATASET_FILE,
    INDEX_KIND,
    SCHEMA_VERSION,
    DatasetInfo,
    check_key,
    read_dataset,
    sync_folder,
    write_atomically,
)
from flowact.errors import UserError

_BLOCK = 512
_LARGEST_UNINDEXED = 2 << 30


class ShardError(UserError):
    """A shard that is not what its index says. The message names shard and key."""


@dataclass(frozen=True)
class IndexEntry:
    """One sample: where its members lie in the tar.

    Attributes:
        key: of the sample.
        frames: pixel frames of the clip.
        members: suffix -> (offset, size, crc32) of the payload.
    """

    key: str
    frames: int
    members: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class ShardIndex:
    """The index beside a tar: its size and hash, and every sample's members."""

    tar: str
    num_bytes: int
    sha256: str
    samples: tuple[IndexEntry, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sample.key for sample in self.samples)

    def to_bytes(self) -> bytes:
        """The JSON file, the same bytes for the same index."""
        return _json_bytes(
            {
                "schema": SCHEMA_VERSION,
                "kind": INDEX_KIND,
                "tar": self.tar,
                "bytes": self.num_bytes,
                "sha256": self.sha256,
                "num_samples": len(self.samples),
                "samples": [
                    {"key": s.key, "frames": s.frames, "members": {name: list(place) for name, place in s.members.items()}} for s in self.samples
                ],
            }
        )

    @classmethod
    def read(cls, path: Path) -> ShardIndex:
        """Read and check an index.

        Raises:
            ShardError: damaged, of another schema, or with members that lie outside the tar.
        """
        try:
            values = json.loads(path.read_bytes())
            if values["kind"] != INDEX_KIND or values["schema"] != SCHEMA_VERSION:
                raise ShardError(
                    f"{path} is a {values['kind']} of schema {values['schema']}, expected {INDEX_KIND} of schema {SCHEMA_VERSION}; repack"
                )
            num_bytes = int(values["bytes"])
            samples = tuple(
                IndexEntry(
                    check_key(sample["key"]),
                    int(sample["frames"]),
                    {str(suffix): (int(offset), int(size), int(crc)) for suffix, (offset, size, crc) in sample["members"].items()},
                )
                for sample in values["samples"]
            )
            index = cls(str(values["tar"]), num_bytes, str(values["sha256"]), samples)
            claimed = int(values["num_samples"])
        except ShardError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"{path} is damaged ({error!r}); delete it and run: flowact-data index {path.parent}") from error
        if claimed != len(samples):
            raise ShardError(f"{path} claims {claimed} samples and lists {len(samples)}; delete it and run: flowact-data index {path.parent}")
        if len(set(index.keys)) != len(samples):
            raise ShardError(f"{path} lists a key twice: {_first_repeated(index.keys)!r}; keys are unique in a shard")
        for sample in samples:
            for suffix, (offset, size, _) in sample.members.items():
                if offset < _BLOCK or size < 0 or offset + size > num_bytes:
                    raise ShardError(f"{path}: member {sample.key}.{suffix} lies at {offset}+{size}, outside the {num_bytes} bytes of {index.tar}")
        return index


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
        size = sum(_BLOCK + _padded(len(data)) for data in members.values())
        if self._file is not None and (self._offset + size + 2 * _BLOCK > self.max_bytes or len(self._samples) == self.max_samples):
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
            self._put(bytes(_padded(len(data)) - len(data)))
        self._samples.append(IndexEntry(key, int(frames), places))

    def close(self) -> None:
        """Finish the shard that is open: end of archive, to disk, to its final name, then its index."""
        if self._file is None:
            return
        self._put(bytes(2 * _BLOCK))
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
            raise ShardError(f"{where}: not in the index; the sample has {', '.join(entry.members)}")
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
                frames = metadata.get("frames", 0) if isinstance(metadata, dict) else 0
                entries.append(IndexEntry(key, frames if isinstance(frames, int) else 0, {name: (0, len(data), 0) for name, data in members.items()}))
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
            raise ShardError(f"shard {self.path}, sample {self.entries[sample].key}, member .{suffix}: missing; the sample has {', '.join(members)}")
        return members[suffix]


@dataclass(frozen=True)
class ClipRef:
    """A clip of a split: shard and sample by number, its key and its pixel frames."""

    shard: int
    sample: int
    key: str
    frames: int


class Split:
    """Clips of one split, in shard order.

    Args:
        folder: DIR/train.
        shards: readers, in order.
        clips: what can be read.
        info: the dataset, None where there is no dataset.yaml (foreign shards).

    Attributes:
        root: the dataset's folder.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], clips: Sequence[ClipRef], info: DatasetInfo | None) -> None:
        self.folder = folder
        self.root = folder.parent
        self.name = folder.name
        self.shards = list(shards)
        self.clips = list(clips)
        self.info = info

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def indexed(self) -> bool:
        return all(isinstance(shard, ShardReader) for shard in self.shards)

    def where(self, clip: ClipRef) -> str:
        """'train/000003/KEY': how a clip is named in messages and in `exclude`."""
        return f"{self.name}/{self.shards[clip.shard].path.stem}/{clip.key}"

    def read(self, clip: ClipRef, suffix: str) -> bytes:
        """Checked bytes of a member."""
        return self.shards[clip.shard].read(clip.sample, suffix)

    def decode(self, clip: ClipRef, suffix: str) -> Any:
        """A member as JSON value, text, array, or bytes."""
        return decode(suffix, self.read(clip, suffix), self.where(clip))

    def column(self, folder: Path) -> Split:
        """The same clips in a column: same shard numbers, keys and order.

        Raises:
            UserError: shards missing, or keys in another order: the column was made from other shards.
        """
        shards: list[Shard] = []
        for shard in self.shards:
            path = Path(folder) / self.name / shard.path.name
            if not path.with_suffix(".json").is_file():
                raise UserError(f"column {Path(folder).name} has no {self.name}/{path.name}; finish it with: flowact-data encode all {self.root}")
            reader = ShardReader(path)
            if reader.index.keys != tuple(entry.key for entry in shard.entries):
                raise UserError(
                    f"column shard {path} holds other clips than {shard.path}; the shards were repacked: delete the column and encode again"
                )
            shards.append(reader)
        return Split(Path(folder) / self.name, shards, self.clips, self.info)


def open_split(spec: str | Path) -> Split:
    """The clips of a split.

    Args:
        spec: a folder with shards ('DIR/shards/train') or a brace string ('DIR/shards/train/{000000..000003}.tar').

    Raises:
        UserError: nothing there, a remote address, or damaged shards.
    """
    paths, folder = _shard_paths(str(spec))
    info = read_dataset(folder.parent) if (folder.parent / DATASET_FILE).is_file() else None
    expected = info.splits.get(folder.name, {}).get("shards") if info else None
    if Path(spec) == folder and expected is not None and expected != len(paths):
        raise ShardError(
            f"{folder} holds {len(paths)} shards, {DATASET_FILE} says {expected}; copy the missing ones again, or correct {DATASET_FILE}"
        )
    exclude = set(info.exclude) if info else set()
    paths = [path for path in paths if f"{folder.name}/{path.stem}" not in exclude]  # not even opened, they may be damaged
    unindexed = [path for path in paths if not path.with_suffix(".json").is_file()]
    if unindexed:
        warnings.warn(
            f"{len(unindexed)} of {len(paths)} shards in {folder} have no index: they are read from front to back into memory, damage goes unseen. "
            f"Make indexes with: flowact-data index {folder}",
            stacklevel=2,
        )
    shards = [open_shard(path) for path in paths]
    clips = [
        ClipRef(number, sample, entry.key, entry.frames)
        for number, shard in enumerate(shards)
        for sample, entry in enumerate(shard.entries)
        if f"{folder.name}/{shard.path.stem}/{entry.key}" not in exclude
    ]
    if not clips:
        raise UserError(f"{spec}: no clips in {len(shards)} shards, with {len(exclude)} entries in exclude of {DATASET_FILE}")
    return Split(folder, shards, clips, info)


def open_shard(path: Path) -> Shard:
    """One tar: through its index, or from front to back where there is none."""
    return ShardReader(path) if path.with_suffix(".json").is_file() else SequentialShard(path)


def split_folders(root: Path | str) -> list[Path]:
    """Folders of a dataset that hold shards: train, val, ..."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and path.name != COLUMNS_FOLDER and any(path.glob("*.tar")))


def build_index(path: Path | str) -> ShardIndex:
    """Index of a tar that came without one (foreign shards): walks the tar once. Frames are read from the samples' .json, 0 without.

    Raises:
        ShardError: a damaged tar, members of a sample apart, or a repeated member.
    """
    path = Path(path)
    members: dict[str, dict[str, tuple[int, int, int]]] = {}
    frames: dict[str, int] = {}
    last = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", info.name)
                if not info.isreg() or match is None:
                    continue
                key, suffix = check_key(match[1].rpartition("/")[2]), match[2].lower()
                if key in members and key != last:
                    raise ShardError(f"shard {path}: members of sample {key} are apart; WebDataset needs them adjacent, repack")
                if suffix in members.setdefault(key, {}):
                    raise ShardError(f"shard {path}: sample {key} has two members .{suffix}")
                payload = archive.extractfile(info)
                data = payload.read() if payload else b""
                members[key][suffix] = (info.offset_data, info.size, zlib.crc32(data))
                if suffix == "json":
                    metadata = decode("json", data, f"shard {path}, sample {key}")
                    frames[key] = metadata["frames"] if isinstance(metadata, dict) and isinstance(metadata.get("frames"), int) else 0
                last = key
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(f"shard {path} is damaged: {error}") from error
    samples = tuple(IndexEntry(key, frames.get(key, 0), dict(sorted(places.items()))) for key, places in members.items())
    return ShardIndex(path.name, path.stat().st_size, file_sha256(path), samples)


def decode(suffix: str, data: bytes, where: str = "member") -> Any:
    """A member by its suffix: .json, .txt and .npy (plain numbers only); other suffixes stay bytes.

    Raises:
        ShardError: names `where` and what is wrong.
    """
    kind = suffix.rpartition(".")[2]
    try:
        if kind == "json":
            return json.loads(data)
        if kind == "txt":
            return data.decode("utf-8")
        if kind == "npy":
            return _decode_array(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}, member .{suffix}: {error}") from error
    return data


def encode_array(array: np.ndarray) -> bytes:
    """An array as .npy bytes, C order, the same bytes for the same array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_json(value: Any) -> bytes:
    """JSON bytes with sorted names, the same bytes for the same value."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def iterate_samples(split: Split) -> Iterator[tuple[ClipRef, dict[str, bytes]]]:
    """Every clip of a split with all its members, in order."""
    for clip in split.clips:
        yield clip, {suffix: split.read(clip, suffix) for suffix in split.shards[clip.shard].entries[clip.sample].members}


def _decode_array(data: bytes) -> np.ndarray:
    # numpy allocates what the header claims before it reads: the claim is compared with the bytes that are there first
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} is not read, only 1.0 and 2.0")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = reader(buffer)
    if dtype.hasobject:
        raise ValueError("array of Python objects refused; store plain numbers")
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(data) - buffer.tell():
        raise ValueError(f"array of shape {shape} {dtype} needs {count * dtype.itemsize} bytes, {len(data) - buffer.tell()} are there")
    array = np.frombuffer(data, dtype=dtype, count=count, offset=buffer.tell())
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _shard_paths(spec: str) -> tuple[list[Path], Path]:
    if re.match(r"[a-z0-9+]+:", spec, re.IGNORECASE):
        raise UserError(f"shards are read from local paths, got {spec!r}; copy or mount them first ('pipe:' and addresses are never run or opened)")
    match = re.search(r"\{(\d+)\.\.(\d+)\}", spec)
    if match or spec.endswith(".tar"):
        if match:
            first, last = int(match[1]), int(match[2])
            if last - first >= 1_000_000:
                raise UserError(f"{spec!r} names {last - first + 1} shards; at most a million")
            paths = [Path(f"{spec[: match.start()]}{number:0{len(match[1])}d}{spec[match.end() :]}") for number in range(first, last + 1)]
        else:
            paths = [Path(spec)]
        missing = [path for path in paths if not path.is_file()]
        if not paths or missing:
            raise UserError(f"{spec!r}: {len(missing)} of {len(paths)} shards are missing{f', the first is {missing[0]}' if missing else ''}")
        return paths, paths[0].parent
    folder = Path(spec)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        near = [str(path) for path in split_folders(folder)] if folder.is_dir() else []
        near = near or ([str(path) for path in split_folders(folder.parent)] if folder.parent.is_dir() else [])
        raise UserError(f"{spec!r} is no folder with shards (*.tar).{f' Did you mean {chr(44).join(near)}?' if near else ''}")
    orphans = sorted(path for path in folder.glob("*.json") if not path.with_suffix(".tar").is_file())
    if orphans:
        raise ShardError(
            f"shard {orphans[0].with_suffix('.tar')} is missing, its index is there ({len(orphans)} such); copy it again or remove the index"
        )
    return paths, folder


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


def _padded(size: int) -> int:
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _first_repeated(keys: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]

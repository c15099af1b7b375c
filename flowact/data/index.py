"""The index beside a tar. A tar alone cannot say that it was cut at a sample boundary or that a payload bit flipped; the index can."""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowact.data.media import count_frames
from flowact.data.members import ShardError, decode, file_sha256
from flowact.data.schema import INDEX_KIND, SCHEMA_VERSION, check_key

#: bytes of a tar's unit: headers and payloads begin at multiples of it
BLOCK = 512
#: bytes of the two empty blocks that end a tar
END = 2 * BLOCK


def padded(size: int) -> int:
    """Bytes that a payload of some size takes in a tar, its header apart."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def sample_bytes(sizes: Iterable[int]) -> int:
    """Bytes that a sample with members of these sizes takes in a tar, headers and all."""
    return sum(BLOCK + padded(size) for size in sizes)


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
                if offset < BLOCK or size < 0 or offset + size > num_bytes:
                    raise ShardError(f"{path}: member {sample.key}.{suffix} lies at {offset}+{size}, outside the {num_bytes} bytes of {index.tar}")
        return index


def build_index(path: Path | str) -> ShardIndex:
    """Index of a tar that came without one (foreign shards): walks the tar once. Frames are those of the sample's .json, else of its .mp4, else 0.

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
                    frames[key] = stated_frames(decode("json", data, f"shard {path}, sample {key}")) or frames.get(key, 0)
                elif is_video(suffix) and not frames.get(key):
                    frames[key] = count_frames(data)
                last = key
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(f"shard {path} is damaged: {error}") from error
    samples = tuple(IndexEntry(key, frames.get(key, 0), dict(sorted(places.items()))) for key, places in members.items())
    return ShardIndex(path.name, path.stat().st_size, file_sha256(path), samples)


def stated_frames(metadata: Any) -> int:
    """Frames of a clip by its KEY.json, 0 where it does not say."""
    frames = metadata.get("frames") if isinstance(metadata, dict) else None
    return frames if isinstance(frames, int) else 0


def is_video(suffix: str) -> bool:
    """Whether a member of a sample is its video, ours or one by another name."""
    return suffix.rpartition(".")[2] == "mp4"


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _first_repeated(keys: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]

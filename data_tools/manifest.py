"""Records beside the shards: one row a clip (`manifest.parquet`), what was left out (`rejected.parquet`), numbers (`stats.json`), shard lists.

All are a function of the dataset alone: the same dataset gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flowact.data.rights import stated
from flowact.data.schema import check_metadata, from_entries, parse_captions, read_dataset, write_atomically
from flowact.data.shards import ShardReader, decode, split_folders
from flowact.errors import UserError

MANIFEST_FILE = "manifest.parquet"
REJECTED_FILE = "rejected.parquet"
STATS_FILE = "stats.json"
SHARD_LIST = "index-{split}.json"

#: column of manifest.parquet -> type as pyarrow names it; `state.NAME` and `score.STEP.NAME` follow
COLUMNS = {
    "key": "string",
    "split": "string",
    "shard": "string",
    "uri": "string",
    "sha256": "string",
    "start_s": "double",
    "end_s": "double",
    "identity": "string",
    "frames": "int64",
    "seconds": "double",
    "width": "int64",
    "height": "int64",
    "license": "string",
    "consent": "string",
    "caption": "string",
    "speech_seconds": "double",
    "sync_offset_frames": "int64",
    "sync_confidence": "double",
    "bytes": "int64",
    "excluded": "bool",
}
REJECTED_COLUMNS = {
    "key": "string",
    "source": "string",
    "step": "string",
    "score": "string",
    "value": "string",
    "rule": "string",
    "threshold": "string",
    "reason": "string",
}


@dataclass(frozen=True)
class Clip:
    """A clip of a dataset as its records see it.

    Attributes:
        split: train or val.
        shard: stem of the tar.
        key: of the clip.
        frames: pixel frames.
        metadata: its KEY.json, checked.
        num_bytes: of all members.
        members: suffixes.
        excluded: by `exclude` in dataset.yaml.
    """

    split: str
    shard: str
    key: str
    frames: int
    metadata: dict[str, Any]
    num_bytes: int
    members: tuple[str, ...]
    excluded: bool

    @property
    def where(self) -> str:
        return f"{self.split}/{self.shard}/{self.key}"

    def source(self, name: str) -> str:
        """`license` or `consent` as it is stated, or 'unknown'."""
        return stated(self.metadata, name)


def read_clips(root: Path) -> Iterator[Clip]:
    """Every clip of a dataset in order, excluded ones too; shards that are excluded as a whole are not opened, as they may be damaged.

    Raises:
        UserError: a shard without index, or damaged.
    """
    exclude = set(read_dataset(root).exclude)
    for folder in split_folders(root):
        for path in sorted(folder.glob("*.tar")):
            if f"{folder.name}/{path.stem}" not in exclude:
                yield from _clips_of(open_indexed(path), exclude)


def open_indexed(path: Path) -> ShardReader:
    """A shard through its index.

    Raises:
        UserError: there is none.
    """
    if not path.with_suffix(".json").is_file():
        raise UserError(f"{path} has no index; make it with: flowact-data index {path.parent}")
    return ShardReader(path)


def _clips_of(shard: ShardReader, exclude: set[str]) -> Iterator[Clip]:
    split, stem = shard.path.parent.name, shard.path.stem
    for number, entry in enumerate(shard.entries):
        where = f"{split}/{stem}/{entry.key}"
        metadata = check_metadata(decode("json", shard.read(number, "json"), where), where)
        size = sum(place[1] for place in entry.members.values())
        yield Clip(split, stem, entry.key, entry.frames, metadata, size, tuple(entry.members), where in exclude)


def write_manifest(root: Path) -> Path:
    """Write manifest.parquet.

    Raises:
        UserError: pyarrow is not installed, or a shard can not be read.
    """
    pyarrow = import_pyarrow()
    info = read_dataset(root)
    rows = [_row(clip, info.fps, info.states) for clip in read_clips(root)]
    types = dict(COLUMNS) | {f"state.{name}": "double" for name in info.states}
    for name in sorted({name for row in rows for name in row} - set(types)):
        types[name] = _type_of([row.get(name) for row in rows])
    for row in rows:
        row.update({name: _as(types[name], value) for name, value in row.items() if name.startswith("score.")})
    path = root / MANIFEST_FILE
    write_atomically(path, _parquet(pyarrow, rows, types))
    return path


def write_rejected(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rejected.parquet: rows in the order given, values as text.

    Args:
        path: of the file.
        rows: {key, source, step, score, value, rule, threshold, reason}; what is absent or None stays empty.

    Raises:
        UserError: pyarrow is not installed, or a row has a name that is none of these.
    """
    pyarrow = import_pyarrow()
    for row in rows:
        if unknown := sorted(set(row) - set(REJECTED_COLUMNS)):
            raise UserError(f"a rejection has the entry {unknown[0]!r}; the entries are {', '.join(REJECTED_COLUMNS)}")
    plain = [{name: None if row.get(name) is None else str(row[name]) for name in REJECTED_COLUMNS} for row in rows]
    write_atomically(path, _parquet(pyarrow, plain, REJECTED_COLUMNS))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of manifest.parquet or rejected.parquet.

    Raises:
        UserError: pyarrow is not installed, or no such file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; make it with: flowact-data stats {path.parent} --write")
    pyarrow = import_pyarrow()
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise UserError(f"{path} is no Parquet file ({error}); make it again with: flowact-data stats {path.parent} --write") from error


def import_pyarrow() -> ModuleType:
    """pyarrow with its Parquet part.

    Raises:
        UserError: not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow; install it with: pip install 'flowact[data]'") from error
    return pyarrow


def describe_dataset(root: Path) -> dict[str, Any]:
    """Numbers of a dataset by split, as plain values: what stats.json holds."""
    info = read_dataset(root)
    splits: dict[str, dict[str, Any]] = {}
    for clip in read_clips(root):
        split = splits.setdefault(clip.split, _nothing())
        split["clips"] += 1
        split["excluded"] += clip.excluded
        split["frames"] += clip.frames
        split["identities"][clip.metadata["identity"]] += clip.frames
        split["licenses"][clip.source("license")] += 1
        split["consents"][clip.source("consent")] += 1
        split["sizes"][f"{clip.metadata.get('width', '?')}x{clip.metadata.get('height', '?')}"] += 1
        for state, count in _state_frames(clip).items():
            split["states"][state] += count
    for name, split in splits.items():
        tars = sorted((root / name).glob("*.tar"))
        split["shards"] = {path.name: path.stat().st_size for path in tars}
        split["bytes"] = sum(split["shards"].values())
        split["hours"] = round(split["frames"] / info.fps / 3600, 4)
        split["seconds_of_identity"] = {name: round(frames / info.fps, 2) for name, frames in sorted(split.pop("identities").items())}
        split["states"] = {state: round(count / split["frames"], 4) for state, count in sorted(split["states"].items())}
        for counts in ("licenses", "consents", "sizes"):
            split[counts] = dict(sorted(split[counts].items()))
    return {"name": info.name, "fps": info.fps, "sample_rate": info.sample_rate, "columns": sorted(info.columns), "splits": splits}


def write_stats(root: Path) -> dict[str, Any]:
    """Write stats.json.

    Returns:
        what it holds.
    """
    numbers = describe_dataset(root)
    write_atomically(root / STATS_FILE, (json.dumps(numbers, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return numbers


def write_shard_lists(root: Path) -> list[Path]:
    """Write index-SPLIT.json for every split: the list of shards that `wids` reads, with sizes and hashes."""
    name, written = read_dataset(root).name, []
    for folder in split_folders(root):
        shards = [open_indexed(path) for path in sorted(folder.glob("*.tar"))]
        listed = [
            {
                "url": f"{folder.name}/{shard.path.name}",
                "nsamples": len(shard.entries),
                "filesize": shard.index.num_bytes,
                "sha256": shard.index.sha256,
                "frames": sum(entry.frames for entry in shard.entries),
            }
            for shard in shards
        ]
        document = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": f"{name}-{folder.name}", "shardlist": listed}
        path = root / SHARD_LIST.format(split=folder.name)
        write_atomically(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def _nothing() -> dict[str, Any]:
    counters = {name: Counter[str]() for name in ("identities", "licenses", "consents", "sizes", "states")}
    return {"clips": 0, "excluded": 0, "frames": 0, **counters}


def _state_frames(clip: Clip) -> Counter[str]:
    captions = parse_captions(clip.metadata, clip.where)
    counts = Counter[str]()
    for state, start, end in zip(captions.states, captions.starts, [*captions.starts[1:], clip.frames]):
        counts[state] += int(end - start)
    return counts


def _row(clip: Clip, fps: int, states: Sequence[str]) -> dict[str, Any]:
    metadata = clip.metadata
    source, sync = metadata.get("source") or {}, metadata.get("sync") or {}
    counts = _state_frames(clip)
    row = {
        "key": clip.key,
        "split": clip.split,
        "shard": clip.shard,
        **{name: source.get(name) for name in ("uri", "sha256", "start_s", "end_s")},
        "identity": metadata["identity"],
        "frames": clip.frames,
        "seconds": clip.frames / fps,
        "width": metadata.get("width"),
        "height": metadata.get("height"),
        "license": clip.source("license"),
        "consent": clip.source("consent"),
        "caption": " ".join(dict.fromkeys(entry[3] for entry in from_entries("captions", metadata))),
        "speech_seconds": round(sum(end - start for start, end, _ in from_entries("speech", metadata)), 6) if "speech" in metadata else None,
        "sync_offset_frames": sync.get("offset_frames"),
        "sync_confidence": sync.get("confidence"),
        "bytes": clip.num_bytes,
        "excluded": clip.excluded,
        **{f"state.{name}": counts[name] / clip.frames for name in states},
    }
    for step, scores in (metadata.get("scores") or {}).items():
        row.update({f"score.{step}.{name}": value for name, value in scores.items()})
    return row


def _type_of(values: Sequence[Any]) -> str:
    """Type of a score's column: bool, double, or text where clips differ in kind."""
    kinds = {"bool" if isinstance(value, bool) else "double" if isinstance(value, int | float) else "string" for value in values if value is not None}
    return kinds.pop() if len(kinds) == 1 else "string"


def _as(kind: str, value: Any) -> Any:
    if value is None:
        return None
    return {"bool": bool, "double": float}.get(kind, str)(value)


def _parquet(pyarrow: ModuleType, rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> bytes:
    schema = pyarrow.schema([(name, getattr(pyarrow, {"double": "float64", "bool": "bool_"}.get(kind, kind))()) for name, kind in types.items()])
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema)
    sink = pyarrow.BufferOutputStream()
    # settings are fixed, and the file holds no time and no name of a machine
    pyarrow.parquet.write_table(table, sink, compression="zstd", compression_level=3, version="2.6", use_dictionary=True, row_group_size=65_536)
    return sink.getvalue().to_pybytes()

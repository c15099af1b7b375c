"""The shard format, version 1: names, records, and the checks that say what is wrong.

A dataset is a folder that any WebDataset reader can read, plus files that make it checkable:

    dataset.yaml                                     DatasetInfo, hand-editable (`exclude`)
    train/000000.tar, train/000000.json, val/...     samples, and beside each tar its index (offset, size, crc32 of every member)
    columns/<column>-<encoder>-<hash8>/              features of one encoder, same shard numbers, keys and order; column.yaml says which encoder

Members of a sample are described in `MEMBERS`; members of the columns in `COLUMN_MEMBERS`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from flowact.errors import UserError, did_you_mean
from flowact.strict_yaml import read_yaml_file, to_yaml
from flowact.types import BOXES, FRAMES_PER_SECOND, SAMPLE_RATE, STATES

SCHEMA_VERSION = 1
INDEX_KIND = "flowact-shard-index"
DATASET_FILE = "dataset.yaml"
COLUMN_FILE = "column.yaml"
COLUMNS_FOLDER = "columns"

#: suffix of a sample's member -> what it holds
MEMBERS = {
    "json": "metadata of the clip",
    "mp4": "h264 at the dataset's frame rate, constant",
    "ref.png": "reference picture, the size of the video",
    "states.npy": "uint8 (T,), index into the dataset's states",
    "txt": "caption of the whole clip, utf-8",
    "wav": "PCM16 mono, exactly T * sample_rate / fps samples",
}
OPTIONAL_MEMBERS = {
    "boxes.npy": "float32 (T, 2, 4), left, top, right, bottom of face and mouth as shares of the picture, NaN where unknown",
    "truth.npy": "float32 (T, P), synthetic characters only",
}

#: numbers of one frame in each box: left, top, right, bottom
BOX_SHAPE = (len(BOXES), 4)

#: column name -> suffix -> what it holds
COLUMN_MEMBERS = {
    "latents": {
        "latents.npy": "float16 (F, C, H, W), image latent 0 and all motion latents of the clip",
        "reference.npy": "float16 (R, C, H, W), image latents of candidate reference pictures, the clip's own first",
    },
    "audio": {"audio.npy": "float16 (T, D), one feature per pixel frame"},
    "text": {"text.npy": "float16 (N, L, D), one per caption, in the order of the metadata's captions"},
}
COLUMNS = tuple(COLUMN_MEMBERS)

#: lists in a clip's metadata -> names of an entry's values; frames and seconds count from the clip's beginning, ends are exclusive
ENTRIES = {
    "captions": ("first", "end", "state", "text"),
    "states": ("first", "end", "state"),
    "speech": ("start_s", "end_s", "who"),
}

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
Info = TypeVar("Info", "DatasetInfo", "ColumnInfo")


SplitBy = Literal["person", "recording"]


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.yaml` says.

    Attributes:
        name: of the dataset.
        schema: version of the format.
        fps: frames a second of every clip.
        sample_rate: samples a second of every soundtrack, mono.
        states: names of behaviour states; `states.npy` holds indices into them.
        character: {class_path, init_args} of the synthetic character, None for people.
        splits: split name -> {shards, samples, frames}.
        columns: folder names under `columns/` that are complete.
        exclude: entries 'SPLIT/SHARD' or 'SPLIT/SHARD/KEY' that readers skip.
        split_by: what is never in two splits: a person, or a recording (of one character, who is then in all of them).
    """

    name: str
    schema: int = SCHEMA_VERSION
    fps: int = FRAMES_PER_SECOND
    sample_rate: int = SAMPLE_RATE
    states: tuple[str, ...] = STATES
    character: dict[str, Any] | None = None
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    split_by: SplitBy = "person"

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // self.fps


@dataclass(frozen=True)
class ColumnInfo:
    """What `column.yaml` says: which encoder made the features, and their shape.

    Attributes:
        column: one of COLUMNS.
        encoder: {class_path, init_args}, all constructor arguments.
        hash: first 8 hex digits of the encoder's identity; for an autoencoder its weights are part of it.
        shapes: member suffix -> shape without the axes that differ between clips:
            latents.npy and reference.npy [C, H, W], audio.npy [D], text.npy [L, D].
        fps: frames a second of the clips.
        temporal_stride: pixel frames of a motion latent; latents only.
        spatial_stride: pixels of a latent cell; latents only.
        weights_sha256: of the autoencoder's weights; latents only.
        schema: version of the format.
    """

    column: str
    encoder: dict[str, Any]
    hash: str
    shapes: dict[str, list[int]]
    fps: int = FRAMES_PER_SECOND
    temporal_stride: int | None = None
    spatial_stride: int | None = None
    weights_sha256: str | None = None
    schema: int = SCHEMA_VERSION

    @property
    def folder_name(self) -> str:
        return column_folder_name(self.column, self.encoder, self.hash)


@dataclass(frozen=True)
class Captions:
    """Captions of a clip: caption i is in force from frame `starts[i]` up to `starts[i + 1]`.

    Attributes:
        starts: first frame of each caption, ascending from 0.
        states: behaviour state of each caption.
        texts: what each caption says.
    """

    starts: np.ndarray
    states: tuple[str, ...]
    texts: tuple[str, ...]

    def at(self, frames: np.ndarray) -> np.ndarray:
        """Index of the caption in force at each pixel frame."""
        return np.searchsorted(self.starts, frames, side="right") - 1


def check_key(key: str) -> str:
    """The key, if every tar reader can hold it.

    Raises:
        UserError: a dot, slash or other character outside [A-Za-z0-9_-], or more than 80 of them.
    """
    if not _KEY.match(key):
        suggestion = re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")[:80] or "clip"
        raise UserError(
            f"clip key {key!r} must be 1 to 80 characters of A-Z a-z 0-9 _ - (a dot would end the key in a tar); rename it, e.g. {suggestion!r}"
        )
    return key


def wrong_optional_member(suffix: str, array: np.ndarray, frames: int) -> str | None:
    """What is wrong with one of `OPTIONAL_MEMBERS`, or None."""
    if suffix == "truth.npy":
        if array.ndim == 2 and len(array) == frames and array.dtype == np.float32 and np.isfinite(array).all():
            return None
        return f"truth.npy should be finite float32 ({frames}, P), is {array.dtype} {array.shape}"
    if array.shape != (frames, *BOX_SHAPE) or array.dtype != np.float32:
        return f"boxes.npy should be float32 {(frames, *BOX_SHAPE)}, is {array.dtype} {array.shape}"
    known = array[np.isfinite(array).all(axis=-1)]
    if ((known < 0) | (known > 1)).any() or (known[:, :2] > known[:, 2:]).any():
        return "boxes.npy should hold left <= right and top <= bottom, as shares of the picture in [0, 1]"
    return None


def check_metadata(metadata: Any, where: str) -> dict[str, Any]:
    """Metadata of a clip, after checking what readers rely on: key, frames, identity and captions that cover every frame.

    Raises:
        UserError: names `where` and the entry.
    """
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: metadata is a {type(metadata).__name__}, expected a JSON object")
    for name, kind in (("key", str), ("frames", int), ("identity", str)):
        if not isinstance(metadata.get(name), kind) or isinstance(metadata.get(name), bool):
            raise UserError(f"{where}: metadata {name!r} is {metadata.get(name)!r}, expected {kind.__name__}.{did_you_mean(name, metadata)}")
    if metadata["frames"] < 1:
        raise UserError(f"{where}: metadata 'frames' is {metadata['frames']}, expected at least 1")
    check_key(metadata["key"])
    parse_captions(metadata, where)
    return metadata


def to_entries(kind: str, runs: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Runs as metadata holds them: objects, so that every value of a name has one type and table readers can read them.

    Args:
        kind: one of `ENTRIES`.
        runs: values in the order of that kind's names.

    >>> to_entries("states", [(0, 8, "idle")])
    [{'first': 0, 'end': 8, 'state': 'idle'}]
    """
    return [dict(zip(ENTRIES[kind], run, strict=True)) for run in runs]


def from_entries(kind: str, metadata: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Runs of a clip's metadata; none where it has none. Lists of values are read too, the first form of the format."""
    names = ENTRIES[kind]
    return [tuple(entry[name] for name in names) if isinstance(entry, Mapping) else tuple(entry) for entry in metadata.get(kind) or ()]


def parse_captions(metadata: Mapping[str, Any], where: str) -> Captions:
    """Captions of a clip's metadata.

    Raises:
        UserError: captions that do not cover frames 0..T without gap or overlap.
    """
    frames, found = metadata["frames"], metadata.get("captions")
    form = "{first, end, state, text}"
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise UserError(f"{where}: metadata 'captions' is {found!r}, expected [{form}, ...] covering {frames} frames")
    try:
        entries = from_entries("captions", metadata)
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: a caption lacks {error}; captions are [{form}, ...] in frames") from error
    expected, starts = 0, []
    for entry in entries:
        if len(entry) != 4 or not isinstance(entry[3], str) or not isinstance(entry[2], str):
            raise UserError(f"{where}: caption {entry!r} should be {form}")
        if entry[0] != expected or not isinstance(entry[1], int) or entry[1] <= entry[0]:
            raise UserError(
                f"{where}: caption {entry!r} should begin at frame {expected} and end after it; captions cover the clip without gap or overlap"
            )
        starts.append(entry[0])
        expected = entry[1]
    if expected != frames:
        raise UserError(f"{where}: captions end at frame {expected} of {frames}; extend the last caption to {frames}")
    return Captions(np.asarray(starts, dtype=np.int64), tuple(entry[2] for entry in entries), tuple(entry[3] for entry in entries))


def column_folder_name(column: str, encoder: Mapping[str, Any], hash8: str) -> str:
    """'latents-CausalVideoAutoencoder-1a2b3c4d': a changed encoder can not land in the folder of another."""
    return f"{column}-{str(encoder['class_path']).rpartition('.')[2]}-{hash8}"


def split_column_folder_name(name: str) -> tuple[str, str, str] | None:
    """(column, encoder, hash8) of a column folder's name, or None when it is no such name."""
    match = re.match(r"(latents|audio|text)-(\w+)-([0-9a-f]{8})\Z", name)
    return (match[1], match[2], match[3]) if match else None


def read_dataset(root: Path) -> DatasetInfo:
    """`dataset.yaml` of a dataset folder.

    Raises:
        UserError: no such file, or an entry that is unknown, missing or of another schema version.
    """
    path = Path(root) / DATASET_FILE
    if not path.is_file():
        raise UserError(f"{root} has no {DATASET_FILE}, so it is no dataset of ours; make one with: flowact-data pack CLIPS --out {root}")
    info = _read_info(path, DatasetInfo)
    if info.fps < 1 or info.sample_rate % info.fps:
        raise UserError(f"{path}: {info.sample_rate} samples a second is no whole multiple of {info.fps} frames a second; repack at 16000 and 25")
    return info


def write_dataset(root: Path, info: DatasetInfo) -> None:
    """Write `dataset.yaml`, whole or not at all."""
    comment = (
        "# Dataset of clips, made by flowact-data. `exclude` may be edited: entries 'SPLIT/SHARD' or 'SPLIT/SHARD/KEY', "
        "as `flowact-data lint` prints them.\n"
    )
    write_atomically(Path(root) / DATASET_FILE, (comment + _dump_yaml(info)).encode())


def read_column(folder: Path) -> ColumnInfo:
    """`column.yaml` of a column folder.

    Raises:
        UserError: no such file, a damaged one, or one whose hash is not the one in the folder's name.
    """
    path = Path(folder) / COLUMN_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {COLUMN_FILE}, so its features can not be trusted; delete the folder and run flowact-data encode again")
    info = _read_info(path, ColumnInfo)
    named = split_column_folder_name(Path(folder).name)
    if named and (named[0], named[2]) != (info.column, info.hash):
        raise UserError(f"{path} says {info.column} {info.hash}, but its folder is named {Path(folder).name}; it was renamed or mixed: encode again")
    return info


def write_column(folder: Path, info: ColumnInfo) -> None:
    """Write `column.yaml`, whole or not at all."""
    write_atomically(Path(folder) / COLUMN_FILE, _dump_yaml(info).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent, the old one, or the new one in full, even after a power cut."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dump_yaml(info: DatasetInfo | ColumnInfo) -> str:
    plain = json.loads(json.dumps(asdict(info)))  # tuples to lists
    return to_yaml(plain)


def _read_info(path: Path, kind: type[Info]) -> Info:
    values, _ = read_yaml_file(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected names with values")
    known = {entry.name: entry for entry in fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(f"{path}: unknown entry {name!r}.{did_you_mean(str(name), known)}")
    if values.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise UserError(f"{path} has schema {values['schema']!r}, this version reads {SCHEMA_VERSION}; use the release that wrote it, or repack")
    for name in ("states", "columns", "exclude"):
        if name in values and kind is DatasetInfo:
            if not isinstance(values[name], list) or not all(isinstance(entry, str) for entry in values[name]):
                raise UserError(f"{path}: {name!r} should be a list of words, is {values[name]!r}")
            values[name] = tuple(values[name])
    for name in ("fps", "sample_rate"):
        if name in values and (not isinstance(values[name], int) or isinstance(values[name], bool)):
            raise UserError(f"{path}: {name!r} should be a whole number, is {values[name]!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{path}: {str(error).partition(') ')[2] or error}; has {', '.join(map(str, values))}") from error

"""Where recordings come from: folders, tables and WebDataset shards, on this machine or at any address that fsspec knows.

Nothing is dropped without a word: what is no recording is listed with the reason. One recording that is faulty never hides the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools import addresses
from data_tools.media.container import VIDEO_SUFFIXES, check_file
from data_tools.tables import TABLE_SUFFIXES, choose_columns, plain_text, read_rows, seconds_of
from flowact.data.media import MediaError
from flowact.errors import UserError, did_you_mean

#: what may lie beside KEY.mp4, as KEY.SUFFIX
SIDECARS = ("wav", "other.wav", "txt", "json", "boxes.npy", "states.npy", "TextGrid", "eaf", "csv", "tsv", "srt", "vtt")
MAX_ID = 60
SPLITS = ("train", "val")
#: bytes of a sidecar that says something in words
MAX_WORDS = 1 << 20
MAX_CAPTION = 2000
REMOTE_FOLDER = "remote"
#: how a file in a tar is named by WebDataset: all up to the first dot is the sample's key
_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_PICKLES = ("pth", "pt", "pkl", "pickle", "pyd")


@dataclass(frozen=True)
class Source:
    """A recording.

    Attributes:
        id: plain characters, at most 60, unique in its input, the same when others are added.
        address: a local path, or an address that fsspec knows, or MEMBER::TAR.
        identity: of the person shown.
        start_s: second at which it begins, where a table says so.
        end_s: second at which it ends, likewise.
        caption: of the whole recording.
        license: of the recording.
        consent: of the person shown.
        split: train or val, where it is said.
        sidecars: suffix -> address of what lies beside it.
        metadata: what else is known, plain values.
    """

    id: str
    address: str
    identity: str
    start_s: float | None = None
    end_s: float | None = None
    caption: str | None = None
    license: str | None = None
    consent: str | None = None
    split: str | None = None
    sidecars: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A file that is no recording, and why."""

    address: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What an input holds."""

    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class LocalFiles:
    """A recording's files on this machine."""

    video: Path
    sidecars: Mapping[str, Path]


def find_sources(address: str, *, columns: Mapping[str, str] | None = None) -> Found:
    """Recordings of an input, in an order that does not depend on the machine.

    Args:
        address: a folder, a table (.csv, .tsv, .jsonl, .parquet), a shard (.tar) or one video, local or remote.
        columns: of a table: our name -> its name.

    Raises:
        UserError: nothing there, a scheme that runs commands, a table without a column of videos.
    """
    if address.startswith("pipe:"):
        raise UserError(f"{address!r}: 'pipe:' runs a command and is never opened; give a path or an address such as s3://bucket/folder")
    suffix = PurePosixPath(address).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return _table(address, suffix, columns or {})
    if suffix == ".tar":
        return _shard(address)
    return _remote_folder(address) if addresses.is_remote(address) else _folder(Path(address))


@contextmanager
def fetch(source: Source, work: Path) -> Iterator[LocalFiles]:
    """A recording's files on this machine: local ones as they are, remote ones and members of shards as temporary copies.

    Raises:
        MediaError: a file that can not be read.
    """
    folder = work / REMOTE_FOLDER / f"{source.id}-{os.getpid()}"
    try:
        video = _local(source.address, folder, _video_suffix(source.address))
        yield LocalFiles(video, {suffix: _local(address, folder, f".{suffix}") for suffix, address in source.sidecars.items()})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _local(address: str, folder: Path, suffix: str) -> Path:
    if not addresses.is_remote(address) and addresses.member_of(address) is None:
        check_file(Path(address))
        return Path(address)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"file{suffix}"
    addresses.copy(address, target)
    return target


def _video_suffix(address: str) -> str:
    """What a copy is called, whatever the address has behind its name."""
    inside = addresses.member_of(address)
    suffix = PurePosixPath(_without_query(inside[0] if inside else address)).suffix.lower()
    return suffix if suffix in VIDEO_SUFFIXES else ".mp4"


class _Gathering:
    """Recordings as they are found, each with what its sidecars say, or the reason why it is none."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.skipped: list[Skipped] = []

    def add(self, source: Source, **stronger: Any) -> None:
        """Values that are not None win over what sidecars say."""
        try:
            told = {name: value for name, value in stronger.items() if value is not None}
            source = replace(_with_sidecars(source), **told)
            if source.split not in (None, *SPLITS):
                raise MediaError(f"split is {source.split!r}, expected {' or '.join(SPLITS)}; recordings that say none are split by person")
            self.sources.append(source)
        except MediaError as error:
            self.skip(source.address, str(error))

    def skip(self, address: str, reason: str) -> None:
        self.skipped.append(Skipped(address.encode(errors="surrogateescape").decode(errors="replace"), reason))

    def found(self) -> Found:
        return Found(_unique(self.sources), tuple(self.skipped))


# --- folders ----------------------------------------------------------------------------------------------------------------------------------------


def _folder(root: Path) -> Found:
    if root.suffix.lower() in VIDEO_SUFFIXES and root.is_file():
        paths, root = [root], root.parent
    elif root.is_dir():
        paths = sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix())
    else:
        near = [str(path) for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"there is no folder {root}.{did_you_mean(str(root), near)}")
    gathering, real = _Gathering(), root.resolve()
    for path in paths:
        relative = path.relative_to(root)
        if path.is_symlink() and path.is_dir():
            gathering.skip(str(path), "a link to a folder, which is not followed; give that folder as an input too")
        elif path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
            try:
                _check_name(relative.as_posix())
                _check_inside(path, real)
                check_file(path)
                beside = {suffix: _beside(path, suffix) for suffix in SIDECARS if os.path.isfile(_beside(path, suffix))}
                for sidecar in beside.values():
                    _check_inside(Path(sidecar), real)
            except MediaError as error:
                gathering.skip(str(path), str(error))
            else:
                gathering.add(Source(plain_id(relative), str(path), _person(relative), sidecars=beside))
    return gathering.found()


def _remote_folder(address: str) -> Found:
    filesystem, root = addresses.filesystem(address)
    try:
        listed = filesystem.find(root, detail=True)
    except Exception as error:  # file systems raise errors of their own kinds
        raise UserError(f"{address} can not be listed ({type(error).__name__}: {error}); check the address and your access to it") from error
    files = {name: details for name, details in listed.items() if details.get("type") != "directory"}
    if not files:
        raise UserError(f"there is nothing at {address}; check the address and your access to it")
    gathering = _Gathering()
    for name in sorted(files):
        relative = PurePosixPath(name.removeprefix(root).lstrip("/") or PurePosixPath(name).name)
        full = str(filesystem.unstrip_protocol(name))
        if relative.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            _check_name(str(relative))
            if files[name].get("size") == 0:
                raise MediaError("empty; copy it again")
        except MediaError as error:
            gathering.skip(full, str(error))
            continue
        stem = name[: -len(relative.suffix)]
        beside = {suffix: str(filesystem.unstrip_protocol(f"{stem}.{suffix}")) for suffix in SIDECARS if f"{stem}.{suffix}" in files}
        gathering.add(Source(plain_id(relative), full, _person(relative), sidecars=beside))
    return gathering.found()


def _check_name(relative: str) -> None:
    if any(part.startswith(".") for part in relative.split("/")):
        raise MediaError("hidden; rename it without the leading dot if it is meant")
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise MediaError("its name is no UTF-8, which tables and shards need; rename it") from error


def _check_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise MediaError(f"{path.name} is a link that leads out of the folder; copy the file, or give the folder that holds it")


def _beside(path: Path, suffix: str) -> str:
    return os.path.join(path.parent, f"{path.stem}.{suffix}")


def _person(relative: Path | PurePosixPath) -> str:
    """People by folder: anna/01.mp4 shows anna; a file right in the input shows a person of its own."""
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _with_sidecars(source: Source) -> Source:
    """What KEY.txt and KEY.json say about a recording.

    Raises:
        MediaError: one of them can not be read.
    """
    values: dict[str, Any] = {}
    try:
        if "txt" in source.sidecars:
            values["caption"] = " ".join(addresses.read(source.sidecars["txt"], MAX_WORDS).decode("utf-8-sig").split())[:MAX_CAPTION] or None
        if "json" in source.sidecars:
            known = json.loads(addresses.read(source.sidecars["json"], MAX_WORDS))
            if not isinstance(known, dict):
                raise ValueError("the .json is no object")
            origin = known.get("source")
            origin = origin if isinstance(origin, dict) else {}
            values["identity"] = plain_text(known.get("identity")) or source.identity
            values["split"] = plain_text(known.get("split"))
            values["license"], values["consent"] = (plain_text(origin.get(name)) or plain_text(known.get(name)) for name in ("license", "consent"))
            values["caption"] = plain_text(known.get("caption")) or values.get("caption")
    except MediaError:
        raise
    except (ValueError, RecursionError) as error:
        raise MediaError(f"what lies beside it can not be read ({error}); correct or remove it") from error
    return replace(source, **values)


# --- tables -----------------------------------------------------------------------------------------------------------------------------------------


def _table(address: str, suffix: str, columns: Mapping[str, str]) -> Found:
    rows, faults = read_rows(address, suffix)
    chosen = choose_columns(address, [row.values for row in rows], columns)
    gathering, base = _Gathering(), address.rpartition("/")[0]
    for place, reason in faults:
        gathering.skip(place, reason)
    places: dict[tuple[str, float | None, float | None], str] = {}
    for row in rows:
        try:
            video = plain_text(row.values.get(chosen["video"]))
            if video is None:
                raise MediaError(f"{chosen['video']} is empty; name the video")
            start, end = (seconds_of(row.values.get(chosen[name]), chosen[name]) if name in chosen else None for name in ("start", "end"))
            if start is not None and end is not None and end <= start:
                raise MediaError(f"{chosen['end']} is {end:g}, not after {chosen['start']}, {start:g}; exchange or correct them")
            first = places.setdefault((video, start, end), row.place)
            if first != row.place:
                raise MediaError(f"the same recording as {first}; remove one")
            source = _row_source(video, base, start, end)
        except MediaError as error:
            gathering.skip(row.place, str(error))
            continue
        others = {name: value for name, value in row.values.items() if name not in chosen.values() and _is_plain(value)}
        values = {name: plain_text(row.values.get(chosen[name])) for name in ("identity", "caption", "license", "consent", "split") if name in chosen}
        gathering.add(source, start_s=start, end_s=end, metadata=others, **values)
    return gathering.found()


def _row_source(video: str, base: str, start: float | None, end: float | None) -> Source:
    remote = addresses.is_remote(video)
    where = video if remote or os.path.isabs(video) or not base else f"{base}/{video}"
    relative = PurePosixPath(_without_query(video).partition("://")[2] if remote else video)
    plain = PurePosixPath(*(part for part in relative.parts if part not in ("/", "..")))
    if not plain.name:
        raise MediaError(f"{video!r} names no file; give the path of a video")
    simple = not remote and plain == relative and len(plain.parts) <= 2
    span = "" if start is None and end is None else f"@{start}-{end}"
    id_ = plain_id(PurePosixPath(*plain.parts[-2:]), extra=span if simple else video + span)
    beside = {} if addresses.is_remote(where) else {suffix: _beside(Path(where), suffix) for suffix in SIDECARS}
    return Source(id_, where, plain.stem, sidecars={suffix: path for suffix, path in beside.items() if os.path.isfile(path)})


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, bool)) or (isinstance(value, float) and math.isfinite(value))


def _without_query(address: str) -> str:
    """An address of the web without what follows its path; names of files may have question marks."""
    return address.partition("?")[0] if re.match("https?://", address) else address


# --- shards -----------------------------------------------------------------------------------------------------------------------------------------


def _shard(address: str) -> Found:
    if not addresses.is_remote(address) and not Path(address).is_file():
        raise UserError(f"there is no shard {address}")
    samples: dict[str, dict[str, str]] = {}
    gathering = _Gathering()
    for member in addresses.members(address).values():
        match = _MEMBER.match(member.name)
        if member.refused or match is None:
            gathering.skip(f"{member.name}::{address}", member.refused or "its name is no key, dot and suffix")
        elif match[2].rpartition(".")[2].lower() in _PICKLES:
            gathering.skip(f"{member.name}::{address}", "a pickle, which could run code, is never opened")
        else:
            samples.setdefault(match[1], {})[match[2].lower()] = member.name
    for key, found in samples.items():
        video = next((name for suffix, name in found.items() if f".{suffix}" in VIDEO_SUFFIXES), None)
        if video is None:
            gathering.skip(f"{key}::{address}", f"no video among {', '.join(found)}")
            continue
        relative = PurePosixPath(PurePosixPath(address).stem, key.lstrip("/") + PurePosixPath(video).suffix)
        beside = {suffix: f"{found[suffix.lower()]}::{address}" for suffix in SIDECARS if suffix.lower() in found}
        gathering.add(Source(plain_id(relative), f"{video}::{address}", relative.stem, sidecars=beside))
    return gathering.found()


# --- ids --------------------------------------------------------------------------------------------------------------------------------------------


def plain_id(relative: Path | PurePosixPath, extra: str = "") -> str:
    """A recording's id from its path: plain characters, with a hash where some were lost, so that two paths never get one id.

    >>> plain_id(PurePosixPath("anna/01.mp4"))
    'anna--01'
    >>> plain_id(PurePosixPath("anna/take 1.mp4"))
    'anna--take-1-ac0886e4dd'
    """
    parts = relative.with_suffix("").parts
    text = "--".join(parts)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[: MAX_ID - 11]
    lossless = plain == text and relative.suffix == ".mp4" and not any("--" in part or part.startswith("-") or part.endswith("-") for part in parts)
    if lossless and not extra:
        return plain
    return f"{plain or 'clip'}-{_hash(relative.as_posix() + extra)[:10]}"


def _unique(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Whoever makes two names of one hash still gets two ids."""
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.id, []).append(source)
    unique = []
    for id_, found in groups.items():
        tails = [""] if len(found) == 1 else [f"-{_hash(f'{source.address}@{source.start_s}-{source.end_s}')[:10]}" for source in found]
        unique += [replace(source, id=id_[: MAX_ID - len(tail)] + tail) for source, tail in zip(found, tails, strict=True)]
    return tuple(unique)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

"""Where recordings come from: folders, tables and WebDataset shards, on this machine or at any address that fsspec knows.

Nothing is dropped without a word: what is no recording is listed with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.media.container import VIDEO_SUFFIXES, FootageError, check_file
from flowact.data.media import MediaError
from flowact.errors import UserError, did_you_mean

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
#: what may lie beside KEY.mp4, as KEY.SUFFIX
SIDECARS = ("wav", "other.wav", "txt", "json", "boxes.npy", "states.npy", "TextGrid", "eaf", "csv", "srt")
#: our name of a table's column -> names that are understood without being told
COLUMNS = {
    "video": ("video", "path", "file", "url", "uri"),
    "start": ("start", "start_s", "begin"),
    "end": ("end", "end_s", "stop"),
    "identity": ("identity", "person", "speaker", "name"),
    "caption": ("caption", "text", "prompt"),
    "license": ("license", "licence"),
    "consent": ("consent",),
    "split": ("split",),
}
MAX_ID = 60
REMOTE_FOLDER = "remote"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A recording.

    Attributes:
        id: plain characters, at most 60, unique in its input, the same when others are added.
        address: a local path, or an address that fsspec knows.
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
        address: a folder, a table (.csv, .tsv, .jsonl, .parquet) or a shard (.tar), local or remote.
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
    return _remote_folder(address) if _is_remote(address) else _folder(Path(address))


@contextmanager
def fetch(source: Source, work: Path) -> Iterator[LocalFiles]:
    """A recording's files on this machine: local ones as they are, remote ones and members of shards as temporary copies.

    Raises:
        MediaError: a file that can not be read.
    """
    folder = work / REMOTE_FOLDER / f"{source.id}-{os.getpid()}"
    try:
        video = _local(source.address, folder, PurePosixPath(source.address).suffix or ".mp4")
        yield LocalFiles(video, {suffix: _local(address, folder, f".{suffix}") for suffix, address in source.sidecars.items()})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _local(address: str, folder: Path, suffix: str) -> Path:
    if "::" not in address and not _is_remote(address):
        check_file(Path(address))
        return Path(address)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"file{suffix}"
    try:
        if "::" in address:
            member, _, tar = address.partition("::")
            with tarfile.open(tar, "r:") as archive:
                payload = archive.extractfile(member)
                if payload is None:
                    raise FootageError(f"{address} is no file in the shard; repack it", "no-file")
                with target.open("wb") as file:
                    shutil.copyfileobj(payload, file, 1 << 20)
        else:
            with _fsspec().open(address, "rb") as remote, target.open("wb") as file:
                shutil.copyfileobj(remote, file, 1 << 20)
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        if isinstance(error, MediaError):
            raise
        raise FootageError(f"{address} can not be read ({type(error).__name__}: {error}); check the address and your access to it", "no-file") from error
    return target


# --- folders ----------------------------------------------------------------------------------------------------------------------------------------


def _folder(root: Path) -> Found:
    if not root.is_dir():
        near = [str(path) for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"there is no folder {root}.{did_you_mean(str(root), near)}")
    real = root.resolve()
    sources, skipped = [], []
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.is_dir():
            continue
        relative = path.relative_to(root)
        try:
            if any(part.startswith(".") for part in relative.parts):
                raise MediaError("hidden; rename it without the leading dot if it is meant")
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                raise MediaError("a link that leads out of the folder; copy the file, or give the folder that holds it")
            check_file(path)
        except MediaError as error:
            skipped.append(Skipped(str(path), str(error)))
            continue
        sidecars = {suffix: str(_beside(path, suffix)) for suffix in SIDECARS if _beside(path, suffix).is_file()}
        sources.append(_with_sidecars(Source(plain_id(relative), str(path), _person(relative), sidecars=sidecars)))
    return Found(_unique(sources), tuple(skipped))


def _remote_folder(address: str) -> Found:
    filesystem, root = _filesystem(address)
    try:
        files = {name: details for name, details in filesystem.find(root, detail=True).items() if details.get("type") != "directory"}
    except OSError as error:
        raise UserError(f"{address} can not be listed ({type(error).__name__}: {error}); check the address and your access to it") from error
    scheme = address.partition("://")[0]
    sources, skipped = [], []
    for name in sorted(files):
        relative = PurePosixPath(name.removeprefix(root).lstrip("/"))
        if relative.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        if not files[name].get("size", 1):
            skipped.append(Skipped(f"{scheme}://{name}", "empty; copy it again"))
            continue
        stem = name[: -len(relative.suffix)]
        sidecars = {suffix: f"{scheme}://{stem}.{suffix}" for suffix in SIDECARS if f"{stem}.{suffix}" in files}
        sources.append(_with_sidecars(Source(plain_id(relative), f"{scheme}://{name}", _person(relative), sidecars=sidecars)))
    return Found(_unique(sources), tuple(skipped))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}.{suffix}")


def _person(relative: Path | PurePosixPath) -> str:
    """People by folder: anna/01.mp4 shows anna; a file right in the input shows a person of its own."""
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _with_sidecars(source: Source) -> Source:
    """What KEY.txt and KEY.json say about a recording."""
    values: dict[str, Any] = dict(vars(source))
    try:
        if "txt" in source.sidecars:
            values["caption"] = " ".join(_read(source.sidecars["txt"]).decode("utf-8").split())[:2000] or None
        if "json" in source.sidecars:
            known = json.loads(_read(source.sidecars["json"]))
            if isinstance(known, dict):
                origin = known.get("source") if isinstance(known.get("source"), dict) else {}
                values["identity"] = _text(known.get("identity")) or source.identity
                values["split"] = _text(known.get("split"))
                values["license"], values["consent"] = (_text(origin.get(name)) or _text(known.get(name)) for name in ("license", "consent"))
                values["caption"] = _text(known.get("caption")) or values["caption"]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source.address}: what lies beside it can not be read ({error}); correct or remove it") from error
    return Source(**values)


# --- tables -----------------------------------------------------------------------------------------------------------------------------------------


def _table(address: str, suffix: str, columns: Mapping[str, str]) -> Found:
    rows = _rows(address, suffix)
    if not rows:
        raise UserError(f"{address} has no rows")
    present = list(rows[0])
    chosen: dict[str, str] = {}
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise UserError(f"columns: there is no {ours!r}.{did_you_mean(ours, COLUMNS)}")
        if theirs not in present:
            raise UserError(f"{address} has no column {theirs!r}.{did_you_mean(theirs, present)}")
        chosen[ours] = theirs
    for ours, names in COLUMNS.items():
        found = next((name for name in present if name.lower() in names), None)
        if found is not None:
            chosen.setdefault(ours, found)
    if "video" not in chosen:
        raise UserError(f"{address} has no column of videos, only {', '.join(present)}; name it in the recipe: columns: {{video: NAME}}")
    base = address.rpartition("/")[0]
    sources, skipped = [], []
    for number, row in enumerate(rows, 2 if suffix in (".csv", ".tsv") else 1):
        place = f"{address}:{number}"
        video = _text(row.get(chosen["video"]))
        if video is None:
            skipped.append(Skipped(place, "the row names no video"))
            continue
        where = video if _is_remote(video) or os.path.isabs(video) or not base else f"{base}/{video}"
        values = {name: _text(row.get(chosen[name])) for name in ("identity", "caption", "license", "consent", "split") if name in chosen}
        start, end = (_seconds(row.get(chosen[name]), place, name) if name in chosen else None for name in ("start", "end"))
        if start is not None and end is not None and end <= start:
            skipped.append(Skipped(place, f"it ends at {end:g} s, before it begins at {start:g} s"))
            continue
        others = {name: value for name, value in row.items() if name not in chosen.values() and isinstance(value, (str, int, float, bool))}
        relative = PurePosixPath(video.partition("://")[2] if _is_remote(video) else video)
        id_ = plain_id(PurePosixPath(*relative.parts[-2:]), extra=video + (f"@{start:g}" if start else ""))
        sidecars = {} if _is_remote(where) else {suffix: str(_beside(Path(where), suffix)) for suffix in SIDECARS if _beside(Path(where), suffix).is_file()}
        source = _with_sidecars(Source(id_, where, relative.stem, sidecars=sidecars))
        sources.append(Source(**{**vars(source), **{name: value for name, value in values.items() if value}, "start_s": start, "end_s": end, "metadata": others}))
    return Found(_unique(sources), tuple(skipped))


def _rows(address: str, suffix: str) -> list[dict[str, Any]]:
    try:
        data = _read(address)
        if suffix == ".parquet":
            try:
                import pyarrow.parquet
            except ImportError as error:
                raise UserError(f"{address}: Parquet needs pyarrow; pip install 'flowact[data]'") from error
            return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        text = data.decode("utf-8-sig")
        if suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ","))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{address} can not be read as a table ({error})") from error


def _seconds(value: Any, place: str, name: str) -> float | None:
    """A number of seconds, or [hours:]minutes:seconds."""
    if value is None or value == "":
        return None
    try:
        parts = [float(part) for part in str(value).split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    except ValueError as error:
        raise UserError(f"{place}: {name} is {value!r}, expected seconds or minutes:seconds") from error
    if not 0 <= seconds < 1e6:
        raise UserError(f"{place}: {name} is {value!r}, expected seconds from 0 on")
    return seconds


# --- shards -----------------------------------------------------------------------------------------------------------------------------------------


def _shard(address: str) -> Found:
    if _is_remote(address):
        raise UserError(f"{address}: shards to import are read from this machine; copy them first")
    path = Path(address)
    if not path.is_file():
        raise UserError(f"there is no shard {path}")
    members: dict[str, dict[str, str]] = {}
    skipped = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", info.name)
                if not info.isreg() or match is None:
                    skipped.append(Skipped(f"{info.name}::{path}", "no regular file with a key and a suffix"))
                elif match[2].rpartition(".")[2].lower() in ("pth", "pt", "pkl", "pickle", "pyd"):
                    skipped.append(Skipped(f"{info.name}::{path}", "a pickle, which could run code, is never opened"))
                else:
                    members.setdefault(match[1], {})[match[2].lower()] = info.name
    except tarfile.TarError as error:
        raise UserError(f"{path} is no uncompressed tar ({error}); WebDataset shards are plain .tar files") from error
    sources = []
    for key, found in members.items():
        video = next((name for suffix, name in found.items() if f".{suffix}" in VIDEO_SUFFIXES), None)
        if video is None:
            skipped.append(Skipped(f"{key}::{path}", f"no video among {', '.join(found)}"))
            continue
        sidecars = {suffix: f"{found[suffix.lower()]}::{path}" for suffix in SIDECARS if suffix.lower() in found}
        relative = PurePosixPath(path.stem, key.rpartition("/")[2] + PurePosixPath(video).suffix)
        sources.append(_with_sidecars(Source(plain_id(relative), f"{video}::{path}", relative.stem, sidecars=sidecars)))
    return Found(_unique(sources), tuple(skipped))


# --- helpers ----------------------------------------------------------------------------------------------------------------------------------------


def plain_id(relative: Path | PurePosixPath, extra: str = "") -> str:
    """A recording's id from its path: plain characters, with a short hash where some were lost.

    >>> plain_id(PurePosixPath("anna/take 1.mp4"))
    'anna-take-1-1d6571'
    """
    text = "-".join(relative.with_suffix("").parts)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[: MAX_ID - 8]
    whole = extra or text
    return plain if plain == text and not extra else f"{plain or 'clip'}-{hashlib.sha256(whole.encode(errors='surrogateescape')).hexdigest()[:6]}"


def _unique(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Two files that would get one id (a.mp4 and a.mov) are told apart by the hash of their whole names."""
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.id, []).append(source)
    unique = []
    for id_, found in groups.items():
        for source in found:
            tail = hashlib.sha256(f"{source.address}@{source.start_s}".encode(errors="surrogateescape")).hexdigest()[:6]
            unique.append(source if len(found) == 1 else Source(**{**vars(source), "id": f"{id_[: MAX_ID - 7]}-{tail}"}))
    return tuple(unique)


def _read(address: str) -> bytes:
    if "::" in address:
        member, _, tar = address.partition("::")
        with tarfile.open(tar, "r:") as archive:
            payload = archive.extractfile(member)
            return payload.read() if payload else b""
    if _is_remote(address):
        with _fsspec().open(address, "rb") as file:
            return file.read()
    return Path(address).read_bytes()


def _is_remote(address: str) -> bool:
    return bool(_ADDRESS.match(address))


def _filesystem(address: str) -> tuple[Any, str]:
    try:
        return _fsspec().url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise UserError(f"{address!r} can not be opened ({error}); install what fsspec needs for it (s3:// needs s3fs), or copy the files") from error


def _fsspec() -> Any:
    try:
        import fsspec.core
    except ImportError as error:
        raise UserError("addresses such as s3://bucket/folder need fsspec; pip install 'flowact[data]'") from error
    return fsspec.core


def _text(value: Any) -> str | None:
    return str(value).strip() or None if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None


"""`flowact-data doctor [DATASET]`: what is installed for which step and how to get the rest; whether a dataset suits a run."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_tools.manifest import MANIFEST_FILE, read_clips
from data_tools.rewrite import is_stopped
from data_tools.workplace import show_table
from flowact import registry
from flowact.data.rights import UNKNOWN
from flowact.data.schema import COLUMN_FILE, COLUMNS_FOLDER, DATASET_FILE, read_column, read_dataset, split_column_folder_name
from flowact.data.shards import ShardReader, split_folders
from flowact.errors import UserError

MIN_FREE = 10 * 1024**3
#: module -> (distribution, what it is for)
LIBRARIES = {
    "pyarrow": ("pyarrow", f"{MANIFEST_FILE}, rejected.parquet, Parquet input"),
    "fsspec": ("fsspec", "input from s3:// and other addresses (with s3fs, gcsfs, ... for each kind)"),
    "pebble": ("pebble", "workers of `build` that may crash or hang"),
    "cv2": ("opencv-python-headless", "scene cuts, blur, motion, face detectors"),
    "imagehash": ("imagehash", "near-duplicates"),
    "pyloudnorm": ("pyloudnorm", "loudness"),
    "silero_vad": ("silero-vad", "speech activity"),
}
ELSEWHERE = {
    "tokenizers": ("text", "MiniLMText"),
    "transformers": ("hf", "T5Text, HunyuanVideoText, WhisperAudio"),
    "diffusers": ("hf", "video autoencoders of base models"),
}
ENCODERS = ("libx264", "aac")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: it is.
        status: "problem" makes the exit code 1, "note" is worth knowing.
        value: as found.
        fix: what to do, or "".
    """

    what: str
    status: Literal["ok", "note", "problem"]
    value: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data doctor`."""
    parser.add_argument("dataset", type=Path, nargs="?", help="folder of a dataset to look at too")
    parser.add_argument("--ranks", type=int, default=1, help="processes that will train (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="data workers of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Look and print; 1 when there is a problem.

    Raises:
        UserError: impossible numbers, or no dataset there.
    """
    if args.ranks < 1 or args.workers < 0:
        raise UserError(f"--ranks {args.ranks}, --workers {args.workers}: at least one process, and no less than 0 workers")
    found = [*machine(args.dataset or Path()), *libraries()]
    if args.dataset is not None:
        found += dataset(args.dataset, args.ranks, args.workers)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        show_table("flowact-data doctor", ("", "status", "found", "what to do"), [tuple(asdict(finding).values()) for finding in found])
    return int(any(finding.status == "problem" for finding in found))


def machine(folder: Path) -> Iterator[Finding]:
    """FFmpeg's libraries, encoders, cores and room."""
    import av
    from av.codec import Codec

    versions = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items()))
    yield Finding("FFmpeg in PyAV", "ok", f"av {av.__version__}: {versions}")
    for name in ENCODERS:
        try:
            Codec(name, "w")
            yield Finding(f"encoder {name}", "ok", "there")
        except ValueError:
            yield Finding(f"encoder {name}", "problem", "not in this build of FFmpeg", "pip install --force-reinstall av (its wheels have it)")
    yield Finding("processes", "ok", f"{os.cpu_count()} cores: -j {os.cpu_count()} uses all")
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    room = f"{free / 1e9:.1f} GB free in {place}"
    yield Finding("disk", "ok" if free > MIN_FREE else "note", room, "" if free > MIN_FREE else "an hour of 512 x 512 video takes some 2 GB")


def libraries() -> Iterator[Finding]:
    """What steps need, and which steps and detectors are registered."""
    for module, (distribution, purpose) in LIBRARIES.items():
        yield _library(module, distribution, purpose, "pip install 'flowact[data]'")
    for module, (extra, purpose) in ELSEWHERE.items():
        yield _library(module, module, purpose, f"pip install 'flowact[{extra}]'")
    for kind in ("steps", "detectors"):
        if kind in registry.KINDS:
            names = sorted(entry.name for entry in importlib.metadata.entry_points(group=f"flowact.{kind}"))
            fix = "" if names else "pip install flowact again: its entry points are old"
            yield Finding(kind, "ok" if names else "note", ", ".join(names) or "none", fix)


def dataset(root: Path, ranks: int, workers: int) -> Iterator[Finding]:
    """Whether a dataset suits a run.

    Raises:
        UserError: it is none.
    """
    info = read_dataset(root)
    if is_stopped(root):
        yield Finding("change", "problem", "split or edit was stopped in the middle", "run its command again; it finishes the change")
    needed, indexed = ranks * max(workers, 1), True
    for folder in split_folders(root):
        tars = sorted(folder.glob("*.tar"))
        bare = [path for path in tars if not path.with_suffix(".json").is_file()]
        if bare:
            indexed = False
            yield Finding(f"{folder.name} indexes", "problem", f"{len(bare)} of {len(tars)} missing", f"flowact-data index {folder}")
        enough = len(tars) >= needed
        yield Finding(
            f"{folder.name} shards",
            "ok" if enough else "note",
            f"{len(tars)} for {ranks} ranks x {workers} workers",
            ""
            if enough
            else "FlowAct reads by position, so none starves; plain WebDataset readers would: pack with --min-shards, or split --shard-mb",
        )
        expected = info.splits.get(folder.name, {}).get("shards")
        if expected is not None and expected != len(tars):
            yield Finding(f"{folder.name} shards", "problem", f"{DATASET_FILE} says {expected}, {len(tars)} are there", "copy the missing ones again")
    yield from _columns(root)
    if indexed:
        yield from _statements(root)


def _columns(root: Path) -> Iterator[Finding]:
    listed = set(read_dataset(root).columns)
    folder = root / COLUMNS_FOLDER
    names = sorted({path.name for path in folder.iterdir() if split_column_folder_name(path.name)} | listed) if folder.is_dir() else sorted(listed)
    tars = [path for split in split_folders(root) for path in sorted(split.glob("*.tar"))]
    shards = [path for path in tars if path.with_suffix(".json").is_file()]  # those without index are a finding of their own
    for name in names:
        column = folder / name
        kind = name.partition("-")[0]
        redo = f"flowact-data encode {kind} {root} ..., as it was made"
        missing = [path for path in shards if not (column / path.parent.name / path.name).with_suffix(".json").is_file()]
        if missing:
            yield Finding(f"column {name}", "problem", f"{len(missing)} of {len(shards)} shards missing", redo)
            continue
        if not (column / COLUMN_FILE).is_file():
            yield Finding(f"column {name}", "problem", f"no {COLUMN_FILE}, it was not finished", redo)
            continue
        try:
            read_column(column)
            moved = [p for p in shards if ShardReader(column / p.parent.name / p.name).index.keys != ShardReader(p).index.keys]
        except UserError as error:
            yield Finding(f"column {name}", "problem", str(error), "delete it and encode again")
            continue
        if moved:
            yield Finding(f"column {name}", "problem", f"{len(moved)} shards hold other clips", "delete it and encode again")
        else:
            yield Finding(f"column {name}", "ok" if name in listed else "problem", "complete", "" if name in listed else redo)


def _statements(root: Path) -> Iterator[Finding]:
    clips = list(read_clips(root))
    excluded = sum(clip.excluded for clip in clips)
    yield Finding("clips", "ok", f"{len(clips)}, {excluded} of them excluded")
    for name in ("license", "consent"):
        unknown = sum(clip.source(name) == UNKNOWN for clip in clips)
        fix = f"pack again with --{name}, or build again with {name} in the recipe's Rights step, before the dataset is passed on"
        yield Finding(f"{name} stated", "note" if unknown else "ok", f"{len(clips) - unknown} of {len(clips)} clips", fix if unknown else "")


def _library(module: str, distribution: str, purpose: str, fix: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(distribution, "note", f"not installed; for {purpose}", fix)
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "installed"  # under another distribution's name, as OpenCV has several
    return Finding(distribution, "ok", f"{version}; {purpose}")

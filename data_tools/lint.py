"""`flowact-data lint DATASET`: decode everything, check everything, and print what to exclude."""

from __future__ import annotations

import argparse
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.footage import from_png
from data_tools.rewrite import is_stopped
from data_tools.split import recording_of
from data_tools.workplace import progress, work
from flowact.data.columns import latent_shape
from flowact.data.media import decode_sound, decode_video
from flowact.data.rights import UNKNOWN, stated
from flowact.data.schema import (
    COLUMN_MEMBERS,
    COLUMNS_FOLDER,
    DATASET_FILE,
    MEMBERS,
    OPTIONAL_MEMBERS,
    ColumnInfo,
    DatasetInfo,
    check_metadata,
    parse_captions,
    read_column,
    read_dataset,
    split_column_folder_name,
    wrong_optional_member,
)
from flowact.data.shards import ClipRef, ShardIndex, ShardReader, Split, decode, open_split, split_folders
from flowact.errors import UserError
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME, STATES

#: pixel frames of a motion latent in the video autoencoders of this field: T = 4 n + 1 frames are n + 1 latents
TEMPORAL_STRIDE = 4


@dataclass(frozen=True)
class Problem:
    """What is wrong.

    Attributes:
        where: 'train/000003/KEY', or a shard, column or split when it is no single clip's.
        message: what and, if it is not plain, what to do.
        excludable: whether training works without `where`.
    """

    where: str
    message: str
    excludable: bool = True


@dataclass
class ShardReport:
    """Findings of one shard."""

    problems: list[Problem] = field(default_factory=list)
    identities: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, str] = field(default_factory=dict)
    suffixes: frozenset[str] = frozenset()
    unknown: Counter[str] = field(default_factory=Counter)
    odd_lengths: int = 0
    clips: int = 0
    frames: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data lint`."""
    parser.add_argument("dataset", type=Path, help="folder of a dataset, or of one split")
    parser.add_argument("--no-columns", action="store_true", help="check the shards only")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the problems as JSON")


def run(args: argparse.Namespace) -> int:
    """Check; 1 when there are problems."""
    folders = [args.dataset] if any(args.dataset.glob("*.tar")) else split_folders(args.dataset) if args.dataset.is_dir() else []
    if not folders:
        raise UserError(f"{args.dataset} has no shards: neither *.tar nor train/*.tar, val/*.tar")
    root = folders[0].parent
    info = read_dataset(root) if (root / DATASET_FILE).is_file() else None
    problems = [problem for folder in folders for problem in _check_folder(folder, info)]
    if is_stopped(root):
        problems.append(Problem(DATASET_FILE, "a change (split or edit) was stopped in the middle; run its command again", excludable=False))
    excluded = set(info.exclude) if info else set()
    items = [
        (path, not args.no_columns) for folder in folders for path in sorted(folder.glob("*.tar")) if f"{folder.name}/{path.stem}" not in excluded
    ]
    reports = list(progress(work(_check_shard, items, args.jobs, _start, ()), len(items), "lint", "shards"))
    found = [problem for report in reports for problem in report.problems] + list(_across(items, reports, info is None or info.split_by == "person"))
    problems = list(dict.fromkeys([*problems, *found]))
    clips, frames = sum(report.clips for report in reports), sum(report.frames for report in reports)
    exclude = sorted({problem.where for problem in problems if problem.excludable})
    unknown = sum((report.unknown for report in reports), Counter[str]())
    odd = sum(report.odd_lengths for report in reports)
    if args.json:
        listed = [vars(problem) for problem in problems]
        notes = {f"unknown_{name}": count for name, count in sorted(unknown.items())} | ({"not_4n_plus_1": odd} if odd else {})
        numbers = {"clips": clips, "frames": frames, **({"notes": notes} if notes else {})}
        print(json.dumps({**numbers, "problems": listed, "exclude": exclude}, indent=1))
        return 1 if problems else 0
    for problem in problems:
        print(f"{problem.where}: {problem.message}")
    if exclude:
        print("\n# to train without these clips, put into dataset.yaml:\nexclude:")
        print("\n".join(f"- {entry}" for entry in exclude))
    if odd:
        print(
            f"{odd} of {clips} clips have not T = 4 n + 1 frames (a latent is the first frame, or four more): their last 1 to 3 frames are never used"
        )
    for name, count in sorted(unknown.items()):
        print(f"{count} of {clips} clips state no {name}: fine to train on, not to pass on")
    print(f"{clips} clips, {frames} frames: {f'{len(problems)} problems' if problems else 'no problem'}")
    return 1 if problems else 0


def _start() -> None:
    """Nothing to prepare in a process."""


def _check_folder(folder: Path, info: DatasetInfo | None) -> Iterator[Problem]:
    """What can be seen from outside: shards that are missing or half written, exclusions that name nothing."""
    stems = {path.stem for path in folder.glob("*.tar")}
    for path in sorted(folder.glob("*.json")):
        if path.stem not in stems:
            yield Problem(f"{folder.name}/{path.stem}", "the index is there, the shard is missing", excludable=False)
    for path in sorted(folder.glob("*.part")):
        yield Problem(f"{folder.name}/{path.name}", "left by a run that was stopped; run the same command again, or delete it", excludable=False)
    expected = info.splits.get(folder.name, {}).get("shards") if info else None
    if expected is not None and expected != len(stems):
        yield Problem(folder.name, f"holds {len(stems)} shards, {DATASET_FILE} says {expected}", excludable=False)
    for entry in info.exclude if info else ():
        split, _, rest = entry.partition("/")
        shard, _, key = rest.partition("/")
        if split != folder.name:
            continue
        index = folder / f"{shard}.json"
        if shard not in stems or (key and index.is_file() and key not in ShardIndex.read(index).keys):
            yield Problem(DATASET_FILE, f"exclude {entry!r} names nothing; entries are SPLIT/SHARD or SPLIT/SHARD/KEY", excludable=False)


def _check_shard(item: tuple[Path, bool]) -> ShardReport:
    path, with_columns = item
    report = ShardReport()
    where = f"{path.parent.name}/{path.stem}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split = open_split(path)
    except UserError as error:
        report.problems.append(Problem(where, str(error)))
        return report
    shard = split.shards[0]
    if isinstance(shard, ShardReader):
        for message in _check_tar(shard):
            report.problems.append(Problem(where, message, excludable=False))
    else:
        report.problems.append(Problem(where, f"no index, so damage can not be seen; run: flowact-data index {path.parent}", excludable=False))
    columns = list(_columns(split, report)) if with_columns else []
    suffixes: set[str] | None = None
    for clip in split.clips:
        found = set(shard.entries[clip.sample].members)
        suffixes = found if suffixes is None else suffixes
        if found != suffixes:
            report.problems.append(Problem(split.where(clip), f"members differ from the shard's first clip: {sorted(found ^ suffixes)}"))
        for name in sorted(set(MEMBERS) - found):
            report.problems.append(Problem(split.where(clip), f"member .{name} is missing ({MEMBERS[name]})"))
        metadata = _check_clip(split, clip, found, report)
        if metadata is not None:
            report.identities[clip.key] = metadata["identity"]
            if (recording := recording_of(metadata)) is not None:
                report.recordings[clip.key] = recording
            report.unknown.update(name for name in ("license", "consent") if stated(metadata, name) == UNKNOWN)
            report.odd_lengths += (metadata["frames"] - 1) % TEMPORAL_STRIDE != 0
            for info, column in columns:
                _check_features(split, column, info, clip, metadata, report)
        report.suffixes |= found
        report.clips += 1
        report.frames += clip.frames
    return report


def _check_tar(shard: ShardReader) -> Iterator[str]:
    """The file as a whole, and as other readers see it."""
    try:
        shard.verify()
    except UserError as error:
        yield str(error)
    try:
        with tarfile.open(shard.path, "r:") as archive:
            names = [info.name for info in archive]
            if any(not info.isreg() for info in archive):
                yield "holds links, folders or devices; shards hold plain files"
    except tarfile.TarError as error:
        yield f"other tar readers stop: {error}"
        return
    expected = [f"{entry.key}.{suffix}" for entry in shard.entries for suffix in entry.members]
    if names != expected:
        yield f"the tar lists {len(names)} members, its index {len(expected)}, and they differ: other readers see another shard"


def _check_clip(split: Split, clip: ClipRef, found: set[str], report: ShardReport) -> dict[str, Any] | None:
    where = split.where(clip)

    def complain(message: str) -> None:
        report.problems.append(Problem(where, message.removeprefix(f"{where}: ")))

    members: dict[str, Any] = {}
    for suffix in sorted(found):
        try:
            members[suffix] = split.decode(clip, suffix)
        except UserError as error:
            complain(str(error))
    metadata = None
    if "json" in members:
        try:
            metadata = check_metadata(members["json"], where)
        except UserError as error:
            complain(str(error))
    if metadata is None:
        return None
    frames = metadata["frames"]
    if metadata["key"] != clip.key:
        complain(f"metadata says key {metadata['key']!r}")
    if frames != clip.frames:
        complain(f"metadata says {frames} frames, the index {clip.frames}")
    if metadata.get("split", split.name) != split.name:
        complain(f"metadata says split {metadata['split']!r}")
    size = None
    if "mp4" in members:
        try:
            video = decode_video(members["mp4"], where)
            size = video.shape[1:3]
            if len(video) != frames:
                complain(f"the video has {len(video)} frames, metadata says {frames}")
            if (metadata.get("height", size[0]), metadata.get("width", size[1])) != size:
                complain(f"the video is {size[1]}x{size[0]}, metadata says {metadata.get('width')}x{metadata.get('height')}")
        except UserError as error:
            complain(str(error))
    if "wav" in members:
        try:
            samples = decode_sound(members["wav"], where, SAMPLE_RATE)
            if len(samples) != frames * SAMPLES_PER_FRAME:
                wanted = f"{frames} frames need {frames} * {SAMPLES_PER_FRAME} = {frames * SAMPLES_PER_FRAME}"
                complain(f"the wav has {len(samples)} samples, {wanted}")
            if not np.any(samples):
                complain("the wav is silent")
        except UserError as error:
            complain(str(error))
    if "ref.png" in members:
        try:
            picture = from_png(members["ref.png"], where)
            if size is not None and picture.shape[:2] != size:
                complain(f"ref.png is {picture.shape[1]}x{picture.shape[0]}, the video {size[1]}x{size[0]}")
        except UserError as error:
            complain(str(error))
    for message in _check_arrays(members, frames):
        complain(message)
    return metadata


def _check_arrays(members: dict[str, Any], frames: int) -> Iterator[str]:
    states = members.get("states.npy")
    if states is not None and (states.shape != (frames,) or states.dtype != np.uint8 or states.max(initial=0) >= len(STATES)):
        yield f"states.npy should be uint8 ({frames},) below {len(STATES)}, is {states.dtype} {states.shape}"
    for suffix in OPTIONAL_MEMBERS:
        if suffix in members and (wrong := wrong_optional_member(suffix, members[suffix], frames)):
            yield wrong


def _columns(split: Split, report: ShardReport) -> Iterator[tuple[ColumnInfo, Split]]:
    root = split.root / COLUMNS_FOLDER
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and split_column_folder_name(folder.name):
            try:
                yield read_column(folder), split.column(folder)
            except UserError as error:
                report.problems.append(Problem(f"{COLUMNS_FOLDER}/{folder.name}", str(error), excludable=False))


def _check_features(split: Split, column: Split, info: ColumnInfo, clip: ClipRef, metadata: dict[str, Any], report: ShardReport) -> None:
    where, stride = split.where(clip), info.temporal_stride or 1
    lengths = {
        "latents.npy": (clip.frames - 1) // stride + 1,
        "audio.npy": clip.frames,
        "text.npy": len(parse_captions(metadata, where).texts),
    }
    for suffix in COLUMN_MEMBERS[info.column]:
        name = f"column {info.folder_name}, .{suffix}"
        try:
            feature = decode(suffix, column.read(clip, suffix), where)
        except UserError as error:
            report.problems.append(Problem(where, f"{name}: {error}"))
            continue
        fixed = latent_shape(info, metadata) if info.column == "latents" else info.shapes.get(suffix, [])
        expected = [lengths.get(suffix, max(len(feature), 1)), *fixed]
        if list(feature.shape) != expected or feature.dtype != np.float16:
            report.problems.append(Problem(where, f"{name}: is {feature.dtype} {list(feature.shape)}, should be float16 {expected}"))
        elif not np.isfinite(feature).all():
            report.problems.append(Problem(where, f"{name}: holds NaN or infinite values"))


def _across(items: list[tuple[Path, bool]], reports: list[ShardReport], by_person: bool) -> Iterator[Problem]:
    """What no shard shows alone: people (unless recordings are held out), recordings or keys in two places, and shards with other members."""
    people: dict[str, set[str]] = {}
    recordings: dict[str, set[str]] = {}
    keys: Counter[str] = Counter()
    usual = Counter(report.suffixes for report in reports if report.suffixes).most_common(1)
    for (path, _), report in zip(items, reports):
        if report.suffixes and report.suffixes != usual[0][0]:
            difference = ", ".join(sorted(report.suffixes ^ usual[0][0]))
            message = f"members differ from the other shards in {difference}: every sample of a dataset has the same, or other readers stop"
            yield Problem(f"{path.parent.name}/{path.stem}", message)
        for recording in report.recordings.values():
            recordings.setdefault(recording, set()).add(path.parent.name)
        for key, identity in report.identities.items():
            people.setdefault(identity, set()).add(path.parent.name)
            keys[key] += 1
    for identity, names in sorted(people.items()):
        if len(names) > 1 and by_person:
            yield Problem(
                "splits", f"{identity!r} is in {' and '.join(sorted(names))}: validation would measure what was trained on", excludable=False
            )
    for recording, names in sorted(recordings.items()):
        if len(names) > 1:
            message = (
                f"recording {recording!r} is in {' and '.join(sorted(names))}: validation would see what was trained on; run: flowact-data split"
            )
            yield Problem("splits", message, excludable=False)
    for key, count in sorted(keys.items()):
        if count > 1:
            yield Problem("splits", f"key {key!r} occurs {count} times; keys are unique in a dataset", excludable=False)

"""`flowact-data pack CLIPS --out DIR`: clips or plain videos into shards with indexes, split so that no person is in two splits.

Two kinds of input, told apart by looking: clips as `synth` writes them (KEY.mp4, KEY.wav, KEY.json, further members of the same key), which are
copied as they are; or videos as people have them (with optional captions of the same name in .txt), which are brought to 25 frames a second
and 16 kHz mono, cut into clips, and labelled with states by a planner.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data_tools.footage import VIDEO_SUFFIXES, read_frames, read_sound, to_png
from data_tools.workplace import check_room, claim, locked, progress, remove_unfinished, work
from flowact import registry
from flowact.data.media import MediaError, decode_sound, decode_video, encode_sound, encode_video
from flowact.data.schema import (
    DATASET_FILE,
    MEMBERS,
    OPTIONAL_MEMBERS,
    DatasetInfo,
    SplitBy,
    check_key,
    check_metadata,
    parse_captions,
    read_dataset,
    to_entries,
    write_atomically,
    write_dataset,
    wrong_optional_member,
)
from flowact.data.shards import ShardError, ShardReader, ShardWriter, decode, encode_array, encode_json
from flowact.errors import UserError, did_you_mean
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, STATES

RECORD_FILE = "pack.json"
SILENCE_DBFS = -50.0

Sample = tuple[str, dict[str, bytes], int]


@dataclass(frozen=True)
class Rejected:
    """A clip that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Cutting:
    """How plain videos become clips.

    Attributes:
        clip_frames: of a clip at most.
        min_frames: shorter remainders are dropped.
        size: side of the square picture, None keeps the picture.
        crf: quality of the video.
        planner: name of the planner that labels states.
        license: of the videos, as the user says.
        consent: of the people, as the user says.
    """

    clip_frames: int
    min_frames: int
    size: int | None
    crf: int
    planner: str
    license: str
    consent: str


@dataclass(frozen=True)
class Unit(ABC):
    """A file that gives clips of one person.

    Attributes:
        name: clip keys are this, or this with '-' and a number.
        identity: of the person.
        path: of the file.
    """

    name: str
    identity: str
    path: Path

    @abstractmethod
    def samples(self, split: str) -> Iterator[Sample | Rejected]:
        """Clips in order."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """About what it takes in a shard."""


@dataclass(frozen=True)
class ReadyClip(Unit):
    """A clip with its members side by side.

    Attributes:
        metadata: of the clip.
        extras: optional members that it must have, because other clips have them.
    """

    metadata: dict[str, Any]
    extras: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        files = (self.path.with_suffix(f".{suffix}") for suffix in (*MEMBERS, *OPTIONAL_MEMBERS))
        return sum(path.stat().st_size for path in files if path.is_file())

    def samples(self, split: str) -> Iterator[Sample | Rejected]:
        try:
            yield self.name, self._members(split), self.metadata["frames"]
        except (MediaError, ShardError, FileNotFoundError) as error:
            yield Rejected(self.name, str(error))

    def _members(self, split: str) -> dict[str, bytes]:
        frames, where = self.metadata["frames"], str(self.path)
        captions = parse_captions(self.metadata, where)
        members = {"json": encode_json({**self.metadata, "split": split}), "mp4": self._file("mp4"), "wav": self._file("wav")}
        samples = decode_sound(members["wav"], where, SAMPLE_RATE)
        if len(samples) != frames * SAMPLES_PER_FRAME:
            raise MediaError(f"{where}: the wav has {len(samples)} samples, {frames} frames need {frames * SAMPLES_PER_FRAME}")
        if _is_silent(samples / 2**15):
            raise MediaError(f"{where}: no sound above {SILENCE_DBFS:g} dBFS")
        members["txt"] = self._file("txt") if self._has("txt") else " ".join(dict.fromkeys(captions.texts)).encode()
        members["ref.png"] = self._file("ref.png") if self._has("ref.png") else to_png(decode_video(members["mp4"], where, count=1)[0])
        if self._has("states.npy"):
            members["states.npy"] = self._file("states.npy")
        else:
            members["states.npy"] = encode_array(_states(captions.states, captions.at(np.arange(frames)), where))
        states = decode("states.npy", members["states.npy"], where)
        if states.shape != (frames,) or states.dtype != np.uint8 or states.max() >= len(STATES):
            raise MediaError(f"{where}: states.npy should be uint8 ({frames},) below {len(STATES)}, is {states.dtype} {states.shape}")
        for suffix in self.extras:
            members[suffix] = self._file(suffix)
            if wrong := wrong_optional_member(suffix, decode(suffix, members[suffix], where), frames):
                raise MediaError(f"{where}: {wrong}")
        return members

    def _has(self, suffix: str) -> bool:
        return self.path.with_suffix(f".{suffix}").is_file()

    def _file(self, suffix: str) -> bytes:
        if not self._has(suffix):
            raise MediaError(f"{self.path.with_suffix('')}: member .{suffix} is missing, other clips have it")
        return self.path.with_suffix(f".{suffix}").read_bytes()


@dataclass(frozen=True)
class PlainVideo(Unit):
    """A video as people have it."""

    cutting: Cutting

    @property
    def num_bytes(self) -> int:
        return 2 * self.path.stat().st_size

    def samples(self, split: str) -> Iterator[Sample | Rejected]:
        try:
            yield from self._cut(split)
        except UserError as error:
            yield Rejected(self.name, str(error))

    def _cut(self, split: str) -> Iterator[Sample | Rejected]:
        cutting = self.cutting
        sound = read_sound(self.path)
        caption = _read_caption(self.path)
        frames = read_frames(self.path, FRAMES_PER_SECOND, cutting.size)
        for number in itertools.count():
            pictures = list(itertools.islice(frames, cutting.clip_frames))
            if len(pictures) < max(cutting.min_frames, 1):
                if number == 0:
                    seconds = len(pictures) / FRAMES_PER_SECOND
                    yield Rejected(self.name, f"{self.path}: {seconds:g} s is shorter than --min-seconds {cutting.min_frames / FRAMES_PER_SECOND:g}")
                return
            first = number * cutting.clip_frames
            samples = sound[first * SAMPLES_PER_FRAME : (first + len(pictures)) * SAMPLES_PER_FRAME]
            samples = np.pad(samples, (0, len(pictures) * SAMPLES_PER_FRAME - len(samples)))
            key = f"{self.name}-{number:04d}"
            if _is_silent(samples):
                yield Rejected(key, f"{self.path}: no sound above {SILENCE_DBFS:g} dBFS from {first / FRAMES_PER_SECOND:g} s on")
            else:
                yield self._sample(key, split, first, np.stack(pictures), samples, caption)

    def _sample(self, key: str, split: str, first: int, pictures: np.ndarray, samples: np.ndarray, caption: str | None) -> Sample:
        count, height, width = pictures.shape[:3]
        prompts = registry.instantiate({"class_path": self.cutting.planner, "init_args": {}}, kind="planners").plan(samples)
        starts = [min(round(prompt.start_seconds * FRAMES_PER_SECOND), count) for prompt in prompts] + [count]
        captions = [[start, end, prompt.state, caption or prompt.text] for prompt, start, end in zip(prompts, starts, starts[1:]) if end > start]
        metadata = {
            "key": key,
            "source": {
                "uri": self.path.name,
                "start_s": first / FRAMES_PER_SECOND,
                "end_s": (first + count) / FRAMES_PER_SECOND,
                "license": self.cutting.license,
                "consent": self.cutting.consent,
            },
            "identity": self.identity,
            "split": split,
            "frames": count,
            "fps": FRAMES_PER_SECOND,
            "width": width,
            "height": height,
            "audio": {"sample_rate": SAMPLE_RATE},
            "captions": to_entries("captions", captions),
            "character": None,
        }
        parsed = parse_captions(metadata, key)
        members = {
            "json": encode_json(metadata),
            "mp4": encode_video(pictures, fps=FRAMES_PER_SECOND, crf=self.cutting.crf),
            "ref.png": to_png(pictures[0]),
            "states.npy": encode_array(_states(parsed.states, parsed.at(np.arange(count)), key)),
            "txt": " ".join(dict.fromkeys(parsed.texts)).encode(),
            "wav": encode_sound(np.round(np.clip(samples, -1, 1) * (2**15 - 1)).astype(np.int16), SAMPLE_RATE),
        }
        return key, members, count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data pack`."""
    parser.add_argument("clips", type=Path, help="folder of clips as `synth` writes them, or of videos (captions in .txt of the same name)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset; one begun with the same settings and clips is continued")
    parser.add_argument("--name", help="of the dataset (default: the name of the folder of clips)")
    parser.add_argument("--shard-mb", type=float, default=256.0, help="a shard is never larger, in MiB (default: %(default)s)")
    parser.add_argument("--shard-clips", type=int, default=None, help="clips of a shard at most")
    parser.add_argument("--min-shards", type=int, default=1, help="of each split, as far as there are clips (default: %(default)s)")
    parser.add_argument("--val-identities", metavar="A,B", help="people of the val split; otherwise each clip's own 'split', otherwise by hash")
    parser.add_argument("--val-fraction", type=float, default=0.05, help="share of people in val when chosen by hash (default: %(default)s)")
    held_out = "what is never in two splits; 'recording' for a set of one person (default: %(default)s)"
    parser.add_argument("--split-by", choices=get_args(SplitBy), default="person", help=held_out)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    videos = parser.add_argument_group("plain videos")
    videos.add_argument("--clip-seconds", type=float, default=20.0, help="longer videos are cut (default: %(default)s)")
    videos.add_argument("--min-seconds", type=float, default=2.0, help="shorter clips are dropped (default: %(default)s)")
    videos.add_argument("--size", type=int, default=None, help="crop the centre to a square of so many pixels; otherwise the picture is kept")
    videos.add_argument("--crf", type=int, default=18, help="quality of the video, lower is better (default: %(default)s)")
    videos.add_argument("--planner", default="SpeechActivityPlanner", help="labels states from the sound (default: %(default)s)")
    videos.add_argument("--license", default="unknown", help="of the videos, stored with each clip")
    videos.add_argument("--consent", default="unknown", help="of the people shown, stored with each clip")
    videos.add_argument("-j", "--jobs", type=int, default=2, help="processes; the result does not depend on it (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Pack what is missing.

    Raises:
        UserError: no clips, impossible numbers, a folder of other settings, or nothing left after rejecting.
    """
    _check_numbers(args)
    units = find_units(args.clips, _cutting(args))
    split_of = assign_splits(units, args.val_identities.split(",") if args.val_identities else None, args.val_fraction, args.split_by)
    record = {
        "kind": "flowact-pack",
        "schema": 1,
        "clips": len(units),
        "clips_sha256": _hash_inputs(units),
        "splits_sha256": hashlib.sha256(json.dumps(split_of, sort_keys=True).encode()).hexdigest(),
        "shard_mb": args.shard_mb,
        "shard_clips": args.shard_clips,
        "min_shards": args.min_shards,
        "cutting": vars(_cutting(args)) if isinstance(units[0], PlainVideo) else None,
    }
    with locked(args.out):
        claim(args.out, RECORD_FILE, record)
        check_room(args.out, 1.05 * sum(unit.num_bytes for unit in units) - _packed_bytes(args.out), f"packing {len(units)} clips")
        splits, rejected = {}, []
        for split in ("train", "val"):
            chosen = [unit for unit in units if split_of[held_out_by(unit, args.split_by)] == split]
            chosen.sort(key=lambda unit: hashlib.sha256(unit.name.encode()).digest())
            if chosen:
                rejected += pack_split(args.out, split, chosen, args)
                splits[split] = _summary(args.out / split)
        splits = {name: counts for name, counts in splits.items() if counts["samples"]}
        if "train" not in splits:
            raise UserError(f"every clip to train on was left out; the first: {rejected[0].reason}")
        old = read_dataset(args.out) if (args.out / DATASET_FILE).is_file() else DatasetInfo("")
        name = args.name or args.clips.resolve().name
        info = DatasetInfo(name, character=_character(units), splits=splits, columns=old.columns, exclude=old.exclude, split_by=args.split_by)
        write_dataset(args.out, info)
    _report(args, splits, rejected)
    return 0


def find_units(folder: Path, cutting: Cutting) -> list[Unit]:
    """Clips or videos of a folder, in order of their names.

    Raises:
        UserError: none there, or two that would get the same key.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of clips")
    videos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.is_symlink())
    ready = [path for path in videos if path.with_suffix(".json").is_file() and path.with_suffix(".wav").is_file()]
    units: list[Unit]
    if ready:
        if len(ready) < len(videos):
            odd = next(path for path in videos if path not in set(ready))
            bare = len(videos) - len(ready)
            raise UserError(f"{folder} mixes clips with .json and .wav ({len(ready)}) and bare videos ({bare}, e.g. {odd}); pack them apart")
        extras = tuple(suffix for suffix in OPTIONAL_MEMBERS if any(path.with_suffix(f".{suffix}").is_file() for path in ready))
        units = [_ready(path, extras) for path in progress(ready, len(ready), "read", "clips")]
    else:
        units = [PlainVideo(_slug(path.relative_to(folder)), _identity(path, folder), path, cutting) for path in videos]
    if not units:
        raise UserError(f"{folder} holds no clips: neither KEY.mp4 with KEY.wav and KEY.json, nor videos ({', '.join(VIDEO_SUFFIXES)})")
    seen: dict[str, Path] = {}
    for unit in units:
        if unit.name in seen:
            raise UserError(f"{unit.path} and {seen[unit.name]} both get the key {unit.name!r}; rename one")
        seen[unit.name] = unit.path
    return units


def held_out_by(unit: Unit, split_by: SplitBy) -> str:
    """What of a clip or video is in one split only: its person, or itself."""
    return unit.identity if split_by == "person" else unit.name


def assign_splits(units: Sequence[Unit], val_identities: Sequence[str] | None, val_fraction: float, split_by: SplitBy = "person") -> dict[str, str]:
    """Person (or name of a recording) -> 'train' or 'val'. Each is in one split only, and stays there when clips are added.

    Raises:
        UserError: an unknown name, a person whose clips say both splits, or nobody left to train on.
    """
    identities = sorted({held_out_by(unit, split_by) for unit in units})
    own: dict[str, set[Any]] = {identity: set() for identity in identities}
    for unit in units:
        own[held_out_by(unit, split_by)].add(unit.metadata.get("split") if isinstance(unit, ReadyClip) else None)
    if val_identities is not None:
        unknown = [name for name in val_identities if name not in own]
        if unknown:
            raise UserError(f"--val-identities: nobody is called {unknown[0]!r}.{did_you_mean(unknown[0], identities)}")
        chosen = {identity: "val" if identity in val_identities else "train" for identity in identities}
    elif all(splits <= {"train", "val"} for splits in own.values()):
        torn = [identity for identity, splits in own.items() if len(splits) > 1]
        if torn:
            raise UserError(
                f"{len(torn)} people are in train and in val by their clips' 'split', e.g. {torn[0]!r}; say who is in val with --val-identities,"
                " or hold recordings out with --split-by recording"
            )
        chosen = {identity: next(iter(splits)) for identity, splits in own.items()}
    else:
        place = {identity: int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64 for identity in identities}
        chosen = {identity: "val" if place[identity] < val_fraction else "train" for identity in identities}
        if val_fraction > 0 and "val" not in chosen.values() and len(identities) > 1:
            chosen[min(identities, key=lambda identity: place[identity])] = "val"
    if "train" not in chosen.values():
        raise UserError(f"all {len(identities)} people are in val, nobody is left to train on; name fewer in --val-identities")
    return chosen


def pack_split(out: Path, split: str, units: Sequence[Unit], args: argparse.Namespace) -> list[Rejected]:
    """Write the shards of one split; finished ones are kept.

    Returns:
        what was left out, also written to rejected-SPLIT.json.
    """
    folder, ledger = out / split, out / f"rejected-{split}.json"
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    done = [key for path in sorted(folder.glob("*.tar")) for key in ShardReader(path).index.keys]
    rejected = [Rejected(**entry) for entry in json.loads(ledger.read_bytes())] if done and ledger.is_file() else []
    last = _unit_of(done[-1], units) if done else -1
    limit = max(len(units) // args.min_shards, 1)
    limit = min(limit, args.shard_clips) if args.shard_clips else limit
    writer = ShardWriter(folder, max_bytes=round(args.shard_mb * 2**20), max_samples=limit, first=len(list(folder.glob("*.tar"))))
    written = set(done)
    names = {entry.name for entry in rejected}
    rest = units[max(last, 0) :]
    results = work(_make, [(unit, folder.name) for unit in rest], args.jobs if isinstance(units[0], PlainVideo) else 1, _start, ())
    with writer:
        for made in progress(results, len(rest), f"pack {folder.name}", "files"):
            for result in made:
                if isinstance(result, Rejected):
                    if result.name not in names:
                        rejected.append(result)
                        write_atomically(ledger, (json.dumps([vars(entry) for entry in rejected], indent=1) + "\n").encode())
                elif result[0] not in written:
                    writer.write(*result)
    return rejected


def _make(item: tuple[Unit, str]) -> list[Sample | Rejected]:
    unit, split = item
    return list(unit.samples(split))


def _start() -> None:
    """Nothing to prepare in a process."""


def _unit_of(key: str, units: Sequence[Unit]) -> int:
    for number, unit in enumerate(units):
        if key == unit.name or (isinstance(unit, PlainVideo) and key.rpartition("-")[0] == unit.name):
            return number
    raise UserError(f"the shards that are there end with clip {key!r}, which is not among these clips; give another --out")


def _ready(path: Path, extras: tuple[str, ...]) -> ReadyClip:
    where = str(path.with_suffix(".json"))
    try:
        metadata = check_metadata(json.loads(path.with_suffix(".json").read_bytes()), where)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where} is no JSON: {error}") from error
    if metadata["key"] != path.stem:
        raise UserError(f"{where}: its key is {metadata['key']!r}, the file is named {path.stem!r}; make them the same")
    if metadata.get("fps", FRAMES_PER_SECOND) != FRAMES_PER_SECOND:
        raise UserError(f"{where}: {metadata['fps']} frames a second; clips have {FRAMES_PER_SECOND}. Pack the plain video instead, it is converted")
    return ReadyClip(check_key(path.stem), metadata["identity"], path, metadata, extras)


def _cutting(args: argparse.Namespace) -> Cutting:
    frames = [round(seconds * FRAMES_PER_SECOND) for seconds in (args.clip_seconds, args.min_seconds)]
    return Cutting(frames[0], frames[1], args.size, args.crf, args.planner, args.license, args.consent)


def _check_numbers(args: argparse.Namespace) -> None:
    rules = {
        "--shard-mb": (args.shard_mb, 0.01),
        "--shard-clips": (args.shard_clips or 1, 1),
        "--min-shards": (args.min_shards, 1),
        "--clip-seconds": (args.clip_seconds, 0.2),
        "--size": (args.size or 16, 16),
        "--crf": (args.crf, 0),
    }
    for option, (value, smallest) in rules.items():
        if value < smallest:
            raise UserError(f"{option} {value}: must be at least {smallest}")
    if not 0 <= args.val_fraction < 1:
        raise UserError(f"--val-fraction {args.val_fraction}: a share of people, 0 up to (not including) 1")
    if args.size is not None and args.size % 2:
        raise UserError(f"--size {args.size}: must be even")


def _states(names: Sequence[str], index: np.ndarray, where: str) -> np.ndarray:
    unknown = [name for name in names if name not in STATES]
    if unknown:
        raise MediaError(f"{where}: state {unknown[0]!r} is not one of {', '.join(STATES)}")
    return np.asarray([STATES.index(name) for name in names], dtype=np.uint8)[index]


def _is_silent(samples: np.ndarray) -> bool:
    """Whether no 40 ms reach SILENCE_DBFS."""
    frames = np.asarray(samples, dtype=np.float32)[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    return not len(frames) or float(np.square(frames).mean(axis=1).max()) < 10 ** (SILENCE_DBFS / 10)


def _read_caption(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    try:
        return " ".join(file.read_text(encoding="utf-8").split())[:2000] or None
    except UnicodeDecodeError as error:
        raise MediaError(f"{file}: not UTF-8 text (byte {error.start})") from error


def _identity(path: Path, folder: Path) -> str:
    """People by folder: ROOT/anna/*.mp4 is anna; a video right in the folder is a person of its own."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else path.stem


def _slug(path: Path) -> str:
    """A key from a path: plain characters, with a short hash where some were lost."""
    text = "-".join(path.with_suffix("").parts)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:56]
    return plain if plain == text else f"{plain or 'clip'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _hash_inputs(units: Iterable[Unit]) -> str:
    digest = hashlib.sha256()
    for unit in units:
        digest.update(f"{unit.name}\0{unit.path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _character(units: Sequence[Unit]) -> dict[str, Any] | None:
    specs = {json.dumps(unit.metadata.get("character"), sort_keys=True) for unit in units if isinstance(unit, ReadyClip)}
    if len(specs) > 1:
        raise UserError(f"the clips show {len(specs)} different characters: {', '.join(sorted(specs))}; pack them apart")
    return json.loads(specs.pop()) if specs else None


def _packed_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("*/*.tar"))


def _summary(folder: Path) -> dict[str, int]:
    indexes = [ShardReader(path).index for path in sorted(folder.glob("*.tar"))]
    frames = sum(sample.frames for index in indexes for sample in index.samples)
    return {"shards": len(indexes), "samples": sum(len(index.samples) for index in indexes), "frames": frames}


def _report(args: argparse.Namespace, splits: dict[str, dict[str, int]], rejected: Sequence[Rejected]) -> None:
    if args.json:
        print(json.dumps({"out": str(args.out), "splits": splits, "rejected": [vars(entry) for entry in rejected]}, indent=1))
        return
    for name, counts in splits.items():
        hours = counts["frames"] / FRAMES_PER_SECOND / 3600
        shards = f"{args.out}/{name}/" + ("000000.tar" if counts["shards"] == 1 else f"{{000000..{counts['shards'] - 1:06d}}}.tar")
        print(f"{name}: {counts['samples']} clips, {hours:.2f} hours, {counts['shards']} shards: {shards}")
    for entry in rejected[:10]:
        print(f"left out {entry.name}: {entry.reason}")
    if len(rejected) > 10:
        print(f"... {len(rejected)} clips left out in all, see {args.out}/rejected-*.json")
    print(f"next: flowact-data lint {args.out}; flowact-data encode all {args.out} --autoencoder FOLDER")

"""`flowact-data synth`: render clips of synthetic people who speak recorded speech, with exact truth beside each.

Every clip has a person of its own (or all show the one that `--appearance` describes) and depends only on the seed, its split and its number, never
on how many processes work or in which order.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowact import registry
from flowact.characters.base import Character, Identity
from flowact.characters.behaviour import IDLE, TrackSegment, lay_out, sample_segments, state_runs
from flowact.characters.speech import SpeechPiece, Split, load_speech, of_split
from flowact.data.media import encode_sound, encode_video
from flowact.data.schema import to_entries
from flowact.errors import UserError
from flowact.strict_yaml import read_yaml_file
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, STATES

SETTINGS_FILE = "synth.json"
SETTINGS_KIND = "flowact-synth"
SPLITS: tuple[Split, ...] = ("train", "val")
SHIPPED_LICENSE = "CC-BY-SA-3.0 (voice: Allison Smith, Asterisk core sounds)"
VIDEO_CRF = 10
_BYTES_PER_PIXEL = 0.15  # of h264 at that quality, generously


@dataclass(frozen=True)
class Settings:
    """What every clip of a folder has in common; a folder with other settings is refused.

    Attributes:
        character: {class_path, init_args}.
        frames: of each clip, 4 n + 1.
        seed: of everything random.
        speech: "shipped", or the path of the user's folder.
        speech_sha256: of all utterances, so that changed recordings are noticed.
        person: name of the one whom all clips show; empty where each has its own.
        appearance: of that person.
    """

    character: dict[str, Any]
    frames: int
    seed: int
    speech: str
    speech_sha256: str
    person: str = ""
    appearance: Identity | None = None


@dataclass(frozen=True)
class Task:
    """One clip to be made."""

    split: Split
    index: int
    key: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data synth`."""
    parser.add_argument("--character", default="Puppet", help="who performs: Puppet, RiggedHuman or a plugin's character (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips; a folder begun with the same settings is continued")
    parser.add_argument("--train-identities", type=int, default=140, help="clips to train on, each of a person of its own (default: %(default)s)")
    parser.add_argument("--val-identities", type=int, default=12, help="clips of people and sentences held out (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a clip; becomes 4n+1 frames at 25 a second (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (default: %(default)s)")
    parser.add_argument("--appearance", type=Path, metavar="FILE", help="YAML: looks of the one person of all clips, who gets the file's name")
    parser.add_argument("--speech", type=Path, default=None, help="folder of recordings (wav, flac, mp3, ogg, opus, m4a); without it the shipped set")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other people and other behaviour (default: %(default)s)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes; the clips do not depend on it (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=None, help="make at most so many clips of each split, to have a look first")


def run(args: argparse.Namespace) -> int:
    """Make what is missing in the folder.

    Raises:
        UserError: impossible numbers, no speech, a folder of other settings, too little disk space.
    """
    _check_numbers(args)
    character = registry.instantiate({"class_path": args.character, "init_args": {"size": args.size}}, kind="characters")
    spec = {"class_path": registry.resolve(args.character, "characters").class_path, "init_args": {"size": args.size}}
    pieces = load_speech(args.speech)
    speech = "shipped" if args.speech is None else str(args.speech.resolve())
    person = (args.appearance.stem, read_appearance(args.appearance, character, args.seed)) if args.appearance else ("", None)
    settings = Settings(spec, frames_of(args.seconds), args.seed, speech, _hash_speech(pieces), *person)
    _open_folder(args.out, settings)

    counts = {"train": args.train_identities, "val": args.val_identities}
    name = _slug(settings.person or args.character)
    tasks = [Task(split, i, f"{name}-{split}-{i:05d}") for split in SPLITS for i in range(min(counts[split], args.limit or counts[split]))]
    missing = [task for task in tasks if not (args.out / task.split / f"{task.key}.json").exists()]
    _check_disk(args.out, len(missing), settings.frames, args.size)
    if len(missing) < len(tasks):
        print(f"{len(tasks) - len(missing)} of {len(tasks)} clips are there already", file=sys.stderr)
    maker = ClipMaker(settings, pieces, args.out)
    for _ in _track_progress(_make_all(maker, missing, args.jobs), len(missing), settings.frames):
        pass
    by = " --split-by recording" if settings.person else ""
    print(f"{args.out}: {len(tasks)} clips of {settings.frames} frames, {character.size} px; next: flowact-data pack {args.out} --out DATASET{by}")
    return 0


def read_appearance(path: Path, character: Character, seed: int) -> Identity:
    """A person of whom a YAML file states some parts; the seed draws the others.

    Raises:
        UserError: no such file, or parts that the character can not have.
    """
    parts, _ = read_yaml_file(path)
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{path}: a mapping of parts is expected, such as skin: [0.9, 0.7, 0.6]")
    try:
        return character.identity_of(parts, np.random.default_rng(seed))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def frames_of(seconds: float) -> int:
    """The largest 4n + 1 that does not exceed the time by more than its first frame: 20 s are 501 frames."""
    return 4 * math.floor(seconds * FRAMES_PER_SECOND / 4 + 1e-6) + 1


class ClipMaker:
    """Makes clips of one folder, any of them in any order and process.

    Args:
        settings: of the folder.
        pieces: all speech, of both splits.
        folder: holds a folder for each split.
    """

    def __init__(self, settings: Settings, pieces: Sequence[SpeechPiece], folder: Path) -> None:
        self.settings = settings
        self.speech = {split: of_split(pieces, split) for split in SPLITS}
        self.folder = folder
        self.character: Character = registry.instantiate(settings.character, kind="characters")

    def make(self, task: Task) -> Task:
        """Write the members of one clip, the metadata last, so that a clip with metadata is whole."""
        generator = np.random.default_rng([self.settings.seed, SPLITS.index(task.split), task.index])
        identity = self.character.sample_identity(generator)
        if self.settings.appearance is not None:
            identity = self.settings.appearance
        segments = sample_segments(generator, self.speech[task.split], self.settings.frames)
        samples, states_T = lay_out(segments)
        truth_TP = self.character.perform(samples, states_T, generator)
        frames = self.character.render(identity, truth_TP)
        captions = [
            [start, end, STATES[state], self.character.caption(STATES[state], int(generator.integers(2**16)))]
            for start, end, state in state_runs(states_T)
        ]
        metadata = self._metadata(task, identity, captions, segments)
        members = {
            "mp4": encode_video(frames, crf=VIDEO_CRF, pixel_format="yuv444p", preset="ultrafast"),
            "wav": encode_sound(np.round(np.clip(samples, -1, 1) * (2**15 - 1)).astype(np.int16), SAMPLE_RATE),
            "ref.png": _png(neutral_picture(self.character, identity)),
            "states.npy": _npy(states_T),
            "truth.npy": _npy(truth_TP),
            "boxes.npy": _npy(self.character.boxes(identity, truth_TP)),
            "txt": summarise(captions).encode(),
            "json": json.dumps(metadata, indent=1).encode(),
        }
        target = self.folder / task.split
        target.mkdir(parents=True, exist_ok=True)
        for suffix, data in members.items():
            _write(target / f"{task.key}.{suffix}", data)
        return task

    def _metadata(self, task: Task, identity: Identity, captions: list[list[Any]], segments: Sequence[TrackSegment]) -> dict[str, Any]:
        settings, size = self.settings, self.character.size
        shipped = settings.speech == "shipped"
        return {
            "key": task.key,
            "source": {
                "uri": f"{SETTINGS_KIND}:{type(self.character).__name__}/seed={settings.seed}/{task.split}/{task.index}",
                "start_s": 0.0,
                "end_s": settings.frames / FRAMES_PER_SECOND,
                "license": SHIPPED_LICENSE if shipped else "as the recordings",
                "consent": "synthetic person; published recordings" if shipped else "synthetic person; the user's recordings",
            },
            "identity": settings.person or task.key,
            "split": task.split,
            "frames": settings.frames,
            "fps": FRAMES_PER_SECOND,
            "width": size,
            "height": size,
            "audio": {"sample_rate": SAMPLE_RATE},
            "captions": to_entries("captions", captions),
            "character": settings.character,
            "appearance": identity,
            "recordings": [segment.speech.name for segment in segments if segment.speech is not None],
        }


def summarise(captions: list[list[Any]]) -> str:
    """One sentence for each state of a clip, in order of appearance."""
    sentences: dict[str, str] = {}
    for _, _, state, text in captions:
        sentences.setdefault(state, text)
    return " ".join(sentences.values())


def neutral_picture(character: Character, identity: Identity) -> np.ndarray:
    """The person at rest, eyes open, looking at the camera: the first frame of idling in silence. uint8 (H, W, 3)."""
    truth_TP = character.perform(np.zeros(SAMPLES_PER_FRAME, np.float32), np.array([IDLE], np.uint8), np.random.default_rng(0))
    return character.render(identity, truth_TP)[0]


# --- working in parallel ------------------------------------------------------------------------------------------------------------------------

_maker: ClipMaker | None = None


def _start_worker(maker_arguments: tuple[Settings, Sequence[SpeechPiece], Path]) -> None:
    global _maker
    _maker = ClipMaker(*maker_arguments)


def _make_in_worker(task: Task) -> Task:
    assert _maker is not None  # set when the worker started
    return _maker.make(task)


def _make_all(maker: ClipMaker, tasks: Sequence[Task], jobs: int) -> Iterator[Task]:
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(maker.make, tasks)
        return
    # Workers do one thing each; their libraries must not start threads for all cores. They read the environment when they start.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = (maker.settings, [piece for split in SPLITS for piece in maker.speech[split]], maker.folder)
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(arguments,)) as pool:
            futures = [pool.submit(_make_in_worker, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _track_progress(done: Iterable[Task], total: int, frames: int) -> Iterator[Task]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("synth"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=Console(stderr=True)) as progress:
        bar = progress.add_task("synth", total=total, rate="")
        for task in done:
            progress.advance(bar)
            speed = progress.tasks[0].speed
            progress.update(bar, rate=f"{speed * frames:.0f} frames/s" if speed else "")
            yield task


# --- checks ---------------------------------------------------------------------------------------------------------------------------------------


def _check_numbers(args: argparse.Namespace) -> None:
    rules = {
        "--train-identities": (args.train_identities, 0, "clips"),
        "--val-identities": (args.val_identities, 0, "clips"),
        "--jobs": (args.jobs, 1, "process"),
        "--limit": (1 if args.limit is None else args.limit, 1, "clip"),
        "--seed": (args.seed, 0, ""),
    }
    for option, (value, smallest, what) in rules.items():
        if value < smallest:
            raise UserError(f"{option} {value}: must be at least {smallest} {what}".rstrip())
    if not 0.2 <= args.seconds <= 3600:
        raise UserError(f"--seconds {args.seconds}: a clip lasts 0.2 to 3600 seconds; 20 is usual")


def _open_folder(folder: Path, settings: Settings) -> None:
    """Claim a new folder, or make sure that an old one was begun with the same settings."""
    stated = {name: value for name, value in vars(settings).items() if value not in ("", None)}
    record = {"kind": SETTINGS_KIND, "schema": 1, **stated}
    path = folder / SETTINGS_FILE
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); remove the folder or give another --out") from error
        wanted = {**dict.fromkeys(old), **record}
        differences = [f"{name} {old.get(name)!r}, now {value!r}" for name, value in wanted.items() if old.get(name) != value]
        if differences:
            raise UserError(
                f"{folder} holds clips made with other settings: {'; '.join(differences)}. Give another --out, or the same settings to continue"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and was not made by `flowact-data synth`; give a new folder as --out")
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(record, indent=1).encode())


def _check_disk(folder: Path, num_clips: int, frames: int, size: int) -> None:
    needed = num_clips * frames * (2 * SAMPLES_PER_FRAME + _BYTES_PER_PIXEL * size**2 + 64)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{num_clips} clips need about {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; make room, or make fewer clips"
        )


def _hash_speech(pieces: Sequence[SpeechPiece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(f"{piece.name}\0{piece.split}\0".encode() + np.round(piece.samples * (2**15 - 1)).astype("<i2").tobytes())
    return digest.hexdigest()


# --- files ----------------------------------------------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    """Either the whole file or none."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.rpartition(".")[2]).strip("-").lower()[:40] or "clip"

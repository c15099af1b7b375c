"""Recorded speech for synthetic people: the set that ships with the package, or a folder of the user's own."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from flowact.errors import UserError
from flowact.types import SAMPLE_RATE

log = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
SPEECH_LEVEL_DB = -23.0
MIN_SECONDS = 0.5
MAX_SECONDS = 10.0
HELD_OUT_FRACTION = 0.15

_WINDOW = SAMPLE_RATE // 100  # levels are taken over 10 ms
_MARGIN = 6  # windows of quiet kept around speech
_SILENCE_DB = -75.0  # a file that never gets louder is silent
_SPEECH_RANGE_DB = 40.0  # windows this far below the loudest are pauses

Split = Literal["train", "val"]


@dataclass(frozen=True)
class SpeechPiece:
    """One utterance.

    Attributes:
        name: name of its file; pieces cut from a long file carry a number ("talk.mp3#003").
        samples: mono float32 at 16 kHz, normalised to `SPEECH_LEVEL_DB`, without silence at the ends.
        split: "train", or "val" for speech that training never hears.
    """

    name: str
    samples: np.ndarray
    split: Split

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def load_speech(folder: Path | None = None) -> list[SpeechPiece]:
    """The speech in a folder and below it, or the shipped set (about two minutes of one voice, see its NOTICE.md) when `folder` is None.

    Every file is resampled, mixed down, brought to one loudness and freed of silence at its ends; what is shorter than half a second is
    skipped, what is longer than ten seconds is cut at its quietest moments. In a user's folder about 15 % of the files are held out, chosen by
    a hash of their names, at least one on each side; of a single file the last part is held out.

    Raises:
        UserError: there is no such folder, no speech in it, a file cannot be decoded, is silent or holds numbers that are not finite.
    """
    if folder is None:
        return _load_shipped(Path(str(files("flowact") / "assets" / "speech")))
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"speech folder {folder} does not exist or is not a folder; give a folder with {', '.join(AUDIO_SUFFIXES)} files")
    everything = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = [path for path in everything if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        seen = Counter(path.suffix.lower() or "(none)" for path in everything)
        found = ", ".join(f"{count} x {suffix}" for suffix, count in seen.most_common(8)) or "nothing"
        raise UserError(f"no speech in {folder}: found {found}; convert recordings to one of {', '.join(AUDIO_SUFFIXES)}")

    utterances = {path.relative_to(folder).as_posix(): cut_utterances(clean_speech(read_audio(path), path)) for path in paths}
    utterances = {name: pieces for name, pieces in utterances.items() if pieces}
    if not utterances:
        raise UserError(f"no speech in {folder} lasts {MIN_SECONDS} s; record longer sentences")
    if len(utterances) == 1:
        return _split_by_time(*next(iter(utterances.items())))
    held_out = _held_out(list(utterances))
    return [
        SpeechPiece(_piece_name(name, i, len(pieces)), piece, "val" if name in held_out else "train")
        for name, pieces in utterances.items()
        for i, piece in enumerate(pieces)
    ]


def of_split(pieces: Sequence[SpeechPiece], split: Split) -> list[SpeechPiece]:
    """The pieces of one split, in order."""
    return [piece for piece in pieces if piece.split == split]


def read_audio(path: Path) -> np.ndarray:
    """All samples of an audio file, or of the first audio stream of a video, as mono float32 at 16 kHz.

    Damage after the first half second ends the recording there, with a warning: many real files break in their last packet.

    Raises:
        UserError: no audio in it, not decodable, or samples that are not finite.
    """
    import av  # decoding is the one thing here that needs FFmpeg

    blocks: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path} has no audio stream; remove it from the folder or give a recording")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            try:
                for frame in container.decode(audio=0):
                    blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
            except av.FFmpegError as error:
                if sum(map(len, blocks)) < MIN_SECONDS * SAMPLE_RATE:
                    raise
                log.warning("%s is damaged after %.1f s (%s); the rest is left out", path, sum(map(len, blocks)) / SAMPLE_RATE, error)
            blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot decode {path}: {error}; check that it plays, or convert it to wav") from error
    samples = np.concatenate(blocks).astype(np.float32) if blocks else np.zeros(0, np.float32)
    if not np.isfinite(samples).all():
        raise UserError(f"{path} holds samples that are not finite numbers; export it again as 16-bit wav")
    return samples


def clean_speech(samples: np.ndarray, source: str | Path) -> np.ndarray:
    """Samples without silence at the ends, at `SPEECH_LEVEL_DB`.

    Raises:
        UserError: nothing in them is louder than -75 dBFS; `source` is named.
    """
    levels_db = _levels_db(samples)
    loudest = levels_db.max(initial=-np.inf)
    if loudest < _SILENCE_DB:
        raise UserError(f"{source} is silent (loudest {loudest:.0f} dBFS, speech needs {_SILENCE_DB:.0f}); remove it or record it again")
    active = np.flatnonzero(levels_db > loudest - _SPEECH_RANGE_DB)
    start, end = max(active[0] - _MARGIN, 0), min(active[-1] + 1 + _MARGIN, len(levels_db))
    return normalise_loudness(samples[start * _WINDOW : end * _WINDOW])


def normalise_loudness(samples: np.ndarray) -> np.ndarray:
    """Scaled so that the power of what is spoken, pauses apart, is `SPEECH_LEVEL_DB`; peaks stay within full scale."""
    levels_db = _levels_db(samples)
    active = levels_db > levels_db.max() - _SPEECH_RANGE_DB / 2
    level_db = 10 * np.log10(np.mean(10 ** (levels_db[active] / 10)))
    scaled = samples * np.float32(10 ** ((SPEECH_LEVEL_DB - level_db) / 20))
    return np.clip(scaled, -1, 1).astype(np.float32)


def cut_utterances(samples: np.ndarray) -> list[np.ndarray]:
    """Pieces of at most ten seconds, cut at the quietest tenth of a second in the second half of each; none shorter than half a second."""
    pieces = []
    while len(samples) > MAX_SECONDS * SAMPLE_RATE:
        longest = int(MAX_SECONDS * SAMPLE_RATE)
        levels_db = _levels_db(samples[:longest])
        smooth = np.convolve(levels_db, np.ones(10) / 10, mode="same")
        half = len(smooth) // 2
        cut = (half + int(smooth[half:-10].argmin())) * _WINDOW
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [piece for piece in [*pieces, samples] if len(piece) >= MIN_SECONDS * SAMPLE_RATE]


def _load_shipped(folder: Path) -> list[SpeechPiece]:
    with (folder / "transcripts.tsv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    pieces = []
    for row in rows:
        path = folder / row["file"]
        split: Split = "val" if row["split"] == "val" else "train"
        pieces.append(SpeechPiece(path.stem, clean_speech(read_audio(path), path), split))
    return pieces


def _held_out(names: list[str]) -> set[str]:
    """About 15 % of two or more names by the hash of each, so that adding files moves few others."""
    ranks = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names}
    held_out = {name for name, rank in ranks.items() if rank < HELD_OUT_FRACTION}
    by_rank = sorted(names, key=lambda name: ranks[name])
    if not held_out:
        return {by_rank[0]}
    if len(held_out) == len(names):
        return held_out - {by_rank[-1]}
    return held_out


def _split_by_time(name: str, pieces: list[np.ndarray]) -> list[SpeechPiece]:
    """One file: the last pieces are held out; a single piece is itself cut in two when both parts last long enough."""
    if len(pieces) == 1:
        whole = pieces[0]
        cut = int(len(whole) * (1 - HELD_OUT_FRACTION))
        cut = min(cut, len(whole) - int(MIN_SECONDS * SAMPLE_RATE))
        if cut < MIN_SECONDS * SAMPLE_RATE:
            raise UserError(
                f"{name} is the only recording and lasts {len(whole) / SAMPLE_RATE:.1f} s; one file must last {2 * MIN_SECONDS} s "
                "so that a part can be held out, or give more files"
            )
        pieces = [whole[:cut], whole[cut:]]
    num_held_out = max(1, round(HELD_OUT_FRACTION * len(pieces)))
    first_held_out = len(pieces) - num_held_out
    return [SpeechPiece(_piece_name(name, i, len(pieces)), piece, "val" if i >= first_held_out else "train") for i, piece in enumerate(pieces)]


def _piece_name(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name}#{index:03d}"


def _levels_db(samples: np.ndarray) -> np.ndarray:
    """Level of each 10 ms in dBFS; the last part of a window is ignored."""
    num_windows = len(samples) // _WINDOW
    windows = np.asarray(samples[: num_windows * _WINDOW], np.float64).reshape(num_windows, _WINDOW)
    return 10 * np.log10((windows**2).mean(axis=1) + 1e-12)

"""Soundtracks on disk: mono, 16 kHz, from the moment of the first picture on, however the container holds them."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_tools.media.container import FootageError, open_media, start_of
from data_tools.media.pictures import ROUNDING_SECONDS, SEEKABLE, SHORTFALL, Pictures
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

Tracks = Literal["mix", "channels", "streams"]
#: a sound that is so many seconds off its timestamp is put where the timestamp says; less is the container's rounding
TOLERANCE_SECONDS = 0.04
SEEK_FROM = 60.0  # seconds; decoding sound up to there takes a moment
PREROLL_SECONDS = 1.0  # decoded before a sought moment, as codecs need what was before
MAX_GAP_SECONDS = 3600.0  # more silence than this between two sounds is a damaged timestamp
_UNKNOWN_SIZE = 0x7FFF0000  # bytes; programs that write into a pipe put more than this into a wav's head
_SILENCE = np.zeros(SAMPLE_RATE, "<i2")


@dataclass(frozen=True)
class Sound:
    """What was written.

    Attributes:
        samples: of the file.
        found: samples that the soundtrack gave; the others are silence.
        damaged: packets that could not be decoded and are silence.
        begins_s: when the soundtrack begins, in seconds after frame 0; None where there is none.
    """

    samples: int
    found: int
    damaged: int = 0
    begins_s: float | None = None


def write_sound(
    path: Path,
    out: Path,
    *,
    frames: int | None = None,
    start_s: float = 0.0,
    tracks: Tracks = "mix",
    other: Path | None = None,
    silence: bool = False,
) -> Sound:
    """Write a file's soundtrack as PCM16 mono wav at 16 kHz, streamed: memory does not grow with the length.

    Sound is placed by its timestamps against the first picture; what is missing is silence, what lies before frame 0 is left out. Where there is
    no picture, the first sound is at 0.

    Args:
        path: a video or sound file.
        out: wav file, whole or not at all.
        frames: exactly 640 samples for each are written; None writes all the sound there is.
        start_s: seconds after the first picture at which frame 0 is.
        tracks: `mix` takes all channels of the first soundtrack, `channels` its left one as the person and the right one as the other speaker,
            `streams` the first soundtrack as the person and the second as the other speaker.
        other: wav file for the other speaker; needed unless `tracks` is `mix`.
        silence: write silence where there is no soundtrack.

    Returns:
        what was written for the person.

    Raises:
        FootageError: no soundtrack, too few channels or soundtracks, or nothing of it decodes.
        ValueError: two tracks without a file for the second.
    """
    if (other is None) != (tracks == "mix"):
        raise ValueError(f"tracks {tracks!r} {'need' if other is None else 'give'} {'a file' if other is None else 'no sound'} for the other speaker")
    origin = _origin(path)
    sounds = [_Wav(out, frames)] + ([_Wav(other, frames)] if other is not None else [])
    try:
        if tracks == "channels":
            _pour(path, 0, sounds, origin, start_s, silence)
        else:
            for number, sound in enumerate(sounds):
                _pour(path, number, [sound], origin, start_s, silence)
        written = [sound.finish() for sound in sounds]
        return written[0]
    finally:
        for sound in sounds:
            sound.discard()


def read_sound(path: Path) -> np.ndarray:
    """Sound from the moment of the first frame on: mono float32 at 16 kHz.

    Raises:
        UserError: no sound, or undecodable.
    """
    from flowact.conditioning.media import load_audio

    with open_media(path) as container:
        audio = container.streams.audio
        begins = float((audio[0].start_time or 0) * audio[0].time_base) if audio else 0.0
    origin = _origin(path)
    samples = load_audio(path)
    shift = 0 if origin is None else round((begins - origin) * SAMPLE_RATE)
    return np.concatenate([np.zeros(shift, np.float32), samples]) if shift > 0 else samples[-shift:]


def _origin(path: Path) -> float | None:
    """Time of the first picture; None without one."""
    try:
        with Pictures(path) as pictures:
            return pictures.origin
    except FootageError as error:
        if error.code != "no-picture":
            raise
        return None


def _pour(path: Path, number: int, sounds: list[_Wav], origin: float | None, start_s: float, silence: bool) -> None:
    """Decode one soundtrack into a wav for each wanted channel."""
    with open_media(path) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if number >= len(streams):
            if silence and number == 0:
                return
            have = f"has {len(streams)} soundtrack{'s' * (len(streams) != 1)}, {number + 1} are needed" if number else "has no soundtrack"
            raise FootageError(f"{path} {have}; give a file with sound, or put a .wav beside it", "no-sound")
        stream = streams[number]
        if len(sounds) > stream.codec_context.channels:
            raise FootageError(f"{path}: its soundtrack has 1 channel, 2 are needed for two speakers; set tracks to mix", "no-sound")
        if start_s > SEEK_FROM and SEEKABLE & set(container.format.name.split(",")):
            origin = start_of(stream) if origin is None else origin
            container.seek(int((origin + start_s - PREROLL_SECONDS) / float(stream.time_base)), stream=stream, backward=True)
        end = 0.0
        for time, samples_CS in _decode(container, stream, len(sounds), sounds[0]):
            origin = time if origin is None else origin
            end = time + samples_CS.shape[1] / SAMPLE_RATE
            for sound, samples_S in zip(sounds, samples_CS):
                sound.put(time - origin - start_s, samples_S)
            if sounds[0].full:
                return
        _check_whole(path, stream, sounds[0], end)


def _check_whole(path: Path, stream: Any, sound: _Wav, end: float) -> None:
    """A damaged packet is silence, as players have it; many are no sound, and a soundtrack that stops early was cut."""
    if sound.damaged > 1 + SHORTFALL * sound.packets or (sound.damaged and not sound.found):
        found = f"{sound.damaged} of {sound.packets} packets of its sound can not be decoded"
        raise FootageError(f"{path}: {found}; copy the file again, or convert the sound, e.g. to aac", "undecodable")
    claimed, start = 0.0, start_of(stream)
    if stream.duration:
        claimed = float(stream.duration * stream.time_base)
    if path.suffix.lower() == ".wav":  # FFmpeg believes the file's size, not its head
        claimed = max(claimed, _wav_seconds(path))
    if end - start < claimed - min(SHORTFALL * claimed, 1.0) - ROUNDING_SECONDS:
        raise FootageError(f"{path}: {end - start:.2f} s of sound decode, {claimed:.2f} s are claimed; the file was cut: copy it again", "truncated")


def _wav_seconds(path: Path) -> float:
    """What the head of a PCM wav claims; 0 for other sound, and where the size was not known when it was written."""
    try:
        with wave.open(str(path)) as file:
            frames, size = file.getnframes(), file.getnframes() * file.getnchannels() * file.getsampwidth()
            return frames / file.getframerate() if size < _UNKNOWN_SIZE and file.getframerate() else 0.0
    except (wave.Error, EOFError, OSError):
        return 0.0


def _decode(container: Any, stream: Any, channels: int, counter: _Wav) -> Iterator[tuple[float, np.ndarray]]:
    """Pieces of sound without gaps between their samples: time of the first sample in seconds, int16 (C, S) at 16 kHz."""
    import av

    layout = "mono" if channels == 1 else "stereo"
    resampler: Any = None
    form: tuple[Any, ...] = ()
    expected = 0.0  # time at which the next decoded sample is, if there is no gap
    written = 0.0  # time of the next resampled sample
    for frame in _frames(container, stream, counter):
        time = expected if frame.time is None else frame.time
        if resampler is None or abs(time - expected) > TOLERANCE_SECONDS or form != (frame.sample_rate, frame.format.name, frame.layout.name):
            if resampler is not None:
                for piece in resampler.resample(None):
                    yield written, _samples(piece, channels)
            resampler = av.AudioResampler(format="s16", layout=layout, rate=SAMPLE_RATE)
            form = frame.sample_rate, frame.format.name, frame.layout.name
            expected = written = time
        expected += frame.samples / frame.sample_rate
        frame.pts = None  # the resampler counts samples; it would fill rounding gaps by itself
        for piece in resampler.resample(frame):
            yield written, _samples(piece, channels)
            written += piece.samples / SAMPLE_RATE
    if resampler is not None:
        for piece in resampler.resample(None):
            yield written, _samples(piece, channels)
            written += piece.samples / SAMPLE_RATE


def _frames(container: Any, stream: Any, counter: _Wav) -> Iterator[Any]:
    """Decoded frames; a damaged packet is counted and left out, as players do."""
    import av

    packets = container.demux(stream)
    while True:
        counter.packets += 1
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:  # the container itself ends here
            counter.damaged += 1
            return
        if packet is None:
            return
        try:
            yield from (frame for frame in packet.decode() if frame.sample_rate and frame.samples)
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, ValueError):
            counter.damaged += 1


def _samples(piece: Any, channels: int) -> np.ndarray:
    return piece.to_ndarray().reshape(-1, channels).T


class _Wav:
    """A wav file that grows by pieces placed in time, silence between them; it appears under its name when it is finished."""

    def __init__(self, path: Path, frames: int | None) -> None:
        self.path = path
        self.part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.limit = None if frames is None else frames * SAMPLES_PER_FRAME
        self.written = self.found = self.damaged = self.packets = 0
        self.begins_s: float | None = None
        self._next = 0  # where the next sample lies if there is no gap; may be before 0
        self._file = wave.open(str(self.part), "wb")  # noqa: SIM115  # closed by finish or discard
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(SAMPLE_RATE)

    @property
    def full(self) -> bool:
        return self.limit is not None and self.written >= self.limit

    def put(self, seconds: float, samples_S: np.ndarray) -> None:
        """Add samples that begin at a time after frame 0; they follow the last ones unless the time says otherwise."""
        place = round(seconds * SAMPLE_RATE)
        if self.begins_s is None:
            self.begins_s = round(seconds, 4)
        elif abs(place - self._next) <= TOLERANCE_SECONDS * SAMPLE_RATE / 2:
            place = self._next
        if self.limit is None and place - self.written > MAX_GAP_SECONDS * SAMPLE_RATE:
            raise FootageError(f"{self.path.name}: {seconds:.0f} s of silence; the times of its sound are damaged: re-encode it")
        if place > self.written:
            self._fill(place)
        new_S = samples_S[max(self.written - place, 0) :]  # what lies before frame 0, or over what is there, is left out
        if self.limit is not None:
            new_S = new_S[: max(self.limit - self.written, 0)]
        self._file.writeframesraw(np.ascontiguousarray(new_S, "<i2").tobytes())
        self.written += len(new_S)
        self.found += len(new_S)
        self._next = place + len(samples_S)

    def finish(self) -> Sound:
        """Fill up to the wanted length and put the file in its place."""
        if self.limit is not None:
            self._fill(self.limit)
        self._file.close()
        os.replace(self.part, self.path)
        return Sound(self.written, self.found, self.damaged, self.begins_s)

    def discard(self) -> None:
        """Remove what is not finished."""
        self._file.close()
        self.part.unlink(missing_ok=True)

    def _fill(self, end: int) -> None:
        end = end if self.limit is None else min(end, self.limit)
        while self.written < end:
            piece = _SILENCE[: end - self.written]
            self._file.writeframesraw(piece.tobytes())
            self.written += len(piece)

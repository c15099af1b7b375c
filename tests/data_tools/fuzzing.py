"""Files that are damaged at random, and what is read of them. In a module of its own, as workers import it."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from data_tools.footage import View, from_png, look, read_clip, survey, write_sound
from data_tools.inputs import find_sources
from flowact.errors import UserError
from flowact.types import SAMPLES_PER_FRAME

FPS = 25


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """One to four damages: flipped bits, overwritten, removed, doubled or exchanged stretches, a file that ends early; half of them near the head."""
    found = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        if len(found) < 16:
            break
        reach = len(found) if generator.random() < 0.5 else min(2048, len(found))
        at = int(generator.integers(0, reach))
        length = int(min(generator.integers(1, 64) ** (1 if generator.random() < 0.8 else 2), len(found) - at))
        kind = generator.integers(0, 8)
        if kind <= 1:
            for place in generator.integers(0, reach, generator.integers(1, 9)):
                found[place] ^= 1 << int(generator.integers(0, 8))
        elif kind == 2:
            found[at : at + length] = generator.bytes(length)
        elif kind == 3:
            found[at : at + length] = (b"\x00", b"\xff", b"\x7f\xff")[generator.integers(0, 3)] * length
        elif kind == 4:
            del found[at : at + length]
        elif kind == 5:
            found[at:at] = found[at : at + length]
        elif kind == 6:
            other = int(generator.integers(0, len(found) - length + 1))
            found[at : at + length], found[other : other + length] = found[other : other + length], found[at : at + length]
        else:
            del found[int(generator.integers(1, len(found))) :]
    return bytes(found)


@dataclass(frozen=True)
class Read:
    """What came of a damaged file.

    Attributes:
        code: of the error, 'user' for one without, empty where all was read.
        declared: pictures that the container lists or that its packets are; frames of sound that a wav tells of.
        decoded: pictures that a survey says decode; frames of sound that were written.
        frames: that `look` gave.
        seconds: from the first picture to the last one, by the container's packets.
    """

    code: str = ""
    declared: int = 0
    decoded: int = 0
    frames: int = 0
    seconds: float = 0.0

    @property
    def silently_short(self) -> bool:
        """Whether clearly less was read than is there, without a word."""
        if self.code:
            return False
        few = self.decoded < self.declared - min(0.02 * self.declared, FPS) - 0.25 * FPS - 1
        brief = self.frames < (self.seconds - min(0.02 * self.seconds, 1.0) - 0.25) * FPS - 1
        return few or brief


def read(path: Path) -> Read:
    """All that data tools do with a file; errors for users are results, any other is a failure."""
    try:
        if path.suffix == ".png":
            from_png(path.read_bytes(), str(path))
        elif path.suffix == ".json":
            found = find_sources(str(path.parent / path.stem))
            return Read("user" if found.skipped else "")
        elif path.suffix == ".wav":
            sound = write_sound(path, path.with_suffix(".out.wav"))
            write_sound(path, path.with_suffix(".out.wav"), frames=30)
            return Read("", _declared_sound(path), sound.samples // SAMPLES_PER_FRAME, sound.samples // SAMPLES_PER_FRAME)
        else:
            return _film(path)
    except UserError as error:
        return Read(getattr(error, "code", "user"))
    return Read()


def _film(path: Path) -> Read:
    found = survey(path)
    if found.code:
        return Read(found.code)
    if not found.decoded_frames:
        return Read("fault: no picture and no reason")
    frames = 0
    for block in look(path, [View(height=32), View(pixels="gray")]):
        frames = block.first + block.count
    write_sound(path, path.with_suffix(".out.wav"), frames=frames, silence=True)
    for _ in read_clip(path, frames // 2, frames - frames // 2, size=(32, 32)):
        pass
    declared, seconds = _declared(path)
    return Read("", declared, found.decoded_frames or 0, frames, seconds)


def _declared(path: Path) -> tuple[int, float]:
    """Pictures by packets and index, and the time that they take: with PyAV alone."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        listed = sum(not entry.is_discard for entry in stream.index_entries) if "mov" in container.format.name else 0
        times = [float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None]
    return max(len(packets), listed), max(times, default=0.0) - min(times, default=0.0)


def _declared_sound(path: Path) -> int:
    """Frames of sound that the head of a wav tells of; 0 where it is no head."""
    try:
        with wave.open(str(path)) as file:
            bytes_told = file.getnframes() * file.getnchannels() * file.getsampwidth()
            return int(file.getnframes() / file.getframerate() * FPS) if bytes_told < 1 << 30 else 0
    except (wave.Error, EOFError, ArithmeticError):
        return 0


def read_or_fault(path: Path) -> Read:
    """As `read`; an error that is none for users is told as code 'fault' and its name."""
    try:
        return read(path)
    except Exception as error:
        return Read(f"fault {type(error).__name__}: {error}")

"""From a client's bytes to 16 kHz mono samples, and from samples to turns of speech."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowact.planning.voice import EnergyDetector, VoiceDetector
from flowact.sampling.sound import SoundInput
from flowact.serving.events import InputFormat
from flowact.serving.limits import Refusal
from flowact.types import SAMPLE_RATE

FLOAT_FORMAT = "audio/pcm-f32"


class ClientSound:
    """A client's sound as float32 mono at 16 kHz, piece after piece. Resampling goes on across pieces.

    Args:
        format: of the bytes.
    """

    def __init__(self, format: InputFormat) -> None:
        self.format = format
        self._dtype: Any = np.dtype("<f4") if format.type == FLOAT_FORMAT else np.dtype("<i2")
        self._sound = SoundInput()

    @property
    def num_repaired(self) -> int:
        """Samples that were no numbers and became silence."""
        return self._sound.num_repaired

    def seconds(self, num_bytes: int) -> float:
        """Playing time of so many bytes."""
        return num_bytes / (self._dtype.itemsize * self.format.channels * self.format.rate)

    def read(self, payload: bytes) -> np.ndarray:
        """Samples in [-1, 1]; what is no number becomes silence, what is louder is clipped.

        Raises:
            Refusal: a piece that ends within a sample.
        """
        size = self._dtype.itemsize * self.format.channels
        if len(payload) % size:
            raise Refusal("invalid_audio", f"{len(payload)} bytes are no whole number of samples of {size} bytes ({self.format.channels} channels)")
        values = np.frombuffer(payload, self._dtype).reshape(-1, self.format.channels)
        return self._sound.convert(values.astype(np.int16 if self._dtype.kind == "i" else np.float32), self.format.rate)


@dataclass(frozen=True)
class TurnStarted:
    """Speech began at `seconds` of what was heard."""

    seconds: float


@dataclass(frozen=True, eq=False)
class TurnEnded:
    """Speech ended at `seconds`; `samples` are the words, with a little before them."""

    seconds: float
    samples: np.ndarray


class TurnDetector:
    """When a person begins and ends a turn.

    Args:
        silence_seconds: of silence that end a turn.
        speech_seconds: of voice that begin one; shorter sounds are clicks.
        before_seconds: sound before the beginning that belongs to the turn.
        longest_seconds: of a turn that is kept; a longer one goes on and loses its end.
        detector: says which windows hold a voice.
    """

    def __init__(
        self,
        silence_seconds: float = 0.6,
        speech_seconds: float = 0.12,
        before_seconds: float = 0.3,
        longest_seconds: float = 30.0,
        detector: VoiceDetector[Any] | None = None,
    ) -> None:
        self.silence_seconds = silence_seconds
        self._detector: VoiceDetector[Any] = EnergyDetector() if detector is None else detector
        self._state = self._detector.reset()
        hop_seconds = self._detector.hop / SAMPLE_RATE
        self._windows_to_start = max(1, round(speech_seconds / hop_seconds))
        self._before = round(before_seconds / hop_seconds) + self._windows_to_start
        self._longest = round(longest_seconds / hop_seconds)
        self._hop_seconds = hop_seconds
        self._rest = np.zeros(0, np.float32)
        self._position = 0
        self._kept: list[np.ndarray] = []
        self._voiced: int = 0  # windows in a row
        self._silent: int = 0
        self.speaking: bool = False

    @property
    def heard_seconds(self) -> float:
        """Kept of the present turn, or of what came just before it."""
        return len(self._kept) * self._hop_seconds

    def hear(self, samples: np.ndarray, find_end: bool = True) -> list[TurnStarted | TurnEnded]:
        """What happened within these samples; without `find_end` everything is kept until `end` is called."""
        hop = self._detector.hop
        self._rest = np.concatenate([self._rest, samples])
        whole = len(self._rest) // hop * hop
        windows, self._rest = self._rest[:whole].reshape(-1, hop), self._rest[whole:]
        found: list[TurnStarted | TurnEnded] = []
        for window in windows:
            self._state, active_N = self._detector.step(self._state, window)
            found += self._note(window, bool(active_N.any()), find_end)
        return found

    def _note(self, window: np.ndarray, voiced: bool, find_end: bool) -> list[TurnStarted | TurnEnded]:
        self._position += 1
        self._voiced, self._silent = (self._voiced + 1, 0) if voiced else (0, self._silent + 1)
        if len(self._kept) < self._longest:
            self._kept.append(window)
        if not self.speaking:
            if find_end:
                del self._kept[: -self._before]
            if self._voiced >= self._windows_to_start:
                self.speaking = True
                return [TurnStarted((self._position - self._voiced) * self._hop_seconds)]
        elif find_end and self._silent * self._hop_seconds >= self.silence_seconds:
            return [self.end()]
        return []

    def end(self) -> TurnEnded:
        """End the turn here, whether or not one was heard to begin. Of the silence behind the words a fifth of a second stays."""
        whole = len(self._kept) < self._longest
        silent = self._silent if self.speaking else 0
        kept = self._kept[: len(self._kept) - max(0, silent - round(0.2 / self._hop_seconds))] if whole else self._kept
        samples = np.concatenate(kept) if kept else np.zeros(0, np.float32)
        self.clear()
        return TurnEnded((self._position - silent) * self._hop_seconds, samples)

    def clear(self) -> None:
        """Forget the turn; what the detector knows of the background stays."""
        self._kept = []
        self.speaking = False
        self._voiced = self._silent = 0

"""Voice activity in a stream of sound: which windows hold a voice, from what was heard so far and nothing after it.

A detector is a pure step over a frozen state, so one detector serves many conversations. Axes: S samples (16 kHz), N windows of a detector's `hop`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, final

import numpy as np

from flowact.planning.base import finite
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

State = TypeVar("State")

#: more sound than this in one call is a backlog; its end is heard
LONGEST_SOUND = 4 * SAMPLE_RATE
SILENCE_DB = -120.0


class VoiceDetector(ABC, Generic[State]):
    """Finds voice in sound that arrives in pieces of any length."""

    @property
    @abstractmethod
    def hop(self) -> int:
        """Samples of a window."""

    @abstractmethod
    def reset(self) -> State:
        """The state before any sound."""

    @abstractmethod
    def step(self, state: State, samples: np.ndarray) -> tuple[State, np.ndarray]:
        """Hear more, mono at 16 kHz.

        Returns:
            the next state, of bounded size, and which of the windows that are complete now hold a voice, bool (N,). Samples behind the last
            complete window wait in the state.
        """


@dataclass(frozen=True, eq=False)
class EnergyState:
    """What `EnergyDetector` remembers.

    Attributes:
        rest_S: samples behind the last window.
        levels: levels of the last windows, in dBFS; their minimum is the background.
        before: levels of the two windows before, for the loudness that lasts.
        loud: level of loud speech, sinking slowly.
        active: whether the last window held a voice.
    """

    rest_S: np.ndarray
    levels: np.ndarray
    before: tuple[float, float]
    loud: float
    active: bool


@final
class EnergyDetector(VoiceDetector[EnergyState]):
    """Voice by its level: within `range_db` of what was loud lately and `margin_db` above the background, with hysteresis.

    The background is the lowest level of the last `noise_seconds`, the loud level one that lasted for three windows, so that a click does not deafen.
    Both follow the sound, so halving the volume changes nothing as long as the voice stays above `floor_db`.

    Args:
        range_db: speech is at most this much below the loud windows.
        margin_db: and at least this much above the background.
        hysteresis_db: a voice ends this much below where it begins.
        floor_db: nothing below this level, in dBFS, is a voice.
        noise_seconds: how long a steady sound is taken for a voice before it is background; 0 for a clean track that has none.
        sinking_db: decibels per second by which the loud level sinks.

    Raises:
        ValueError: a negative margin, range or duration.
    """

    def __init__(
        self,
        range_db: float = 26.0,
        margin_db: float = 9.0,
        hysteresis_db: float = 4.0,
        floor_db: float = -50.0,
        noise_seconds: float = 4.0,
        sinking_db: float = 1.5,
    ) -> None:
        values = (range_db, margin_db, hysteresis_db, noise_seconds, sinking_db)
        if not all(value >= 0 for value in values):
            raise ValueError(f"ranges, margins and durations are not negative, got {values}")
        self.range_db = range_db
        self.margin_db = margin_db
        self.hysteresis_db = hysteresis_db
        self.floor_db = floor_db
        self._num_levels = round(noise_seconds * SAMPLE_RATE / self.hop)
        self._sinking = sinking_db * self.hop / SAMPLE_RATE

    @property
    def hop(self) -> int:
        """See `VoiceDetector.hop`."""
        return SAMPLES_PER_FRAME

    def reset(self) -> EnergyState:
        """See `VoiceDetector.reset`. The first sound is background: of a voice that was there before the microphone, the first syllable is missed."""
        levels = np.full(self._num_levels, math.inf)
        return EnergyState(np.zeros(0, np.float32), levels, (SILENCE_DB, SILENCE_DB), SILENCE_DB, False)

    def step(self, state: EnergyState, samples: np.ndarray) -> tuple[EnergyState, np.ndarray]:
        """See `VoiceDetector.step`."""
        windows, rest = cut(state.rest_S, samples, self.hop)
        level_N = 10.0 * np.log10(np.square(windows, dtype=np.float64).mean(axis=1) + 1e-12)
        levels, before, loud, active = state.levels, state.before, state.loud, state.active
        active_N = np.zeros(len(windows), bool)
        for i, level in enumerate(level_N.tolist()):
            loud = max(loud - self._sinking, min(level, *before))
            before = (before[1], level)
            background = -math.inf
            if levels.size:
                levels = np.append(levels[1:], level)
                background = float(levels.min())
            begin = max(self.floor_db, loud - self.range_db, background + self.margin_db)
            active = level > (max(begin - self.hysteresis_db, self.floor_db) if active else begin)
            active_N[i] = active
        return EnergyState(rest, levels, before, loud, active), active_N


@dataclass(frozen=True, eq=False)
class Ear(Generic[State]):
    """What one channel sounded like so far.

    Attributes:
        state: of the detector.
        voice_seconds: length of the latest run of voice, gaps of up to `GAP_SECONDS` within.
        silence_seconds: since the last voice; infinite before the first.
        fresh_seconds: voice in the latest piece.
    """

    state: State
    voice_seconds: float = 0.0
    silence_seconds: float = math.inf
    fresh_seconds: float = 0.0


#: pauses between syllables and words, within one run of voice
GAP_SECONDS = 0.3


def listen(detector: VoiceDetector[State], ear: Ear[State], samples: np.ndarray, seconds: float) -> Ear[State]:
    """The ear after more sound; no sound at all is `seconds` of silence."""
    if not samples.size:
        return replace(ear, silence_seconds=ear.silence_seconds + seconds, fresh_seconds=0.0)
    state, active_N = detector.step(ear.state, samples)
    hop = detector.hop / SAMPLE_RATE
    voice, silence = ear.voice_seconds, ear.silence_seconds
    for active in active_N.tolist():
        if active:
            voice, silence = (hop if silence > GAP_SECONDS else voice + hop), 0.0
        else:
            silence += hop
    return Ear(state, voice, silence, float(active_N.sum()) * hop)


def cut(rest_S: np.ndarray, samples: np.ndarray, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole windows (N, hop) of what waited and what is new, and the samples behind them."""
    sound = np.concatenate([rest_S, finite(np.asarray(samples)[-LONGEST_SOUND:])])
    whole = sound.size // hop * hop
    return sound[:whole].reshape(-1, hop), sound[whole:].copy()

"""What the character answers. A product puts its speech recognition, language model and voice behind the one method here."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import numpy as np

from flowact.errors import UserError


class Responder(ABC):
    """From what a person said to what the character says.

    One object serves all sessions. It is called on threads, from several at a time, and may take its time: the character thinks meanwhile.
    """

    @abstractmethod
    def respond(self, heard: np.ndarray) -> np.ndarray:
        """Speech of the answer; empty to say nothing.

        Args:
            heard: the person's turn, mono float32 at 16 kHz.

        Returns:
            mono float32 at 16 kHz, in [-1, 1].
        """


@final
class EchoResponder(Responder):
    """Says back what it heard in another voice, so that a demo needs no language model.

    Played at another speed, pitch and formants move together: below 0 it is a larger, slower person.

    Args:
        semitones: by which the voice is shifted.

    Raises:
        UserError: more than an octave.
    """

    def __init__(self, semitones: float = -3.0) -> None:
        if not -12 <= semitones <= 12:
            raise UserError(f"semitones {semitones:g}: a voice is understood within an octave, from -12 to 12")
        self.semitones = semitones

    def respond(self, heard: np.ndarray) -> np.ndarray:
        """The same words, as loud as a speaker should be."""
        peak = float(np.abs(heard).max(initial=0.0))
        if peak == 0.0:
            return np.zeros(0, np.float32)
        speed = 2 ** (self.semitones / 12)
        at = np.arange(int(len(heard) / speed)) * speed
        return (np.interp(at, np.arange(len(heard)), heard) * min(0.7 / peak, 20.0)).astype(np.float32)


@final
class RecordedResponder(Responder):
    """Plays one of some recordings, in turn, whatever was said.

    Args:
        recordings: mono float32 at 16 kHz each.

    Raises:
        UserError: no recording.
    """

    def __init__(self, recordings: Sequence[np.ndarray]) -> None:
        if not recordings:
            raise UserError("a RecordedResponder needs at least one recording; give speech files")
        self._recordings = list(recordings)
        self._turn = itertools.count()

    def respond(self, heard: np.ndarray) -> np.ndarray:
        """The next recording."""
        return self._recordings[next(self._turn) % len(self._recordings)]


@final
class NoResponder(Responder):
    """Listens and says nothing."""

    def respond(self, heard: np.ndarray) -> np.ndarray:
        """Silence."""
        return np.zeros(0, np.float32)

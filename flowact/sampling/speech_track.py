"""What was pushed to a session and what was played of it, frame by frame: what programs need that hand single frames on."""

from __future__ import annotations

import bisect
from collections import deque
from typing import Generic, TypeVar

import numpy as np

from flowact.sampling.session import MediaChunk, StreamSession
from flowact.sampling.sound import SoundInput
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

Mark = TypeVar("Mark")


class SpeechTrack(Generic[Mark]):
    """What went into a session and came out of it, counted in samples, with marks between the words. For one thread.

    Args:
        session: that speaks.
    """

    def __init__(self, session: StreamSession) -> None:
        self.session = session
        self._sound = SoundInput()
        self._pushed = self._played = self._begin = 0
        self._ends: deque[int] = deque()
        self._marks: list[tuple[int, Mark]] = []

    def convert(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """At 16 kHz, so that what is counted here is what the session plays."""
        return self._sound.convert(samples, sample_rate)

    def push(self, samples: np.ndarray) -> None:
        """Speak what `convert` returned."""
        self._pushed += len(samples)
        self.session.push_audio(samples)

    def end(self) -> bool:
        """The utterance is complete; whether there was one since the last end."""
        tail, self._sound = self._sound.flush(), SoundInput()
        self._pushed += len(tail)
        self.session.push_audio(tail, end=True)
        complete = self.open
        if complete:
            self._ends.append(self._pushed)
        return complete

    def mark(self, mark: Mark, *, at_beginning: bool = False) -> None:
        """To be returned by `due` once everything pushed before it was played, or at the beginning of the utterance that is being pushed."""
        bisect.insort(self._marks, (self._last_end + 1 if at_beginning else self._pushed, mark), key=lambda found: found[0])

    def due(self) -> list[Mark]:
        """Marks that were reached, each once and in order."""
        number = bisect.bisect_right(self._marks, self._played, key=lambda found: found[0])
        reached, self._marks = self._marks[:number], self._marks[number:]
        return [mark for _, mark in reached]

    def interrupt(self) -> list[Mark]:
        """Drop what waits; the marks that were not reached."""
        self.session.interrupt()
        left, self._marks = [mark for _, mark in self._marks], []
        self._sound = SoundInput()
        self._pushed = self._played = self._begin = 0
        self._ends.clear()
        return left

    def samples_of(self, chunk: MediaChunk, frame: int) -> np.ndarray | None:
        """Sound of a frame, int16, if there is speech in it that was not interrupted; it counts as played."""
        spoken = chunk.spoken if chunk.turn == self.session.turn else 0
        begin = frame * SAMPLES_PER_FRAME
        if spoken <= begin:
            return None
        self._played += min(spoken - begin, SAMPLES_PER_FRAME)
        while self._ends and self._ends[0] <= self._played:
            self._begin = self._ends.popleft()
        return np.clip(np.rint(chunk.samples[begin:][:SAMPLES_PER_FRAME] * 32768.0), -32768, 32767).astype(np.int16)

    @property
    def open(self) -> bool:
        """Whether an utterance was begun and not ended."""
        return self._pushed > self._last_end

    @property
    def waiting(self) -> bool:
        """Whether there is anything to play, or a mark to reach."""
        return self._played < self._pushed or bool(self._marks)

    @property
    def _last_end(self) -> int:
        return self._ends[-1] if self._ends else self._begin

    @property
    def played_seconds(self) -> float:
        """Of the utterance in progress; 0 between utterances."""
        return (self._played - self._begin) / SAMPLE_RATE

"""Behaviour from the loudness of the character's own speech: when it talks, when it listens, when it is about to talk, when it idles.

Axes: T video frames (40 ms).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import final

import numpy as np

from flowact.planning.base import Planner, TimedPrompt
from flowact.planning.captions import DEFAULT_CAPTIONS as DEFAULT_CAPTIONS  # callers know it from here
from flowact.planning.captions import another, state_captions
from flowact.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME, STATES


def speech_frames(samples: np.ndarray, *, range_db: float = 26.0, hysteresis_db: float = 6.0, floor_db: float = -50.0) -> np.ndarray:
    """Which frames hold speech, bool (T,), by their RMS level, T = samples // 640.

    Speech begins at `range_db` below the loud frames (their 95th percentile) and ends `hysteresis_db` lower; so a quiet recording
    gives the same answer as a loud one. Nothing below `floor_db` dBFS counts.
    """
    num_frames = samples.shape[0] // SAMPLES_PER_FRAME
    frames = samples[: num_frames * SAMPLES_PER_FRAME].reshape(num_frames, SAMPLES_PER_FRAME).astype(np.float64)
    level_T = 10.0 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    heard = level_T[level_T > floor_db]
    if not heard.size:
        return np.zeros(num_frames, bool)
    begin = max(float(np.percentile(heard, 95)) - range_db, floor_db)
    active_T = np.zeros(num_frames, bool)
    active = False
    for t, level in enumerate(level_T):
        active = bool(level > (max(begin - hysteresis_db, floor_db) if active else begin))
        active_T[t] = active
    return active_T


def runs(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Runs of equal values as (first, end, value)."""
    edges = [0, *(np.flatnonzero(np.diff(values.astype(np.int64))) + 1).tolist(), len(values)]
    for first, end in pairwise(edges):
        if end > first:
            yield first, end, int(values[first])


@final
class SpeechActivityPlanner(Planner):
    """Speaking while there is own speech; in longer pauses listening, then thinking before speech resumes; idle after the last word.

    No model: energy with hysteresis, and a rule for each kind of pause.

    - Sounds shorter than `shortest_speech_seconds` (clicks) are no speech; pauses of up to `longest_pause_seconds` stay speaking.
    - A pause, or the time before the first word, ends in thinking of 0.8 to 1.2 times `thinking_seconds`, at most half of it; before that the
      person listens. A pause too short for two states of `shortest_state_seconds` is thinking.
    - After the last word the person listens for 0.8 to 1.2 times `idle_after_seconds`, then idles. A soundtrack without speech is such a tail.

    Law: the same soundtrack, seed and options give the same prompts, and so does the soundtrack at half the volume.

    Args:
        captions: state -> paraphrases to choose from; each state that is left out keeps the default's. A character's own captions make the
            prompts of a live session the ones that were trained on.
        seed: chooses paraphrases and durations.
        longest_pause_seconds: longer silences end the speaking state.
        shortest_speech_seconds: shorter sounds are no speech.
        shortest_state_seconds: no other state is shorter, except at the end of the soundtrack.
        thinking_seconds: how long before own speech the person begins to think.
        idle_after_seconds: how long after the last word the person idles.
        range_db: speech is at most this much below the loud frames.
        floor_db: nothing below this level, in dBFS, is speech.

    Raises:
        UserError: unknown state, or a state without captions.
        ValueError: a negative duration.
    """

    def __init__(
        self,
        captions: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        longest_pause_seconds: float = 0.4,
        shortest_speech_seconds: float = 0.08,
        shortest_state_seconds: float = 0.4,
        thinking_seconds: float = 1.25,
        idle_after_seconds: float = 3.0,
        range_db: float = 26.0,
        floor_db: float = -50.0,
    ) -> None:
        durations = (longest_pause_seconds, shortest_speech_seconds, shortest_state_seconds, thinking_seconds, idle_after_seconds)
        if min(durations) < 0:
            raise ValueError(f"durations are not negative, got {durations}")
        self.captions = state_captions(captions)
        self.seed = seed
        self.thinking_seconds = thinking_seconds
        self.idle_after_seconds = idle_after_seconds
        self.range_db = range_db
        self.floor_db = floor_db
        self._longest_pause = round(longest_pause_seconds * FRAMES_PER_SECOND)
        self._shortest_speech = round(shortest_speech_seconds * FRAMES_PER_SECOND)
        self._shortest_state = max(round(shortest_state_seconds * FRAMES_PER_SECOND), 1)

    def plan(self, samples: np.ndarray) -> list[TimedPrompt]:
        """Prompts, in time order from 0, for the character's own speech: mono float32 at 16 kHz.

        Raises:
            ValueError: samples are not one-dimensional or not finite.
        """
        generator = np.random.default_rng(self.seed)
        states_T = self._states(samples, generator)
        if not len(states_T):
            states_T = np.array([STATES.index("idle")], np.uint8)
        prompts = []
        said: dict[str, str] = {}
        for first, _, value in runs(states_T):
            state = STATES[value]
            said[state] = another(self.captions[state], [said.get(state, "")], generator)
            prompts.append(TimedPrompt(first / FRAMES_PER_SECOND, state, said[state]))
        return prompts

    def _states(self, samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """State of each frame, uint8 (T,)."""
        if samples.ndim != 1:
            raise ValueError(f"a soundtrack is mono and one-dimensional, got shape {samples.shape}; average the channels first")
        if not np.isfinite(samples).all():
            raise ValueError("the soundtrack holds NaN or infinite samples; decode it again or replace them by silence")
        speech_T = self._speech(samples)
        states_T = np.full(len(speech_T), STATES.index("speaking"), np.uint8)
        for first, end, speaking in runs(speech_T):
            if not speaking:
                plan = self._tail(end - first, generator) if end == len(speech_T) else self._pause(end - first, generator)
                states_T[first:end] = [STATES.index(state) for state, length in plan for _ in range(length)]
        return states_T

    def _speech(self, samples: np.ndarray) -> np.ndarray:
        """Frames of the speaking state, bool (T,): speech without clicks, joined over short pauses."""
        speech_T = speech_frames(samples, range_db=self.range_db, floor_db=self.floor_db)
        for first, end, speaking in list(runs(speech_T)):
            if speaking and end - first < self._shortest_speech:
                speech_T[first:end] = False
        if speech_T.any():
            for first, end, speaking in list(runs(speech_T)):
                if not speaking and end - first <= self._longest_pause:
                    speech_T[first:end] = True
        return speech_T

    def _pause(self, length: int, generator: np.random.Generator) -> tuple[tuple[str, int], ...]:
        """States of a silence of `length` frames that speech follows."""
        wanted = round(self.thinking_seconds * generator.uniform(0.8, 1.2) * FRAMES_PER_SECOND)
        if length < 2 * self._shortest_state:
            return (("thinking", length),)
        thinking = max(min(wanted, length // 2), self._shortest_state)
        return (("listening", length - thinking), ("thinking", thinking))

    def _tail(self, length: int, generator: np.random.Generator) -> tuple[tuple[str, int], ...]:
        """States of a silence of `length` frames that nothing follows."""
        wanted = round(self.idle_after_seconds * generator.uniform(0.8, 1.2) * FRAMES_PER_SECOND)
        listening = min(length, wanted)
        return (("listening", listening), ("idle", length - listening))

"""Behaviour planners: from what is heard to what the character should be seen doing (FlowAct-R1, action planning).

A planner has two sides: `plan` writes timed prompts for a whole soundtrack, `begin` opens a live conversation that is asked once per chunk.

Axes: T video frames (40 ms), S samples (16 kHz).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, final, get_args

import numpy as np

from flowact.errors import did_you_mean
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, STATES

#: what is going on between two people; reacting is a short nod or look, shown in the state of listening
Phase = Literal["speaking", "listening", "reacting", "thinking", "idle"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Speaker = Literal["character", "user"]

#: video frames of the chunks in which a live planner hears a soundtrack: three latents of four frames
PLANNED_CHUNK_FRAMES = 12
#: a plan made again for every chunk looks back this far, so that its cost does not grow
REPLANNED_SECONDS = 20.0


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt in force from `start_seconds` until the next one."""

    start_seconds: float
    state: str
    text: str


@dataclass(frozen=True, eq=False)
class Heard:
    """What is heard while one chunk enters the stream.

    Attributes:
        speech: the character's own speech that the chunk will play, float32 mono at 16 kHz, exactly as long as the chunk; silence if there is none.
        queued_seconds: own speech that waits behind it.
        user: what the microphone heard since the last call, float32 mono at 16 kHz, of any length.
        seconds: start of the chunk on the stream's clock.
        interrupted: own speech was cut off since the last call.
    """

    speech: np.ndarray
    queued_seconds: float = 0.0
    user: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class Behaviour:
    """What the character should be seen doing while a chunk plays.

    Attributes:
        state: one of `flowact.types.STATES`.
        text: the motion prompt.
        phase: one of `PHASES`, finer than the state.

    Raises:
        ValueError: an unknown state or phase, or a prompt without words.
    """

    state: str
    text: str
    phase: Phase

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"unknown state {self.state!r}.{did_you_mean(str(self.state), STATES)}")
        if self.phase not in PHASES:
            raise ValueError(f"unknown phase {self.phase!r}.{did_you_mean(str(self.phase), PHASES)}")
        if not self.text.strip():
            raise ValueError(f"a prompt has words, got {self.text!r} for {self.phase}")


class Conversation(ABC):
    """One live conversation; the only thing of a planner that remembers. A context manager that closes itself."""

    @abstractmethod
    def hear(self, heard: Heard) -> Behaviour:
        """What to do while the entering chunk plays. Called once per chunk, in order; returns at once and never fails on a sound."""

    def tell(self, speaker: Speaker, text: str) -> None:
        """Words that were said, as far as somebody knows them. A planner that understands no words leaves it at that."""
        return

    def close(self) -> None:
        """End the conversation and let go of what it holds. May be called twice."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Planner(ABC):
    """Writes timed prompts for a soundtrack, and decides live what to do next. A planner for live use derives from `LivePlanner`."""

    @abstractmethod
    def plan(self, samples: np.ndarray) -> Sequence[TimedPrompt]:
        """Prompts, in time order from 0, for the character's own speech: mono float32 at 16 kHz."""

    def begin(self, chunk_frames: int) -> Conversation:
        """Open a live conversation.

        Unless a planner says better, the last `REPLANNED_SECONDS` of own speech are planned anew for every chunk, and what is in force at their
        end is done. It hears no user and knows nothing of what comes.

        Args:
            chunk_frames: video frames of a chunk, 40 ms each.
        """
        return ReplannedConversation(self, chunk_frames)


class LivePlanner(Planner):
    """A planner whose live side says everything; a soundtrack is heard chunk by chunk."""

    @abstractmethod
    def begin(self, chunk_frames: int) -> Conversation:
        """Open a live conversation.

        Args:
            chunk_frames: video frames of a chunk, 40 ms each.
        """

    def plan(self, samples: np.ndarray) -> list[TimedPrompt]:
        """Prompts, in time order from 0, for the character's own speech: mono float32 at 16 kHz.

        The soundtrack plays in chunks of `PLANNED_CHUNK_FRAMES`; nobody else is heard and nothing is known ahead.
        """
        length = PLANNED_CHUNK_FRAMES * SAMPLES_PER_FRAME
        prompts: list[TimedPrompt] = []
        with self.begin(PLANNED_CHUNK_FRAMES) as conversation:
            for start in range(0, max(samples.size, 1), length):
                seconds = start / SAMPLE_RATE
                done = conversation.hear(Heard(fitted(samples[start : start + length], length), seconds=seconds))
                if not prompts or (done.state, done.text) != (prompts[-1].state, prompts[-1].text):
                    prompts.append(TimedPrompt(seconds, done.state, done.text))
        return prompts


@final
class ReplannedConversation(Conversation):
    """Plans the latest own speech anew for every chunk. The wording stays while the state does.

    Args:
        planner: writes prompts for a soundtrack.
        chunk_frames: video frames of a chunk.
    """

    def __init__(self, planner: Planner, chunk_frames: int) -> None:
        self._planner = planner
        self._length = chunk_samples(chunk_frames)
        self._kept = max(round(REPLANNED_SECONDS * FRAMES_PER_SECOND) * SAMPLES_PER_FRAME, self._length)
        self._speech = np.zeros(0, np.float32)
        self._last: TimedPrompt | None = None

    def hear(self, heard: Heard) -> Behaviour:
        """See `Conversation.hear`."""
        before = np.zeros(0, np.float32) if heard.interrupted else self._speech
        self._speech = np.concatenate([before, fitted(heard.speech, self._length)])[-self._kept :]
        newest = self._planner.plan(self._speech)[-1]
        if self._last is None or newest.state != self._last.state:
            self._last = newest
        return Behaviour(self._last.state, self._last.text, state_phase(self._last.state))


def chunk_samples(chunk_frames: int) -> int:
    """Samples of a chunk.

    Raises:
        ValueError: no frames.
    """
    if chunk_frames < 1:
        raise ValueError(f"a chunk has at least 1 video frame, got {chunk_frames}")
    return chunk_frames * SAMPLES_PER_FRAME


def state_phase(state: str) -> Phase:
    """The phase that looks like a state and no finer."""
    phases: dict[str, Phase] = {"speaking": "speaking", "listening": "listening", "thinking": "thinking"}
    return phases.get(state, "idle")


def finite(samples: np.ndarray) -> np.ndarray:
    """Sound as float32 (S,) in [-1, 1]: what is no number is silence, what is too loud is clipped."""
    flat = np.asarray(samples, np.float32).ravel()
    return np.clip(np.nan_to_num(flat, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)


def fitted(samples: np.ndarray, length: int) -> np.ndarray:
    """`finite` sound of exactly `length` samples, cut or followed by silence."""
    sound = finite(samples)[:length]
    return np.pad(sound, (0, length - sound.size))

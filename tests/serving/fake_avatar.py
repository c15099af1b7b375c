"""A model without a network: a moving picture and a tone, with the session's interface. What is spoken is played, what is set is reported."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.sampling.session import MediaChunk, SessionEvent
from flowact.serving.model import AvatarCharacter, AvatarModel
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, STATES

SIZE = (48, 64)
CHUNK_FRAMES = 5
DELAY_CHUNKS = 2
TONE_HZ = 440.0
MAX_QUEUED_SECONDS = 300.0


class FakeSession:
    """Chunk k shows a bar at a place that follows from k, on a ground that follows from the state; its sound is a tone under what is spoken."""

    chunk_seconds = CHUNK_FRAMES / FRAMES_PER_SECOND
    picture_size = SIZE

    def __init__(self, picture: Tensor, tone: float = 0.05) -> None:
        self.picture = picture
        self.tone = tone
        self.closed = False
        self.heard = np.zeros(0, np.float32)
        self.queue = np.zeros(0, np.float32)
        self.prompt, self.state, self.pinned = "rest", "idle", False
        self.fail_at: int | None = None
        self._lock = threading.RLock()
        self._made = self._played = 0
        self._speaking = self._interrupted = False
        self._pending: list[tuple[int, str, dict]] = [(0, "prompt.applied", {"text": "rest", "state": "idle"})]

    def _next(self) -> int:
        return self._made + DELAY_CHUNKS

    def _check(self) -> None:
        if self.closed:
            raise UserError("the session is closed; open another one")

    def push_audio(self, samples: np.ndarray, sample_rate: int = SAMPLE_RATE, *, end: bool = False) -> float:
        self._check()
        assert sample_rate == SAMPLE_RATE
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
        with self._lock:
            self.queue = np.concatenate([self.queue, samples])
            return len(self.queue) / SAMPLE_RATE

    def push_user_audio(self, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
        self._check()
        assert np.isfinite(samples).all()
        with self._lock:
            self.heard = np.concatenate([self.heard, samples])[-60 * SAMPLE_RATE :]

    def set_prompt(self, text: str | None, state: str | None = None) -> int:
        self._check()
        with self._lock:
            self.pinned = text is not None
            if text is not None:
                self.prompt, self.state = text, state or self.state
                self._pending.append((self._next(), "prompt.applied", {"text": text, "state": self.state}))
            return self._next()

    def set_state(self, state: str) -> int:
        if state not in STATES:
            raise UserError(f"unknown state {state!r}")
        return self.set_prompt(f"the person is {state}", state)

    def set_reference(self, picture: Tensor) -> int:
        self._check()
        assert picture.shape == (3, *SIZE)
        with self._lock:
            self.picture = picture
            self._pending.append((self._next(), "reference.applied", {}))
            return self._next()

    def interrupt(self) -> float:
        self._check()
        with self._lock:
            self.queue = self.queue[:0]
            self._interrupted = self._speaking
            return self._played / SAMPLE_RATE

    def next_chunk(self) -> MediaChunk:
        self._check()
        with self._lock:
            index = self._made
            if index == self.fail_at:
                raise RuntimeError("a failure that was asked for")
            length = CHUNK_FRAMES * SAMPLES_PER_FRAME
            spoken, self.queue = self.queue[:length], self.queue[length:]
            at = (index * length + np.arange(length)) / SAMPLE_RATE
            samples = (self.tone * np.sin(2 * np.pi * TONE_HZ * at)).astype(np.float32)
            samples[: len(spoken)] += spoken
            events = [SessionEvent(name, index, data) for due, name, data in self._pending if due <= index]
            self._pending = [item for item in self._pending if item[0] > index]
            if len(spoken) and not self._speaking:
                self._speaking, self._played = True, 0
                events.append(SessionEvent("speech.started", index))
            self._played += len(spoken)
            if self._speaking and not len(self.queue):
                data = {"position": self._played / SAMPLE_RATE, "interrupted": self._interrupted}
                events.append(SessionEvent("speech.finished", index, data))
                self._speaking = self._interrupted = False
            self._made += 1
        frames = np.broadcast_to(((self.picture.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8), (CHUNK_FRAMES, *SIZE, 3)).copy()
        for t in range(CHUNK_FRAMES):
            column = (index * CHUNK_FRAMES + t) * 2 % SIZE[1]
            frames[t, :, column : column + 4] = 255
        return MediaChunk(index, frames, samples.clip(-1, 1), self.state, self.prompt, index * self.chunk_seconds, events=tuple(events))

    def close(self) -> None:
        self.closed = True

    @property
    def metrics(self) -> dict:
        return {
            "ttff_seconds": 0.01 if self._made else float("nan"),
            "chunk_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
            "frames_per_second": 400.0,
            "evaluations_per_chunk": 3.0,
            "num_chunks": self._made,
            "queued_seconds": len(self.queue) / SAMPLE_RATE,
            "prompt_to_motion_seconds": float("nan"),
        }


class FakeStream:
    """Hands chunks out when they are due."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self._begin: float | None = None
        self._count = 0

    @property
    def metrics(self) -> dict:
        return self.session.metrics | {"deadline_misses": 0, "handed_out": self._count, "waiting_chunks": 0}

    def __aiter__(self) -> AsyncIterator[MediaChunk]:
        return self

    async def __anext__(self) -> MediaChunk:
        now = time.monotonic()
        self._begin = now if self._begin is None else self._begin
        await asyncio.sleep(max(0.0, self._begin + self._count * self.session.chunk_seconds - now))
        if self.session.closed:
            raise StopAsyncIteration
        self._count += 1
        return await asyncio.to_thread(self.session.next_chunk)

    def close(self) -> None:
        self.session.close()


def picture_of(colour: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1).expand(3, *SIZE).contiguous()


class FakeModel(AvatarModel):
    """Two characters, one red and one blue."""

    def __init__(self) -> None:
        self.name, self.sha256 = "fake", "0" * 64
        self.picture_size, self.chunk_seconds = SIZE, FakeSession.chunk_seconds
        known = (AvatarCharacter("red", "Red", picture_of((0.6, -0.7, -0.7))), AvatarCharacter("blue", "Blue", picture_of((-0.7, -0.6, 0.6))))
        self.characters = {character.id: character for character in known}
        self.opened: list[FakeSession] = []
        self.fail_at: int | None = None

    def open(self, picture: Tensor) -> FakeStream:
        session = FakeSession(picture)
        session.fail_at, self.fail_at = self.fail_at, None
        self.opened.append(session)
        return FakeStream(session)

"""A session against the clock: denoising and decoding on threads of their own, chunks handed out when they are due."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import numpy as np

from flowact.sampling.session import Denoised, MediaChunk, SessionEvent, StreamSession, percentiles
from flowact.sampling.stream import KEPT_TIMES

POLL_SECONDS = 0.05
RECOVERY_CHUNKS = 25
"""Chunks in time after which a stream that does with fewer micro-steps tries one more again."""


class LiveStream:
    """Hands out a session's chunks in real time. Iterate over it from one thread, or with `async for` from a coroutine.

    Chunk k is handed out at k chunk lengths after the first one, or as soon as someone asks after that; a consumer that comes late shifts the clock,
    since chunks are not worth dropping for a viewer who waits. Producers stop while `buffer_chunks` wait, so nothing grows.

    When a chunk is not there in time, the last picture stands still in silence for one chunk and everything moves back by one: sound and picture stay
    together and no word is lost or said twice.

    Args:
        session: the stream; closed together with this.
        buffer_chunks: finished chunks that may wait; each adds its length to the reaction time.
        late: "hold" does no more than that; "micro_steps" also evaluates less often per stair until `RECOVERY_CHUNKS` were in time.
        clock: seconds, monotonic; another one is for tests.

    Raises:
        ValueError: no room for a chunk, or an unknown policy.
    """

    def __init__(
        self,
        session: StreamSession,
        *,
        buffer_chunks: int = 2,
        late: Literal["hold", "micro_steps"] = "hold",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if buffer_chunks < 1:
            raise ValueError(f"buffer_chunks is {buffer_chunks}; at least one chunk must fit")
        if late not in ("hold", "micro_steps"):
            raise ValueError(f"late is {late!r}; it is hold or micro_steps")
        self.session = session
        self.late = late
        self.deadline_misses = 0
        self._handed_out_at: deque[float] = deque(maxlen=KEPT_TIMES)
        self._clock = clock
        self._denoised: queue.Queue[Denoised | None] = queue.Queue(1)
        self._ready: queue.Queue[MediaChunk | BaseException | None] = queue.Queue(buffer_chunks)
        self._closing = threading.Event()
        self._handed_out = 0
        self._begin = float("nan")
        self._in_time = 0
        self._wanted_micro_steps = session.micro_steps
        self._executor: ThreadPoolExecutor | None = None
        self._threads = [threading.Thread(target=self._guarded(work), name=f"flowact-{name}", daemon=True) for name, work in self._work().items()]
        for thread in self._threads:
            thread.start()

    # ---- producers ----

    def _work(self) -> dict[str, Callable[[], None]]:
        return {"denoise": self._denoise, "decode": self._decode}

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run until closed; an error reaches whoever waits for a chunk."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                if not self.session.closed:  # else somebody has ended it, and this is how a thread notices
                    self._put(self._ready, error)
                self._closing.set()

        return run

    def _denoise(self) -> None:
        while not self._closing.is_set():
            # Sound is taken as late as possible: not before its place in the queues is free.
            if self._denoised.full():
                time.sleep(POLL_SECONDS / 10)
                continue
            self._put(self._denoised, self.session.denoise())

    def _decode(self) -> None:
        while not self._closing.is_set():
            try:
                denoised = self._denoised.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            assert denoised is not None
            self._put(self._ready, self.session.finish(denoised))

    def _put(self, where: queue.Queue[Any], item: Any) -> None:
        while not self._closing.is_set():
            try:
                where.put(item, timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue

    # ---- consumer ----

    def __iter__(self) -> Iterator[MediaChunk]:
        return self

    def __next__(self) -> MediaChunk:
        due = self._begin + self._handed_out * self.session.chunk_seconds
        chunk = self._take(None if self._handed_out == 0 else due + self.session.chunk_seconds / 2)
        if chunk is None:
            chunk = self._held(due)
        now = self._clock()
        if self._handed_out == 0:
            self._begin = now
        elif now < due:
            if self._closing.wait(due - now):
                raise StopIteration
        elif now - due > self.session.chunk_seconds / 2:
            self._begin += now - due  # nobody asked in time, or a held chunk took its time
        chunk = replace(self.session.hand_out(chunk), index=self._handed_out, start_seconds=self._handed_out * self.session.chunk_seconds)
        self._handed_out += 1
        self._handed_out_at.append(self._clock())
        return chunk

    def _take(self, deadline: float | None) -> MediaChunk | None:
        """The next finished chunk; None if there is none at the deadline."""
        while not self._closing.is_set() or not self._ready.empty():
            left = POLL_SECONDS if deadline is None else min(deadline - self._clock(), POLL_SECONDS)
            try:
                item = self._ready.get(timeout=left) if left > 0 else self._ready.get_nowait()
            except queue.Empty:
                if deadline is not None and self._clock() >= deadline:
                    return None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                self._in_time += 1
                if self.late == "micro_steps" and self._in_time == RECOVERY_CHUNKS:
                    self._change_micro_steps(1)
                return item
        raise StopIteration

    def _held(self, due: float) -> MediaChunk:
        self.deadline_misses += 1
        self._in_time = 0
        number = self._handed_out
        events = [SessionEvent("deadline.missed", number, MappingProxyType({"late_seconds": self._clock() - due}))]
        if self.late == "micro_steps" and (fewer := self._change_micro_steps(-1)):
            events.append(SessionEvent("degraded", number, MappingProxyType({"micro_steps": fewer})))
        return self.session.held_chunk(number, tuple(events))

    def _change_micro_steps(self, by: int) -> int | None:
        """Ask for one micro-step more or less, within 1 and what the recipe says; None if that is what there is."""
        now = self.session.micro_steps
        wanted = min(max(now + by, 1), self._wanted_micro_steps)
        if wanted == now:
            return None
        self._in_time = 0
        self.session.use_micro_steps(wanted)
        return wanted

    def __aiter__(self) -> AsyncIterator[MediaChunk]:
        return self

    async def __anext__(self) -> MediaChunk:
        if self._executor is None:  # a thread of its own: streams never wait for each other's turn in a shared pool
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="flowact-wait")
        try:
            chunk = await asyncio.get_running_loop().run_in_executor(self._executor, next, self, None)
        except RuntimeError:
            if self._closing.is_set():
                raise StopAsyncIteration from None
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    @property
    def metrics(self) -> dict[str, Any]:
        """Those of the session, and what the clock says."""
        clock = {"deadline_misses": self.deadline_misses, "handed_out": self._handed_out, "waiting_chunks": self._ready.qsize()}
        return self.session.metrics | clock | {"period_ms": percentiles(np.diff(self._handed_out_at) * 1e3)}

    def close(self) -> None:
        """Stop the threads and close the session. Closing again does nothing."""
        self._closing.set()
        self.session.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

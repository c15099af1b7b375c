"""All sessions of a server: who may move, who waits, and who is gone."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from flowact.errors import did_you_mean
from flowact.serving.announcements import QueueUpdated
from flowact.serving.encoding import Enlarger
from flowact.serving.figures import COUNTERS
from flowact.serving.limits import Bucket, Limits, Refusal
from flowact.serving.model import AvatarModel
from flowact.serving.provenance import SessionLog
from flowact.serving.responders import Responder
from flowact.serving.session import AvatarSession, Reason
from flowact.serving.watermark import Watermark

log = logging.getLogger(__name__)
MAX_ADDRESSES = 10_000


class SessionManager:
    """For one event loop.

    Args:
        model: opens streams.
        responder: answers what people say.
        limits: how many sessions, and how long they stay.
        enlarger: of the pictures.
        watermark: of the pictures.
        session_log: takes a line for each session that ended.
        clock: seconds that never go back.
        sweep_seconds: between looks for sessions that nobody needs.
    """

    def __init__(
        self,
        model: AvatarModel,
        responder: Responder,
        limits: Limits,
        enlarger: Enlarger,
        watermark: Watermark,
        session_log: SessionLog,
        clock: Callable[[], float] = time.monotonic,
        sweep_seconds: float = 0.25,
    ) -> None:
        self.model, self.responder, self.limits = model, responder, limits
        self.enlarger, self.watermark, self.session_log = enlarger, watermark, session_log
        self.totals: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self.closing = False
        self._clock = clock
        self._sweep_seconds = sweep_seconds
        self._sessions: dict[str, AvatarSession] = {}
        self._waiting: list[AvatarSession] = []
        self._creations: dict[str, Bucket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look after sessions; within the event loop that they live on."""
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """End all sessions and take no more. Closing again does nothing."""
        self.closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.gather(*(self.end(session, "shutdown") for session in tuple(self._sessions.values())))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def create(self, character: str | None, address: str) -> AvatarSession:
        """A new session, which moves at once if there is a place, else waits at the end of the queue.

        Args:
            character: an id; None is the first.
            address: of the client, for the rate at which it may ask.

        Raises:
            Refusal: no such character, too many in the queue or from this address, or the server stops.
        """
        try:
            return self._create(character, address)
        except Refusal:
            self.totals["refused_sessions"] += 1
            raise

    def _create(self, character: str | None, address: str) -> AvatarSession:
        if self.closing:
            raise Refusal("shutting_down", "the server stops")
        key = next(iter(self.model.characters)) if character is None else character
        if key not in self.model.characters:
            raise Refusal("unknown_character", f"there is no character '{key}'.{did_you_mean(key, self.model.characters)}")
        if len(self._creations) > MAX_ADDRESSES:
            self._creations = {name: bucket for name, bucket in self._creations.items() if not bucket.full}
        bucket = self._creations.setdefault(address, Bucket(self.limits.created_per_second, 10, self._clock))
        if not bucket.take():
            raise Refusal("too_many_sessions", "too many new sessions from this address; wait a second")
        if len(self._waiting) >= self.limits.max_waiting:
            raise Refusal("queue_full", f"{len(self._waiting)} sessions wait already; try again later")
        session = AvatarSession(
            self.model, self.model.characters[key], self.responder, self.limits, self.enlarger, self.watermark, self.totals, self._clock
        )
        session.on_failure = lambda failed: self._spawn(self._end(failed, "failed"))
        self._sessions[session.id] = session
        self._waiting.append(session)
        self.totals["sessions"] += 1
        self._admit()
        return session

    def find(self, name: str, ticket: str) -> AvatarSession:
        """A session of whoever holds its ticket.

        Raises:
            Refusal: there is none; a wrong ticket gives the same answer as a wrong id.
        """
        session = self._sessions.get(name)
        expected = session.ticket if session is not None else "-" * 24
        if not hmac.compare_digest(expected.encode(), ticket.encode(errors="replace")) or session is None:
            raise Refusal("unknown_session", "there is no such session, or its ticket is another one")
        return session

    async def end(self, session: AvatarSession, reason: Reason) -> None:
        """End a session, log it and let the next one in; to the end, even if the caller is cancelled, as its connection is by this."""
        await asyncio.shield(self._spawn(self._end(session, reason)))

    async def _end(self, session: AvatarSession, reason: Reason) -> None:
        if session.status == "closed":
            return
        self._sessions.pop(session.id, None)
        was_waiting = session in self._waiting
        if was_waiting:
            self._waiting.remove(session)
        self.totals["failed_sessions"] += reason == "failed"
        try:
            await session.close(reason)
        except Exception:
            log.exception("session %s did not close cleanly", session.id)
        self.session_log.write(session)
        if not self.closing:
            self._admit()
            self._tell_queue()

    def position(self, session: AvatarSession) -> int | None:
        """Place in the queue from 1; None for one that does not wait."""
        return self._waiting.index(session) + 1 if session in self._waiting else None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> list[AvatarSession]:
        """Sessions that have a place, those that are closing among them."""
        return [session for session in self._sessions.values() if session.status == "running"]

    def _admit(self) -> None:
        while self._waiting and len(self.running) < self.limits.max_sessions:
            session = self._waiting.pop(0)
            session.status = "running"
            self._spawn(session.begin())

    def _tell_queue(self) -> None:
        for place, session in enumerate(self._waiting, start=1):
            session.announce(QueueUpdated(position=place, waiting=len(self._waiting)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _overdue(self, session: AvatarSession) -> Reason | None:
        now = self._clock()
        if not session.claimed and now - session.created > self.limits.unclaimed_seconds:
            return "unclaimed"
        if session.left is not None and now - session.left > self.limits.absent_seconds:
            return "absent"
        if now - session.active > self.limits.idle_seconds:
            return "idle"
        return None

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            for session in tuple(self._sessions.values()):
                session.drop_stalled()
                reason = self._overdue(session)
                if reason is not None:
                    self._spawn(self._end(session, reason))

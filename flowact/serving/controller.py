"""What a client's events do. The same for WebSocket, data channel and HTTP; answers go to the one who asked."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from flowact.errors import UserError, did_you_mean
from flowact.serving import events
from flowact.serving.announcements import (
    AudioCleared,
    AudioCommitted,
    OutputCleared,
    Pong,
    PromptUpdated,
    ReferenceUpdated,
    ServerEvent,
    SessionUpdated,
    StateUpdated,
    error_event,
)
from flowact.serving.frames import BinaryFrame, FrameKind
from flowact.serving.limits import Bucket, Refusal
from flowact.serving.listening import ClientSound
from flowact.serving.manager import SessionManager
from flowact.serving.model import read_picture, sha256_of_picture
from flowact.serving.outbox import Outbox
from flowact.serving.session import AvatarSession
from flowact.types import SAMPLE_RATE

log = logging.getLogger(__name__)


class TooManyViolations(Exception):
    """The client does not stop breaking rules; its connection is closed."""


class Controller:
    """One client's hand on a session.

    Args:
        manager: of all sessions.
        session: of this client.
        outbox: of this connection; None for one that cannot get pictures, such as a single HTTP request.
    """

    def __init__(self, manager: SessionManager, session: AvatarSession, outbox: Outbox | None = None) -> None:
        self.manager, self.session, self.outbox = manager, session, outbox
        self.output = events.VideoOutput()
        self._patience = Bucket(0.5, session.limits.violations, session.clock)
        self._handlers: dict[type, Callable[[Any], Awaitable[ServerEvent | None]]] = {
            events.SessionUpdate: self._update,
            events.SessionClose: self._close,
            events.AudioAppend: self._append,
            events.AudioCommit: self._commit,
            events.AudioClear: self._clear,
            events.ResponseCancel: self._interrupt,
            events.OutputClear: self._interrupt,
            events.StateUpdate: self._state,
            events.PromptUpdate: self._prompt,
            events.ReferenceUpdate: self._reference,
            events.Ping: self._ping,
        }

    async def take_text(self, text: str | bytes) -> list[ServerEvent]:
        """Do what a JSON event says; the answers.

        Raises:
            TooManyViolations: after too many mistakes in a row.
        """
        name: str | None = None
        try:
            self._count_message()
            event = events.read_event(text, self.session.limits)
            name = event.event_id
            answer = await self._handlers[type(event)](event)
        except Exception as error:
            return [self._refused(error, name)]
        return [] if answer is None else [answer.model_copy(update={"client_event_id": name})]

    async def take_frame(self, message: bytes) -> list[ServerEvent]:
        """Take a binary frame: sound, or a reference picture.

        Raises:
            TooManyViolations: after too many mistakes in a row.
        """
        try:
            self._count_message()
            frame = BinaryFrame.unpack(message)
            if frame.kind is FrameKind.PCM16:
                await self._sound(frame.payload)
                return []
            if frame.kind is FrameKind.JPEG:
                return [await self._show(frame.payload)]
            raise Refusal("invalid_frame", f"clients send frames of kind {FrameKind.PCM16} (sound) and {FrameKind.JPEG} (a picture)")
        except Exception as error:
            return [self._refused(error, None)]

    def _count_message(self) -> None:
        if not self.session.messages.take():
            raise Refusal("too_many_messages", f"more than {self.session.limits.messages_per_second:g} messages a second; this one was dropped")

    def _refused(self, error: Exception, name: str | None) -> ServerEvent:
        self.manager.totals["refused_events"] += 1
        if isinstance(error, Refusal):
            answer = error_event(error.code, error.message, name)
        elif isinstance(error, UserError):
            answer = error_event("refused", str(error)[:500], name)
        else:
            log.error("session %s: an event failed", self.session.id, exc_info=error)
            answer = error_event("internal", "the server could not do that; its log says why", name)
        if not self._patience.take():
            raise TooManyViolations
        return answer

    # ---- settings ----

    async def _update(self, event: events.SessionUpdate) -> ServerEvent:
        settings = event.session
        if settings.audio is not None:
            wanted = settings.audio.input
            if wanted.format != self.session.input.format:
                self.session.sound = ClientSound(wanted.format)
            self.session.input = wanted
            self.session.dialogue.detection = wanted.turn_detection
        if settings.video is not None:
            if self.outbox is None or self.outbox.format == "frames":
                raise Refusal("no_video_here", "this connection carries no encoded video; use /v1/realtime, or /v1/sessions/ID/stream.mp4")
            self.output = settings.video.output
            self.outbox.format = self.output.format
        self.session.active = self.session.clock()
        return SessionUpdated(session=self.session.facts(self.manager.position(self.session), self.output))

    async def _close(self, event: events.SessionClose) -> None:
        await self.manager.end(self.session, "client")

    async def _ping(self, event: events.Ping) -> ServerEvent:
        return Pong(sent=event.sent)

    # ---- sound ----

    async def _append(self, event: events.AudioAppend) -> None:
        await self._sound(from_base64(event.audio, "audio"))

    async def _sound(self, payload: bytes) -> None:
        session = self._running()
        seconds = session.sound.seconds(len(payload))
        if not session.sound_seconds.take(seconds):
            allowed = f"{session.limits.audio_burst_seconds:g} s at once and {session.limits.audio_rate:g} s a second"
            raise Refusal("too_much_audio", f"{seconds:.1f} s of sound too fast: {allowed} are taken; send it as it plays")
        repaired = session.sound.num_repaired
        await self.take_samples(session.sound.read(payload))
        if session.sound.num_repaired > repaired:
            raise Refusal("invalid_audio", f"{session.sound.num_repaired - repaired} samples were no numbers; they are silence now")

    async def take_samples(self, samples: np.ndarray) -> None:
        """Sound of the session's voice, mono float32 at 16 kHz.

        Raises:
            Refusal: the session does not move, or has too much to say already.
        """
        session = self._running()
        async with session.lock:
            live = session.live
            if live is None:
                return
            if session.input.voice == "character":
                if live.session.metrics["queued_seconds"] + len(samples) / SAMPLE_RATE > session.limits.queued_seconds:
                    raise Refusal("queue_full", f"{session.limits.queued_seconds:g} s of speech wait already; send it as it plays")
                await asyncio.to_thread(live.session.push_audio, samples)
            else:
                await asyncio.to_thread(live.session.push_user_audio, samples)
                await session.dialogue.hear(samples)

    async def _commit(self, event: events.AudioCommit) -> ServerEvent:
        session = self._running()
        live = session.live
        assert live is not None
        async with session.lock:
            if session.input.voice == "character":
                waiting = await asyncio.to_thread(live.session.push_audio, np.zeros(0, np.float32), SAMPLE_RATE, end=True)
                return AudioCommitted(heard_seconds=round(waiting, 3))
            return AudioCommitted(heard_seconds=round(session.dialogue.commit(), 3))

    async def _clear(self, event: events.AudioClear) -> ServerEvent:
        session = self._running()
        if session.input.voice == "character":
            assert session.live is not None
            await asyncio.to_thread(session.live.session.interrupt)
        session.dialogue.forget()
        return AudioCleared()

    async def _interrupt(self, event: events.ClientEvent) -> ServerEvent:
        session = self._running()
        assert session.live is not None
        async with session.lock:
            session.dialogue.speaking = True  # whatever is queued or heard ends, whoever put it there
            played = await session.dialogue.cancel()
        return OutputCleared(played_seconds=round(played, 3))

    # ---- the character ----

    async def _state(self, event: events.StateUpdate) -> ServerEvent:
        live = self._changing()
        async with self.session.lock:
            if event.state == "auto":
                chunk = await asyncio.to_thread(live.session.set_prompt, None)
            else:
                chunk = await asyncio.to_thread(live.session.set_state, event.state)
        return StateUpdated(state=event.state, chunk=chunk + self.session.num_held)

    async def _prompt(self, event: events.PromptUpdate) -> ServerEvent:
        live = self._changing()
        text = " ".join("".join(c if c.isprintable() else " " for c in event.text).split())
        if not text:
            raise Refusal("invalid_event", "text: a prompt has words")
        async with self.session.lock:
            chunk = await asyncio.to_thread(live.session.set_prompt, text)
        return PromptUpdated(text=text, chunk=chunk + self.session.num_held)

    async def _reference(self, event: events.ReferenceUpdate) -> ServerEvent:
        if (event.character is None) == (event.image is None):
            raise Refusal("invalid_event", "give one of character and image")
        if event.image is not None:
            return await self._show(from_base64(event.image, "image"))
        characters = self.manager.model.characters
        wanted = characters.get(event.character or "")
        if wanted is None:
            raise Refusal("unknown_character", f"there is no character '{event.character}'.{did_you_mean(str(event.character), characters)}")
        self._running()
        return await self._set_reference(wanted.picture, wanted.id)

    async def _show(self, data: bytes) -> ServerEvent:
        session = self._running()
        if not session.pictures.take():
            raise Refusal("too_many_pictures", "too many pictures; wait a moment")
        picture = await asyncio.to_thread(read_picture, data, session.model.picture_size, session.limits)
        return await self._set_reference(picture, None)

    async def _set_reference(self, picture: Any, character: str | None) -> ServerEvent:
        live = self._changing()
        async with self.session.lock:
            chunk = await asyncio.to_thread(live.session.set_reference, picture)
            if character is not None:
                self.session.character = self.manager.model.characters[character]
            digest = sha256_of_picture(picture)
            if digest not in self.session.picture_hashes and len(self.session.picture_hashes) < 1_000:
                self.session.picture_hashes.append(digest)
        return ReferenceUpdated(character=character, chunk=chunk + self.session.num_held)

    def _running(self) -> AvatarSession:
        """The session, which must move; it is in use now.

        Raises:
            Refusal: it waits, or has ended.
        """
        session = self.session
        session.active = session.clock()
        if session.live is None:
            place = self.manager.position(session)
            why = f"it waits at place {place} of the queue" if place else "it is being opened, or has ended"
            raise Refusal("not_running", f"the session does not move: {why}")
        return session

    def _changing(self) -> Any:
        session = self._running()
        if not session.prompts.take():
            raise Refusal("too_many_prompts", f"more than {session.limits.prompts_per_second:g} changes a second; this one was dropped")
        return session.live


def from_base64(text: str, field: str) -> bytes:
    """Bytes of a field.

    Raises:
        Refusal: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("invalid_event", f"{field}: not base64") from None

"""One character that moves: a live stream, those who watch it, and the conversation with it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowact.errors import UserError
from flowact.sampling.session import MediaChunk
from flowact.serving.announcements import (
    Metrics,
    OutputStarted,
    OutputStopped,
    ServerEvent,
    SessionClosed,
    SessionFacts,
    SessionUpdated,
    StreamNotice,
)
from flowact.serving.dialogue import Dialogue
from flowact.serving.encoding import Enlarger, FragmentEncoder, jpeg, pcm16
from flowact.serving.events import AudioInput, VideoOutput
from flowact.serving.limits import Bucket, Limits, Refusal
from flowact.serving.listening import ClientSound
from flowact.serving.model import AvatarCharacter, AvatarModel, sha256_of_picture
from flowact.serving.outbox import MediaFormat, Outbox, RenderedChunk
from flowact.serving.responders import Responder
from flowact.serving.watermark import Watermark
from flowact.types import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from flowact.sampling.live import LiveStream

log = logging.getLogger(__name__)
Reason = Literal["client", "absent", "unclaimed", "idle", "failed", "shutdown", "replaced"]
REASONS: dict[Reason, str] = {
    "client": "the client ended the session",
    "absent": "the client has gone",
    "unclaimed": "nobody connected to the session in time",
    "idle": "nothing was sent for a long time; open a new session to go on",
    "failed": "the stream failed; open a new session, and look into the server's log",
    "shutdown": "the server stops",
    "replaced": "another connection took over",
}
METRICS_SECONDS = 1.0


class AvatarSession:
    """From the moment that someone asks for a character until nobody needs it any more. For one event loop.

    Args:
        model: opens the stream.
        character: with whom it begins.
        responder: answers what a person says.
        limits: of everything that clients send.
        enlarger: of the pictures.
        watermark: of the pictures.
        totals: counted up, for the server's metrics.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        model: AvatarModel,
        character: AvatarCharacter,
        responder: Responder,
        limits: Limits,
        enlarger: Enlarger,
        watermark: Watermark,
        totals: dict[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = f"sess_{secrets.token_hex(8)}"
        self.ticket = secrets.token_urlsafe(18)
        self.model, self.character, self.limits = model, character, limits
        self.status: Literal["waiting", "running", "closed"] = "waiting"
        self.reason: Reason | None = None
        self.input = AudioInput()
        self.sound = ClientSound(self.input.format)
        self.clock = clock
        self.created = self.active = clock()
        self.created_wall = time.time()
        self.left: float | None = None  # when the last client went
        self.claimed = False
        self.num_chunks = self.num_held = 0
        self.prompt_hashes: list[str] = []
        self.picture_hashes = [sha256_of_picture(character.picture)]
        self.messages = Bucket(limits.messages_per_second, limits.message_burst, clock)
        self.sound_seconds = Bucket(limits.audio_rate, limits.audio_burst_seconds, clock)
        self.prompts = Bucket(limits.prompts_per_second, 5, clock)
        self.pictures = Bucket(limits.pictures_per_second, 3, clock)
        self.lock = asyncio.Lock()  # clients' events change the stream one after the other
        self.last: RenderedChunk | None = None
        self.live: LiveStream | None = None
        self._enlarger, self._watermark, self._totals = enlarger, watermark, totals
        self._outboxes: set[Outbox] = set()
        self._progress: dict[Outbox, tuple[int, float]] = {}  # how much each had taken, and when that last changed
        self._encoder: FragmentEncoder | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="flowact-encode")  # chunks of a session are encoded in order
        self._watched = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._told_metrics = float("-inf")
        self._seen_state = ""
        self.dialogue = Dialogue(responder, self._speak, self._interrupt, self.announce, limits)
        self.on_failure: Callable[[AvatarSession], object] = lambda session: None

    # ---- clients come and go ----

    def attach(self, format: MediaFormat) -> Outbox:
        """A new viewer.

        Raises:
            Refusal: the session has ended.
        """
        if self.status == "closed":
            raise Refusal("session_closed", f"the session has ended: {REASONS[self.reason or 'client']}")
        outbox = Outbox(format, self.limits.outbox_chunks)
        self._outboxes.add(outbox)
        self.claimed, self.left = True, None
        self.active = self.clock()
        self._watched.set()
        return outbox

    def detach(self, outbox: Outbox) -> None:
        """A viewer has gone."""
        outbox.close()
        self._outboxes.discard(outbox)
        self._progress.pop(outbox, None)
        if not self._outboxes:
            self.left = self.clock()

    def drop_stalled(self) -> None:
        """Let go of viewers that have taken nothing for `limits.send_seconds`."""
        now = self.clock()
        for outbox in tuple(self._outboxes):
            taken, since = self._progress.get(outbox, (-1, now))
            if outbox.num_taken != taken or not outbox.full:
                self._progress[outbox] = (outbox.num_taken, now)
            elif now - since > self.limits.send_seconds:
                self.detach(outbox)

    @property
    def num_clients(self) -> int:
        return len(self._outboxes)

    def announce(self, event: ServerEvent) -> None:
        """Tell everyone."""
        for outbox in tuple(self._outboxes):
            outbox.tell(event)

    def facts(self, position: int | None = None, output: VideoOutput | None = None) -> SessionFacts:
        """As clients see it."""
        return SessionFacts(
            id=self.id,
            status="starting" if self.status == "running" and self.live is None else self.status,
            character=self.character.id,
            position=position,
            input=self.input,
            output=output or VideoOutput(),
            width=self._enlarger.width,
            height=self._enlarger.height,
            chunk_seconds=self.model.chunk_seconds,
        )

    # ---- the stream ----

    async def begin(self) -> None:
        """Leave the queue: open the stream. It moves as soon as somebody watches."""
        self.status = "running"
        try:
            live = await asyncio.to_thread(self.model.open, self.character.picture)
        except Exception:
            log.exception("session %s: the stream cannot be opened", self.id)
            self.on_failure(self)
            return
        if self.status != "running":  # closed meanwhile
            await asyncio.to_thread(live.close)
            return
        self.live = live
        self.announce(SessionUpdated(session=self.facts()))
        self._pump = asyncio.create_task(self._run(live))

    async def _run(self, live: LiveStream) -> None:
        try:
            await self._watched.wait()
            async for chunk in live:
                rendered = await asyncio.get_running_loop().run_in_executor(self._threads, self._render, chunk, self._wanted())
                self._publish(chunk, rendered)
        except Exception:
            log.exception("session %s failed", self.id)
        if self.status == "running":
            self.on_failure(self)

    def _wanted(self) -> set[MediaFormat]:
        return {outbox.format for outbox in self._outboxes}

    def _render(self, chunk: MediaChunk, wanted: set[MediaFormat]) -> RenderedChunk:
        """On the session's encoding thread."""
        frames_THWC = self._watermark.mark(self._enlarger.enlarge(chunk.frames_THWC))
        samples = np.nan_to_num(chunk.samples).clip(-1, 1)
        light = replace(chunk, frames_THWC=frames_THWC[:0], samples=samples)
        rendered = RenderedChunk(light, frames_THWC, sound=pcm16(samples))
        if "fmp4" in wanted:
            if self._encoder is None:
                self._encoder = FragmentEncoder(self._enlarger.width, self._enlarger.height)
            fragment = self._encoder.encode(round(chunk.start_seconds * FRAMES_PER_SECOND), frames_THWC, samples)
            rendered = replace(rendered, fragment=fragment, init_segment=self._encoder.init_segment, mime=self._encoder.mime)
        if "jpeg" in wanted:
            rendered = replace(rendered, pictures=tuple(jpeg(frame_HWC) for frame_HWC in frames_THWC))
        return rendered

    def _publish(self, chunk: MediaChunk, rendered: RenderedChunk) -> None:
        self.num_chunks += 1
        self.num_held += chunk.held
        self.note_prompt(chunk.prompt)
        self._totals["chunks"] += 1
        self._totals["frames"] += len(chunk.frames_THWC)
        self._totals["held_chunks"] += chunk.held
        self.last = rendered
        for outbox in tuple(self._outboxes):
            if rendered.holds(outbox.format):  # not so for who came while this chunk was encoded
                outbox.deliver(rendered)
        for event in chunk.events:
            if event.type == "speech.started":
                self.dialogue.speaking = True
                self.announce(OutputStarted(chunk=chunk.index))
            elif event.type == "speech.finished":
                self.dialogue.speaking = False
                interrupted = bool(event.data.get("interrupted"))
                self.announce(OutputStopped(chunk=chunk.index, position=float(event.data.get("position", 0)), interrupted=interrupted))
            else:
                self._totals["deadline_misses"] += event.type == "deadline.missed"
                self.announce(StreamNotice(name=event.type, chunk=chunk.index, data=plain(event.data)))
        now = self.clock()
        if now - self._told_metrics >= METRICS_SECONDS or chunk.state != self._seen_state:
            self._told_metrics, self._seen_state = now, chunk.state
            self.announce(Metrics(chunk=chunk.index, state=chunk.state, metrics=self.metrics()))  # type: ignore[arg-type]

    def metrics(self) -> dict[str, Any]:
        """Figures of the stream, without NaN."""
        if self.live is None:
            return {}
        dropped = sum(outbox.num_dropped for outbox in self._outboxes)
        return plain(self.live.metrics | {"held_chunks": self.num_held, "dropped_chunks": dropped, "viewers": len(self._outboxes)})

    def note_prompt(self, text: str) -> None:
        """For the session log: each text once, as a hash."""
        found = hashlib.sha256(text.encode()).hexdigest()
        if found not in self.prompt_hashes and len(self.prompt_hashes) < 1_000:
            self.prompt_hashes.append(found)

    def _speak(self, samples: np.ndarray) -> None:
        if self.live is None:
            raise UserError("the session has ended")
        self.live.session.push_audio(samples, end=True)

    def _interrupt(self) -> float:
        return self.live.session.interrupt() if self.live is not None else 0.0

    async def close(self, reason: Reason) -> None:
        """End it, once; everyone is told why."""
        if self.status == "closed":
            return
        self.status, self.reason = "closed", reason
        self.dialogue.close()
        for outbox in tuple(self._outboxes):
            outbox.tell(SessionClosed(reason=reason, message=REASONS[reason]))
            outbox.close()
        live, self.live = self.live, None
        if live is not None:
            await asyncio.to_thread(live.close)
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._encoder is not None:
            await asyncio.to_thread(self._threads.shutdown)
            self._encoder.close()
        self.last = None


def plain(value: Any) -> Any:
    """Mappings and numbers as JSON has them: NaN and infinity become null, figures are rounded."""
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    number = float(value)
    return round(number, 4) if np.isfinite(number) else None

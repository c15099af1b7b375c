"""`WS /v1/realtime`: JSON events and binary frames over one socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Iterator

from starlette.websockets import WebSocket, WebSocketDisconnect

from flowact.serving.announcements import ServerEvent, SessionCreated, StreamNotice, VideoDelta, VideoInit, error_event
from flowact.serving.controller import Controller, TooManyViolations
from flowact.serving.frames import BinaryFrame, FrameKind
from flowact.serving.limits import Refusal
from flowact.serving.manager import SessionManager
from flowact.serving.outbox import RenderedChunk
from flowact.serving.session import AvatarSession

log = logging.getLogger(__name__)
SUBPROTOCOL = "flowact.realtime"
POLICY_VIOLATION, TRY_AGAIN_LATER, INTERNAL_ERROR, NORMAL = 1008, 1013, 1011, 1000


class MessageStream:
    """Chunks as messages for one connection, with the initialisation segment before the first of them.

    Args:
        controller: knows what the client wants.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._seq = 0
        self._introduced = ""
        self._num_dropped = 0

    def messages(self, rendered: RenderedChunk) -> Iterator[ServerEvent | bytes]:
        """Events and binary frames of a chunk, in the order in which they are sent."""
        output = self._controller.output
        if output.format == "none" or not rendered.holds(output.format):
            return
        chunk = rendered.chunk
        outbox = self._controller.outbox
        if outbox is not None and outbox.num_dropped > self._num_dropped:
            yield StreamNotice(name="dropped", chunk=chunk.index, data={"chunks": outbox.num_dropped - self._num_dropped})
            self._num_dropped = outbox.num_dropped
        fragmented, text = output.format == "fmp4", output.delivery == "json"
        if self._introduced != output.format:
            self._introduced = output.format
            facts = self._controller.session.facts()
            init = base64.b64encode(rendered.init_segment).decode() if fragmented and text else None
            mime = rendered.mime if fragmented else "image/jpeg"
            yield VideoInit(format=output.format, mime=mime, width=facts.width, height=facts.height, delta=init)
            if fragmented and not text:
                yield self._frame(FrameKind.FMP4, 0, rendered.init_segment)
        payloads = [rendered.fragment] if fragmented else list(rendered.pictures)
        yield VideoDelta(
            chunk=chunk.index,
            pts_us=rendered.pts_us,
            num_frames=round(self._controller.session.model.chunk_seconds * 25),
            state=chunk.state,  # type: ignore[arg-type]
            prompt=chunk.prompt,
            held=chunk.held,
            format=output.format,
            delta=[base64.b64encode(payload).decode() for payload in payloads] if text else None,
            audio=base64.b64encode(rendered.sound).decode() if text and not fragmented else None,
        )
        if text:
            return
        if fragmented:
            yield self._frame(FrameKind.FMP4, rendered.pts_us, rendered.fragment)
            return
        yield self._frame(FrameKind.PCM16, rendered.pts_us, rendered.sound)
        for index, picture in enumerate(rendered.pictures):
            yield self._frame(FrameKind.JPEG, rendered.frame_pts_us(index), picture)

    def _frame(self, kind: FrameKind, pts_us: int, payload: bytes) -> bytes:
        self._seq += 1
        return BinaryFrame(kind, self._seq - 1, pts_us, payload).pack()


async def converse(socket: WebSocket, manager: SessionManager, session: AvatarSession) -> None:
    """Serve an accepted socket until it, or the session, ends."""
    controller = Controller(manager, session, session.attach("none"))
    outbox = controller.outbox
    assert outbox is not None
    outbox.tell(SessionCreated(session=session.facts(manager.position(session)), ticket=session.ticket))
    sender = asyncio.create_task(_send(socket, controller))
    receiver = asyncio.create_task(_receive(socket, controller))
    try:
        done, _ = await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
        code = NORMAL
        for task in done:
            error = task.exception()
            if isinstance(error, TooManyViolations):
                code = POLICY_VIOLATION
            elif error is not None and not isinstance(error, WebSocketDisconnect | TimeoutError | OSError | RuntimeError):
                log.error("session %s: a connection failed", session.id, exc_info=error)
                code = INTERNAL_ERROR
        if receiver not in done or code != NORMAL:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(socket.close(code), 2)
    finally:
        session.detach(outbox)
        for task in (sender, receiver):
            task.cancel()
        await asyncio.gather(sender, receiver, return_exceptions=True)


async def _send(socket: WebSocket, controller: Controller) -> None:
    outbox, stream = controller.outbox, MessageStream(controller)
    assert outbox is not None
    while (item := await outbox.next()) is not None:
        for message in stream.messages(item) if isinstance(item, RenderedChunk) else (item,):
            async with asyncio.timeout(controller.session.limits.send_seconds):
                if isinstance(message, bytes):
                    controller.manager.totals["sent_bytes"] += len(message)
                    await socket.send_bytes(message)
                else:
                    await socket.send_text(message.line())


async def _receive(socket: WebSocket, controller: Controller) -> None:
    outbox = controller.outbox
    assert outbox is not None
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text, data = message.get("text"), message.get("bytes")
        for answer in await (controller.take_text(text) if text is not None else controller.take_frame(data or b"")):
            outbox.tell(answer)


async def refuse(socket: WebSocket, refusal: Refusal) -> None:
    """Tell an accepted socket why it is closed."""
    await socket.send_text(error_event(refusal.code, refusal.message).line())
    await socket.close(TRY_AGAIN_LATER if refusal.code in ("queue_full", "shutting_down", "too_many_sessions") else POLICY_VIOLATION)

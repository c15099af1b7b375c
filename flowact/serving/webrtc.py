"""WebRTC by aiortc: the stream as two tracks, the microphone as a third, events over a data channel. The one file that needs aiortc."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamError, MediaStreamTrack, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from flowact.errors import UserError
from flowact.sampling.sound import SoundInput
from flowact.serving.announcements import SessionCreated
from flowact.serving.controller import Controller, TooManyViolations
from flowact.serving.limits import Refusal
from flowact.serving.manager import SessionManager
from flowact.serving.outbox import RenderedChunk
from flowact.serving.session import AvatarSession
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME

log = logging.getLogger(__name__)
VIDEO_CLOCK = 90_000
SOUND_BLOCK = SAMPLE_RATE // 50  # 20 ms, as Opus wants them
MICROPHONE_FRAMES = 5  # of 20 ms, taken together: a tenth of a second is soon enough, and fewer calls
CONNECT_SECONDS = 20.0
LATE_SECONDS = 0.25
MAX_BUFFERED = 2**20
MAX_CANDIDATES = 64  # each of them is sent packets, so an offer must not name half the internet


class MediaClock:
    """When a moment of the stream is due, the same for picture and sound.

    The first moment that anyone asks for is due at once. Whoever comes much too late moves the clock for all, so that nothing is sent in a rush.
    """

    def __init__(self) -> None:
        self._anchor: float | None = None

    async def wait(self, seconds: float) -> None:
        """Until the moment `seconds` of the stream is due."""
        now = asyncio.get_running_loop().time()
        if self._anchor is None or now - (self._anchor + seconds) > LATE_SECONDS:
            self._anchor = now - seconds
        await asyncio.sleep(max(0.0, self._anchor + seconds - now))


class StreamTrack(MediaStreamTrack):
    """One of the two tracks.

    Args:
        kind: "video" or "audio".
        clock: of both.
        size: frames that may wait.
    """

    def __init__(self, kind: str, clock: MediaClock, size: int) -> None:
        super().__init__()
        self.kind = kind
        self._clock = clock
        self.waiting: asyncio.Queue[Any] = asyncio.Queue(size)

    async def recv(self) -> Any:
        """The next frame, when it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        frame = await self.waiting.get()
        if frame is None:
            self.stop()
            raise MediaStreamError
        await self._clock.wait(float(frame.pts * frame.time_base))
        return frame

    def end(self) -> None:
        """Nothing more comes."""
        while self.waiting.full():
            self.waiting.get_nowait()
        self.waiting.put_nowait(None)


class Peer:
    """One browser.

    Args:
        manager: of the sessions.
        session: that it watches.
        ice_servers: to be asked for addresses.
    """

    def __init__(self, manager: SessionManager, session: AvatarSession, ice_servers: Sequence[str]) -> None:
        self.session = session
        self.outbox = session.attach("frames")
        self.controller = Controller(manager, session, self.outbox)
        self.connection = RTCPeerConnection(RTCConfiguration([RTCIceServer(address) for address in ice_servers]))
        self.closed = asyncio.Event()
        clock = MediaClock()
        self._video, self._sound = StreamTrack("video", clock, 2 * FRAMES_PER_SECOND), StreamTrack("audio", clock, 100)
        self._tracks: list[StreamTrack] = []  # those that the browser asked for
        self._channel: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connection.on("track", self._on_track)
        self.connection.on("datachannel", self._on_channel)
        self.connection.on("connectionstatechange", self._on_state)
        self.outbox.tell(SessionCreated(session=session.facts(manager.position(session)), ticket=session.ticket))

    async def answer(self, sdp: str) -> str:
        """Answer an offer.

        Raises:
            Refusal: it is none that can be answered.
        """
        if sdp.count("a=candidate") > MAX_CANDIDATES:
            raise Refusal("invalid_offer", f"an offer with more than {MAX_CANDIDATES} addresses")
        try:
            await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            kinds = {transceiver.kind for transceiver in self.connection.getTransceivers()}
            self._tracks = [track for track in (self._video, self._sound) if track.kind in kinds]
            if not self._tracks:
                raise ValueError("it has neither a video nor an audio section")
            for track in self._tracks:
                self.connection.addTrack(track)
            await self.connection.setLocalDescription(await self.connection.createAnswer())
        except Exception as error:  # aiortc raises many kinds for a bad description
            log.info("a WebRTC offer cannot be answered: %s", error)
            raise Refusal("invalid_offer", f"the offer cannot be answered: {str(error)[:200]}") from None
        self._start(self._write())
        self._start(self._watch())
        return str(self.connection.localDescription.sdp)

    async def close(self) -> None:
        """Let go of everything. Closing again does nothing."""
        if self.closed.is_set():
            return
        self.closed.set()
        self.session.detach(self.outbox)
        for task in tuple(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        self._video.end()
        self._sound.end()
        await self.connection.close()

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except (MediaStreamError, TooManyViolations, ConnectionError):
            await self.close()
        except Exception:
            log.exception("session %s: a WebRTC connection failed", self.session.id)
            await self.close()

    async def _watch(self) -> None:
        """A peer that never comes, or sends nothing any more, is forgotten. Browsers report on what they receive about once a second."""
        await asyncio.sleep(CONNECT_SECONDS)
        last, silent = -1, 0.0
        while self.connection.connectionState == "connected" and silent < self.session.limits.heartbeat_seconds:
            await asyncio.sleep(1)
            stats = (await self.connection.getStats()).values()
            received = sum(found.packetsReceived for found in stats if found.type == "transport")
            last, silent = received, silent + 1 if received == last else 0.0
        await self.close()

    async def _on_state(self) -> None:
        if self.connection.connectionState in ("failed", "closed"):
            await self.close()

    # ---- to the browser ----

    async def _write(self) -> None:
        while (item := await self.outbox.next()) is not None:
            if isinstance(item, RenderedChunk):
                await self._put(item)
                continue
            while self._channel is None or self._channel.readyState == "connecting" or self._channel.bufferedAmount > MAX_BUFFERED:
                await asyncio.sleep(0.02)
                if self.outbox.full:
                    break  # pictures do not wait for a channel that never opens
            else:
                if self._channel.readyState == "open":
                    self._channel.send(item.line())
        await asyncio.sleep(0.3)  # the last words are on their way
        await self.close()

    async def _put(self, rendered: RenderedChunk) -> None:
        assert rendered.frames_THWC is not None
        first = round(rendered.chunk.start_seconds * FRAMES_PER_SECOND)
        samples = (rendered.chunk.samples * 32767).astype(np.int16)
        for index, frame_HWC in enumerate(rendered.frames_THWC):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            picture.pts, picture.time_base = (first + index) * VIDEO_CLOCK // FRAMES_PER_SECOND, Fraction(1, VIDEO_CLOCK)
            begin = (first + index) * SAMPLES_PER_FRAME
            for at in range(0, SAMPLES_PER_FRAME, SOUND_BLOCK):
                block = samples[index * SAMPLES_PER_FRAME + at :][:SOUND_BLOCK]
                sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), format="s16", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, begin + at, Fraction(1, SAMPLE_RATE)
                if self._sound in self._tracks:
                    await self._sound.waiting.put(sound)
            if self._video in self._tracks:
                await self._video.waiting.put(picture)

    # ---- from the browser ----

    def _on_channel(self, channel: Any) -> None:
        if self._channel is not None:
            return
        self._channel = channel
        inbox: asyncio.Queue[str | bytes] = asyncio.Queue(200)
        channel.on("message", lambda message: None if inbox.full() else inbox.put_nowait(message))
        self._start(self._read(inbox))

    async def _read(self, inbox: asyncio.Queue[str | bytes]) -> None:
        while True:
            message = await inbox.get()
            answers = await (self.controller.take_text(message) if isinstance(message, str) else self.controller.take_frame(message))
            for answer in answers:
                self.outbox.tell(answer)

    def _on_track(self, track: Any) -> None:
        if track.kind == "audio":
            self._start(self._listen(track))

    async def _listen(self, track: Any) -> None:
        """The microphone: as any other sound of this session."""
        sound = SoundInput()
        while True:
            blocks = []
            for _ in range(MICROPHONE_FRAMES):
                frame = await track.recv()
                interleaved = frame.to_ndarray()
                channels = len(frame.layout.channels)
                blocks.append(interleaved.reshape(-1, channels) if interleaved.shape[0] == 1 else interleaved.T)
            samples = sound.convert(np.concatenate(blocks), frame.sample_rate)
            if self.session.live is None or not self.session.sound_seconds.take(len(samples) / SAMPLE_RATE):
                continue
            try:
                await self.controller.take_samples(samples)
            except (Refusal, UserError) as error:
                log.debug("session %s: the microphone is not taken: %s", self.session.id, error)


class PeerHub:
    """All browsers that are connected by WebRTC.

    Args:
        manager: of the sessions.
        ice_servers: such as `stun:stun.example.org:3478`.
    """

    def __init__(self, manager: SessionManager, ice_servers: Sequence[str] = ()) -> None:
        self._manager = manager
        self._ice_servers = tuple(ice_servers)
        self._peers: set[Peer] = set()

    async def connect(self, sdp: str, session: AvatarSession) -> str:
        """Answer an offer with the session's stream; the answer's description.

        Raises:
            Refusal: the offer cannot be answered, or the session has ended.
        """
        self._peers = {peer for peer in self._peers if not peer.closed.is_set()}
        peer = Peer(self._manager, session, self._ice_servers)
        self._peers.add(peer)
        try:
            return await peer.answer(sdp)
        except BaseException:
            await peer.close()
            raise

    async def close(self) -> None:
        """Hang up on everyone."""
        await asyncio.gather(*(peer.close() for peer in self._peers), return_exceptions=True)

"""What waits to be sent to one client. A slow client loses old pictures, never events, and never slows anyone else."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flowact.sampling.session import MediaChunk
from flowact.serving.announcements import ServerEvent
from flowact.types import FRAMES_PER_SECOND

MediaFormat = Literal["fmp4", "jpeg", "frames", "none"]
MAX_EVENTS = 2_000


@dataclass(frozen=True, eq=False)
class RenderedChunk:
    """A chunk as viewers get it, in the formats that anyone asked for.

    Attributes:
        chunk: as it left the stream, without its pictures.
        frames_THWC: enlarged and marked; None for clients that get bytes.
        init_segment: of the MP4.
        mime: of the MP4.
        fragment: of the MP4.
        pictures: a JPEG per frame.
        sound: 16-bit samples at 16 kHz.
    """

    chunk: MediaChunk
    frames_THWC: np.ndarray | None
    init_segment: bytes = b""
    mime: str = ""
    fragment: bytes = b""
    pictures: tuple[bytes, ...] = ()
    sound: bytes = b""

    def holds(self, format: MediaFormat) -> bool:
        """Whether it was rendered in a format."""
        return {"fmp4": bool(self.fragment), "jpeg": bool(self.pictures), "frames": self.frames_THWC is not None, "none": False}[format]

    @property
    def pts_us(self) -> int:
        """Microseconds of the first frame."""
        return round(self.chunk.start_seconds * 1e6)

    def frame_pts_us(self, index: int) -> int:
        """Microseconds of a frame."""
        return round((self.chunk.start_seconds + index / FRAMES_PER_SECOND) * 1e6)


class Outbox:
    """Filled by a session, emptied by whoever writes to the client. For one event loop.

    Args:
        format: in which the client wants chunks.
        max_chunks: that wait; the oldest is dropped for another.
    """

    def __init__(self, format: MediaFormat, max_chunks: int) -> None:
        self.format: MediaFormat = format
        self.max_chunks = max_chunks
        self.num_dropped = 0
        self.num_taken = 0
        self.closed = False
        self._waiting: deque[ServerEvent | RenderedChunk] = deque()
        self._num_chunks = 0
        self._changed = asyncio.Event()

    def tell(self, event: ServerEvent) -> None:
        """Queue an event. A client that has let thousands of them wait is gone."""
        if self.closed:
            return
        self._waiting.append(event)
        if len(self._waiting) > MAX_EVENTS + self.max_chunks:
            self.close()
        self._changed.set()

    def deliver(self, rendered: RenderedChunk) -> None:
        """Queue a chunk, if the client wants any."""
        if self.closed or self.format == "none":
            return
        if self.format != "frames":
            rendered = replace(rendered, frames_THWC=None)
        if self._num_chunks >= self.max_chunks:
            oldest = next(item for item in self._waiting if isinstance(item, RenderedChunk))
            self._waiting.remove(oldest)
            self._num_chunks -= 1
            self.num_dropped += 1
        self._waiting.append(rendered)
        self._num_chunks += 1
        self._changed.set()

    async def next(self) -> ServerEvent | RenderedChunk | None:
        """The next item; None once the outbox is closed and empty."""
        while not self._waiting:
            if self.closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._waiting.popleft()
        self.num_taken += 1
        self._num_chunks -= isinstance(item, RenderedChunk)
        return item

    @property
    def full(self) -> bool:
        """Whether the next chunk pushes another one out."""
        return self._num_chunks >= self.max_chunks

    def close(self) -> None:
        """Nothing more is queued."""
        self.closed = True
        self._changed.set()

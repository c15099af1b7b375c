"""Binary frames of the WebSocket: `[u8 kind][u32 seq][u64 pts_us][payload]`, big endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from flowact.serving.limits import Refusal

HEADER = struct.Struct(">BIQ")


class FrameKind(IntEnum):
    """What a payload is.

    From the server `FMP4` is an initialisation segment (pts 0, the first of its kind) or a fragment with picture and sound, `JPEG` one picture,
    `PCM16` little-endian mono samples at 16 kHz. From the client `PCM16` is sound in the session's input format and `JPEG` a reference picture
    (a JPEG, PNG or WebP file).
    """

    FMP4 = 1
    JPEG = 2
    PCM16 = 3


@dataclass(frozen=True)
class BinaryFrame:
    """One message.

    Attributes:
        kind: of the payload.
        seq: counts the frames of a connection from 0.
        pts_us: microseconds of its first moment on the stream's clock.
        payload: bytes.
    """

    kind: FrameKind
    seq: int
    pts_us: int
    payload: bytes

    def pack(self) -> bytes:
        """As it is sent."""
        return HEADER.pack(self.kind, self.seq & 0xFFFFFFFF, self.pts_us) + self.payload

    @classmethod
    def unpack(cls, message: bytes) -> BinaryFrame:
        """The inverse of `pack`.

        Raises:
            Refusal: too short, or of no known kind.
        """
        if len(message) < HEADER.size:
            raise Refusal("invalid_frame", f"a binary frame has a header of {HEADER.size} bytes, got {len(message)} in all")
        kind, seq, pts_us = HEADER.unpack_from(message)
        if kind not in list(FrameKind):
            raise Refusal("invalid_frame", f"binary frames are of kind {', '.join(f'{k.value} ({k.name.lower()})' for k in FrameKind)}; got {kind}")
        return cls(FrameKind(kind), seq, pts_us, message[HEADER.size :])

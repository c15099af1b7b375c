"""The header of binary messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowact.serving.frames import BinaryFrame, FrameKind
from flowact.serving.limits import Refusal


@given(st.sampled_from(FrameKind), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_what_is_packed_is_unpacked(kind, seq, pts_us, payload):
    frame = BinaryFrame(kind, seq, pts_us, payload)
    assert BinaryFrame.unpack(frame.pack()) == frame


def test_the_layout_is_the_documented_one():
    packed = BinaryFrame(FrameKind.PCM16, 7, 1_480_000, b"ab").pack()
    assert packed == struct.pack(">B", 3) + struct.pack(">I", 7) + struct.pack(">Q", 1_480_000) + b"ab"


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x01" * 12, b"\x00" * 20, b"\x09" * 20])
def test_short_and_unknown_frames_are_refused(message):
    with pytest.raises(Refusal) as refused:
        BinaryFrame.unpack(message)
    assert refused.value.code == "invalid_frame"

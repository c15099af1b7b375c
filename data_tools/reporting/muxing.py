"""Picture and sound of a clip in one file that a browser plays."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np

from data_tools.footage import encode_clip
from flowact.data.media import MediaError, decode_sound, decode_video
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE

AAC_BLOCK = 1024
BIT_RATE = 64_000
PLAYABLE = "yuv420p"


def mux(video: bytes, wav: bytes, where: str, sample_rate: int = SAMPLE_RATE) -> bytes:
    """An mp4 with the clip's picture and its sound as AAC; the same members give the same bytes.

    The picture is copied as it is stored; only where its pixels are of a kind that browsers do not play is it encoded anew. Frame t is shown at
    t / fps, and the sound track lasts exactly as long as the samples given. AAC comes in blocks: a decoder that ignores the track's length returns
    up to 1023 zeros more.

    Args:
        video: KEY.mp4.
        wav: KEY.wav.
        where: how the clip is named in errors.
        sample_rate: of the wav.

    Raises:
        MediaError: undecodable.
    """
    import av

    samples = decode_sound(wav, where, sample_rate)
    try:
        return _mux(video, samples, sample_rate, where)
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(f"{where}: picture and sound can not be put together ({error})") from error


def _mux(video: bytes, samples: np.ndarray, sample_rate: int, where: str) -> bytes:
    import av

    buffer = io.BytesIO()
    source: Any
    target: Any
    with av.open(io.BytesIO(video), format="mp4") as source:
        stream = source.streams.video[0]
        if stream.codec_context.name != "h264" or stream.codec_context.pix_fmt != PLAYABLE:
            frames_THWC = even(decode_video(video, where))
            return _mux(encode_clip(frames_THWC, round(stream.average_rate or FRAMES_PER_SECOND), crf=10), samples, sample_rate, where)
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
            picture = target.add_stream_from_template(stream)
            sound = target.add_stream("aac", rate=sample_rate, layout="mono", options={"flags": "+bitexact"})
            sound.bit_rate = BIT_RATE
            sound.time_base = sound.codec_context.time_base = Fraction(1, sample_rate)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = picture
                    target.mux(packet)
            for packet in _encode_sound(sound, samples, sample_rate):
                target.mux(packet)
    return buffer.getvalue()


def _encode_sound(stream: Any, samples: np.ndarray, sample_rate: int) -> list[Any]:
    import av

    packets: list[Any] = []
    floats = samples.astype(np.float32) / 2**15
    for first in range(0, len(floats), AAC_BLOCK):
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(floats[None, first : first + AAC_BLOCK]), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = sample_rate, first, Fraction(1, sample_rate)
        packets += stream.encode(block)
    return packets + stream.encode(None)


def even(frames_THWC: np.ndarray) -> np.ndarray:
    """Frames with even sides: an odd one gains a copy of its last row or column."""
    height, width = frames_THWC.shape[1:3]
    return np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else frames_THWC

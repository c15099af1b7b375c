"""Chunks to bytes: fragmented MP4 for media elements, pictures and samples for everything else. Axes: T frames, H W height and width, C = 3."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME
from flowact.writers.base import SYNTHETIC

AAC_FRAME = 1024
BT601 = 6
LIMITED_RANGE = 1
GLOBAL_HEADER = 1 << 22
#: the muxer is opened anew for each fragment, and told to go on where the last one ended
MUXER = {
    "movflags": "empty_moov+default_base_moof+frag_keyframe+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
}


class FragmentEncoder:
    """H.264 and AAC in one fragment per chunk, each of which begins with a key frame, so that a viewer may join at any of them.

    Frame t of the stream is shown at t / 25 s and its sound at the same moment: the encoder's run-in of silence is left out, so no player has to
    know how to skip it. Sound leaves in blocks of 1024 samples; what does not fill one comes with the next fragment.

    Args:
        width: of the pictures, even.
        height: of the pictures, even.
        crf: H.264 quality, 0 to 51.
    """

    def __init__(self, width: int, height: int, crf: int = 21) -> None:
        self._encoders = av.open(io.BytesIO(), "w", format="mp4", options={"movflags": "empty_moov"})  # owns the encoders; its own output is unused
        options = {"preset": "superfast", "tune": "zerolatency", "crf": str(crf), "forced-idr": "1", "profile": "baseline"}
        video: Any = self._encoders.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.gop_size = 10 * FRAMES_PER_SECOND
        video.codec_context.time_base = Fraction(1, FRAMES_PER_SECOND)
        video.codec_context.color_range = LIMITED_RANGE
        video.codec_context.colorspace = video.codec_context.color_primaries = video.codec_context.color_trc = BT601
        audio: Any = self._encoders.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64_000
        audio.codec_context.time_base = Fraction(1, SAMPLE_RATE)
        for stream in (video, audio):
            stream.codec_context.flags |= GLOBAL_HEADER
        self._encoders.start_encoding()
        self._video, self._audio = video, audio
        self._pending = np.zeros(0, np.float32)
        self._next_sample: int | None = None
        self._num_fragments = 0
        self.init_segment = b""

    @property
    def mime(self) -> str:
        """Type and codecs as a page's SourceBuffer wants them."""
        profile = bytes(self._video.codec_context.extradata)[5:8].hex().upper()  # of the sequence parameter set, behind its start code
        return f'video/mp4; codecs="avc1.{profile}, mp4a.40.2"'

    def encode(self, first_frame: int, frames_THWC: np.ndarray, samples: np.ndarray) -> bytes:
        """The fragment of some frames with their sound; `init_segment` is there afterwards.

        Args:
            first_frame: number of the first frame on the stream's clock.
            frames_THWC: uint8.
            samples: float32, 640 per frame.
        """
        packets = [(0, packet) for packet in self._encode_pictures(first_frame, frames_THWC)]
        packets += [(1, packet) for packet in self._encode_sound(first_frame * SAMPLES_PER_FRAME, samples)]
        written = io.BytesIO()
        self._num_fragments += 1
        with av.open(written, "w", format="mp4", options={**MUXER, "fragment_index": str(self._num_fragments)}) as muxer:
            muxer.metadata["title"], muxer.metadata["comment"] = "FlowAct", SYNTHETIC
            streams = (muxer.add_stream_from_template(self._video), muxer.add_stream_from_template(self._audio))
            muxer.start_encoding()
            for which, packet in packets:
                packet.stream = streams[which]
                muxer.mux_one(packet)
        parts = list(boxes(written.getvalue()))
        self.init_segment = b"".join(box for name, box in parts if name in ("ftyp", "moov"))
        return b"".join(box for name, box in parts if name in ("moof", "mdat"))

    def _encode_pictures(self, first_frame: int, frames_THWC: np.ndarray) -> Iterator[Any]:
        kinds = av.video.frame.PictureType
        for i, frame_HWC in enumerate(frames_THWC):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            picture.pts, picture.time_base = first_frame + i, Fraction(1, FRAMES_PER_SECOND)
            picture.pict_type = kinds.NONE if i else kinds.I
            yield from self._video.codec_context.encode(picture)

    def _encode_sound(self, first_sample: int, samples: np.ndarray) -> Iterator[Any]:
        if self._next_sample is None or self._next_sample + len(self._pending) != first_sample:  # a beginning, or a gap: no sound of before it
            self._next_sample, self._pending = first_sample, np.zeros(0, np.float32)
            self._first_sample = first_sample
        self._pending = np.concatenate([self._pending, samples])
        while len(self._pending) >= AAC_FRAME:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(self._pending[None, :AAC_FRAME]), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, self._next_sample, Fraction(1, SAMPLE_RATE)
            self._pending = self._pending[AAC_FRAME:]
            self._next_sample += AAC_FRAME
            for packet in self._audio.codec_context.encode(sound):
                if packet.pts >= self._first_sample:
                    yield packet

    def close(self) -> None:
        """Give the encoders back."""
        self._encoders.close()


def boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The boxes of an MP4 file, outermost level, as (name, bytes with header)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:
            raise ValueError(f"a box of {size} bytes at {at}")
        yield data[at + 4 : at + 8].decode("latin-1"), data[at : at + size]
        at += size


def jpeg(frame_HWC: np.ndarray, quality: int = 85) -> bytes:
    """A picture as a JPEG file that says that it is synthetic."""
    out = io.BytesIO()
    Image.fromarray(frame_HWC).save(out, "JPEG", quality=quality, comment=SYNTHETIC)
    return out.getvalue()


def pcm16(samples: np.ndarray) -> bytes:
    """Little-endian 16-bit samples."""
    return (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()


class Enlarger:
    """Pictures of the model to pictures for people: whole times larger, and of even size as H.264 wants it.

    Args:
        height: of the model's pictures.
        width: of the model's pictures.
        scale: how many times larger; None enlarges to about 384 pixels.
    """

    def __init__(self, height: int, width: int, scale: int | None = None) -> None:
        self.scale = scale or max(1, 384 // max(height, width))
        self.height, self.width = (length * self.scale + length * self.scale % 2 for length in (height, width))

    def enlarge(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 (T, height, width, 3)."""
        if self.scale > 1:
            size = (frames_THWC.shape[2] * self.scale, frames_THWC.shape[1] * self.scale)
            resized = [np.asarray(Image.fromarray(np.ascontiguousarray(f)).resize(size, Image.Resampling.BICUBIC)) for f in frames_THWC]
            frames_THWC = np.stack(resized)
        rows, columns = self.height - frames_THWC.shape[1], self.width - frames_THWC.shape[2]
        return np.pad(frames_THWC, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else frames_THWC

"""Clips from bytes: video frames with PyAV, sound with the standard library."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np

from flowact.errors import UserError


class MediaError(UserError):
    """Video or sound that can not be decoded, or holds less than it claims."""


def decode_video(data: bytes, where: str, *, first: int = 0, count: int | None = None, fps: int = 25) -> np.ndarray:
    """Frames of an mp4 at a constant rate.

    Args:
        data: the file.
        where: how the clip is named in errors.
        first: first frame wanted. From there on it seeks, so a window in a long clip costs about a group of pictures.
        count: frames wanted; None for all that follow.
        fps: frame rate, to find a frame's time.

    Returns:
        uint8 (T, H, W, 3), RGB.

    Raises:
        MediaError: undecodable, no frame, or fewer frames than asked for.
    """
    import av

    frames: list[np.ndarray] = []
    container: Any
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:  # by name: a probed playlist could open other files
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            start = stream.start_time or 0
            if first:
                container.seek(start + round(first / fps / float(stream.time_base)), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = round((frame.pts - start) * float(stream.time_base) * fps)
                if number < first:
                    continue
                frames.append(frame.to_ndarray(format="rgb24"))
                if count is not None and len(frames) == count:
                    break
    except (av.error.FFmpegError, IndexError, ValueError, TypeError, MemoryError) as error:
        raise MediaError(f"{where}: the video can not be decoded ({error})") from error
    if not frames or (count is not None and len(frames) < count):
        raise MediaError(
            f"{where}: {len(frames)} frames could be decoded from frame {first}, {count or 'at least 1'} were expected; the video was cut"
        )
    if any(frame.shape != frames[0].shape for frame in frames):
        raise MediaError(f"{where}: the picture size changes inside the video")
    return np.stack(frames)


def count_frames(data: bytes) -> int:
    """Frames that an mp4 holds, without decoding them; 0 if it can not be opened."""
    import av

    container: Any
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, IndexError, ValueError):
        return 0


def decode_sound(data: bytes, where: str, sample_rate: int = 16_000) -> np.ndarray:
    """Samples of a PCM16 mono wav as int16 (S,).

    Raises:
        MediaError: another format, another rate, or fewer samples than the header claims.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            claimed = file.getnframes()
            samples = file.readframes(claimed)
    except (wave.Error, EOFError, ValueError) as error:
        raise MediaError(f"{where}: the wav can not be read ({error})") from error
    if form != (1, 2, sample_rate):
        raise MediaError(
            f"{where}: the wav has {form[0]} channels of {8 * form[1]} bit at {form[2]} Hz, expected mono of 16 bit at {sample_rate}; repack"
        )
    if len(samples) != 2 * claimed:
        raise MediaError(f"{where}: the wav claims {claimed} samples and holds {len(samples) // 2}")
    return np.frombuffer(samples, dtype="<i2")


def h264_options(width: int, height: int, crf: int, preset: str, gop: int) -> dict[str, str]:
    """Options of libx264 with which the same frames give the same bytes, on any number of cores.

    Pictures of less than four macroblocks a side do without its macroblock tree: there x264 gave other bytes once in about 300 times.
    """
    small = {"x264-params": "mbtree=0"} if min(width, height) < 64 else {}
    return {"crf": str(crf), "preset": preset, "bf": "0", "g": str(gop), "threads": "1", **small}


def encode_video(frames: np.ndarray, *, fps: int = 25, crf: int = 18, pixel_format: str = "yuv420p", preset: str = "medium") -> bytes:
    """An mp4 (h264, constant rate, a key frame every second, no frame that needs a later one): a window decodes without the whole clip.

    Args:
        frames: uint8 (T, H, W, 3), RGB; even height and width unless `pixel_format` is yuv444p.
        fps: frames a second.
        crf: quality, 0 is lossless, 18 looks lossless.
        pixel_format: yuv420p plays everywhere; yuv444p keeps the colours of small pictures.
        preset: of x264: slower is smaller.
    """
    import av

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T >= 1, got {frames.dtype} {frames.shape}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        height, width = frames.shape[1:3]
        stream = container.add_stream("libx264", rate=fps, options=h264_options(width, height, crf, preset, fps))
        stream.height, stream.width = height, width
        stream.pix_fmt = pixel_format
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_sound(samples: np.ndarray, sample_rate: int = 16_000) -> bytes:
    """PCM16 mono wav of int16 samples (S,)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.ascontiguousarray(samples, dtype="<i2").tobytes())
    return buffer.getvalue()

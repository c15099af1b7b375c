"""A stretch of a file as frames for the encoder, cropped, scaled and turned without leaving yuv, and as an mp4."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.media.container import FootageError
from data_tools.media.kept import Kept
from data_tools.media.looking import constant_rate
from data_tools.media.pictures import Pictures
from flowact.data.media import h264_options

Box = tuple[int, int, int, int]
PIXELS = "yuv420p"
#: quarter turns counter-clockwise -> filters
_TURNS = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}


def read_clip(
    path: Path,
    first: int,
    count: int,
    *,
    fps: int = 25,
    start_s: float = 0.0,
    crop: Box | None = None,
    size: tuple[int, int] | None = None,
    kept: Kept | None = None,
) -> Iterator[Any]:
    """Frames first..first+count-1 as `look` numbers them, as PyAV frames in yuv420p that can go straight into the encoder.

    It seeks where the container's times allow, and reads from the start where they do not.

    Args:
        path: of the file.
        first: number of the first frame.
        count: of frames.
        fps: frames a second wanted.
        start_s: seconds after the first picture at which frame 0 is.
        crop: left, top, right, bottom in pixels as displayed; left and top are rounded down to even ones, as colour has half the resolution.
        size: width and height wanted, even; None keeps that of the crop.
        kept: frames that `look` decoded; the file is not opened where all of them are there.

    Raises:
        FootageError: undecodable, or it ends before the last frame.
        ValueError: an empty crop, one outside the picture, or a size that is not even.
    """
    if kept is not None and kept.whole:
        yield from _scaled(path, kept, kept.frames(first, count), first, count, crop, size)
        return
    with Pictures(path) as pictures:
        yield from _scaled(path, pictures, constant_rate(pictures, fps, start_s + first / fps, count), first, count, crop, size)


def _scaled(
    path: Path,
    shape: Pictures | Kept,
    frames: Iterator[tuple[Any, int]],
    first: int,
    count: int,
    crop: Box | None,
    size: tuple[int, int] | None,
) -> Iterator[Any]:
    crop = crop or (0, 0, shape.width // 2 * 2 or 1, shape.height // 2 * 2 or 1)
    _check_crop(crop, size, shape)
    size = size or (max((crop[2] - crop[0]) // 2 * 2, 2), max((crop[3] - crop[1]) // 2 * 2, 2))
    graph: Any = None
    kind: tuple[int, int, str] | None = None
    given = 0
    for frame, repeats in frames:
        if kind != (frame.width, frame.height, frame.format.name):
            kind = (frame.width, frame.height, frame.format.name)
            graph = _graph(frame, shape, crop, size)
        frame.pts = given
        graph.push(frame)
        scaled = graph.pull()
        for _ in range(repeats):
            yield scaled
        given += repeats
    if given < count:
        found = f"it ends after {given} of the {count} frames from frame {first} on"
        raise FootageError(f"{path}: {found}; it was cut, or the plan is of another file", "truncated")


def encode_clip(frames: Iterable[Any], fps: int = 25, crf: int = 18, preset: str = "medium") -> bytes:
    """An mp4: h264, yuv420p, constant rate, a key frame every second, no frame that needs a later one. The same frames give the same bytes.

    Args:
        frames: PyAV frames as `read_clip` gives them, or uint8 (H, W, 3) RGB; even sides.
        fps: frames a second.
        crf: quality, 0 is lossless, 18 looks lossless.
        preset: of x264: slower is smaller.

    Raises:
        ValueError: no frames.
    """
    import av

    frames = iter(frames)
    head = next(frames, None)
    if head is None:
        raise ValueError("no frames to encode")
    buffer = io.BytesIO()
    height, width = head.shape[:2] if isinstance(head, np.ndarray) else (head.height, head.width)
    options = {**h264_options(width, height, crf, preset, fps), "a53cc": "0"}
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = PIXELS
        for number, entry in enumerate(itertools.chain([head], frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(entry), format="rgb24") if isinstance(entry, np.ndarray) else entry
            if number == 0:
                context = stream.codec_context
                context.width, context.height = frame.width, frame.height
                if frame.format.name == PIXELS:  # how its numbers mean colours; RGB is converted by the encoder's own rule
                    context.colorspace, context.color_range = int(frame.colorspace), int(frame.color_range)
                    context.color_primaries, context.color_trc = int(frame.color_primaries), int(frame.color_trc)
            frame.pts, frame.time_base = number, 1 / stream.codec_context.framerate
            frame.pict_type = 0  # what the source used is not what this encoder should
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _check_crop(crop: Box, size: tuple[int, int] | None, pictures: Pictures | Kept) -> None:
    left, top, right, bottom = crop
    if not (0 <= left < right <= pictures.width and 0 <= top < bottom <= pictures.height):
        raise ValueError(f"crop {crop} must be a part of the picture, {pictures.width} x {pictures.height}")
    if size is not None and (size[0] % 2 or size[1] % 2 or min(size) < 2):
        raise ValueError(f"size {size} must be even")


def _graph(frame: Any, pictures: Pictures | Kept, crop: Box, size: tuple[int, int]) -> Any:
    """Filters from a decoded frame to what is wanted."""
    import av.filter

    turns = pictures.rotation // 90
    left, top, right, bottom = _unturned(crop, turns, pictures.width, pictures.height)
    shown = (pictures.height, pictures.width) if turns % 2 else (pictures.width, pictures.height)
    across, down = frame.width / shown[0], frame.height / shown[1]  # a later frame, or one of oblong pixels, may have another size than is shown
    x, y = int(left * across) // 2 * 2, int(top * down) // 2 * 2
    width, height = max(round((right - left) * across), 1), max(round((bottom - top) * down), 1)
    width, height = min(width, frame.width - x), min(height, frame.height - y)
    wide, tall = size[::-1] if turns % 2 else size

    graph = av.filter.Graph()
    graph.threads = 1
    chain = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    if (x, y, width, height) != (0, 0, frame.width, frame.height):
        chain.append(graph.add("crop", f"{width}:{height}:{x}:{y}"))
    chain.append(graph.add("scale", f"{wide}:{tall}:flags=bicubic:out_range=tv"))
    chain.append(graph.add("format", PIXELS))
    chain += [graph.add(name, argument) if argument else graph.add(name) for name, argument in _TURNS[turns]]
    chain.append(graph.add("buffersink"))
    for one, next_one in itertools.pairwise(chain):
        one.link_to(next_one)
    graph.configure()
    return graph


def _unturned(crop: Box, turns: int, width: int, height: int) -> Box:
    """A crop of the displayed picture, in the picture before it is turned counter-clockwise by quarter turns."""
    left, top, right, bottom = crop
    if turns == 1:
        return height - bottom, left, height - top, right
    if turns == 2:
        return width - right, height - bottom, width - left, height - top
    if turns == 3:
        return top, width - right, bottom, width - left
    return crop

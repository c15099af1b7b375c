"""Frames at a constant rate: frame i is what a player shows at i / fps seconds. One decode serves all who want to see them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_tools.media.kept import Kept
from data_tools.media.pictures import TICK, Pictures

#: of the pictures of one block in all views, so that films of any size fit
MAX_BLOCK_BYTES = 128 << 20
#: pixels of height up to which views are scaled from one small copy of a frame, so high: scaling costs by the size of what it reads. Also a view
#: that is alone: what a step sees must not depend on what other steps look at
SKETCH_HEIGHT = 128
#: how nearly all films are coded: colours at half the resolution
HALF_COLOURED = frozenset({"yuv420p", "yuvj420p"})


@dataclass(frozen=True)
class View:
    """A size and a rate in which frames are wanted.

    Attributes:
        height: of the picture at most, in pixels; the aspect is kept, both sides are even, nothing is enlarged. None leaves the size.
        pixels: rgb24 gives (n, h, w, 3), gray (n, h, w).
        every: frames whose number is a multiple of it.
    """

    height: int | None = None
    pixels: Literal["rgb24", "gray"] = "rgb24"
    every: int = 1


@dataclass
class Block:
    """Frames first..first+count-1 at the constant rate.

    Attributes:
        first: number of the first frame.
        count: of frames.
        pictures: view -> uint8, those frames whose number is a multiple of `view.every`; may be empty.
    """

    first: int
    count: int
    pictures: dict[View, np.ndarray] = field(default_factory=dict)


def look(
    path: Path, views: Sequence[View], *, fps: int = 25, start_s: float = 0.0, end_s: float | None = None, block: int = 50, keep: Kept | None = None
) -> Iterator[Block]:
    """Every frame in each view, in blocks, from one decode. Memory is that of one block, whatever the length.

    Args:
        path: of the file.
        views: wanted; a view's pictures do not depend on the others. Large ones are scaled from the decoded picture, small ones from a small copy.
        fps: frames a second wanted.
        start_s: seconds after the first picture at which frame 0 is.
        end_s: likewise, where frames end; None reads to the end of the file.
        block: frames of a block at most; fewer where pictures are large, and in the last one.
        keep: holds the decoded frames for `read_clip`, as far as it has room.

    Raises:
        FootageError: no picture, undecodable, or clearly less than the container claims.
    """
    limit = None if end_s is None else max(round((end_s - start_s) * fps), 0)
    with Pictures(path) as pictures:
        sketch = _Sketch(pictures)
        painters = [_Painter(view, pictures, sketch) for view in dict.fromkeys(views)]
        block = max(min(block, MAX_BLOCK_BYTES // max(sum(painter.num_bytes for painter in painters), 1)), 1)
        canvases = {painter.view: _Canvas(painter, 0, block) for painter in painters}
        first = count = 0
        if keep is not None:
            keep.begin(pictures)
        for frame, repeats in constant_rate(pictures, fps, start_s, limit):
            if keep is not None:
                keep.take(frame, repeats)
            sketch.take(frame)
            for painter in painters:
                painter.take(frame)
            while repeats:
                part = min(repeats, block - count)
                for canvas in canvases.values():
                    canvas.add(first + count, part)
                repeats, count = repeats - part, count + part
                if count == block:
                    yield Block(first, count, {view: canvas.pictures for view, canvas in canvases.items()})
                    first, count = first + count, 0
                    canvases = {painter.view: _Canvas(painter, first, block) for painter in painters}
        if count:
            yield Block(first, count, {view: canvas.pictures for view, canvas in canvases.items()})


def constant_rate(pictures: Pictures, fps: int, start_s: float = 0.0, limit: int | None = None) -> Iterator[tuple[Any, int]]:
    """Decoded frames, each with the number of frames at the constant rate that show it (at least 1).

    Args:
        pictures: of the file.
        fps: frames a second wanted.
        start_s: seconds after the first picture at which frame 0 is.
        limit: frames at most.
    """
    emitted = 0
    if limit == 0:
        return
    for frame, _, end in pictures.shown(start_s):
        # frame i is shown from start - TICK on: clocks that round to a millisecond move no frame
        until = max(_ceil((end - TICK - start_s) * fps), 0)
        until = until if limit is None else min(until, limit)
        if until > emitted:
            yield frame, until - emitted
            emitted = until
        if limit is not None and emitted >= limit:
            return


def read_frames(path: Path, fps: int, size: int | None = None) -> Iterator[np.ndarray]:
    """Frames at a constant rate: frame i shows what a player shows at i / fps seconds.

    Args:
        path: of the file.
        fps: frames a second wanted.
        size: crop the centre to a square and scale it to so many pixels; None keeps the picture, cropped to even sides.

    Yields:
        uint8 (H, W, 3), RGB.

    Raises:
        FootageError: no picture, undecodable, or clearly fewer frames than claimed.
    """
    with Pictures(path) as pictures:
        painter = _Painter(View(), pictures, _Sketch(pictures))
        for frame, repeats in constant_rate(pictures, fps):
            painter.take(frame)
            picture = painter.picture if size is None else _square(painter.picture, size)
            for _ in range(repeats):
                yield picture.copy()


class _Painter:
    """Scales frames for one view with a scaler of its own, each at most once and only when asked for."""

    def __init__(self, view: View, pictures: Pictures, sketch: _Sketch) -> None:
        from av.video.reformatter import VideoReformatter

        self.view = view
        self.scaler, self.colourer = VideoReformatter(), VideoReformatter()
        self.turns = pictures.rotation // 90
        width, height = _size_of(view, pictures)
        self.even = (slice(height // 2 * 2 or None), slice(width // 2 * 2 or None))
        self.size = (height, width) if self.turns % 2 else (width, height)
        self.sketch = sketch if view.height is not None and view.height <= SKETCH_HEIGHT else None
        self._frame: Any = None
        self._picture: np.ndarray | None = None

    def take(self, frame: Any) -> None:
        self._frame, self._picture = frame, None

    @property
    def picture(self) -> np.ndarray:
        """The frame's picture."""
        if self._picture is None:
            frame = self._frame if self.sketch is None else self.sketch.frame
            if self.view.pixels == "rgb24" and frame.format.name in HALF_COLOURED and (frame.width, frame.height) != self.size:
                # scaling and changing colours at once takes three times as long; the colours lose nothing that h264 would keep
                frame = self.colourer.reformat(frame, *self.size, frame.format.name, threads=1)
            scaled = self.scaler.reformat(frame, *self.size, self.view.pixels, threads=1)
            self._picture = np.rot90(_pixels_of(scaled), self.turns)[self.even]
        return self._picture

    @property
    def shape(self) -> tuple[int, ...]:
        width, height = self.size[::-1] if self.turns % 2 else self.size
        sides = (height // 2 * 2 or height, width // 2 * 2 or width)
        return (*sides, 3) if self.view.pixels == "rgb24" else sides

    @property
    def num_bytes(self) -> int:
        """Of one frame of a block, on average."""
        return math.prod(self.shape) // self.view.every


class _Sketch:
    """A small copy of each frame, made when first asked for, that small views are scaled from."""

    def __init__(self, pictures: Pictures) -> None:
        from av.video.reformatter import VideoReformatter

        width, height = _size_of(View(SKETCH_HEIGHT), pictures)
        self.size = (height, width) if pictures.rotation // 90 % 2 else (width, height)
        self.scaler = VideoReformatter()
        self._frame: Any = None
        self._small: Any = None

    def take(self, frame: Any) -> None:
        self._frame, self._small = frame, None

    @property
    def frame(self) -> Any:
        """The small copy, its colours as they were coded; the frame itself where that is no larger, or coded in a way that can not be scaled."""
        if self._small is None:
            name = self._frame.format.name
            worth = self._frame.height >= 1.5 * self.size[1] and name.startswith("yuv")
            self._small = self.scaler.reformat(self._frame, *self.size, name, threads=1) if worth else self._frame
        return self._small


def _size_of(view: View, pictures: Pictures) -> tuple[int, int]:
    """Width and height of a view as displayed."""
    width, height = pictures.width, pictures.height
    if view.height is not None and view.height < height:
        tall = max(view.height // 2 * 2, 2)
        width, height = max(round(width * tall / height / 2) * 2, 2), tall
    return width, height


class _Canvas:
    """A view's pictures of the frames of a block that begins at `first`."""

    def __init__(self, painter: _Painter, first: int, block: int) -> None:
        self.painter = painter
        self.count = 0
        self._pictures = np.empty((len(_multiples(first, block, painter.view.every)), *painter.shape), np.uint8)

    def add(self, first: int, count: int) -> None:
        """Let the painter's picture be frames first..first+count-1."""
        wanted = len(_multiples(first, count, self.painter.view.every))
        if wanted:
            self._pictures[self.count : self.count + wanted] = self.painter.picture
            self.count += wanted

    @property
    def pictures(self) -> np.ndarray:
        return self._pictures[: self.count]


def _multiples(first: int, count: int, every: int) -> range:
    """Those of the frames first..first+count-1 whose number is a multiple."""
    return range(-(-first // every) * every, first + count, every)


def _pixels_of(frame: Any) -> np.ndarray:
    """Pixels of an rgb24 or gray frame, without a copy."""
    plane, channels = frame.planes[0], 3 if frame.format.name == "rgb24" else 1
    shape, strides = (frame.height, frame.width, channels), (plane.line_size, channels, 1)
    pixels: np.ndarray = np.ndarray(shape, np.uint8, memoryview(plane), strides=strides)
    return pixels if channels == 3 else pixels[..., 0]


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(picture[top : top + side, left : left + side])
    return square if side == size else np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def _ceil(value: float) -> int:
    return -int(-value // 1)

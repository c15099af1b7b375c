"""Decoded frames of a short recording, held so that its clips need no second decoding."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from data_tools.media.pictures import Pictures


class Kept:
    """Frames at the constant rate as they were decoded; all of them or, where they need more room than there is, none.

    Args:
        max_bytes: of all frames together.

    Attributes:
        whole: all frames are here.
        width: of the picture as displayed.
        height: likewise.
        rotation: degrees counter-clockwise that a player turns the picture.
    """

    def __init__(self, max_bytes: int) -> None:
        self.whole = False
        self.width = self.height = self.rotation = 0
        self._room = max_bytes
        self._frames: list[Any] = []
        self._ends: list[int] = []  # number after the last one that shows the frame

    def begin(self, pictures: Pictures) -> None:
        """Start with the first frame of a file."""
        self.width, self.height, self.rotation = pictures.width, pictures.height, pictures.rotation
        self.whole = self._room > 0

    def take(self, frame: Any, repeats: int) -> None:
        """The next decoded frame, and by how many frames at the constant rate it is shown."""
        if not self.whole:
            return
        self._room -= sum(plane.buffer_size for plane in frame.planes)
        if self._room < 0:
            self.whole = False
            self._frames.clear()
            self._ends.clear()
            return
        self._frames.append(frame)
        self._ends.append((self._ends[-1] if self._ends else 0) + repeats)

    def frames(self, first: int, count: int) -> Iterator[tuple[Any, int]]:
        """Frames that show first..first+count-1, each with how many of these it shows; fewer where the recording ends."""
        number = first
        for place in range(bisect_right(self._ends, first), len(self._ends)):
            if number >= first + count:
                return
            until = min(self._ends[place], first + count)
            yield self._frames[place], until - number
            number = until

"""A visible note in the picture that it is synthetic. Axes: T frames, H W height and width, C = 3 colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NOTE = "AI-generated"


class Watermark(ABC):
    """What is put on every frame before it is encoded."""

    @abstractmethod
    def mark(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Frames uint8 of the same shape; those given are not changed."""


@final
class TextWatermark(Watermark):
    """Small text in the lower left corner, on a darkened ground so that it is read on any picture.

    Args:
        height: of the pictures.
        width: of the pictures.
        text: what it says; it shrinks until it fits.
    """

    def __init__(self, height: int, width: int, text: str = NOTE) -> None:
        size = max(8, round(min(height, width) * 0.036))
        font = ImageFont.load_default(size)
        while size > 5 and font.getlength(text) > width * 0.9:
            size -= 1
            font = ImageFont.load_default(size)
        margin = max(1, round(size * 0.5))
        left, top, right, bottom = font.getbbox(text)
        box = (min(width, int(right - left) + 2 * margin), min(height, int(bottom - top) + 2 * margin))
        drawn = Image.new("L", box, 0)
        ImageDraw.Draw(drawn).text((margin - left, margin - top), text, fill=255, font=font)
        cover_HW1 = np.asarray(drawn, np.float32)[:, :, None] / 255
        ground = 0.45
        self._keep = (1 - ground) * (1 - cover_HW1 * 0.9)
        self._add = cover_HW1 * 0.9 * 255
        offset = margin if height > 3 * box[1] and width > box[0] + margin else 0
        self._rows = slice(height - box[1] - offset, height - offset)
        self._columns = slice(offset, offset + box[0])

    def mark(self, frames_THWC: np.ndarray) -> np.ndarray:
        """See `Watermark.mark`."""
        marked = frames_THWC.copy()
        under = marked[:, self._rows, self._columns]
        marked[:, self._rows, self._columns] = (under * self._keep + self._add).astype(np.uint8)
        return marked


@final
class NoWatermark(Watermark):
    """Leaves the picture as it is; the note in the file's metadata stays."""

    def mark(self, frames_THWC: np.ndarray) -> np.ndarray:
        """The frames given."""
        return frames_THWC

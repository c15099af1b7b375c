"""Tables of pictures with names at the edges, on a transparent ground for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = (128, 134, 145, 255)  # readable on white and on black
GAP = 4
FONT_SIZE = 14


def contact_sheet(frames: Mapping[str, Sequence[np.ndarray | None]], labels: Sequence[str], cell: int = 112) -> Image.Image:
    """A table of pictures.

    Args:
        frames: row name -> one picture per column, uint8 (H, W, 3); None leaves the cell empty.
        labels: column names.
        cell: width of a column in pixels. Small frames are enlarged without smoothing, so that what the model made is what is seen.

    Returns:
        RGBA picture, transparent where there is no frame.

    Raises:
        ValueError: a row with another number of pictures than labels, or no picture at all.
    """
    for name, row in frames.items():
        if len(row) != len(labels):
            raise ValueError(f"row {name!r} has {len(row)} pictures for {len(labels)} labels {list(labels)}")
    pictures = [picture for row in frames.values() for picture in row if picture is not None]
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    font = ImageFont.load_default(FONT_SIZE)
    height = max(round(cell * picture.shape[0] / picture.shape[1]) for picture in pictures)
    left = 4 * GAP + max((int(np.ceil(font.getlength(name))) for name in frames), default=0)
    top = FONT_SIZE + 3 * GAP
    sheet = Image.new("RGBA", (left + len(labels) * (cell + GAP), top + len(frames) * (height + GAP)), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        draw.text((left + column * (cell + GAP) + cell / 2, GAP), label, fill=INK, font=font, anchor="ma")
    for line, (name, row) in enumerate(frames.items()):
        y = top + line * (height + GAP)
        draw.text((left - 2 * GAP, y + height / 2), name, fill=INK, font=font, anchor="rm")
        for column, picture in enumerate(row):
            if picture is not None:
                sheet.paste(enlarge(picture, cell, height), (left + column * (cell + GAP), y))
    return sheet


def enlarge(picture_HWC: np.ndarray, width: int, height: int) -> Image.Image:
    """A picture at a given size: nearest neighbour when it grows, area average when it shrinks."""
    image = Image.fromarray(np.ascontiguousarray(picture_HWC))
    return image.resize((width, height), Image.Resampling.NEAREST if image.width <= width else Image.Resampling.BOX)

"""A contact sheet: a row for each clip, its frames evenly spread, what is heard and said below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_tools.reporting.drawing import INK, MARGIN, PAPER, STRIP_HEIGHT, TEXT_HEIGHT, Story, blank, draw_strip, font
from flowact.types import FRAMES_PER_SECOND


def draw_row(frames_THWC: np.ndarray, story: Story, num_frames: int, height: int | None) -> Image.Image:
    """One clip.

    Args:
        frames_THWC: uint8.
        story: of the clip.
        num_frames: to show.
        height: of a frame in pixels; None takes its own, at least 96.
    """
    shown = np.linspace(0, len(frames_THWC) - 1, min(num_frames, len(frames_THWC))).round().astype(int)
    height = height or max(96, frames_THWC.shape[1])
    width = round(frames_THWC.shape[2] * height / frames_THWC.shape[1])
    total = MARGIN + num_frames * (width + MARGIN)
    row, pen = blank(total, 2 * TEXT_HEIGHT + height + STRIP_HEIGHT + 3 * MARGIN)
    source = story.metadata.get("source") or {}
    head = f"{story.where}   {story.metadata.get('identity')}   {len(frames_THWC) / FRAMES_PER_SECOND:.1f} s   {source.get('license', '')}"
    pen.text((MARGIN, 0), head, fill=INK, font=font())
    for column, number in enumerate(shown):
        picture = Image.fromarray(frames_THWC[number]).resize((width, height), Image.Resampling.NEAREST)
        row.paste(picture, (MARGIN + column * (width + MARGIN), TEXT_HEIGHT))
    draw_strip(pen, story, MARGIN, TEXT_HEIGHT + height + MARGIN, total - 2 * MARGIN)
    return row


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows below each other."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet

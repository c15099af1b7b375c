"""Contact sheets: many frames on one picture with names at the edges, on a transparent ground for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowact.evaluation.measurement import Clip
from flowact.types import FRAMES_PER_SECOND, STATES

INK = (128, 134, 145, 255)  # readable on white and on black
GAP = 4
FONT_SIZE = 14
IDENTITY_SECONDS = (0, 5, 10, 20)


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


def states_sheet(clips: Sequence[Clip], num_clips: int = 6, cell: int = 112) -> Image.Image:
    """Several characters, one per row, in each state: the middle frame of the state's longest run. Clips that show most states come first."""
    rows: dict[str, list[np.ndarray | None]] = {}
    for clip in one_per_identity(sorted(clips, key=lambda clip: -len(np.unique(clip.states_T))))[:num_clips]:
        middles = [middle_of_longest_run(clip.states_T == index) for index in range(len(STATES))]
        rows[clip.key] = [None if middle is None else clip.frames_THWC[middle] for middle in middles]
    return contact_sheet(rows, STATES, cell)


def identity_sheet(
    clips: Sequence[Clip], references: Mapping[str, np.ndarray], seconds: Sequence[float] = IDENTITY_SECONDS, num_clips: int = 6, cell: int = 112
) -> Image.Image:
    """The reference picture beside what the stream has made of it after some seconds, one character per row.

    Args:
        clips: generated clips.
        references: clip key -> reference picture, uint8 (H, W, 3).
        seconds: times to show; a time past the end of every clip has no column.
    """
    longest = max(len(clip.states_T) for clip in clips)
    times = [second for second in seconds if second * FRAMES_PER_SECOND <= longest]
    rows: dict[str, list[np.ndarray | None]] = {}
    for clip in one_per_identity(clips)[:num_clips]:
        last = len(clip.states_T) - 1
        indices = [round(second * FRAMES_PER_SECOND) for second in times]
        # a time that falls on the clip's very end shows the last frame
        rows[clip.key] = [references.get(clip.key), *(clip.frames_THWC[min(i, last)] if i <= last + 1 else None for i in indices)]
    return contact_sheet(rows, ["reference", *(f"{second:g} s" for second in times)], cell)


def one_per_identity(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of each identity, then the rest."""
    firsts: dict[str, Clip] = {}
    for clip in clips:
        firsts.setdefault(repr(clip.identity), clip)
    chosen = {clip.key for clip in firsts.values()}
    return [*firsts.values(), *(clip for clip in clips if clip.key not in chosen)]


def middle_of_longest_run(mask_T: np.ndarray) -> int | None:
    """Index in the middle of the longest run of True; None without any."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask_T, np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return None
    longest = int(np.argmax(stops - starts))
    return int((starts[longest] + stops[longest]) // 2)

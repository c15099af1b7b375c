"""What is drawn below the frames of a clip: states with captions, loudness, the mouth. T frames, S samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from data_tools.reporting.charts import OTHER_COLOUR, STATE_COLOURS
from data_tools.reporting.curves import mouth_opening
from flowact.data.media import decode_sound
from flowact.data.schema import parse_captions
from flowact.data.shards import ClipRef, Split
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

INK, PAPER, CURVE, MOUTH, TRACK = (30, 30, 30), (255, 255, 255), (150, 158, 168), (178, 24, 43), (238, 241, 244)
MARGIN, TEXT_HEIGHT, STRIP_HEIGHT = 6, 14, 40
FONT_SIZE = 11

Pen = ImageDraw.ImageDraw


@dataclass(frozen=True)
class Story:
    """What happens in a clip besides its picture.

    Attributes:
        where: 'train/000000/KEY'.
        metadata: of the clip.
        frames: T.
        samples_S: int16, exactly as many as belong to T frames.
        captions: first frame, end, state, text of each.
        states: name of the state in each frame.
        mouth_T: opening as a share of its widest, None where unknown.
        lacking: samples that the stored sound lacks (negative: has too many).
    """

    where: str
    metadata: dict[str, Any]
    frames: int
    samples_S: np.ndarray
    captions: tuple[tuple[int, int, str, str], ...]
    states: tuple[str, ...]
    mouth_T: np.ndarray | None
    lacking: int


def read_story(split: Split, clip: ClipRef) -> Story:
    """Read a clip's members besides its picture.

    Raises:
        UserError: damaged.
    """
    where, metadata = split.where(clip), split.decode(clip, "json")
    rate = split.info.sample_rate if split.info else SAMPLE_RATE
    each = split.info.samples_per_frame if split.info else SAMPLES_PER_FRAME
    samples_S = decode_sound(split.read(clip, "wav"), where, rate)
    lacking = clip.frames * each - len(samples_S)
    samples_S = np.pad(samples_S, (0, max(lacking, 0)))[: clip.frames * each]
    parsed = parse_captions(metadata, where)
    ends = [*parsed.starts[1:], clip.frames]
    captions = tuple((int(first), int(end), state, text) for first, end, state, text in zip(parsed.starts, ends, parsed.states, parsed.texts))
    members = split.shards[clip.shard].entries[clip.sample].members
    names = split.info.states if split.info else ()
    states: list[str] = [state for first, end, state, _ in captions for _ in range(end - first)]
    if "states.npy" in members and names:
        states = [names[number] for number in split.decode(clip, "states.npy")]
    truth, boxes = (split.decode(clip, name) if name in members else None for name in ("truth.npy", "boxes.npy"))
    return Story(where, metadata, clip.frames, samples_S, captions, tuple(states), mouth_opening(metadata, truth, boxes), lacking)


def font() -> Any:
    """The one that Pillow brings, at the size that the strips have room for."""
    return ImageFont.load_default(FONT_SIZE)


def state_colour(state: str) -> tuple[int, ...]:
    """As in the report."""
    return ImageColor.getrgb(STATE_COLOURS.get(state, OTHER_COLOUR))


def draw_strip(pen: Pen, story: Story, left: int, top: int, across: int) -> None:
    """Loudness as bars with the mouth as a line, and below it the states as a coloured band with the captions in it."""
    bottom = top + STRIP_HEIGHT
    level_T = loudness(story)
    draw_curve(pen, level_T / max(float(level_T.max()), 1e-6), (left, top, across, STRIP_HEIGHT), CURVE, bars=True)
    if story.mouth_T is not None:
        draw_curve(pen, story.mouth_T, (left, top, across, STRIP_HEIGHT), MOUTH)
    for first, end, state, text in story.captions:
        start, stop = left + first / story.frames * across, left + end / story.frames * across
        pen.rectangle((start, bottom + 1, stop, bottom + TEXT_HEIGHT), fill=state_colour(state))
        pen.text((start + 2, bottom + 1), fitting(pen, text or state, stop - start - 4), fill=INK, font=font())


def loudness(story: Story) -> np.ndarray:
    """Root mean square of each frame's sound (T,)."""
    frames_TS = story.samples_S.astype(np.float32).reshape(story.frames, -1) / 2**15
    return np.sqrt(np.square(frames_TS).mean(axis=1))


def fitting(pen: Pen, text: str, width: float) -> str:
    """As much of a text as there is room for."""
    text = " ".join(text.split())
    while text and pen.textlength(text, font=font()) > width:
        text = text[:-1]
    return text


def draw_curve(pen: Pen, values: np.ndarray, box: tuple[int, int, int, int], colour: tuple[int, int, int], bars: bool = False) -> None:
    """Values from 0 to 1 over a box (left, top, width, height), each in the middle of its frame; a line is interrupted where a value is not known."""
    left, top, width, height = box
    x = left + (np.arange(len(values)) + 0.5) / len(values) * width
    y = top + height - np.clip(values, 0, 1) * (height - 2)
    if bars:
        half = max(width / len(values) / 2 - 0.5, 0.0)
        for a, b in zip(x, y):
            pen.rectangle((a - half, b, a + half, top + height), fill=colour)
        return
    line: list[tuple[float, float]] = []
    for point in [*zip(x.tolist(), y.tolist()), (0.0, float("nan"))]:
        if np.isfinite(point[1]):
            line.append(point)
        elif line:
            pen.line(line, fill=colour, width=2)
            line = []


def enlarge(frame_HWC: np.ndarray, factor: int) -> np.ndarray:
    """A frame grown by a whole factor, its pixels as they are."""
    return frame_HWC.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else frame_HWC


def blank(width: int, height: int, colour: tuple[int, int, int] = PAPER) -> tuple[Image.Image, Pen]:
    """A picture and a pen for it."""
    picture = Image.new("RGB", (width, height), colour)
    return picture, ImageDraw.Draw(picture)

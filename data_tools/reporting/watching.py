"""A film of clips to check by eye and ear: frames as they are stored, beside them what the model sees, with number, time and state burnt in.

Frame t of the film is frame t of the clip, and its sound is the clip's: nothing is dropped, repeated or moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_tools.reporting.drawing import INK, MARGIN, STRIP_HEIGHT, TEXT_HEIGHT, TRACK, Story, blank, draw_strip, enlarge, fitting, font, state_colour

MIN_HEIGHT = 256
MIN_WIDTH = 480
LINE = TEXT_HEIGHT + 4


def canvas_size(shapes: Sequence[tuple[int, int]], panels: int) -> tuple[int, int]:
    """Width and height of a film that holds clips of these (height, width), both even."""
    width = max(panels * (side * factor(height) + MARGIN) + MARGIN for height, side in shapes)
    height = max(height * factor(height) for height, _ in shapes)
    total = LINE + height + MARGIN + LINE + STRIP_HEIGHT + TEXT_HEIGHT + LINE + 2 * MARGIN
    return -(-max(width, MIN_WIDTH) // 2) * 2, -(-total // 2) * 2


def factor(height: int) -> int:
    """Whole factor by which a small picture grows."""
    return max(MIN_HEIGHT // height, 1)


def film_frames(panels: Sequence[tuple[str, np.ndarray]], story: Story, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames of one clip, uint8 (H, W, 3), exactly as many as the clip has.

    Args:
        panels: title and frames uint8 (T, H, W, 3) of each picture, side by side; one that is shorter shows that it has no such frame.
        story: of the clip.
        size: width and height of the film.
    """
    width, height = size
    across = width - 2 * MARGIN
    grown = factor(panels[0][1].shape[1])
    picture_height = panels[0][1].shape[1] * grown
    strip_top = LINE + picture_height + MARGIN + LINE
    ground, pen = blank(width, height)
    left = MARGIN
    places = []
    for title, frames_THWC in panels:
        pen.text((left, 2), fitting(pen, title, frames_THWC.shape[2] * grown), fill=INK, font=font())
        places.append(left)
        left += frames_THWC.shape[2] * grown + MARGIN
    pen.rectangle((MARGIN, strip_top, MARGIN + across, strip_top + STRIP_HEIGHT), fill=TRACK)
    draw_strip(pen, story, MARGIN, strip_top, across)
    ground_HWC = np.asarray(ground)
    for number in range(story.frames):
        canvas_HWC = ground_HWC.copy()
        for place, (_, frames_THWC) in zip(places, panels):
            side = frames_THWC.shape[2] * grown
            if number < len(frames_THWC):
                canvas_HWC[LINE : LINE + picture_height, place : place + side] = enlarge(frames_THWC[number], grown)
            else:
                canvas_HWC[LINE : LINE + picture_height, place : place + side] = TRACK
        yield _written(canvas_HWC, story, number, strip_top, picture_height)


def _written(canvas_HWC: np.ndarray, story: Story, number: int, strip_top: int, picture_height: int) -> np.ndarray:
    """Number, time and state of a frame, and where it is on the strip."""
    height, width = canvas_HWC.shape[:2]
    line_top = LINE + picture_height + MARGIN
    line, pen = blank(width, LINE)
    state = story.states[number]
    pen.rectangle((MARGIN, 2, MARGIN + 10, 12), fill=state_colour(state))
    words = f"{state} | frame {number} of {story.frames} | {number / fps_of(story):.2f} s | {story.where}"
    pen.text((MARGIN + 16, 1), fitting(pen, words, width - 2 * MARGIN - 16), fill=INK, font=font())
    canvas_HWC[line_top : line_top + LINE] = np.asarray(line)
    now = MARGIN + round((number + 0.5) / story.frames * (width - 2 * MARGIN))
    canvas_HWC[strip_top : strip_top + STRIP_HEIGHT + TEXT_HEIGHT + 2, now : now + 2] = INK
    text = next((text for first, end, _, text in story.captions if first <= number < end), "")
    if text:
        below, pen = blank(width, LINE)
        pen.text((MARGIN, 2), fitting(pen, text, width - 2 * MARGIN), fill=INK, font=font())
        canvas_HWC[height - LINE :] = np.asarray(below)
    return canvas_HWC


def fps_of(story: Story) -> int:
    """Frames a second of the clip."""
    return int(story.metadata.get("fps") or 25)

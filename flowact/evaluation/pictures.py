"""Contact sheets: many frames on one picture with names at the edges, on a transparent ground for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from flowact.evaluation.measurement import Clip
from flowact.types import FRAMES_PER_SECOND, STATES
from flowact.writers.sheet import contact_sheet

IDENTITY_SECONDS = (0, 5, 10, 20)


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


def before_after_sheet(
    before: Sequence[Clip], after: Sequence[Clip], truth: Mapping[str, np.ndarray], num_columns: int = 6, cell: int = 112
) -> Image.Image:
    """The same moments of the same clips before and after a training, and what they should show: three rows a clip.

    Args:
        before: generated clips.
        after: likewise; those with the keys of `truth` are shown.
        truth: clip key -> uint8 (T, H, W, 3).
        num_columns: moments of a clip, from its first second to its end.
        cell: width of a column in pixels.
    """
    earlier = {clip.key: clip for clip in before}
    rows: dict[str, list[np.ndarray | None]] = {}
    length = min(len(clip.frames_THWC) for clip in [*before, *after])
    times = np.linspace(min(FRAMES_PER_SECOND, length - 1), length - 1, num_columns).round().astype(int).tolist()
    for clip in after:
        if clip.key in truth:
            streams = {"before": earlier[clip.key].frames_THWC, "after": clip.frames_THWC, "truth": truth[clip.key]}
            rows |= {f"{clip.key} {name}": [frames[time] for time in times] for name, frames in streams.items()}
    return contact_sheet(rows, [f"{time / FRAMES_PER_SECOND:.1f} s" for time in times], cell)

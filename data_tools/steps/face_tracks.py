"""Faces of single pictures linked into tracks, and tracks into signals.

Axes: T frames, N pictures looked at, X boxes (face, mouth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from data_tools.steps.detectors.base import Face, overlap

LINK_OVERLAP = 0.3  # of boxes in successive pictures; SyncNet's tracker asks for 0.5 at each frame, ours may look at every fifth
LANE_GAP = 2  # frames between two people who share a number


@dataclass
class _Track:
    numbers: list[int] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)


class Tracks:
    """Links faces by the overlap of their boxes, greedily, the best first.

    Args:
        max_gap: frames for which a face may be lost.
        min_track: frames from first to last sight; shorter tracks are dropped.
        median: frames of the median filter over the face's box; 1 for none.
    """

    def __init__(self, max_gap: int, min_track: int, median: int) -> None:
        self.max_gap, self.min_track, self.median = max_gap, min_track, median
        self.live: list[_Track] = []
        self.done: list[_Track] = []
        self.step = 1
        self.last = 0

    def add(self, number: int, faces: Sequence[Face]) -> None:
        """The faces of one more picture; numbers rise."""
        self.step, self.last = max(number - self.last, 1), number
        gone = [track for track in self.live if number - track.numbers[-1] - self.step > self.max_gap]
        self.live = [track for track in self.live if track not in gone]
        self._finish(gone)
        pairs = [(overlap(track.faces[-1].boxes_X4[0], face.boxes_X4[0]), i, j) for i, track in enumerate(self.live) for j, face in enumerate(faces)]
        linked: dict[int, int] = {}
        taken = set()
        for share, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
            if share >= LINK_OVERLAP and i not in taken and j not in linked:
                linked[j] = i
                taken.add(i)
        for j, face in enumerate(faces):
            if j not in linked:
                self.live.append(_Track())
            track = self.live[linked.get(j, -1)]
            track.numbers.append(number)
            track.faces.append(face)

    def signals(self, frames: int) -> dict[str, np.ndarray]:
        """`boxes/K`, `mouth/K`, `pose/K`, `presence/K` for each lane; tracks that never meet share one: as many as people at once."""
        self._finish(self.live)
        self.live = []
        lanes: list[int] = []
        signals: dict[str, np.ndarray] = {}
        for track in sorted(self.done, key=lambda track: (track.numbers[0], -len(track.numbers))):
            first, end = track.numbers[0], min(track.numbers[-1] + self.step, frames)
            lane = next((i for i, free in enumerate(lanes) if first >= free), len(lanes))
            if lane == len(lanes):
                lanes.append(0)
                for name, shape in (("boxes", (2, 4)), ("mouth", ()), ("pose", (3,)), ("presence", ())):
                    signals[f"{name}/{lane}"] = np.full((frames, *shape), np.nan, np.float32)
            lanes[lane] = end + LANE_GAP
            for name, values in self._values(track, np.arange(first, end)).items():
                signals[f"{name}/{lane}"][first:end] = values
        return signals

    def _finish(self, tracks: Sequence[_Track]) -> None:
        self.done += [track for track in tracks if track.numbers[-1] - track.numbers[0] + self.step >= self.min_track]

    def _values(self, track: _Track, frames_T: np.ndarray) -> dict[str, np.ndarray]:
        numbers_N = np.array(track.numbers)
        boxes_N8 = np.stack([face.boxes_X4 for face in track.faces]).reshape(len(numbers_N), -1)
        openings_N1 = np.array([[face.opening] for face in track.faces])
        values = np.concatenate([boxes_N8, openings_N1, np.array([face.pose for face in track.faces])], axis=1)
        values_TV = np.stack([_between(frames_T, numbers_N, column) for column in values.T], axis=1)
        values_TV[:, :4] = _median(values_TV[:, :4], self.median)
        gap_T = np.diff(numbers_N, append=numbers_N[-1] + self.step)[np.searchsorted(numbers_N, frames_T, "right") - 1]
        scores_T = np.interp(frames_T, numbers_N, [face.score for face in track.faces])
        lost_T = (gap_T > self.step) & ~np.isin(frames_T, numbers_N)
        return {
            "boxes": values_TV[:, :8].reshape(-1, 2, 4),
            "mouth": values_TV[:, 8],
            "pose": values_TV[:, 9:],
            "presence": np.where(lost_T, 0, scores_T),
        }


def _between(frames_T: np.ndarray, numbers_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Linear between the pictures in which the value is known, NaN if it never is."""
    known = np.isfinite(values_N)
    return np.interp(frames_T, numbers_N[known], values_N[known]) if known.any() else np.full(len(frames_T), np.nan)


def _median(values_TV: np.ndarray, width: int) -> np.ndarray:
    if width == 1 or len(values_TV) < width:
        return values_TV
    padded = np.pad(values_TV, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0), axis=-1)


def runs(values_T: np.ndarray) -> list[tuple[int, int, int]]:
    """Stretches of equal values: first, end, value."""
    if not len(values_T):
        return []
    edges = [0, *(np.flatnonzero(values_T[1:] != values_T[:-1]) + 1).tolist(), len(values_T)]
    return [(first, end, int(values_T[first])) for first, end in pairwise(edges)]

"""Where one shot ends and another begins.

Axes: T frames, N frames of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import final

import numpy as np

from data_tools.footage import Block, Footage, View
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Recording, Span, Step, Watcher
from data_tools.steps.libraries import need
from flowact.errors import UserError

FADE_REACH = 6  # frames before and after: half of the shortest dissolve in use, half a second
THUMBNAIL = 3  # every n-th pixel in both directions: dissolves are seen by large areas
STRAIGHT = 0.2  # of the distance between two ends, by which a mixture of them may miss their middle; a cut or a movement misses by about half
BLANK_CONTRAST = 4.0  # grey values: a picture with less is one colour


@final
class Scenes(Step):
    """Cuts, by the content score of PySceneDetect and its adaptive rule; fades and dissolves, by frames that are mixtures of those around them.

    Content is measured once; where it is cut follows from the arguments below. Not seen are wipes, cuts between pictures that look alike, dissolves
    of more than about a second, and those between pictures that move by more than half a hundredth of their width a frame. A flash makes two cuts.

    Args:
        threshold: content of a frame over the mean of its neighbours; 3 is PySceneDetect's adaptive default, LatentSync's pipeline uses 2.
        min_content: content that a cut has at least, of 255; 15 is PySceneDetect's default.
        neighbours: frames on each side that a frame is compared with.
        fade_change: mean change in grey values over half a second, from which a smooth mixture counts as a fade; None keeps fades.
        trim_frames: left out on both sides of each cut: encoders smear there. 4 is Koala-36M's figure.
    """

    thresholds = ("threshold", "min_content", "neighbours", "fade_change", "trim_frames")
    package = "opencv-python-headless"

    def __init__(
        self, threshold: float = 3.0, min_content: float = 15.0, neighbours: int = 2, fade_change: float | None = 20.0, trim_frames: int = 4
    ) -> None:
        if threshold <= 0 or min_content < 0 or neighbours < 1 or trim_frames < 0:
            raise UserError(
                f"Scenes: threshold {threshold} must be above 0, min_content {min_content} and trim_frames {trim_frames} at least 0,"
                f" neighbours {neighbours} at least 1"
            )
        self.threshold, self.min_content, self.neighbours = threshold, min_content, neighbours
        self.fade_change, self.trim_frames = fade_change, trim_frames

    def check(self) -> None:
        need("cv2", "Scenes")

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return _Watcher()

    def cut(self, recording: Recording, spans: Sequence[Span]) -> list[Span]:
        content_T = recording.signals[f"{self.name}/content"]
        gone_T = np.zeros(len(content_T) + 1, bool)  # one frame more, so that the last run ends
        gone_T[:-1] = self._fades(recording.signals)
        starts_T = np.zeros_like(gone_T)
        starts_T[:-1] = self._cuts(content_T)
        # a frame that is kept begins a shot where the one before is gone, or where content jumps
        edges = np.flatnonzero((gone_T[1:] != gone_T[:-1]) | starts_T[1:]) + 1
        cut = []
        for span in spans:
            bounds = [span.first, *(int(edge) for edge in edges if span.first < edge < span.end), span.end]
            for first, end in pairwise(bounds):
                if first < len(content_T) and gone_T[first]:
                    continue
                first += self.trim_frames if first != span.first else 0
                end -= self.trim_frames if end != span.end else 0
                if end > first:
                    cut.append(Span(first, end, span.track))
        return cut

    def _cuts(self, content_T: np.ndarray) -> np.ndarray:
        """bool (T,): a shot begins here."""
        reach = self.neighbours
        padded = np.pad(content_T.astype(np.float64), reach, mode="reflect" if len(content_T) > reach else "edge")
        around_T = np.convolve(padded, np.ones(2 * reach + 1), "valid")[: len(content_T)] - content_T
        return (content_T >= self.min_content) & (content_T * 2 * reach >= self.threshold * np.maximum(around_T, 1e-6))

    def _fades(self, signals: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool (T,): part of a fade or blank."""
        change_T, miss_T, contrast_T = (signals[f"{self.name}/{name}"] for name in ("change", "miss", "contrast"))
        blank_T = contrast_T < BLANK_CONTRAST
        if self.fade_change is None:
            return np.zeros_like(blank_T)
        mixed_T = (change_T >= self.fade_change) & (miss_T <= STRAIGHT * change_T)
        reach = np.convolve(mixed_T, np.ones(2 * FADE_REACH + 1), "full")[FADE_REACH : FADE_REACH + len(mixed_T)] > 0
        return reach | blank_T

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        content_T = clip.signal(f"{self.name}/content")
        return {"content": None if content_T is None or len(content_T) < 2 else round(float(content_T[1:].max()), 2)}


@final
class _Watcher(Watcher):
    """Content scores and, from grey thumbnails, change and straightness over half a second."""

    def __init__(self) -> None:
        self.view = View(64, "rgb24", 1)
        self.views = (self.view,)
        self.cv2 = need("cv2", "Scenes")
        self.hsv: np.ndarray | None = None
        self.content: list[float] = []
        self.found: dict[str, list[np.ndarray]] = {"change": [], "miss": [], "contrast": []}
        self.held: np.ndarray | None = None

    def see(self, block: Block) -> None:
        pictures_NHWC = block.pictures[self.view]
        if not len(pictures_NHWC):
            return
        self._measure_content(pictures_NHWC)
        grey_NHW = pictures_NHWC[:, ::THUMBNAIL, ::THUMBNAIL].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        self.found["contrast"].append(grey_NHW.std((1, 2)))
        grey_NHW = grey_NHW if self.held is None else np.concatenate([self.held, grey_NHW])
        if len(grey_NHW) > 2 * FADE_REACH:
            before, middle, after = grey_NHW[: -2 * FADE_REACH], grey_NHW[FADE_REACH:-FADE_REACH], grey_NHW[2 * FADE_REACH :]
            self.found["change"].append(np.abs(after - before).mean((1, 2)))
            self.found["miss"].append(np.abs(middle - (before + after) / 2).mean((1, 2)))
        self.held = grey_NHW[-2 * FADE_REACH :]

    def _measure_content(self, pictures_NHWC: np.ndarray) -> None:
        """What PySceneDetect's ContentDetector scores: mean change in hue, saturation and brightness. It tells its score only where it searches edges
        too, which takes ten times as long."""
        for picture in pictures_NHWC:
            hsv = self.cv2.cvtColor(np.ascontiguousarray(picture), self.cv2.COLOR_RGB2HSV)
            self.content.append(0.0 if self.hsv is None else sum(self.cv2.mean(self.cv2.absdiff(hsv, self.hsv))[:3]) / 3)
            self.hsv = hsv

    def signals(self) -> dict[str, np.ndarray]:
        frames = len(self.content)
        signals = {name: np.concatenate(parts) if parts else np.zeros(0, np.float32) for name, parts in self.found.items()}
        for name in ("change", "miss"):  # these begin and end half a second's half inside
            lead = min(FADE_REACH, frames)
            signals[name] = np.pad(signals[name], (lead, max(frames - lead - len(signals[name]), 0)))[:frames]
        return {"content": np.array(self.content, np.float32), **{name: signal.astype(np.float32) for name, signal in signals.items()}}

"""How much moves: the picture, the camera, or nothing at all.

Axes: T frames, N pictures of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from data_tools.footage import Block, Footage, View
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Rule, Step, Watcher
from data_tools.steps.picture import middle

BORDER = 0.15  # of the picture's width on both sides, where the camera is seen rather than the person
SAME = 0.05  # grey values: a frame that was repeated, even after encoding; filmed people who hold still change by 0.25 and more


@final
class Motion(Step):
    """Mean change from frame to frame, the camera's share of it, its shake, and frozen frames.

    The camera's shift is estimated by least squares from the brightness on the left and right border: exact for small shifts of a still background,
    too small for fast pans, and misled by a person who fills the border.

    Args:
        min_motion: mean change in grey values; None rejects nothing. Stills with a soundtrack have 0.
        max_motion: likewise.
        max_camera: median shift a frame, in hundredths of the picture's height; None rejects nothing.
        max_shake: how much the shift changes from frame to frame, likewise; None rejects nothing.
        max_frozen: share of frames like the one before; None rejects nothing. 15 frames a second brought to 25 give 0.4, 24 give 0.04.
    """

    thresholds = ("min_motion", "max_motion", "max_camera", "max_shake", "max_frozen")

    def __init__(
        self,
        min_motion: float | None = None,
        max_motion: float | None = None,
        max_camera: float | None = None,
        max_shake: float | None = None,
        max_frozen: float | None = 0.9,
    ) -> None:
        self.min_motion, self.max_motion = min_motion, max_motion
        self.max_camera, self.max_shake, self.max_frozen = max_camera, max_shake, max_frozen

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return _Watcher()

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        # the first frame's change is against a frame before the clip
        change_T, border_T, shift_T2 = (
            None if signal is None else signal[1:] for signal in (clip.signal(f"{self.name}/{name}") for name in ("change", "border", "shift"))
        )
        if change_T is None or border_T is None or shift_T2 is None or not len(change_T):
            return dict.fromkeys(("motion", "subject", "camera", "shake", "frozen"))
        return {
            "motion": round(float(change_T.mean()), 3),
            "subject": round(float(np.maximum(change_T - border_T, 0).mean()), 3),
            "camera": middle(100 * np.linalg.norm(shift_T2, axis=1), 3),
            "shake": round(float(100 * np.linalg.norm(np.diff(shift_T2, axis=0), axis=1).mean()), 3) if len(shift_T2) > 1 else None,
            "frozen": round(float((change_T < SAME).mean()), 4),
        }

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule.at_least("motion", scores["motion"], self.min_motion),
            Rule.at_most("motion", scores["motion"], self.max_motion),
            Rule.at_most("camera", scores["camera"], self.max_camera),
            Rule.at_most("shake", scores["shake"], self.max_shake),
            Rule.at_most("frozen", scores["frozen"], self.max_frozen),
        )

    def explain(self, rule: Rule) -> str:
        if rule.score == "frozen":
            return f"the picture stands still in {rule.value:.0%} of the frames, at most {rule.bound:.0%} are allowed"
        what = {"motion": "the picture changes by", "camera": "the camera moves by", "shake": "the camera shakes by"}[rule.score]
        unit = "grey values a frame" if rule.score == "motion" else "hundredths of the height a frame"
        return f"{what} {rule.value:g} {unit}, must be {rule.relation} {rule.bound:g}"


@final
class _Watcher(Watcher):
    def __init__(self) -> None:
        self.view = View(96, "gray", 1)
        self.views = (self.view,)
        self.held: np.ndarray | None = None
        self.parts: dict[str, list[np.ndarray]] = {"change": [], "border": [], "shift": []}

    def see(self, block: Block) -> None:
        pictures_NHW = block.pictures[self.view]
        if not len(pictures_NHW):
            return
        joined = np.concatenate([pictures_NHW[:1] if self.held is None else self.held, pictures_NHW]).astype(np.float32)
        self.held = pictures_NHW[-1:].copy()
        wide = max(round(joined.shape[2] * BORDER), 2)
        sides = (joined[:, :, :wide], joined[:, :, -wide:])
        self.parts["change"].append(np.abs(joined[1:] - joined[:-1]).mean((1, 2)))
        self.parts["border"].append(np.mean([np.abs(side[1:] - side[:-1]).mean((1, 2)) for side in sides], axis=0))
        self.parts["shift"].append(_shift(sides) / joined.shape[1])

    def signals(self) -> dict[str, np.ndarray]:
        empty = {"change": (0,), "border": (0,), "shift": (0, 2)}
        return {name: np.concatenate(parts).astype(np.float32) if parts else np.zeros(empty[name], np.float32) for name, parts in self.parts.items()}


def _shift(sides: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels (N - 1, 2), x and y, by which each picture is the one before moved: the optical flow equation, one flow for all pixels."""
    products = np.zeros((len(sides[0]) - 1, 5))
    for side in sides:
        mean = (side[1:] + side[:-1]) / 2
        x = (mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2]) / 2
        y = (mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1]) / 2
        t = (side[1:] - side[:-1])[:, 1:-1, 1:-1]
        products += np.stack([np.einsum("nhw,nhw->n", a, b) for a, b in ((x, x), (x, y), (y, y), (x, t), (y, t))], axis=1)
    xx, xy, yy, xt, yt = products.T
    xx, yy = xx + 1, yy + 1  # a picture without edges does not move
    determinant = xx * yy - xy * xy
    return np.stack([xy * yt - yy * xt, xy * xt - xx * yt], axis=1) / np.maximum(determinant, 1e-6)[:, None]

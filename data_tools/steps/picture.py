"""How sharp and how well lit the picture is.

Axes: T frames, N pictures of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np

from data_tools.footage import Block, Footage, View
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Rule, Step, Watcher

TILES = 8  # of the picture in both directions
DARK, BRIGHT = 8, 247  # grey values next to black and white


class Sampler(Watcher):
    """Measures every n-th picture, each for itself, and holds the values until the next.

    Args:
        view: of the pictures.
        measure: pictures (N, H, W[, 3]) -> name -> values, first axis N.
    """

    def __init__(self, view: View, measure: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> None:
        self.view, self.views, self.measure = view, (view,), measure
        self.frames = 0
        self.parts: list[Mapping[str, np.ndarray]] = []

    def see(self, block: Block) -> None:
        self.frames = block.first + block.count
        if len(block.pictures[self.view]):
            self.parts.append(self.measure(block.pictures[self.view]))

    def signals(self) -> dict[str, np.ndarray]:
        names = self.parts[0] if self.parts else self.measure(np.zeros((1, 16, 16) if self.view.pixels == "gray" else (1, 16, 16, 3), np.uint8))
        held = {name: [part[name] for part in self.parts] for name in names}
        return {
            name: np.repeat(np.concatenate(parts), self.view.every, axis=0)[: self.frames].astype(np.float32) if parts else np.zeros(0, np.float32)
            for name, parts in held.items()
        }


@final
class Sharpness(Step):
    """Sharpness of the sharpest parts: variance of the Laplacian in the best tenth of the picture's tiles, so that a soft background does not count.

    Depends on what is seen (hair is sharper than skin) and not on the recording's size, since all are looked at in one height: compare within a
    dataset before choosing a bound. Noise counts as sharpness.

    Args:
        min_sharpness: of the median frame; None rejects nothing. Filmed faces are seldom below 100, out of focus or blown up ones below 30.
        every: looks at every n-th frame.
    """

    thresholds = ("min_sharpness",)

    def __init__(self, min_sharpness: float | None = None, every: int = 10) -> None:
        self.min_sharpness, self.every = min_sharpness, every

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return Sampler(View(360, "gray", self.every), lambda pictures_NHW: {"sharpness": tile_sharpness(pictures_NHW)})

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        return {"sharpness": middle(clip.signal(f"{self.name}/sharpness"), 2)}

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (Rule.at_least("sharpness", scores["sharpness"], self.min_sharpness),)

    def explain(self, rule: Rule) -> str:
        return f"the picture is blurred: sharpness {rule.value:g}, must be at least {rule.bound:g}"


def tile_sharpness(pictures_NHW: np.ndarray) -> np.ndarray:
    """Variance of the Laplacian in the tile at the 90th percentile, float (N,)."""
    found = []
    for picture in pictures_NHW:
        grey = picture.astype(np.int16)
        curve = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
        high, wide = curve.shape[0] // TILES, curve.shape[1] // TILES
        tiles = curve[: high * TILES, : wide * TILES].reshape(TILES, high, TILES, wide).astype(np.float32)
        found.append(np.percentile(tiles.var((1, 3)), 90))
    return np.array(found)


@final
class Exposure(Step):
    """Brightness, contrast, and how much of the picture is black or white.

    Args:
        min_luma: mean brightness of the median frame, 0 to 1; None rejects nothing.
        max_luma: likewise.
        min_contrast: standard deviation of brightness, 0 to 1; 0.02 rejects pictures of one colour. None rejects nothing.
        max_dark: share of the picture that is black; None rejects nothing.
        max_bright: share that is white; None rejects nothing. A white wall behind the speaker is white and well exposed.
        every: looks at every n-th frame.
    """

    thresholds = ("min_luma", "max_luma", "min_contrast", "max_dark", "max_bright")

    def __init__(
        self,
        min_luma: float | None = None,
        max_luma: float | None = None,
        min_contrast: float | None = 0.02,
        max_dark: float | None = None,
        max_bright: float | None = None,
        every: int = 5,
    ) -> None:
        self.min_luma, self.max_luma, self.min_contrast = min_luma, max_luma, min_contrast
        self.max_dark, self.max_bright, self.every = max_dark, max_bright, every

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return Sampler(View(96, "gray", self.every), _light)

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        return {name: middle(clip.signal(f"{self.name}/{name}")) for name in ("luma", "contrast", "dark", "bright")}

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule.at_least("luma", scores["luma"], self.min_luma),
            Rule.at_most("luma", scores["luma"], self.max_luma),
            Rule.at_least("contrast", scores["contrast"], self.min_contrast),
            Rule.at_most("dark", scores["dark"], self.max_dark),
            Rule.at_most("bright", scores["bright"], self.max_bright),
        )

    def explain(self, rule: Rule) -> str:
        if rule.score in ("dark", "bright"):
            return f"{rule.value:.0%} of the picture is {'black' if rule.score == 'dark' else 'white'}, at most {rule.bound:.0%} is allowed"
        return f"{'brightness' if rule.score == 'luma' else 'contrast'} is {rule.value:.2f} of 1, must be {rule.relation} {rule.bound:g}"


def _light(pictures_NHW: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "luma": pictures_NHW.mean((1, 2)) / 255,
        "contrast": pictures_NHW.std((1, 2)) / 255,
        "dark": (pictures_NHW <= DARK).mean((1, 2)),
        "bright": (pictures_NHW >= BRIGHT).mean((1, 2)),
    }


def middle(signal_T: np.ndarray | None, digits: int = 4) -> float | None:
    """The median of what is known; None where nothing is."""
    known = np.zeros(0) if signal_T is None else signal_T[np.isfinite(signal_T)]
    return round(float(np.median(known)), digits) if len(known) else None

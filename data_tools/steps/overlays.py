"""What was laid over the picture: logos and lettering.

Axes: N pictures, H W pixels, R regions.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from data_tools.footage import Block, Footage, View
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Rule, Step, Watcher
from data_tools.steps.libraries import need

OCR_CURE = "pip install rapidocr onnxruntime"
EDGE = 20  # grey values between the neighbours of a pixel, from which there is an edge
REMEMBERED = 8  # pictures back to which the present one is compared
OTHER = 0.4  # of the edges inside may have stayed where the picture counts as another one
FEWEST_EDGES = 0.01  # of the pixels inside; with less, nothing tells whether the picture changed
CELL, FILLED = 8, 10  # pixels of a cell's side, and edges that stayed from which it is part of a logo
BAND, CORNER = 0.25, 0.35  # of the height above and below, and of the width on both sides: where logos are
STROKE = 30  # grey values between the neighbours of a pixel on the side of a letter
STROKES = 1.2  # changes from rising to falling brightness in a cell's row of 16 pixels: letters have 2 to 5
STAYED = 0.7  # of the strokes of a cell: of letters that move on, some meet others
LETTERS = 16  # pixels of a cell of lettering in its width
LINE = 4  # cells of a line at least, one beside the other


@final
class Overlays(Step):
    """Watermarks, and burnt-in lettering such as subtitles and name plates.

    `watermark` is the share of a corner in which the same edges stay while the rest of the picture becomes another one: over cuts, or with a moving
    camera. In a recording of one still shot it is unknown, for there nothing tells a logo from a picture on the wall; the frame of a car's window
    before a passing street counts as one, and logos that shine through are missed. `text` is the share of the upper or lower quarter's width that one
    line of lettering takes, by strokes of high contrast that stay for half a second: letters of a twentieth of the height or more, and as well a
    fence, grass or a striped curtain. Both find candidates; look at the report before choosing a bound. With `ocr` a network looks for
    lettering (0.4 s of one core for each picture), and `ocr_text` is the share of the picture's area that it takes.

    Args:
        max_watermark: of a corner; None rejects nothing. A logo takes 0.04 and more.
        max_text: of the width; None rejects nothing. A subtitle takes 0.2 and more.
        max_ocr_text: of the area; None rejects nothing. Open-Sora drops videos with more than 0.3.
        ocr: look for lettering with the package rapidocr, which carries its weights, in one picture of four seconds.
        every: looks at every n-th frame.
    """

    thresholds = ("max_watermark", "max_text", "max_ocr_text")

    def __init__(
        self,
        max_watermark: float | None = None,
        max_text: float | None = None,
        max_ocr_text: float | None = None,
        ocr: bool = False,
        every: int = 12,
    ) -> None:
        self.max_watermark, self.max_text, self.max_ocr_text = max_watermark, max_text, max_ocr_text
        self.ocr, self.every = ocr, every

    def check(self) -> None:
        if self.ocr:
            need("rapidocr", "Overlays with ocr: true", OCR_CURE)

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return _Watcher(self.every, self.ocr)

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        scores: dict[str, Plain] = {}
        for name, share in (("watermark", 50), ("text", 80), *((("ocr_text", 80),) if self.ocr else ())):
            signal_T = clip.signal(f"{self.name}/{name}")
            known = np.zeros(0) if signal_T is None else signal_T[np.isfinite(signal_T)]
            scores[name] = round(float(np.percentile(known, share)), 4) if len(known) else None
        return scores

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule.at_most("watermark", scores["watermark"], self.max_watermark),
            Rule.at_most("text", scores["text"], self.max_text),
            Rule.at_most("ocr_text", scores["ocr_text"], self.max_ocr_text) if "ocr_text" in scores else None,
        )

    def explain(self, rule: Rule) -> str:
        what = {
            "watermark": "a logo seems to take {:.0%} of a corner",
            "text": "a line of lettering seems to take {:.0%} of the width",
            "ocr_text": "lettering takes {:.0%} of the picture",
        }[rule.score]
        return f"{what.format(rule.value)}, at most {rule.bound:.0%} are allowed"


@dataclass(frozen=True)
class _Edges:
    """Brightness gradients of one picture, int16 (H, W), and where they are edges."""

    x_HW: np.ndarray
    y_HW: np.ndarray
    there_HW: np.ndarray

    @classmethod
    def of(cls, picture_HW: np.ndarray) -> _Edges:
        grey_HW = picture_HW.astype(np.int16)
        x_HW, y_HW = np.zeros_like(grey_HW), np.zeros_like(grey_HW)
        x_HW[:, 1:-1] = grey_HW[:, 2:] - grey_HW[:, :-2]
        y_HW[1:-1] = grey_HW[2:] - grey_HW[:-2]
        return cls(x_HW, y_HW, np.maximum(np.abs(x_HW), np.abs(y_HW)) >= EDGE)

    def stayed(self, before: _Edges) -> np.ndarray:
        """bool (H, W): edges that were there before, in the same direction and about as strong."""
        there_HW = self.there_HW & before.there_HW
        apart = np.maximum(np.abs(self.x_HW - before.x_HW), np.abs(self.y_HW - before.y_HW))
        return there_HW & (2 * apart <= np.maximum(np.abs(self.x_HW), np.abs(self.y_HW)))


@final
class _Watcher(Watcher):
    def __init__(self, every: int, ocr: bool) -> None:
        self.every = every
        self.view = View(180, "gray", every)
        self.reading = View(480, "rgb24", 100) if ocr else None
        self.reader = _reader() if ocr else None
        self.views = (self.view,) if self.reading is None else (self.view, self.reading)
        self.before: deque[_Edges] = deque(maxlen=REMEMBERED)
        self.found: dict[str, list[float]] = {"watermark": [], "text": []}
        self.read: list[float] = []
        self.frames = 0

    def see(self, block: Block) -> None:
        self.frames = block.first + block.count
        for picture_HW in block.pictures[self.view]:
            edges = _Edges.of(picture_HW)
            self.found["watermark"].append(_watermark(edges, self.before))
            self.found["text"].append(_text(edges, self.before[-1]) if self.before else float("nan"))
            self.before.append(edges)
        if self.reading is not None:
            self.read += [_read(self.reader, picture) for picture in block.pictures[self.reading]]

    def signals(self) -> dict[str, np.ndarray]:
        held = [(name, values, self.every) for name, values in self.found.items()]
        held += [] if self.reading is None else [("ocr_text", self.read, self.reading.every)]
        return {name: np.repeat(np.array(values, np.float32), every)[: self.frames] for name, values, every in held}


def _watermark(edges: _Edges, before: Sequence[_Edges] | deque[_Edges]) -> float:
    """Share of the corner that has most of it, NaN where no earlier picture was another one."""
    height, width = edges.there_HW.shape
    high, wide = round(height * BAND) // CELL, round(width * CORNER) // CELL
    inside = (slice(round(height * BAND), round(height * (1 - BAND))), slice(None))
    if high < 1 or wide < 1 or edges.there_HW[inside].mean() < FEWEST_EDGES:
        return float("nan")
    always_HW: np.ndarray | None = None
    for earlier in before:
        stayed_HW = edges.stayed(earlier)
        if stayed_HW[inside].sum() <= OTHER * edges.there_HW[inside].sum() and earlier.there_HW[inside].mean() >= FEWEST_EDGES:
            always_HW = stayed_HW if always_HW is None else always_HW & stayed_HW
    if always_HW is None:
        return float("nan")
    rows, columns = (slice(high * CELL), slice(-high * CELL, None)), (slice(wide * CELL), slice(-wide * CELL, None))
    corners = [always_HW[row, column].reshape(high, CELL, wide, CELL).sum((1, 3)) >= FILLED for row in rows for column in columns]
    return float(max(corner.mean() for corner in corners))


def _text(edges: _Edges, before: _Edges) -> float:
    """Share of the width that the longest line of lettering takes, above or below."""
    height, width = edges.there_HW.shape
    lines, cells = round(height * BAND) // (CELL // 2), width // LETTERS
    if lines < 2 or cells < LINE:
        return 0.0
    stayed_HW = edges.stayed(before)
    longest = 0
    for rows in (slice(0, lines * CELL // 2), slice(height - lines * CELL // 2, height)):
        signs = (np.sign(edges.x_HW[rows]) * (np.abs(edges.x_HW[rows]) >= STROKE))[:, : cells * LETTERS]
        # a stroke: brightness that rises and falls again within four pixels, or the reverse
        strokes = np.zeros(signs.shape, bool)
        for apart in (1, 2, 3, 4):
            strokes[:, :-apart] |= (signs[:, :-apart] * signs[:, apart:] < 0) & (signs[:, :-apart] != signs[:, 1 : signs.shape[1] - apart + 1])
        still = stayed_HW[rows][:, : cells * LETTERS]
        # of two half cells each: lines begin anywhere
        counts, stayed = (_in_cells(where, lines, cells) for where in (strokes, strokes & still))
        lettered = (stayed >= STROKES) & (stayed >= STAYED * counts)
        for line in lettered:
            edges_of_runs = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
            longest = max(longest, *(edges_of_runs[1::2] - edges_of_runs[::2]), 0)
    return longest / cells if longest >= LINE else 0.0


def _in_cells(there: np.ndarray, lines: int, cells: int) -> np.ndarray:
    """How many of a row's pixels are set, in each cell of two half lines, float (lines - 1, cells)."""
    halves = there.reshape(lines, CELL // 2, cells, LETTERS).sum((1, 3)) / (CELL // 2)
    return (halves[:-1] + halves[1:]) / 2


@functools.cache
def _reader() -> Any:
    """One for each process: loading its weights takes a second."""
    quiet = {"Global.log_level": "warning", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
    return need("rapidocr", "Overlays with ocr: true", OCR_CURE).RapidOCR(params=quiet)


def _read(reader: Any, picture_HWC: np.ndarray) -> float:
    """Share of a picture's area that lettering takes, by rapidocr's boxes (N, 4, 2)."""
    # with reading, though the words are not wanted: it throws out what only looks like lettering
    boxes = getattr(reader(picture_HWC, use_cls=False), "boxes", None)
    if boxes is None or not len(boxes):
        return 0.0
    corners_N42 = np.asarray(boxes, np.float64)
    sides = corners_N42.max(1) - corners_N42.min(1)
    return min(float(sides.prod(1).sum()) / (picture_HWC.shape[0] * picture_HWC.shape[1]), 1.0)

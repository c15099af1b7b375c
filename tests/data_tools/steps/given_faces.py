"""A detector that says what it was told, for tests of what follows from faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_recording import record

from data_tools.footage import Footage, View
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plan, Recording, Span
from data_tools.steps.detectors.base import NAN, Face, FaceDetector, FaceReader
from data_tools.steps.faces import FaceTracks

WIDTH, HEIGHT = 160, 90  # of the picture


def face(left: float, top: float, width: float = 0.1, height: float = 0.25, *, score: float = 1.0, opening: float = 0.1, yaw: float = NAN) -> Face:
    """With a mouth in its lower third; shares of the picture."""
    box = [left, top, left + width, top + height]
    mouth = [left + 0.3 * width, top + 0.7 * height, left + 0.7 * width, top + 0.8 * height]
    return Face(np.array([box, mouth], np.float32), score, opening, (yaw, 0.0, 0.0))


class Given(FaceDetector):
    """Frame -> faces; nobody in frames that are not named."""

    def __init__(self, faces: Mapping[int, Sequence[Face]], every: int | None = None, exact: bool = True) -> None:
        self.faces, self.every, self.exact = faces, every, exact

    def open(self, source: Source, footage: Footage) -> FaceReader:
        return _Reader(self)


class _Reader(FaceReader):
    def __init__(self, given: Given) -> None:
        self.faces, self.exact = given.faces, given.exact
        self.view = None if given.every is None else View(64, "gray", given.every)

    def read(self, number: int, picture_HWC: np.ndarray | None) -> Sequence[Face]:
        assert (picture_HWC is None) == (self.view is None)
        return self.faces.get(number, ())


def tracked(
    folder: Path, faces: Mapping[int, Sequence[Face]], frames: int = 60, *, every: int | None = None, **arguments: Any
) -> tuple[FaceTracks, Recording]:
    """The step with these arguments, and a recording in which it saw the faces."""
    step = FaceTracks(Given(faces, every), **arguments)
    return step, record(folder, [step], np.full((frames, HEIGHT, WIDTH, 3), 90, np.uint8))


def clips(step: FaceTracks, recording: Recording) -> list[Clip]:
    return [Clip(recording, Plan(span)) for span in step.cut(recording, [Span(0, recording.frames)])]

"""What a face detector is. It finds faces in single pictures; who is who over time is `FaceTracks`' matter.

Axes: X boxes (face, mouth), 4 (left, top, right, bottom).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from data_tools.footage import Footage, View
from flowact.errors import UserError

if TYPE_CHECKING:
    from data_tools.inputs import Source

NAN = float("nan")


@dataclass(frozen=True)
class Face:
    """A face in one picture.

    Attributes:
        boxes_X4: float32 (2, 4), of face (forehead to chin, without hair) and mouth, shares of the picture, NaN where unknown.
        score: how sure the detector is, 0 to 1; falls where a face is covered.
        opening: of the mouth, divided by the size of the face; NaN where unknown.
        pose: yaw, pitch and roll in degrees: positive is turned to the picture's right, down, and clockwise as seen; NaN where unknown.
    """

    boxes_X4: np.ndarray
    score: float
    opening: float = NAN
    pose: tuple[float, float, float] = (NAN, NAN, NAN)


class FaceReader(ABC):
    """Finds the faces of one recording, picture after picture; may remember where they were.

    Attributes:
        view: the pictures that it wants; None for one that needs none.
        exact: what it says is true, and need not be smoothed.
    """

    view: View | None = None
    exact: bool = False

    @abstractmethod
    def read(self, number: int, picture_HWC: np.ndarray | None) -> Sequence[Face]:
        """The faces of frame `number`, in any order; called with rising numbers, every `view.every`-th (each one without a view)."""


class FaceDetector(ABC):
    """A way to find faces; registered as a component of kind `detectors`. Holds settings only: it is one for all recordings and processes."""

    def check(self) -> None:  # noqa: B027  # most have nothing to check
        """Before any work: packages and weights are there.

        Raises:
            UserError: what is missing and how to get it.
        """

    @abstractmethod
    def open(self, source: Source, footage: Footage) -> FaceReader | None:
        """A reader for one recording; None where it can say nothing about it."""


@final
class FirstOf(FaceDetector):
    """The first of several detectors that can say something about a recording, so that one recipe takes drawn and filmed people.

    Args:
        detectors: in the order in which they are asked.
    """

    def __init__(self, detectors: list[FaceDetector]) -> None:
        if not detectors:
            raise UserError("FirstOf: detectors is empty; name at least one, such as SidecarBoxes")
        self.detectors = detectors

    def check(self) -> None:
        for detector in self.detectors:
            detector.check()

    def open(self, source: Source, footage: Footage) -> FaceReader | None:
        return next((reader for detector in self.detectors if (reader := detector.open(source, footage)) is not None), None)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,); 0 where one is unknown."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if not (width > 0 and height > 0):
        return 0.0
    shared = float(width * height)
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)

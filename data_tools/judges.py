"""Judges of filmed people for `flowact evaluate --judge`, made of what a build finds faces with."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np

from data_tools.steps.detectors.mesh import MeshDetector
from flowact.errors import UserError
from flowact.evaluation.judges import Judge


@final
class MeshMouth(Judge):
    """Reads how far a mouth is open from the face mesh of `MeshDetector`: distance of the lips' inner edges over that of the eyes.

    Small pictures are enlarged first, since the mesh loses faces of few pixels. Costs about 5 ms a frame on one core.

    Args:
        height: pixels that pictures are scaled to.

    Raises:
        UserError: fewer than 64 pixels.
    """

    measures = ("lips",)

    def __init__(self, height: int = 360) -> None:
        if height < 64:
            raise UserError(f"MeshMouth: height is {height}; the mesh needs 64 pixels and more")
        self.height = height

    def check(self) -> None:
        """See `Judge.check`."""
        MeshDetector().check()

    def mouth(self, frames_THWC: np.ndarray) -> np.ndarray:
        """See `Judge.mouth`; of the face that is largest where it is found."""
        import cv2

        reader = MeshDetector(max_faces=1, height=self.height).open(cast(Any, None), cast(Any, None))
        assert reader is not None  # it can say something about every recording
        height, width = frames_THWC.shape[1:3]
        size = (max(1, round(width * self.height / height)), self.height)
        openings = []
        for number, frame in enumerate(frames_THWC):
            picture = cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if self.height > height else cv2.INTER_AREA)
            faces = reader.read(number, picture)
            openings.append(faces[0].opening if faces else float("nan"))
        return np.asarray(openings, np.float64)

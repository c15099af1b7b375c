"""Reads a puppet's pose, appearance and state from its pixels, in closed form, knowing whose pictures they are.

Mittens and the whites of the eyes are found by their reserved colours; the eyes give the head's place and roll; the mouth is unmixed from the
lit skin in a window that moves with the head, unclamped so that noise cancels; colours are medians at places known from the head, divided by the
light there.

While the eyes are closed the head cannot be measured: its channels are NaN, and what is measured relative to the head uses a pose interpolated
in time. The state is read from hands and roll a few frames later than it is reported for, which makes up for the known delay of the puppet's springs.

The errors on clean pictures are bounded in tests/characters/test_puppet.py.

Axes: T pixel frames, C colour channels, H W height and width of a window, N measured points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from flowact.characters import puppet_anatomy as anatomy
from flowact.characters import puppet_painter
from flowact.characters.base import Readout
from flowact.characters.behaviour import IDLE, LISTENING, SPEAKING, THINKING
from flowact.characters.drawing import Window, make_window
from flowact.characters.puppet_anatomy import Look

SPRING_DELAY = 3  # frames until a spring has gone half of its way
_FRAMES_AT_ONCE = 2**18
_GLOVE_TOLERANCE = 0.35  # RGB distance at which a colour no longer counts as a mitten's
_MIN_VISIBLE = 0.15  # of a part's area, below which its place cannot be read
_EYE_RIM = 0.57  # pixels at the edge of an eye where white and lid mix and neither is certain
_MIN_WHITE = 0.15  # of the way from skin or hair to the white of an eye, below which no eye is open
_HEAD_REACH = 0.085  # how far heads move from the middle


@dataclass(frozen=True)
class _Measured:
    """Columns of numbers, each (T,), NaN where not measurable."""

    channels: dict[str, np.ndarray]
    mouth_area: np.ndarray
    colours_TNC: np.ndarray  # N parts in the order of `_PARTS`


_PARTS = ("background", "shirt", "skin", "hair")


def read(frames: np.ndarray, look: Look) -> Readout:
    """See `Character.read`."""
    measured = _measure(frames, look)
    truth_TP = np.stack([measured.channels[name] for name in anatomy.CHANNELS], axis=1)
    return Readout(
        channels={name: values.astype(np.float32) for name, values in measured.channels.items()},
        mouth_area=measured.mouth_area,
        state=_state(measured.channels),
        identity_error=_identity_error(measured.colours_TNC, look),
        residual=_residual(frames, look, truth_TP),
    )


def identity_distance(frames: np.ndarray, look: Look) -> float:
    """See `Character.identity_distance`."""
    return float(_identity_error(_measure(frames, look).colours_TNC, look).mean())


def _measure(frames: np.ndarray, look: Look) -> _Measured:
    eyes, hands = [], []
    for batch_TCHW in _batches(frames):
        eyes.append(_read_eyes(batch_TCHW, look))
        hands.append(_read_hands(batch_TCHW))
    head = _concatenate(eyes)
    steady = {name: _bridge(head[name]) for name in ("head_x", "head_y", "roll")}
    rest, start = [], 0
    for batch_TCHW in _batches(frames):
        part = slice(start, start + len(batch_TCHW))
        start = part.stop
        pose = {name: values[part, None, None].astype(np.float32) for name, values in steady.items()}
        rest.append(_read_mouth(batch_TCHW, look, pose) | {"colours": _read_colours(batch_TCHW, look, pose)})
    mouth = _concatenate(rest)
    channels = head | _concatenate(hands) | {name: mouth[name] for name in ("mouth_open", "mouth_width")}
    return _Measured({name: channels[name] for name in anatomy.CHANNELS}, mouth["area"], mouth["colours"])


def _batches(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Planes of float32 in [0, 1], (T, C, H, W), a cacheful at a time."""
    at_once = max(1, _FRAMES_AT_ONCE // frames.shape[1] ** 2)
    scale = np.float32(1 / 255) if frames.dtype == np.uint8 else np.float32(1)
    for start in range(0, len(frames), at_once):
        yield np.ascontiguousarray(frames[start : start + at_once].transpose(0, 3, 1, 2), np.float32) * scale


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _bridge(values_T: np.ndarray) -> np.ndarray:
    """NaN replaced by a line between the neighbours in time; by 0, a head at rest, where nothing was ever measured."""
    known = np.isfinite(values_T)
    if not known.any():
        return np.zeros_like(values_T)
    frames = np.arange(len(values_T))
    return np.interp(frames, frames[known], values_T[known])


def _crop(batch_TCHW: np.ndarray, window: Window) -> np.ndarray:
    return batch_TCHW[:, :, window.rows, window.columns]


def _centroid(weight_THW: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of weights (T,) and the weighted means of x and y (T,), NaN where nothing weighs."""
    total = weight_THW.sum(axis=(1, 2))
    safe = np.where(total > 1e-6, total, np.nan)
    return total, (weight_THW * x).sum(axis=(1, 2)) / safe, (weight_THW * y).sum(axis=(1, 2)) / safe


def _glove_weight(pixels_TCHW: np.ndarray, colour: np.ndarray) -> np.ndarray:
    difference = pixels_TCHW - colour[:, None, None]
    distance = np.sqrt(np.einsum("tchw,tchw->thw", difference, difference))
    return np.clip(1 - distance / np.float32(_GLOVE_TOLERANCE), 0, 1)


@cache
def _glove_shape(side: int) -> tuple[float, float, float]:
    """Area of a mitten and the offset of its centroid from its middle, by quadrature."""
    grid = (np.arange(800) + 0.5) / 800 * 0.5 - 0.25
    x, y = grid[None, None, :], grid[None, :, None]
    inside = (puppet_painter.glove_distance(x, y, side) < 0).astype(np.float64)
    total, middle_x, middle_y = _centroid(inside, x, y)
    return float(total[0] * (0.5 / 800) ** 2), float(middle_x[0]), float(middle_y[0])


def _read_hands(batch_TCHW: np.ndarray) -> dict[str, np.ndarray]:
    size = batch_TCHW.shape[-1]
    window = make_window(size, top=0.1)
    pixels_TCHW = _crop(batch_TCHW, window)
    found = {}
    for name, side, colour in (("left", -1, anatomy.LEFT_GLOVE), ("right", 1, anatomy.RIGHT_GLOVE)):
        area, offset_x, offset_y = _glove_shape(side)
        weight = _glove_weight(pixels_TCHW, colour)
        total, x, y = _centroid(weight * weight, window.x, window.y)
        hidden = total * (2 / size) ** 2 < _MIN_VISIBLE * area
        found[f"{name}_x"] = np.where(hidden, np.nan, x - offset_x)
        found[f"{name}_y"] = np.where(hidden, np.nan, y - offset_y)
    return found


def _read_eyes(batch_TCHW: np.ndarray, look: Look) -> dict[str, np.ndarray]:
    """Head and gaze channels, and how far the eyes are closed."""
    size = batch_TCHW.shape[-1]
    middle_y = anatomy.HEAD_Y + look.eye_v
    reach_x = look.eye_u + anatomy.EYE_RADIUS_U + _HEAD_REACH
    reach_y = anatomy.EYE_RADIUS_V + 0.06 + _HEAD_REACH
    window = make_window(size, -reach_x, reach_x, middle_y - reach_y, middle_y + reach_y)
    pixels_TCHW = _crop(batch_TCHW, window)
    darkest, brightest = pixels_TCHW.min(axis=1), pixels_TCHW.max(axis=1)
    # What is whiter than anything else about this head, relative to the whitest spot, finds the eyes even in a blurred picture;
    # unmixed from the skin around it, white then also counts on their edges.
    skin = np.float32(1.04) * look.skin.min() + np.float32(0.02)
    white = np.clip((darkest - skin) / (anatomy.SCLERA[0] - skin), 0, 1)
    other = max(skin, np.float32(1.2) * look.hair.min()) + np.float32(0.02)
    near = (np.abs(window.x) < reach_x) & (np.abs(window.y - np.float32(middle_y)) < reach_y)  # no pale wall at the window's rim
    certain = np.clip((darkest - other) / (anatomy.SCLERA[0] - other), 0, 1) * near
    whitest = certain.max(axis=(1, 2), keepdims=True)
    certain = np.clip(certain - np.float32(0.35) * whitest, 0, 1) * (whitest > _MIN_WHITE)
    dark = np.clip((np.float32(0.62) - brightest) / np.float32(0.25), 0, 1)

    _, middle_x, _ = _centroid(certain, window.x, window.y)
    x, _y = np.broadcast_arrays(window.x, window.y)
    eyes = []
    for side in (-1, 1):
        on_side = (x - np.nan_to_num(middle_x)[:, None, None]) * side > 0
        eyes.append(_read_eye(certain * on_side, white, dark, window))
    (left_x, left_y, left_gaze_x, left_gaze_y, left_area), (right_x, right_y, right_gaze_x, right_gaze_y, right_area) = eyes
    rim = np.float32(_EYE_RIM * 2 / size)
    open_area = 2 * np.pi * (anatomy.EYE_RADIUS_U - rim) * (anatomy.EYE_RADIUS_V - rim)
    openness = np.nan_to_num(np.clip((left_area + right_area) * (2 / size) ** 2 / open_area, 0, 1))
    closed = (openness < _MIN_VISIBLE) | ~np.isfinite(left_x + right_x) | (right_x - left_x < 0.5 * look.eye_u)

    roll = np.arctan2(right_y - left_y, right_x - left_x)
    head_x = (left_x + right_x) / 2 + look.eye_v * np.sin(roll)
    head_y = (left_y + right_y) / 2 - look.eye_v * np.cos(roll) - anatomy.HEAD_Y
    look_x, look_y = (left_gaze_x + right_gaze_x) / 2, (left_gaze_y + right_gaze_y) / 2
    glint_u, glint_v = anatomy.glint_shift()
    gaze_x = (look_x * np.cos(roll) + look_y * np.sin(roll) - glint_u) / anatomy.GAZE_REACH_U
    gaze_y = (look_y * np.cos(roll) - look_x * np.sin(roll) - glint_v) / anatomy.GAZE_REACH_V
    found = {"head_x": head_x, "head_y": head_y, "roll": roll, "gaze_x": gaze_x, "gaze_y": gaze_y}
    return {name: np.where(closed, np.nan, values) for name, values in found.items()} | {"blink": 1 - openness}


def _read_eye(certain: np.ndarray, white: np.ndarray, dark: np.ndarray, window: Window) -> tuple[np.ndarray, ...]:
    """Middle of one eye, offset of its iris from there, and its area in pixels. White and iris together fill the eye, whichever way it looks."""
    _, middle_x, middle_y = _centroid(certain, window.x, window.y)
    area, iris_x, iris_y = middle_x, middle_x, middle_y
    for reach in (1.3, 1.0, 1.0):
        away_x = (window.x - middle_x[:, None, None]) / np.float32(anatomy.EYE_RADIUS_U)
        away_y = (window.y - middle_y[:, None, None]) / np.float32(anatomy.EYE_RADIUS_V)
        away = away_x * away_x + away_y * away_y
        iris = dark * np.clip((1 - away) * 4, 0, 1)
        _, iris_x, iris_y = _centroid(iris, window.x, window.y)
        area, middle_x, middle_y = _centroid(np.maximum(white * (away < (reach + 0.25) ** 2), iris), window.x, window.y)
    return middle_x, middle_y, iris_x - middle_x, iris_y - middle_y, area


def _in_head(window: Window, pose: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = np.cos(pose["roll"]), np.sin(pose["roll"])
    right, down = window.x - pose["head_x"], window.y - (pose["head_y"] + np.float32(anatomy.HEAD_Y))
    return right * cosine + down * sine, down * cosine - right * sine


def _read_mouth(batch_TCHW: np.ndarray, look: Look, pose: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    size = batch_TCHW.shape[-1]
    reach_u = anatomy.MOUTH_MIN_WIDTH + anatomy.MOUTH_WIDTH_RANGE + 0.04
    reach_v = anatomy.MOUTH_MIN_HEIGHT + anatomy.MOUTH_HEIGHT_RANGE + 0.025
    x = pose["head_x"] - look.mouth_v * np.sin(pose["roll"])
    y = pose["head_y"] + np.float32(anatomy.HEAD_Y) + look.mouth_v * np.cos(pose["roll"])
    window = make_window(size, x - 0.28, x + 0.28, y - 0.24, y + 0.24)
    pixels_TCHW = _crop(batch_TCHW, window)
    u, v = _in_head(window, pose)
    face = (u / np.float32(0.93 * look.head_width)) ** 2 + (v / np.float32(0.95 * look.head_height)) ** 2 < 1
    region = (np.abs(u) < reach_u) & (np.abs(v - np.float32(look.mouth_v)) < reach_v) & face

    along_squared, projected = np.float32(0), np.float32(0)
    for channel, light in enumerate(anatomy.skin_light(look, u, v)):
        skin = look.skin[channel] * light
        towards_mouth = anatomy.MOUTH[channel] - skin
        projected = projected + (pixels_TCHW[:, channel] - skin) * towards_mouth
        along_squared = along_squared + towards_mouth * towards_mouth
    hands = np.maximum(_glove_weight(pixels_TCHW, anatomy.LEFT_GLOVE), _glove_weight(pixels_TCHW, anatomy.RIGHT_GLOVE)) > 0.02
    covered = np.clip(projected / along_squared, -0.3, 1.2) * (region & ~hands)
    area = covered.sum(axis=(1, 2)) * np.float32((2 / size) ** 2)

    positive = np.maximum(covered, 0)
    total = positive.sum(axis=(1, 2))
    spread_u = (positive * u * u).sum(axis=(1, 2)) / np.maximum(total, 1e-6)
    half_width = 2 * np.sqrt(spread_u)  # an ellipse's variance is a quarter of its squared half axis
    mouth_width = np.clip((half_width - anatomy.MOUTH_MIN_WIDTH) / anatomy.MOUTH_WIDTH_RANGE, 0, 1)
    half_height = area / (np.pi * (anatomy.MOUTH_MIN_WIDTH + anatomy.MOUTH_WIDTH_RANGE * mouth_width))
    mouth_open = (half_height - anatomy.MOUTH_MIN_HEIGHT) / anatomy.MOUTH_HEIGHT_RANGE
    # A mouth thinner than a pixel or two has no width that could be told from its edges.
    mouth_width = np.where(half_height < 2 * 2 / size, np.nan, mouth_width)
    return {"area": area, "mouth_open": mouth_open, "mouth_width": mouth_width}


def _read_colours(batch_TCHW: np.ndarray, look: Look, pose: dict[str, np.ndarray]) -> np.ndarray:
    """Colours with their light taken out, (T, N, C): medians over points of each part."""
    background = _points((-0.95, -0.70, 4), (-0.95, -0.60, 4), mirrored=True)
    shirt = _points((-0.16, 0.16, 5), (0.76, 0.92, 4))
    height = look.head_height
    skin = _points((0.56 * look.head_width, 0.74 * look.head_width, 4), (0.24 * height, 0.38 * height, 4), mirrored=True)
    hair = _points((-0.17, 0.17, 6), (-0.98 * height, -(look.hairline + 0.12) * height, 5))
    return np.stack(
        [
            _median_colour(batch_TCHW, *background, anatomy.background_light(*background)),
            _median_colour(batch_TCHW, *shirt, anatomy.shirt_light(*shirt)),
            _median_colour(batch_TCHW, *_from_head(skin, pose), np.stack(anatomy.skin_light(look, *skin), axis=-1)),
            _median_colour(batch_TCHW, *_from_head(hair, pose), anatomy.hair_light(look, *hair)),
        ],
        axis=1,
    )


def _points(across: tuple[float, float, int], down: tuple[float, float, int], mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A grid of points, (N,) each; `mirrored` adds its reflection in the vertical axis."""
    x, y = [part.ravel().astype(np.float32) for part in np.meshgrid(np.linspace(*across), np.linspace(*down))]
    return (np.concatenate([x, -x]), np.concatenate([y, y])) if mirrored else (x, y)


def _from_head(points: tuple[np.ndarray, np.ndarray], pose: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places in the picture, (T, N), of points of the head."""
    u, v = points
    cosine, sine = np.cos(pose["roll"][..., 0]), np.sin(pose["roll"][..., 0])
    return pose["head_x"][..., 0] + u * cosine - v * sine, pose["head_y"][..., 0] + np.float32(anatomy.HEAD_Y) + u * sine + v * cosine


def _median_colour(batch_TCHW: np.ndarray, x: np.ndarray, y: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Median over points of the colour of the pixel that holds each, light taken out: (T, C). x, y are (N,) or (T, N), light (N,) or (N, C)."""
    size = batch_TCHW.shape[-1]
    column = np.clip(((x + 1) / 2 * size).astype(np.int64), 0, size - 1)
    row = np.clip(((y + 1) / 2 * size).astype(np.int64), 0, size - 1)
    shape = (len(batch_TCHW), x.shape[-1])
    column, row = np.broadcast_to(column, shape), np.broadcast_to(row, shape)
    colours_TNC = batch_TCHW[np.arange(len(batch_TCHW))[:, None], :, row, column]
    return np.median(colours_TNC / (light if light.ndim == 2 else light[:, None]), axis=1)


def _identity_error(colours_TNC: np.ndarray, look: Look) -> np.ndarray:
    expected_NC = np.stack([getattr(look, part) for part in _PARTS])
    return np.sqrt(((colours_TNC - expected_NC) ** 2).mean(axis=(1, 2)))


def _state(channels: dict[str, np.ndarray]) -> np.ndarray:
    """What the body does, half a spring's way ahead: hand at the chin, both hands up, head tilted, or none of these."""
    (_, down_y), (_, talking_y) = anatomy.HANDS_DOWN[0], anatomy.HANDS_TALKING[0]
    chin_x, chin_y = anatomy.HAND_AT_CHIN
    rest_x, rest_y = anatomy.HANDS_DOWN[1]
    left_y = _bridge(np.where(np.isnan(channels["left_y"]), down_y, channels["left_y"]))
    right_x = np.where(np.isnan(channels["right_x"]), rest_x, channels["right_x"])
    right_y = np.where(np.isnan(channels["right_y"]), rest_y, channels["right_y"])
    roll = _bridge(channels["roll"])
    raised = left_y < (down_y + talking_y) / 2
    near_chin = np.hypot(right_x - chin_x, right_y - chin_y) < np.hypot(right_x - rest_x, right_y - rest_y)
    tilted = roll > 0.13
    seen = np.select([raised, near_chin, tilted], [SPEAKING, THINKING, LISTENING], IDLE)
    return np.concatenate([seen[SPRING_DELAY:], np.repeat(seen[-1:], min(SPRING_DELAY, len(seen)))])[: len(seen)].astype(np.int64)


def _residual(frames: np.ndarray, look: Look, truth_TP: np.ndarray) -> np.ndarray:
    """RMS distance to the puppet's picture in the pose that was read, with parts that were not seen at rest."""
    rest = {
        "mouth_width": 0.5,
        "left_x": anatomy.HANDS_DOWN[0][0],
        "left_y": anatomy.HANDS_DOWN[0][1],
        "right_x": anatomy.HANDS_DOWN[1][0],
        "right_y": anatomy.HANDS_DOWN[1][1],
    }
    filled_TP = np.empty(truth_TP.shape, np.float32)
    for i, name in enumerate(anatomy.CHANNELS):
        values = truth_TP[:, i]
        filled_TP[:, i] = np.where(np.isnan(values), rest[name], values) if name in rest else _bridge(values)
    filled_TP[:, anatomy.CHANNELS.index("mouth_open")] = filled_TP[:, anatomy.CHANNELS.index("mouth_open")].clip(0, 1)
    at_once = 256
    errors = []
    for start in range(0, len(frames), at_once):
        nearest = puppet_painter.paint(look, filled_TP[start : start + at_once], frames.shape[1])
        shown = frames[start : start + at_once]
        shown = shown.astype(np.float32) / 255 if shown.dtype == np.uint8 else shown.astype(np.float32)
        difference = shown - nearest.astype(np.float32) / 255
        errors.append(np.sqrt(np.einsum("thwc,thwc->t", difference, difference) / difference[0].size))
    return np.concatenate(errors)

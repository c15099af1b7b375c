"""Draws puppets: back to front, each part in the smallest window that holds it.

Axes: T pixel frames, C colour channels, H W height and width of a window; per-frame numbers are (T, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowact.characters import puppet_anatomy as anatomy
from flowact.characters.drawing import Canvas, Window, capsule, circle, ellipse, rounded_box
from flowact.characters.puppet_anatomy import Look

_FRAMES_AT_ONCE = 2**17  # pixels of one plane that stay in cache


@dataclass(frozen=True)
class Pose:
    """The columns of truth_TP as float32 (T, 1, 1), and the roll's cosine and sine."""

    head_x: np.ndarray
    head_y: np.ndarray
    roll: np.ndarray
    mouth_open: np.ndarray
    mouth_width: np.ndarray
    gaze_x: np.ndarray
    gaze_y: np.ndarray
    blink: np.ndarray
    left_x: np.ndarray
    left_y: np.ndarray
    right_x: np.ndarray
    right_y: np.ndarray

    @classmethod
    def of(cls, truth_TP: np.ndarray) -> Pose:
        return cls(*np.ascontiguousarray(truth_TP.T, np.float32)[:, :, None, None])

    def in_head(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of the window's pixels, each (T, H, W)."""
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        right, down = window.x - self.head_x, window.y - (self.head_y + np.float32(anatomy.HEAD_Y))
        return right * cosine + down * sine, down * cosine - right * sine

    def around(self, canvas: Canvas, u: float, v: float, reach: float) -> Window:
        """Window that holds the disc of radius `reach` around a place of the head in every frame."""
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        x = self.head_x + u * cosine - v * sine
        y = self.head_y + np.float32(anatomy.HEAD_Y) + u * sine + v * cosine
        return canvas.window(x - reach, x + reach, y - reach, y + reach)


def paint(look: Look, truth_TP: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 (T, size, size, 3)."""
    at_once = max(1, _FRAMES_AT_ONCE // size**2)
    scenery = _paint_scenery(look, size)
    batches = [_paint_frames(look, Pose.of(truth_TP[start : start + at_once]), scenery) for start in range(0, len(truth_TP), at_once)]
    return np.concatenate(batches)


def _paint_scenery(look: Look, size: int) -> np.ndarray:
    """What never moves and lies behind everything: (3, H, W)."""
    canvas = Canvas(1, size)
    everywhere = canvas.window()
    canvas.fill(look.background[:, None, None] * anatomy.background_light(everywhere.x, everywhere.y)[:, None])
    return canvas.image_TCHW[0]


def _paint_frames(look: Look, pose: Pose, scenery_CHW: np.ndarray) -> np.ndarray:
    canvas = Canvas(len(pose.roll), scenery_CHW.shape[-1])
    canvas.fill(scenery_CHW)
    _paint_hair(canvas, look, pose)
    _paint_torso(canvas, look)
    _paint_neck_and_ears(canvas, look, pose)
    _paint_face(canvas, look, pose)
    for side in (-1, 1):
        _paint_eye(canvas, look, pose, side)
    _paint_mouth(canvas, look, pose)
    _paint_arm(canvas, look, -1, pose.left_x, pose.left_y, anatomy.LEFT_GLOVE)
    _paint_arm(canvas, look, 1, pose.right_x, pose.right_y, anatomy.RIGHT_GLOVE)
    return canvas.frames()


def _paint_hair(canvas: Canvas, look: Look, pose: Pose) -> None:
    width, height = look.head_width * 1.08 + look.hair_volume, look.head_height * 1.08 + look.hair_volume
    reach = 1.05 * max(height + 1.6 * look.bun, np.hypot(width, max(look.hair_length, 0.2)))
    window = pose.around(canvas, 0, 0, reach)
    u, v = pose.in_head(window)
    distance = np.maximum(ellipse(u, v + np.float32(0.03), width, height), v - np.float32(max(look.hair_length, 0.0) + 0.1))
    if look.hair_length > 0.12:
        top = -0.10
        half_height = (look.hair_length - top) / 2
        distance = np.minimum(distance, rounded_box(u, v - np.float32(top + half_height), width, half_height, min(0.14, half_height)))
    if look.bun > 0.02:
        distance = np.minimum(distance, circle(u - np.float32(look.parting), v + np.float32(height + 0.45 * look.bun), look.bun))
    colour = look.hair[:, None, None] * anatomy.hair_light(look, u, v)[:, None]
    canvas.paint(window, canvas.coverage(distance), colour)


def _paint_torso(canvas: Canvas, look: Look) -> None:
    window = canvas.window(-look.torso_width, look.torso_width, anatomy.TORSO_TOP, 1)
    x, y = window.x, window.y
    half_height = 0.7
    distance = rounded_box(x, y - np.float32(anatomy.TORSO_TOP + half_height), look.torso_width, half_height, anatomy.TORSO_CORNER)
    light = anatomy.shirt_light(x, y)
    canvas.paint(window, canvas.coverage(distance), look.shirt[:, None, None] * light[:, None])
    collar = ellipse(x, y - np.float32(anatomy.TORSO_TOP + 0.035), 0.25, 0.13)
    canvas.paint(window, canvas.coverage(collar), look.shirt * np.float32(0.80))


def _paint_neck_and_ears(canvas: Canvas, look: Look, pose: Pose) -> None:
    chin_y = pose.head_y + np.float32(anatomy.HEAD_Y + 0.36)
    radius = anatomy.NECK_RADIUS
    window = canvas.window(pose.head_x - radius, pose.head_x + radius, chin_y - radius, anatomy.NECK_Y + radius)
    neck = capsule(window.x, window.y, (pose.head_x * 0.5, anatomy.NECK_Y - 0.05), (pose.head_x, chin_y), radius)
    canvas.paint(window, canvas.coverage(neck), look.skin * np.float32(0.84))
    if look.hair_length < 0.12:
        for side in (-1, 1):
            ear_u, ear_v = side * look.head_width * 0.99, 0.02
            window = pose.around(canvas, ear_u, ear_v, 0.11)
            u, v = pose.in_head(window)
            canvas.paint(window, canvas.coverage(ellipse(u - np.float32(ear_u), v - np.float32(ear_v), 0.07, 0.095)), look.skin * np.float32(0.90))


def _paint_face(canvas: Canvas, look: Look, pose: Pose) -> None:
    window = pose.around(canvas, 0, 0, max(look.head_width, look.head_height))
    u, v = pose.in_head(window)
    # A little narrower towards the chin.
    face = ellipse(u * (1 + np.float32(0.10) * v / np.float32(look.head_height)), v, look.head_width, look.head_height)
    from_parting = u - np.float32(look.parting)
    forehead = np.float32(-look.hairline * look.head_height) + np.float32(look.fringe) * from_parting * from_parting - v
    colour = np.stack([level * light for level, light in zip(look.skin, anatomy.skin_light(look, u, v), strict=True)], axis=1)
    canvas.paint(window, canvas.coverage(np.maximum(face, forehead)), colour)

    nose_v = anatomy.NOSE_V * look.head_height
    window = pose.around(canvas, 0, nose_v, 0.06)
    u, v = pose.in_head(window)
    canvas.paint(window, canvas.coverage(ellipse(u, v - np.float32(nose_v), 0.042, 0.030)), look.skin * np.array([0.88, 0.80, 0.80], np.float32))


def _paint_eye(canvas: Canvas, look: Look, pose: Pose, side: int) -> None:
    eye_u, eye_v = side * look.eye_u, look.eye_v
    window = pose.around(canvas, eye_u, eye_v, anatomy.EYE_RADIUS_V + 3 * anatomy.LID_WIDTH)
    u, v = pose.in_head(window)
    u, v = u - np.float32(eye_u), v - np.float32(eye_v)
    height = anatomy.CLOSED_EYE_RADIUS_V + (anatomy.EYE_RADIUS_V - anatomy.CLOSED_EYE_RADIUS_V) * (1 - np.clip(pose.blink, 0, 1))
    lid = look.skin * np.float32(0.25) + look.hair * np.float32(0.25)
    canvas.paint(window, canvas.coverage(ellipse(u, v, anatomy.EYE_RADIUS_U + anatomy.LID_WIDTH, height + np.float32(anatomy.LID_WIDTH))), lid)
    shut = np.clip(4 * (1 - pose.blink), 0, 1)  # nothing white is left in a closed eye
    opening = canvas.coverage(ellipse(u, v, anatomy.EYE_RADIUS_U, height)) * shut
    canvas.paint(window, opening, anatomy.SCLERA)
    u, v = u - anatomy.GAZE_REACH_U * pose.gaze_x, v - anatomy.GAZE_REACH_V * pose.gaze_y
    from_gaze = np.sqrt(u * u + v * v)
    canvas.paint(window, np.minimum(opening, canvas.coverage(from_gaze - np.float32(anatomy.IRIS_RADIUS))), look.eyes)
    canvas.paint(window, np.minimum(opening, canvas.coverage(from_gaze - np.float32(anatomy.PUPIL_RADIUS))), anatomy.PUPIL)
    glint = circle(u - np.float32(anatomy.GLINT_OFFSET[0]), v - np.float32(anatomy.GLINT_OFFSET[1]), anatomy.GLINT_RADIUS)
    canvas.paint(window, np.minimum(opening, canvas.coverage(glint)), anatomy.SCLERA)

    # Brows go up with the eyes.
    brow_v = eye_v - anatomy.EYE_RADIUS_V - 0.055
    window = pose.around(canvas, eye_u, brow_v, 0.15)
    u, v = pose.in_head(window)
    u, v = (u - np.float32(eye_u)) * side, v - np.float32(brow_v) - np.float32(0.02) * pose.gaze_y
    arch = v - np.float32(1.6) * (u - np.float32(0.01)) ** 2 + np.float32(0.008)
    brow = capsule(u, arch, (-0.085, 0.0), (0.085, 0.0), 0.017)
    canvas.paint(window, canvas.coverage(brow), look.hair * np.float32(0.72))


def _paint_mouth(canvas: Canvas, look: Look, pose: Pose) -> None:
    window = pose.around(canvas, 0, look.mouth_v, 0.24)
    u, v = pose.in_head(window)
    half_width, half_height = anatomy.mouth_half_axes(np.clip(pose.mouth_open, 0, 1.2), np.clip(pose.mouth_width, 0, 1))
    # The ellipse is sheared into a smile, which keeps its area; the wider it opens the less it bends.
    across = u / half_width
    smile = anatomy.SMILE * (1 - np.float32(0.6) * np.clip(pose.mouth_open, 0, 1))
    bent = v - np.float32(look.mouth_v) + smile * (across * across - np.float32(0.33))
    canvas.paint(window, canvas.coverage(ellipse(u, bent, half_width, half_height)), anatomy.MOUTH)


def _paint_arm(canvas: Canvas, look: Look, side: int, hand_x: np.ndarray, hand_y: np.ndarray, glove_colour: np.ndarray) -> None:
    shoulder_x, shoulder_y = side * (look.torso_width - 0.085), anatomy.SHOULDER_Y
    elbow_x, elbow_y = (hand_x + np.float32(shoulder_x)) / 2 + np.float32(side * 0.10), (hand_y + np.float32(shoulder_y)) / 2 + np.float32(0.15)
    radius = anatomy.SLEEVE_RADIUS
    xs = np.concatenate([hand_x.ravel(), elbow_x.ravel(), [shoulder_x]])
    ys = np.concatenate([hand_y.ravel(), elbow_y.ravel(), [shoulder_y]])
    window = canvas.window(xs - radius, xs + radius, ys - radius, ys + radius)
    upper = capsule(window.x, window.y, (np.float32(shoulder_x), np.float32(shoulder_y)), (elbow_x, elbow_y), radius)
    lower = capsule(window.x, window.y, (elbow_x, elbow_y), (hand_x, hand_y), np.float32(radius * 0.9))
    sleeve = look.shirt * np.float32(0.86)
    canvas.paint(window, canvas.coverage(np.minimum(upper, lower)), sleeve)

    reach = anatomy.GLOVE_RADIUS + 0.05
    window = canvas.window(hand_x - reach, hand_x + reach, hand_y - reach, hand_y + reach)
    glove = glove_distance(window.x - hand_x, window.y - hand_y, side)
    canvas.paint(window, canvas.coverage(glove), glove_colour)


def glove_distance(x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """Distance to a mitten around the origin, thumb towards the middle of the picture."""
    thumb = circle(x + np.float32(side * anatomy.THUMB_OFFSET[0]), y - np.float32(anatomy.THUMB_OFFSET[1]), anatomy.THUMB_RADIUS)
    return np.minimum(circle(x, y, anatomy.GLOVE_RADIUS), thumb)

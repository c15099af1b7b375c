"""The puppet's body plan: what every puppet shares, what makes one different from another, and how its colours are lit.

Lengths are in half pictures: the picture spans [-1, 1] in x (right) and y (down). (u, v) are coordinates of the head, turned by its roll, around
the middle of the face. All light is a factor on a part's colour and a known function of place, so a colour can be measured exactly anywhere.

Axes: T pixel frames, C colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowact.characters import palette
from flowact.characters.base import Identity
from flowact.characters.drawing import bump
from flowact.errors import UserError

# Colours that belong to one part in every puppet, so that this part can be found by colour alone.
LEFT_GLOVE = np.array([0.93, 0.25, 0.72], np.float32)
RIGHT_GLOVE = np.array([0.30, 0.85, 0.35], np.float32)
MOUTH = np.array([0.22, 0.00, 0.30], np.float32)
SCLERA = np.array([0.97, 0.97, 0.97], np.float32)
PUPIL = np.array([0.04, 0.04, 0.06], np.float32)

HEAD_Y = -0.17  # middle of the face above the middle of the picture, at head_y = 0
NECK_Y = 0.55
NECK_RADIUS = 0.15
TORSO_TOP = 0.48
TORSO_CORNER = 0.24
SHOULDER_Y = 0.68
SLEEVE_RADIUS = 0.105
GLOVE_RADIUS = 0.12
THUMB_RADIUS = 0.052
THUMB_OFFSET = (0.088, -0.075)  # towards the middle and up

EYE_U = 0.42  # of the head's width
EYE_V = -0.13  # of the head's height
EYE_RADIUS_U = 0.120
EYE_RADIUS_V = 0.104
CLOSED_EYE_RADIUS_V = 0.004
LID_WIDTH = 0.017
IRIS_RADIUS = 0.074
PUPIL_RADIUS = 0.045
GLINT_RADIUS = 0.025
GLINT_OFFSET = (-0.027, -0.031)
GAZE_REACH_U = 0.040
GAZE_REACH_V = 0.036

NOSE_V = 0.09  # of the head's height
MOUTH_V = 0.54  # of the head's height
MOUTH_MIN_WIDTH, MOUTH_WIDTH_RANGE = 0.105, 0.095  # half widths
MOUTH_MIN_HEIGHT, MOUTH_HEIGHT_RANGE = 0.014, 0.160  # half heights
SMILE = 0.048

HANDS_DOWN = ((-0.60, 0.855), (0.60, 0.855))
HANDS_TALKING = ((-0.45, 0.66), (0.45, 0.66))
HAND_AT_CHIN = (0.20, 0.425)

COLOURS = ("background", "shirt", "skin", "hair", "eyes")
SIZES = ("head_width", "head_height", "torso_width", "hair_length", "hair_volume", "hairline", "fringe", "parting", "bun")
CHANNELS = ("head_x", "head_y", "roll", "mouth_open", "mouth_width", "gaze_x", "gaze_y", "blink", "left_x", "left_y", "right_x", "right_y")

_RESERVED_MARGIN = 0.40
_PART_MARGIN = 0.22  # between parts that touch: skin to hair, shirt to background
_SHADES = np.array([0.80, 0.90, 1.0])


@dataclass(frozen=True)
class Look:
    """An `Identity` of the puppet, typed.

    Attributes:
        background, shirt, skin, hair, eyes: RGB in [0, 1], float32 (3,).
        head_width, head_height, torso_width: half axes.
        hair_length: v at which hair ends; short hair (below 0.12) shows the ears.
        hair_volume: how far hair stands off the head.
        hairline: height of the hair's edge on the forehead, of the head's height.
        fringe: how much lower that edge is at the temples.
        parting: u at which that edge is highest.
        bun: radius of a knot on top, none below 0.02.
    """

    background: np.ndarray
    shirt: np.ndarray
    skin: np.ndarray
    hair: np.ndarray
    eyes: np.ndarray
    head_width: float
    head_height: float
    torso_width: float
    hair_length: float
    hair_volume: float
    hairline: float
    fringe: float
    parting: float
    bun: float

    @classmethod
    def of(cls, identity: Identity) -> Look:
        """From plain numbers.

        Raises:
            ValueError: a part is missing, as when the identity belongs to another character.
        """
        missing = [name for name in (*COLOURS, *SIZES) if name not in identity]
        if missing:
            raise ValueError(f"not a puppet's identity: {', '.join(missing)} missing, it has {', '.join(identity) or 'nothing'}")
        colours: dict[str, Any] = {name: np.asarray(identity[name], np.float32) for name in COLOURS}
        parts: dict[str, Any] = colours | {name: float(identity[name][0]) for name in SIZES}
        return cls(**parts)

    @property
    def eye_u(self) -> float:
        return EYE_U * self.head_width

    @property
    def eye_v(self) -> float:
        return EYE_V * self.head_height

    @property
    def mouth_v(self) -> float:
        return MOUTH_V * self.head_height


def sample_identity(generator: np.random.Generator) -> Identity:
    """A new puppet. Colours too near to a reserved one, and parts too near to what they touch, are drawn again."""

    while True:
        skin = palette.sample_skin(generator)
        colours = {
            "background": palette.sample_vivid(generator, (0.12, 0.42), (0.62, 0.95)),
            "shirt": palette.sample_vivid(generator, (0.35, 0.85), (0.40, 0.92)),
            "skin": skin,
            "hair": palette.sample_hair(generator),
            "eyes": palette.sample_eyes(generator),
        }
        if not _confused(colours):
            break
    long_hair = generator.random() < 0.5
    sizes = {
        "head_width": generator.uniform(0.42, 0.48),
        "head_height": generator.uniform(0.49, 0.54),
        "torso_width": generator.uniform(0.52, 0.64),
        "hair_length": generator.uniform(0.25, 0.62) if long_hair else generator.uniform(-0.12, 0.08),
        "hair_volume": generator.uniform(0.0, 0.08),
        "hairline": generator.uniform(0.53, 0.64),
        "fringe": generator.uniform(0.0, 0.8),
        "parting": generator.uniform(-0.12, 0.12),
        "bun": generator.uniform(0.10, 0.15) if generator.random() < 0.25 else 0.0,
    }
    rounded = {name: [round(float(value), 4) for value in colour] for name, colour in colours.items()}
    return {**rounded, **{name: [round(float(value), 4)] for name, value in sizes.items()}}


def check_readable(identity: Identity) -> None:
    """That every part can be told from the others in a picture.

    Raises:
        UserError: colours outside [0, 1], or too near to a reserved one or to what they touch.
    """
    colours = {name: np.asarray(identity[name], np.float64) for name in COLOURS}
    outside = next((name for name, colour in colours.items() if colour.min() < 0 or colour.max() > 1), None)
    if outside:
        raise UserError(f"{outside}: {identity[outside]} should be red, green and blue in 0 to 1")
    confused = _confused(colours)
    if confused:
        raise UserError(f"the {confused[0]} can not be told from the {confused[1]} in a picture of these colours; move them further apart")


def _confused(colours: dict[str, np.ndarray]) -> tuple[str, str] | None:
    """Two parts that look too much alike to be read apart."""
    for part in ("background", "shirt", "skin", "hair"):
        lit = _SHADES[:, None] * colours[part]
        for name, glove in (("left mitten", LEFT_GLOVE), ("right mitten", RIGHT_GLOVE)):
            if np.linalg.norm(lit - glove, axis=1).min() < _RESERVED_MARGIN:
                return part, name
    if np.linalg.norm(colours["skin"] - MOUTH) < _RESERVED_MARGIN:
        return "skin", "mouth"
    touching = (("skin", "hair"), ("shirt", "background"), ("shirt", "skin"), ("hair", "background"))
    return next((pair for pair in touching if np.linalg.norm(colours[pair[0]] - colours[pair[1]]) < _PART_MARGIN), None)


def mouth_half_axes(opening: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half width and half height of the mouth's ellipse."""
    return MOUTH_MIN_WIDTH + MOUTH_WIDTH_RANGE * width, MOUTH_MIN_HEIGHT + MOUTH_HEIGHT_RANGE * opening


def glint_shift() -> tuple[float, float]:
    """How far the glint, which is white, moves the centroid of the dark of the eye away from the middle of the iris."""
    part = GLINT_RADIUS**2 / (IRIS_RADIUS**2 - GLINT_RADIUS**2)
    return -part * GLINT_OFFSET[0], -part * GLINT_OFFSET[1]


def background_light(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A soft lamp behind the head."""
    far_y = y + 0.25
    return np.float32(1.03) - np.float32(0.13) * (x * x + far_y * far_y)


def shirt_light(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brighter at the shoulders, darker down and to the sides."""
    return np.float32(1.04) - np.float32(0.18) * x * x - np.float32(0.22) * (y - np.float32(TORSO_TOP))


def hair_light(look: Look, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A glossy band over the crown."""
    across = (v + 0.80 * look.head_height - 0.5 * u * u) / 0.13
    return np.float32(0.92) + np.float32(0.30) * bump(across * across) * bump((u + 0.05) ** 2 / np.float32(0.16))


def skin_light(look: Look, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light on the face per colour channel: from above, rounder at the sides, with a blush on the cheeks."""
    side, down = u / look.head_width, v / look.head_height
    light = np.float32(1.03) - np.float32(0.05) * down - np.float32(0.09) * side * side
    cheek_u, cheek_v = (np.abs(u) - 0.66 * look.head_width) / 0.13, (v - 0.30 * look.head_height) / 0.10
    blush = bump(cheek_u * cheek_u + cheek_v * cheek_v)
    return light, light * (1 - np.float32(0.17) * blush), light * (1 - np.float32(0.13) * blush)

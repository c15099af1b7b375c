"""Colours that people have, for synthetic ones. RGB in [0, 1]."""

from __future__ import annotations

import colorsys

import numpy as np

SKIN_TONES = np.array([[0.95, 0.80, 0.70], [0.92, 0.74, 0.60], [0.84, 0.62, 0.46], [0.70, 0.49, 0.35], [0.56, 0.38, 0.28]])
HAIR_TONES = np.array(
    [[0.11, 0.09, 0.10], [0.27, 0.17, 0.12], [0.45, 0.27, 0.15], [0.60, 0.28, 0.13], [0.80, 0.62, 0.33], [0.58, 0.57, 0.60], [0.15, 0.36, 0.52]]
)
EYE_TONES = np.array([[0.24, 0.14, 0.08], [0.10, 0.30, 0.48], [0.10, 0.36, 0.26], [0.30, 0.26, 0.20]])


def sample_skin(generator: np.random.Generator) -> np.ndarray:
    """A tone from light to dark."""
    step = generator.uniform(0, len(SKIN_TONES) - 1)
    tone = np.array([np.interp(step, range(len(SKIN_TONES)), channel) for channel in SKIN_TONES.T])
    return np.clip(tone + generator.uniform(-0.02, 0.02, 3), 0, 0.95)


def sample_hair(generator: np.random.Generator) -> np.ndarray:
    """Mostly natural, sometimes dyed."""
    return _between(HAIR_TONES, 0.04, generator)


def sample_eyes(generator: np.random.Generator) -> np.ndarray:
    """Brown, blue, green or grey, dark enough to stand out from the white."""
    return _between(EYE_TONES, 0.02, generator)


def sample_vivid(generator: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """Any hue."""
    return np.array(colorsys.hsv_to_rgb(generator.uniform(), generator.uniform(*saturation), generator.uniform(*value)))


def _between(tones: np.ndarray, spread: float, generator: np.random.Generator) -> np.ndarray:
    first, second = generator.integers(len(tones), size=2)
    mixed = tones[first] + generator.uniform(0, 0.5) * (tones[second] - tones[first])
    return np.clip(mixed + generator.uniform(-spread, spread, 3), 0.04, 0.95)

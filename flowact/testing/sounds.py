"""Sounds to try components on."""

from __future__ import annotations

import numpy as np

from flowact.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME


def syllables(seconds: float, seed: int) -> np.ndarray:
    """Syllables: noise that swells four times a second, float32 at 16 kHz, a whole number of frames."""
    count = round(seconds * FRAMES_PER_SECOND) * SAMPLES_PER_FRAME
    time = np.arange(count) / (FRAMES_PER_SECOND * SAMPLES_PER_FRAME)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.15 * noise * (0.15 + np.sin(np.pi * 4 * time) ** 2)).astype(np.float32)



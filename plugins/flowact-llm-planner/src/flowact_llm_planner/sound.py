"""A few seconds of sound in words, and as a file.

Axes: S samples (16 kHz), N steps of 20 ms.
"""

from __future__ import annotations

import base64
import io
import wave

import numpy as np

from flowact.types import SAMPLE_RATE

STEP = SAMPLE_RATE // 50
#: dBFS of the loud parts, from below
LOUDNESS = ((-50.0, "silent"), (-35.0, "quiet"), (-15.0, "of normal loudness"))
LOUDEST = "loud"
#: swells of the voice per second of it, about syllables
RATES = ((2.5, "slow"), (5.0, "at normal speed"))
FASTEST = "fast"
SWELL_DB = 3.0


def loudness(samples_S: np.ndarray) -> str:
    """How loud the loud parts are."""
    level_N = _levels(samples_S)
    loud = float(np.percentile(level_N, 90)) if level_N.size else -np.inf
    return next((word for limit, word in LOUDNESS if loud < limit), LOUDEST)


def speaking_rate(samples_S: np.ndarray) -> str:
    """How fast somebody speaks, by how often the level swells; empty where there is too little voice to say."""
    level_N = _levels(samples_S)
    if not level_N.size:
        return ""
    voiced_N = level_N > max(float(level_N.max()) - 26.0, -50.0)
    seconds = float(voiced_N.sum()) * STEP / SAMPLE_RATE
    if seconds < 0.5:
        return ""
    smooth_N = np.convolve(level_N, np.full(3, 1 / 3), "same")
    swells, low, high, rising = 0, np.inf, -np.inf, False
    for level in smooth_N[voiced_N].tolist():
        low, high = min(low, level), max(high, level)
        if not rising and level > low + SWELL_DB:
            swells, rising, high = swells + 1, True, level
        elif rising and level < high - SWELL_DB:
            rising, low = False, level
    return next((word for limit, word in RATES if swells / seconds < limit), FASTEST)


def wav_base64(samples_S: np.ndarray) -> str:
    """A 16-bit WAV file in base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes((np.clip(samples_S, -1, 1) * 32767).astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def _levels(samples_S: np.ndarray) -> np.ndarray:
    """dBFS of each step."""
    steps = samples_S[: samples_S.size // STEP * STEP].reshape(-1, STEP).astype(np.float64)
    return 10.0 * np.log10(np.square(steps).mean(axis=1) + 1e-12)

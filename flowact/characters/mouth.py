"""The oracle that says what a mouth does when a voice is heard: a pure, causal function of the waveform.

A synthetic person needs no aligner and no phonemes: the opening follows loudness, the width follows how bright the sound is. Whatever model
is trained on such clips can be measured against the same function, for any recording.

Axes: T pixel frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

# The scale is fixed, so that the same waveform always moves the mouth in the same way. Speech is brought to
# `flowact.characters.speech.SPEECH_LEVEL_DB` before it gets here; at that level pauses lie below the first and loud vowels above the second.
CLOSED_DB = -38.0
OPEN_DB = -18.0
ATTACK = 0.7
RELEASE = 0.45
WIDTH_SMOOTHING = 0.4
REST_WIDTH = 0.5
DARK_HZ = 400.0
BRIGHT_HZ = 2000.0


@dataclass(frozen=True)
class MouthMotion:
    """What the oracle hears.

    Attributes:
        opening_T: 0 closed to 1 open, float32.
        width_T: 0 round to 1 stretched, float32; 0.5 at rest.
    """

    opening_T: np.ndarray
    width_T: np.ndarray


def listen(samples: np.ndarray) -> MouthMotion:
    """Mouth of a person saying `samples`; frame t depends on the samples before the end of frame t and on no later one.

    Opening is the level of each 40 ms, from `CLOSED_DB` to `OPEN_DB` dBFS, followed with a quick attack and a slower release. Width is the
    spectral centroid between `DARK_HZ` and `BRIGHT_HZ`, and falls back to rest when there is nothing to hear.

    Args:
        samples: mono, 16 kHz, full scale 1, at least one frame long; a last part of a frame is ignored.
    """
    num_frames = len(samples) // SAMPLES_PER_FRAME
    frames = np.asarray(samples[: num_frames * SAMPLES_PER_FRAME], np.float64).reshape(num_frames, SAMPLES_PER_FRAME)
    level_db_T = 10 * np.log10((frames**2).mean(axis=1) + 1e-10)
    loudness_T = np.clip((level_db_T - CLOSED_DB) / (OPEN_DB - CLOSED_DB), 0, 1)

    magnitudes = np.abs(np.fft.rfft(frames * np.hanning(SAMPLES_PER_FRAME), axis=1))
    frequencies = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / SAMPLE_RATE)
    centroid_hz_T = magnitudes @ frequencies / (magnitudes.sum(axis=1) + 1e-6)
    brightness_T = np.clip((centroid_hz_T - DARK_HZ) / (BRIGHT_HZ - DARK_HZ), 0, 1)
    audible_T = np.clip(3 * loudness_T, 0, 1)
    target_width_T = REST_WIDTH + audible_T * (brightness_T - REST_WIDTH)

    opening_T, width_T = np.zeros(num_frames), np.zeros(num_frames)
    opening, width = 0.0, REST_WIDTH
    for t in range(num_frames):
        opening += (ATTACK if loudness_T[t] > opening else RELEASE) * (loudness_T[t] - opening)
        width += WIDTH_SMOOTHING * (target_width_T[t] - width)
        opening_T[t], width_T[t] = opening, width
    return MouthMotion(opening_T.astype(np.float32), width_T.astype(np.float32))

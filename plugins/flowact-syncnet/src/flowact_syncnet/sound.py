"""Mel-frequency cepstral coefficients as SyncNet's weights were trained on: 13 at 100 a second, of 16-bit sound at 16 kHz.

They are those of the package python_speech_features with its defaults (Davis and Mermelstein 1980; HTK's filters and lifter). Axes: S samples,
N windows of 25 ms, D coefficients.
"""

from __future__ import annotations

import numpy as np

RATE = 16_000
WINDOW, STEP = 400, 160
SPECTRUM = 512
NUM_FILTERS, NUM_COEFFICIENTS = 26, 13
EMPHASIS, LIFTER = 0.97, 22
TINY = np.finfo(float).eps


def mfcc(samples_S: np.ndarray) -> np.ndarray:
    """Coefficients of 16-bit samples (in units of one step, up to 32767), float64 (N, 13); the first is the log energy.

    T frames of video, 640 T samples, give 4 T - 1 windows; the last is filled up with silence.
    """
    samples = np.asarray(samples_S, np.float64)
    emphasised = np.append(samples[:1], samples[1:] - EMPHASIS * samples[:-1])
    count = 1 + max(-(-(len(samples) - WINDOW) // STEP), 0)
    padded = np.pad(emphasised, (0, (count - 1) * STEP + WINDOW - len(samples)))
    windows_NS = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP]
    power_NK = np.abs(np.fft.rfft(windows_NS, SPECTRUM)) ** 2 / SPECTRUM
    energy_N = np.maximum(power_NK.sum(axis=1), TINY)
    cepstrum_ND = np.log(np.maximum(power_NK @ _filters().T, TINY)) @ _cosines().T
    cepstrum_ND *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(NUM_COEFFICIENTS) / LIFTER)
    cepstrum_ND[:, 0] = np.log(energy_N)
    return cepstrum_ND


def _filters() -> np.ndarray:
    """Triangles that stand evenly on the mel scale from 0 to 8 kHz, (26, 257)."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), NUM_FILTERS + 2)
    edges = np.floor((SPECTRUM + 1) * 700 * (10 ** (mel / 2595) - 1) / RATE)
    bins = np.arange(SPECTRUM // 2 + 1)
    low, middle, high = (edges[i : i + NUM_FILTERS, None] for i in range(3))
    rising, falling = (bins - low) / np.maximum(middle - low, 1), (high - bins) / np.maximum(high - middle, 1)
    return np.where((bins >= low) & (bins < middle), rising, 0) + np.where((bins >= middle) & (bins < high), falling, 0)


def _cosines() -> np.ndarray:
    """The first rows of the orthonormal cosine transform of the second kind, (13, 26)."""
    rows = np.arange(NUM_COEFFICIENTS)[:, None]
    cosines = np.cos(np.pi * rows * (2 * np.arange(NUM_FILTERS) + 1) / (2 * NUM_FILTERS)) * np.sqrt(2 / NUM_FILTERS)
    return np.where(rows == 0, cosines / np.sqrt(2), cosines)

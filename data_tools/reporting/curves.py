"""What a clip sounds like and how its mouth moves, as arrays for drawing. S samples, T frames, M mel bands, N columns of a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowact import registry
from flowact.types import BOXES, SAMPLE_RATE

MEL_BANDS = 40
WINDOW = 512
RANGE_DB = 65.0
#: dark blue over green to yellow, as evenly bright steps as four anchors allow; readable without colour
_MAP = np.array([(13, 17, 60), (52, 72, 130), (38, 130, 142), (94, 201, 98), (253, 231, 37)], float)


def wave_peaks(samples_S: np.ndarray, columns: int = 300) -> np.ndarray:
    """Lowest and highest sample of each column (N, 2) as shares of the loudest one; int16 samples."""
    if not len(samples_S):
        return np.zeros((1, 2))
    edges = np.linspace(0, len(samples_S), min(columns, len(samples_S)) + 1).astype(int)[:-1]
    peaks_N2 = np.stack([np.minimum.reduceat(samples_S, edges), np.maximum.reduceat(samples_S, edges)], axis=1).astype(float)
    return peaks_N2 / max(float(np.abs(peaks_N2).max()), 1.0)


def mel_picture(samples_S: np.ndarray, columns: int = 480) -> np.ndarray:
    """uint8 (M, N, 3): energy of the sound over time and pitch, low pitches at the bottom; the loudest is brightest, 65 dB below it is dark."""
    import torch

    from flowact.conditioning.audio import mel_filterbank

    floats_S = samples_S.astype(np.float32) / 2**15
    hop = max(len(floats_S) // columns, 160)
    frames = max(-(-len(floats_S) // hop), 1)
    padded = np.pad(floats_S, (WINDOW // 2, WINDOW // 2 + frames * hop - len(floats_S)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::hop][:frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1)) ** 2
    filters_MB = mel_filterbank(MEL_BANDS, WINDOW // 2 + 1, 60.0, SAMPLE_RATE / 2 * 0.95)[0].to(torch.float64).numpy()
    level_MN = 10 * np.log10(filters_MB @ power.T + 1e-10)
    bright = np.clip((level_MN - level_MN.max()) / RANGE_DB + 1, 0, 1) if level_MN.max() > -99 else np.zeros_like(level_MN)
    place = bright[::-1] * (len(_MAP) - 1)
    low = np.minimum(place.astype(int), len(_MAP) - 2)
    return np.round(_MAP[low] + (_MAP[low + 1] - _MAP[low]) * (place - low)[..., None]).astype(np.uint8)


def mouth_opening(metadata: Mapping[str, Any], truth: np.ndarray | None, boxes_TX4: np.ndarray | None) -> np.ndarray | None:
    """Opening of the mouth (T,) as a share of its widest, NaN where it is not seen; None where nothing is known of it.

    Args:
        metadata: of the clip.
        truth: of a synthetic character.
        boxes_TX4: of face and mouth.
    """
    if truth is not None and metadata.get("character"):
        opening_T = np.asarray(registry.instantiate(metadata["character"], "characters").mouth_area(truth), float)
    elif boxes_TX4 is not None and np.isfinite(boxes_TX4).all(axis=-1).all(axis=-1).any():
        heights_TX = boxes_TX4[..., 3] - boxes_TX4[..., 1]
        face_T = heights_TX[:, BOXES.index("face")]
        opening_T = np.where(face_T > 0, heights_TX[:, BOXES.index("mouth")] / np.maximum(face_T, 1e-6), np.nan)
    else:
        return None
    return opening_T / max(float(np.nanmax(opening_T)), 1e-6)

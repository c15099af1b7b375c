"""Sound to features at 25 Hz: log-mel energies that need no weights.

Axes: T video frames (40 ms), P parts of a frame, M mel bands, D feature width; the rest as in flowact/types.py.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from flowact.conditioning.base import AudioEncoder, check_samples
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

# Frame RMS between which a talking mouth goes from closed to wide open.
QUIET_DB, LOUD_DB = -45.0, -12.0

# Mean power density of speech at -21.5 dBFS over frequency, and its standard deviation in every band, both in dB: measured on ten
# minutes of prompts read by one voice artist. Fixed constants, so that a feature never depends on the rest of its clip.
SPEECH_HZ = (100.0, 300.0, 600.0, 1200.0, 2000.0, 4000.0, 7500.0)
SPEECH_MEAN_DB = (-15.0, -21.5, -33.0, -43.5, -46.0, -50.0, -55.0)
SPEECH_DEVIATION_DB = 14.3
SILENCE = -2.5  # deviations below the mean at which a band's soft floor lies; the value of every band in digital silence


def _to_mel(hz: float) -> float:
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def _decibels(power: Tensor) -> Tensor:
    return 10.0 * torch.log10(power.clamp(min=1e-12))


def loudness(samples: Tensor) -> Tensor:
    """RMS level over the last axis: -1 at -45 dBFS and below, 1 at -12 dBFS and above, linear in dB between."""
    level = (_decibels(samples.square().mean(dim=-1)) - QUIET_DB) / (LOUD_DB - QUIET_DB)
    return 2.0 * level.clamp(0.0, 1.0) - 1.0


def mel_filterbank(num_mels: int, num_bins: int, low_hz: float, high_hz: float) -> tuple[Tensor, Tensor]:
    """Triangular filters with centres equally spaced in mel, 2595 log10(1 + f / 700).

    Each filter has unit sum, so a band's output is a power density whose level does not depend on the number of bands.

    Args:
        num_mels: bands M.
        num_bins: bins of a one-sided spectrum, from 0 Hz to 8 kHz.
        low_hz: lower edge of the first band.
        high_hz: upper edge of the last band.

    Returns:
        filters [M, num_bins] float32, and the bands' centre frequencies [M] in Hz.

    Raises:
        ValueError: a band lies between two bins of the spectrum.
    """
    mels = torch.linspace(_to_mel(low_hz), _to_mel(high_hz), num_mels + 2, dtype=torch.float64)
    edges_hz = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins_hz = torch.linspace(0.0, SAMPLE_RATE / 2, num_bins, dtype=torch.float64)
    left, centre, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    filters = torch.minimum((bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)).clamp(min=0.0)
    total = filters.sum(dim=1, keepdim=True)
    if not (total > 0).all():
        raise ValueError(f"{num_mels} mel bands from {low_hz:g} to {high_hz:g} Hz are finer than the spectrum; use fewer bands or fewer subframes")
    return (filters / total).float(), centre[:, 0].float()


@final
class LogMel(AudioEncoder):
    """Log-mel energies and loudness of each video frame and of a short past. No weights, no lookahead.

    The features of a frame, in order:

    1. for each of its `subframes` windows (1.25 / `subframes` of the frame long, evenly spread, inside the frame) `num_mels` band levels in dB;
    2. the RMS level of each of its `subframes` equal parts, and of the whole frame;
    3. for each of the `context_frames` frames before it, latest first: the mean of its band levels over its windows, and its RMS level.

    Band levels are normalised with fixed constants to about zero mean and unit variance for speech at -23 to -20 dBFS. RMS levels are linear
    in dB between -45 dBFS (-1) and -12 dBFS (1), because a mouth that follows the loudness can be read off them by a linear map.
    Sound before the first sample counts as silence, and digital silence has one constant vector.

    Law: the features of a prefix are a prefix of the features, and those of a later part, encoded with `context_frames` of past, are the same.

    Args:
        num_mels: mel bands M.
        low_hz: lower edge of the bands.
        high_hz: upper edge of the bands, at most 8000.
        context_frames: frames of the past that a feature describes.
        subframes: windows per frame; two resolve 20 ms, about the length of a lip closure.

    Raises:
        ValueError: a count below its minimum, edges out of order, or bands finer than the spectrum.
    """

    def __init__(self, num_mels: int = 20, low_hz: float = 60.0, high_hz: float = 7600.0, context_frames: int = 4, subframes: int = 2) -> None:
        if num_mels < 1 or context_frames < 0 or subframes < 1 or SAMPLES_PER_FRAME % subframes:
            raise ValueError(
                f"LogMel needs num_mels >= 1, context_frames >= 0 and subframes that divide {SAMPLES_PER_FRAME}, "
                f"got {num_mels}, {context_frames}, {subframes}"
            )
        if not 0.0 <= low_hz < high_hz <= SAMPLE_RATE / 2:
            raise ValueError(f"LogMel needs 0 <= low_hz < high_hz <= {SAMPLE_RATE // 2}, got {low_hz:g} and {high_hz:g}")
        self.num_mels = num_mels
        self.subframes = subframes
        self._context_frames = context_frames
        self._window_length = min(SAMPLES_PER_FRAME, SAMPLES_PER_FRAME * 5 // (4 * subframes))
        self._fft_length = max(512, 1 << (self._window_length - 1).bit_length())
        window = torch.hann_window(self._window_length + 2, periodic=False)[1:-1]  # without the zeros at its ends
        self._window = window / window.square().sum().sqrt()
        self._filters_MB, centres_hz = mel_filterbank(num_mels, self._fft_length // 2 + 1, low_hz, high_hz)
        self._mean_db_M = _speech_mean_db(centres_hz)
        self._floor_M = 10.0 ** ((self._mean_db_M + SILENCE * SPEECH_DEVIATION_DB) / 10.0)

    @property
    def width(self) -> int:
        return self.subframes * (self.num_mels + 1) + 1 + self._context_frames * (self.num_mels + 1)

    @property
    def context_frames(self) -> int:
        return self._context_frames

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        samples = check_samples(samples)
        num_frames = samples.shape[0] // SAMPLES_PER_FRAME
        if num_frames == 0:
            return samples.new_zeros(0, self.width)
        padded = functional.pad(samples[: num_frames * SAMPLES_PER_FRAME], (self._context_frames * SAMPLES_PER_FRAME, 0))
        frames_TS = padded.view(-1, SAMPLES_PER_FRAME)
        bands_TPM = self._bands(frames_TS)
        level_T = loudness(frames_TS)
        level_TP = loudness(frames_TS.view(-1, self.subframes, SAMPLES_PER_FRAME // self.subframes))
        summary_TD = torch.cat([bands_TPM.mean(dim=1), level_T[:, None]], dim=1)
        start = self._context_frames
        own = [bands_TPM[start:].flatten(1), level_TP[start:], level_T[start:, None]]
        past = [summary_TD[start - back : start - back + num_frames] for back in range(1, start + 1)]
        return torch.cat(own + past, dim=1)

    def _bands(self, frames_TS: Tensor) -> Tensor:
        """Normalised band levels [T, P, M] of frames of samples."""
        last = SAMPLES_PER_FRAME - self._window_length
        starts = [round(last * part / max(self.subframes - 1, 1)) for part in range(self.subframes)]
        parts_TPS = torch.stack([frames_TS[:, start : start + self._window_length] for start in starts], dim=1)
        device = frames_TS.device
        spectrum = torch.fft.rfft(parts_TPS * self._window.to(device), n=self._fft_length)
        density = spectrum.abs().square() @ self._filters_MB.T.to(device)
        return (_decibels(density + self._floor_M.to(device)) - self._mean_db_M.to(device)) / SPEECH_DEVIATION_DB


def _speech_mean_db(centres_hz: Tensor) -> Tensor:
    """The mean level of speech at each band, interpolated in mel."""
    knots = [_to_mel(hz) for hz in SPEECH_HZ]
    levels = []
    for hz in centres_hz.tolist():
        mel = min(max(_to_mel(hz), knots[0]), knots[-1])
        right = next(i for i in range(1, len(knots)) if mel <= knots[i])
        share = (mel - knots[right - 1]) / (knots[right] - knots[right - 1])
        levels.append(SPEECH_MEAN_DB[right - 1] * (1.0 - share) + SPEECH_MEAN_DB[right] * share)
    return torch.tensor(levels)

"""What makes a talking character good, as numbers: pure functions of measured and true signals, one clip at a time.

What could not be measured never helps a number: a frozen mouth is a failure that counts as zero, an unreadable face counts as the largest error.
Signals are float arrays (T,) at 25 frames a second. Legend: flowact/types.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from flowact.types import FRAMES_PER_SECOND, STATES

#: a clip says something about lips only if it speaks for a second
MIN_SPEAKING_FRAMES = FRAMES_PER_SECOND
MAX_LAG = 15
#: a mouth that moves less than this share of the true movement is frozen
FROZEN_SHARE = 1e-3
#: "at the end" of a clip
END_SECONDS = 2
#: share of a clip that counts as its beginning and as its end for drift
DRIFT_SHARE = 0.15


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two signals over the entries where both are finite, in [-1, 1]; NaN for a constant, or nothing to compare."""
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.sum() < 2:
        return float("nan")
    x, y = np.asarray(x, np.float64)[finite], np.asarray(y, np.float64)[finite]
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float(np.clip((x * y).sum() / scale, -1, 1)) if scale > 0 else float("nan")


def has_lips_to_measure(true_area_T: np.ndarray, speaking_T: np.ndarray) -> bool:
    """Whether the truth of a clip speaks for at least `MIN_SPEAKING_FRAMES` and moves its mouth while it does."""
    return int(speaking_T.sum()) >= MIN_SPEAKING_FRAMES and float(np.std(true_area_T[speaking_T])) > 0


def lip_correlation(measured_area_T: np.ndarray, true_area_T: np.ndarray, speaking_T: np.ndarray) -> float:
    """Does the mouth open when the speech says so: Pearson correlation of measured and true mouth area over the speaking frames, in [-1, 1].

    The exact counterpart, for characters with known truth, of SyncNet's confidence (Chung and Zisserman 2016): no learnt judge.

    Args:
        measured_area_T: mouth area read back from the pixels, NaN where unreadable.
        true_area_T: mouth area of the truth, same units up to scale.
        speaking_T: bool, frames whose true state is speaking.

    Returns:
        NaN marks a failure, not a missing number: the mouth is frozen, or unreadable in more than half of the speaking frames.
    """
    measured, true = measured_area_T[speaking_T], true_area_T[speaking_T]
    finite = np.isfinite(measured)
    if finite.sum() < max(2, 0.5 * measured.size) or np.std(measured[finite]) <= FROZEN_SHARE * np.std(true):
        return float("nan")
    return pearson(measured, true)


def shuffled_lip_correlation(measured_area_T: np.ndarray, speaking_T: np.ndarray, others: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The chance level of `lip_correlation`: the same mouth against the speech of other clips, mean over them; near 0 unless something is wrong.

    A mouth that merely moves whenever anyone talks scores here what it scores there, so the difference of the two is what the audio has bought.

    Args:
        others: (true_area_T, speaking_T) of each other clip. A pair is compared on the frames where both speak, if these are a second or more.

    Returns:
        NaN if no pair can be compared. A frozen mouth gives 0.
    """
    scores = []
    for true_area_T, other_speaking_T in others:
        length = min(len(measured_area_T), len(true_area_T))
        both = speaking_T[:length] & other_speaking_T[:length]
        if has_lips_to_measure(true_area_T[:length], both):
            scores.append(np.nan_to_num(lip_correlation(measured_area_T[:length], true_area_T[:length], both)))
    return float(np.mean(scores)) if scores else float("nan")


def self_shuffled_lip_correlation(measured_area_T: np.ndarray, true_area_T: np.ndarray, speaking_T: np.ndarray) -> float:
    """Chance level when there is only one clip: against its own speech moved by half of its length."""
    true = true_area_T[speaking_T]
    return float(np.nan_to_num(lip_correlation(measured_area_T[speaking_T], np.roll(true, len(true) // 2), np.ones(len(true), bool))))


def lag_curve(measured_area_T: np.ndarray, true_area_T: np.ndarray, speaking_T: np.ndarray, max_lag: int = MAX_LAG) -> np.ndarray:
    """Lip correlation of the video read `lag` frames later, for lag = -max_lag .. max_lag; its peak says by how much the video is late.

    Failures count as 0, as do lags that leave less than a second to compare.

    Returns:
        float64 (2 * max_lag + 1,). A peak at +3 means that the mouth opens 3 frames (120 ms) after the sound.
    """
    length = len(measured_area_T)
    curve = np.zeros(2 * max_lag + 1)
    for index, lag in enumerate(range(-max_lag, max_lag + 1)):
        times = np.flatnonzero(speaking_T)
        times = times[(times + lag >= 0) & (times + lag < length)]
        everywhere = np.ones(len(times), bool)
        if has_lips_to_measure(true_area_T[times], everywhere):
            curve[index] = np.nan_to_num(lip_correlation(measured_area_T[times + lag], true_area_T[times], everywhere))
    return curve


def best_lag(curve: np.ndarray) -> float:
    """Lag in frames at the peak of a lag curve, positive = video late; the smallest of equals. NaN if no lag correlates at all."""
    if not np.any(curve > 0):
        return float("nan")
    lags = np.arange(len(curve)) - len(curve) // 2
    peaks = lags[curve >= curve.max() - 1e-12]
    return float(peaks[np.argmin(np.abs(peaks))])


def amplitude_ratio(measured_area_T: np.ndarray, true_area_T: np.ndarray, speaking_T: np.ndarray) -> float:
    """How far the mouth moves: standard deviation of the measured over the true area while speaking. 1 is right, 0 is a still mouth."""
    measured = measured_area_T[speaking_T]
    measured = measured[np.isfinite(measured)]
    return float(np.std(measured) / np.std(true_area_T[speaking_T])) if measured.size else 0.0


def closed_mouth_leak(measured_area_T: np.ndarray, true_area_T: np.ndarray, states_T: np.ndarray) -> float:
    """How open the mouth stays when it should be closed (listening, idle), 0 = closed as in truth, 1 = as open as in average speech.

    Thinking is left out, because a hand may cover the mouth. NaN if the clip does not both speak and rest.
    """
    quiet_T = np.isin(states_T, [STATES.index("listening"), STATES.index("idle")])
    speaking_T = states_T == STATES.index("speaking")
    if not quiet_T.any() or not speaking_T.any() or not np.isfinite(measured_area_T[quiet_T]).any():
        return float("nan")
    rest, talk = true_area_T[quiet_T].mean(), true_area_T[speaking_T].mean()
    return float((np.nanmean(measured_area_T[quiet_T]) - rest) / (talk - rest)) if talk > rest else float("nan")


def mean_or_worst(series: np.ndarray, worst: float = 1.0) -> float:
    """Mean over the readable entries; `worst` when there is none, so that what cannot be read is never better than what can."""
    finite = np.isfinite(series)
    return float(series[finite].mean()) if finite.any() else worst


def end_of(series_T: np.ndarray, seconds: float = END_SECONDS) -> np.ndarray:
    """The last `seconds` of a clip, or all of a shorter one."""
    return series_T[-min(len(series_T), round(seconds * FRAMES_PER_SECOND)) :]


def identity_rank(distances: Sequence[float], own: int) -> float:
    """Place of the own reference among all identities by distance: 1 = nearest.

    Ties count half, so a measure that cannot tell gives chance, (N + 1) / 2.

    Args:
        distances: distance of the generated frames to each of the N identities; an unreadable (NaN) own distance is last.
        own: index of the right one.
    """
    values = np.where(np.isfinite(distances), distances, np.inf)
    others = np.delete(values, own)
    return float(1 + (others < values[own]).sum() + 0.5 * (others == values[own]).sum())


def state_recall(read_T: np.ndarray, states_T: np.ndarray) -> dict[str, float]:
    """Per state, the share of its true frames that are read as it; states that do not occur are left out."""
    return {name: float((read_T[states_T == index] == index).mean()) for index, name in enumerate(STATES) if (states_T == index).any()}


def switch_latencies(read_T: np.ndarray, states_T: np.ndarray, hold: int = 3, min_duration: int = FRAMES_PER_SECOND) -> list[tuple[int, float]]:
    """For each change of state that lasts `min_duration` frames: frames until the new state is seen for `hold` frames on end.

    Returns:
        (new state, latency in frames); infinite if it is never seen before the state ends.
    """
    changes = [*np.flatnonzero(np.diff(states_T)) + 1, len(states_T)]
    latencies = []
    for start, stop in pairwise(changes):
        if stop - start < min_duration:
            continue
        seen = read_T[start:stop] == states_T[start]
        held = np.convolve(seen, np.ones(hold), "valid") >= hold
        latencies.append((int(states_T[start]), float(np.argmax(held)) if held.any() else float("inf")))
    return latencies


def drift(series_T: np.ndarray, share: float = DRIFT_SHARE) -> float:
    """|M(first 15 %) - M(last 15 %)| of any per-frame measure M, in M's units; 0 for a stationary series (the drift rule of Helios).

    Guard against "a still picture never drifts" by reading it beside the motion ratio.
    """
    length = max(1, round(share * len(series_T)))
    return abs(mean_or_worst(series_T[:length]) - mean_or_worst(series_T[-length:]))


def motion(frames_THWC: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame to the one before, (T,), in 0..1 RGB units; NaN for the first."""
    steps = np.abs(np.diff(frames_THWC.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)) / 255
    return np.concatenate([[np.nan], steps])


def sharpness(frames_THWC: np.ndarray) -> float:
    """Mean absolute difference of each pixel to the mean of its 3 x 3 neighbourhood, in 0..1 RGB units; blur lowers it, noise raises it."""
    x = frames_THWC.astype(np.float32) / 255
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = x.shape[1:3]
    blurred = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    return float(np.abs(x - blurred).mean())


def frechet_distance(x_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of vectors: |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)).

    The formula of FID (Heusel et al. 2017), here on exact factors (pose, gaze, hands) in place of a network's features.
    """
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_ND, np.float64)
    covariance_x, covariance_y = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    # C_x C_y has the eigenvalues of the positive semi-definite C_x^(1/2) C_y C_x^(1/2): real and not negative up to rounding
    values, vectors = np.linalg.eigh(covariance_x)
    root_x = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_x @ covariance_y @ root_x), 0, None)).sum()
    return float(max(0.0, ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross))


def per_second(series_T: np.ndarray) -> np.ndarray:
    """Means of each second of a series, NaN where nothing is readable; a last piece shorter than half a second is dropped."""
    rate = FRAMES_PER_SECOND
    pieces = [series_T[i : i + rate] for i in range(0, len(series_T), rate)]
    return np.array([mean_or_worst(piece, float("nan")) for piece in pieces if len(piece) >= rate / 2 or len(pieces) == 1])


def mean_curve(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over clips of per-second curves of different lengths; NaN where no clip has a value."""
    stacked = np.full((len(curves), max((len(curve) for curve in curves), default=0)), np.nan)
    for row, curve in zip(stacked, curves, strict=True):
        row[: len(curve)] = curve
    counts = np.isfinite(stacked).sum(0)
    return np.where(counts > 0, np.nansum(stacked, 0) / np.maximum(counts, 1), np.nan)


def bootstrap_interval(values: Sequence[float], level: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over clips (Efron 1979); NaNs for no clips, a point for one."""
    sample = np.asarray(values, np.float64)
    if not sample.size:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(0, sample.size, (num_resamples, sample.size))
    low, high = np.quantile(sample[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

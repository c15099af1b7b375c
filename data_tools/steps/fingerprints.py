"""Short prints of how loud a clip is and how much moves in it, over time: the same after another encoding and scaling, different for another take.

Axes: T frames, N values of a print, L lags, W words of all clips together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

HOP, SMOOTH = 2, 5  # frames between values of a print, and over which each is averaged
SHORTEST = 24  # values, two seconds, that must lie beside each other to be compared
NEAR = 6  # values, half a second, by which any two prints may be ahead of each other
LONG, FAR = 75, 250  # values: what must then overlap (six seconds) for one to be ahead by more, and by how much at most
BITS, STRIDE = 32, 4  # of a word: whether values rise over four frames, and the frames from one to the next; together five seconds
SKETCH = 32  # words of a clip at most, the same ones wherever they occur
TABLES, PLANES, LENGTH = 32, 20, 64  # signatures of a print, bits of each, and values that it is brought to
NEIGHBOURS = 8  # of a clip among those that share a word: a jingle that all share costs no more than this


def to_print(values_T: np.ndarray, low: float, step: float) -> str:
    """Two hexadecimal digits for each second frame; values are counted in steps from the lowest that is told apart."""
    return np.clip(np.round((_smooth(values_T, SMOOTH)[::HOP] - low) / step), 0, 255).astype(np.uint8).tobytes().hex()


def from_print(text: str) -> np.ndarray:
    """uint8 (N,)."""
    return np.frombuffer(bytes.fromhex(text), np.uint8)


def agreement(a_N: np.ndarray, b_N: np.ndarray, least_change: float) -> float | None:
    """The best correlation of two prints, one moved against the other by steps of a frame; None where too little goes on to tell.

    Args:
        a_N: print.
        b_N: another.
        least_change: standard deviation that both must have where they are compared.
    """
    if min(len(a_N), len(b_N)) < SHORTEST or min(a_N.std(), b_N.std()) < least_change:
        return None
    a, b = a_N - a_N.mean(), b_N - b_N.mean()  # so that sums of squares are exact enough
    found = [_correlations(a, other, least_change) for other in (b, (b[1:] + b[:-1]) / 2)]  # a frame is half of a value
    known = np.concatenate(found)
    return float(known.max()) if len(known) else None


def _correlations(a: np.ndarray, b: np.ndarray, least_change: float) -> np.ndarray:
    """Correlation at each lag L that is allowed, a[L + i] over b[i], by sums over what overlaps."""
    lags_L = np.arange(-min(len(b) - 1, FAR), min(len(a) - 1, FAR) + 1)
    first_L, end_L = np.maximum(lags_L, 0), np.minimum(lags_L + len(b), len(a))
    allowed_L = end_L - first_L >= np.where(np.abs(lags_L) <= NEAR, max(min(SHORTEST - 2, len(b)), min(len(a), len(b)) // 2), LONG)
    lags_L, first_L, end_L = lags_L[allowed_L], first_L[allowed_L], end_L[allowed_L]
    products_L = np.correlate(a, b, "full")[lags_L + len(b) - 1]
    counts_L = np.maximum(end_L - first_L, 1)
    (mean_a, spread_a), (mean_b, spread_b) = _moments(a, first_L, end_L), _moments(b, first_L - lags_L, end_L - lags_L)
    told_L = np.minimum(spread_a, spread_b) >= least_change**2
    return (products_L / counts_L - mean_a * mean_b)[told_L] / np.sqrt(spread_a * spread_b)[told_L]


def _moments(values_N: np.ndarray, first_L: np.ndarray, end_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of values first..end-1, for each lag."""
    counts_L = np.maximum(end_L - first_L, 1)
    up_to, squares_up_to = (np.concatenate([[0.0], np.cumsum(powers)]) for powers in (values_N, values_N**2))
    mean_L = (up_to[end_L] - up_to[first_L]) / counts_L
    return mean_L, (squares_up_to[end_L] - squares_up_to[first_L]) / counts_L - mean_L**2


def _smooth(values_T: np.ndarray, width: int) -> np.ndarray:
    padded_T = np.pad(values_T.astype(np.float64), width // 2, mode="edge") if len(values_T) else np.zeros(width - 1)
    return np.convolve(padded_T, np.full(width, 1 / width), "valid")


# --- finding pairs ----------------------------------------------------------------------------------------------------------------------------------


def words(values_T: np.ndarray) -> np.ndarray:
    """When values rise and fall, five seconds each: uint64 below 2 ** 32, at most `SKETCH`. Silence and steady tones have none.

    They say nothing about where a clip begins, so parts of a recording that were cut differently share them.
    """
    smooth_T = _smooth(values_T, SMOOTH + 2)
    rises_T = smooth_T[STRIDE:] > smooth_T[:-STRIDE]
    if len(rises_T) < STRIDE * BITS:
        return np.zeros(0, np.uint64)
    windows_TB = np.lib.stride_tricks.sliding_window_view(rises_T, STRIDE * BITS)[:, ::STRIDE]
    busy_T = (windows_TB[:, 1:] != windows_TB[:, :-1]).sum(1) >= BITS // 6
    found = np.unique(windows_TB[busy_T].astype(np.uint64) @ (np.uint64(1) << np.arange(BITS, dtype=np.uint64)))
    # of many, those that a fixed shuffle puts first: clips that share a stretch keep the same ones
    return found[np.argsort(found * np.uint64(0x9E3779B97F4A7C15), kind="stable")[:SKETCH]]


def signatures(print_N: np.ndarray, least_change: float) -> np.ndarray:
    """On which sides of random planes the whole print lies: uint64 below 2 ** 25, `TABLES`; none where too little goes on.

    Of two prints that correlate by 0.95 nearly all pairs share some of them, of two others few (Charikar 2002, "Similarity Estimation Techniques from
    Rounding Algorithms").
    """
    if len(print_N) < SHORTEST or print_N.std() < least_change:
        return np.zeros(0, np.uint64)
    places = np.linspace(0, len(print_N) - 1, LENGTH)
    values_N = np.interp(places, np.arange(len(print_N)), print_N)
    sides = (_planes() @ (values_N - values_N.mean()) > 0).reshape(TABLES, PLANES)
    bits = sides.astype(np.uint64) @ (np.uint64(1) << np.arange(PLANES, dtype=np.uint64))
    return bits | np.arange(TABLES, dtype=np.uint64) << np.uint64(PLANES)


@functools.cache
def _planes() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((TABLES * PLANES, LENGTH))


def candidate_pairs(words_W: np.ndarray, owners_W: np.ndarray, fewest: int) -> list[tuple[int, int]]:
    """Pairs of owners (earlier, later) that share at least so many words; time and memory grow with the number of words, not of pairs.

    Args:
        words_W: uint64.
        owners_W: int64, whose each word is.
        fewest: words that a pair shares.
    """
    order = np.lexsort((owners_W, words_W))
    words_W, owners_W = words_W[order], owners_W[order]
    pairs: list[np.ndarray] = []
    for apart in range(1, min(NEIGHBOURS, len(words_W) - 1) + 1):
        same_W = (words_W[apart:] == words_W[:-apart]) & (owners_W[apart:] != owners_W[:-apart])
        pairs.append(np.stack([owners_W[:-apart][same_W], owners_W[apart:][same_W]], axis=1))
    if not pairs:
        return []
    found, counts = np.unique(np.concatenate(pairs), axis=0, return_counts=True)
    return [(int(i), int(j)) for i, j in found[counts >= fewest]]


def distance(a: Sequence[str], b: Sequence[str]) -> float:
    """Bits by which the nearest of the other clip's picture hashes (hexadecimal) differs, the median of a clip; the larger of both directions."""
    a_NB, b_NB = (np.unpackbits(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8)).reshape(len(hashes), -1) for hashes in (a, b))
    bits_NN = (a_NB[:, None] != b_NB[None]).sum(-1)
    return float(max(np.median(bits_NN.min(1)), np.median(bits_NN.min(0))))

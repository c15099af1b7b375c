"""Counts of clips by the value of a score, in bins that no threshold cuts through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.reporting.decisions import Threshold
from data_tools.reporting.wording import is_number, nice_step

#: powers of ten between the lowest and highest value from which bins are of equal ratio
DECADES = 1.7


@dataclass(frozen=True)
class Histogram:
    """Counts of clips that keep and that break the rules.

    Attributes:
        edges: of the bins, ascending, one more than bins; values beyond the first and last are counted in the bins there.
        kept: of each bin.
        broken: of each bin.
        below: whether values lie below the first edge.
        above: whether values lie above the last.
        log: whether the bins are equal in ratio instead of in width.
    """

    edges: np.ndarray
    kept: np.ndarray
    broken: np.ndarray
    below: bool = False
    above: bool = False
    log: bool = False


def histogram(
    kept: np.ndarray, broken: np.ndarray, thresholds: Sequence[Threshold] = (), bins: int = 36, reach: tuple[float, float] | None = None
) -> Histogram:
    """Bins whose edges contain every bound, so that no bar is on both sides of a threshold.

    A few far values do not squeeze the others together: one in 200 at each end may lie beyond the edges, and is counted in the bin there. Values
    that are all positive and differ by more than `DECADES` are put into bins of equal ratio.

    Args:
        kept: values that keep the rules.
        broken: values that do not.
        thresholds: of the score.
        bins: about how many.
        reach: lowest and highest value to draw; None takes those of the values and bounds.
    """
    values = np.concatenate([kept, broken])
    bounds = sorted({float(threshold.bound) for threshold in thresholds if is_number(threshold.bound)})
    low, high = reach or _range(values, bounds)
    whole = bool(len(values)) and bool((values == np.round(values)).all()) and all(bound == round(bound) for bound in bounds)
    log = not whole and low > 0 and high / low > 10**DECADES
    if whole and high - low <= 60:
        edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + 1.5)
    elif log:
        edges = np.unique(np.concatenate([np.geomspace(low, high, bins + 1), bounds]))
    else:
        step = nice_step((high - low) / bins)
        anchor = bounds[0] if bounds else 0.0
        first, last = np.floor((low - anchor) / step + 1e-9), np.ceil((high - anchor) / step - 1e-9)
        edges = np.unique(np.concatenate([anchor + step * np.arange(first, max(last, first + 1) + 1), bounds]))
    inclusive = np.array([float(threshold.bound) for threshold in thresholds if threshold.relation == "at most" and is_number(threshold.bound)])
    counts = [np.bincount(_bin(part, edges, inclusive), minlength=len(edges) - 1) for part in (kept, broken)]
    return Histogram(edges, counts[0], counts[1], bool((values < edges[0]).any()), bool((values > edges[-1]).any()), log)


def _range(values: np.ndarray, bounds: Sequence[float]) -> tuple[float, float]:
    ends = np.concatenate([np.percentile(values, [0.5, 99.5]) if len(values) > 200 else values, bounds]) if len(values) or bounds else np.zeros(1)
    low, high = float(ends.min()), float(ends.max())
    if low == high:
        room = abs(low) * 0.1 or 0.5
        return low - room, high + room
    return low, high


def _bin(values: np.ndarray, edges: np.ndarray, inclusive: np.ndarray) -> np.ndarray:
    """Number of each value's bin; a value equal to an 'at most' bound is below it, any other edge belongs to the bin above."""
    number = np.searchsorted(edges, values, side="right") - 1 - np.isin(values, inclusive)
    return np.clip(number, 0, len(edges) - 2)

"""By how many frames lips and sound miss each other, from their embeddings.

Axes: N windows, K shifts, D width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

REACH = 15  # frames to both sides


@dataclass(frozen=True)
class Match:
    """The best of all shifts.

    Attributes:
        offset: frames by which the sound comes too early, and is to be moved later; negative where it comes too late.
        distance: mean distance at that shift (LSE-D); below 8 on published talking faces.
        confidence: median over shifts of the mean distance, minus the smallest (LSE-C).
    """

    offset: int
    distance: float
    confidence: float


def best_match(lips_ND: Tensor, sound_ND: Tensor) -> Match:
    """As in the published evaluation: lips of window n against sound of window n + k - 15, zeros outside; the smallest mean distance wins."""
    padded_ND = functional.pad(sound_ND, (0, 0, REACH, REACH))
    mean_K = torch.stack([functional.pairwise_distance(lips_ND, padded_ND[k : k + len(lips_ND)]).mean() for k in range(2 * REACH + 1)])
    best = int(mean_K.argmin())
    return Match(REACH - best, float(mean_K[best]), float(mean_K.median() - mean_K[best]))

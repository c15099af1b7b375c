"""Noise levels of chunkwise diffusion forcing: each chunk has its own. Legend: flowact/types.py."""

from __future__ import annotations

import torch
from torch import Tensor

from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.flow import LogitNormalLevel
from flowact.schedulers.staircase import Staircase


class IndependentLevels(NoiseScheduler):
    """Every chunk draws its own level (Diffusion Forcing, arXiv 2407.01392, algorithm 1; chunkwise).

    Args:
        mean: of the logit normal.
        std: of the logit normal.
        shift: resolution shift.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> None:
        self.law = LogitNormalLevel(mean, std, shift)

    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        """See `NoiseScheduler.sample`."""
        return self.law.draw((batch, num_chunks), generator)


class StaircaseLevels(NoiseScheduler):
    """The levels that a stream meets: a staircase with one random offset per sample, u in [0, 1) of a stair.

    Args:
        shift: as the stream's staircase.
        first_step: probability that the offset is 0, the only offset that a stream with one micro-step ever meets.
    """

    def __init__(self, shift: float = 1.0, first_step: float = 0.0) -> None:
        self.shift = shift
        self.first_step = first_step

    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        """See `NoiseScheduler.sample`."""
        offset_B1 = torch.rand((batch, 1), generator=generator)
        offset_B1 = offset_B1.masked_fill(torch.rand((batch, 1), generator=generator) < self.first_step, 0.0)
        return Staircase(num_chunks, shift=self.shift).at(torch.arange(1, num_chunks + 1) - offset_B1)


class MixedLevels(NoiseScheduler):
    """A staircase with some probability, independent levels otherwise; which of the two the paper trains on is not stated.

    Args:
        staircase: probability of the staircase.
        mean: of the independent levels' logit normal.
        std: of the independent levels' logit normal.
        shift: resolution shift of both.
        first_step: see `StaircaseLevels`.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    def __init__(self, staircase: float = 0.5, mean: float = 0.0, std: float = 1.0, shift: float = 1.0, first_step: float = 0.0) -> None:
        for name, value in (("staircase", staircase), ("first_step", first_step)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability, got {value}; choose a number in [0, 1]")
        self.staircase = staircase
        self.independent = IndependentLevels(mean, std, shift)
        self.stairs = StaircaseLevels(shift, first_step)

    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        """See `NoiseScheduler.sample`."""
        choice_B1 = torch.rand((batch, 1), generator=generator) < self.staircase
        return torch.where(choice_B1, self.stairs.sample(batch, num_chunks, generator), self.independent.sample(batch, num_chunks, generator))

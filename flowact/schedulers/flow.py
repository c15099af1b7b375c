"""Noise levels of plain flow matching: one level for the whole window. Legend: flowact/types.py."""

from __future__ import annotations

import torch
from torch import Tensor

from flowact.schedulers.base import NoiseScheduler, shift_levels


class LogitNormalLevel(NoiseScheduler):
    """sigma = shift(sigmoid(N(mean, std))), the same for all chunks of a sample (SD3, equation 19 and 23).

    Args:
        mean: of the normal; above 0 prefers noise.
        std: of the normal.
        shift: resolution shift.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> None:
        self.mean = mean
        self.std = std
        self.shift = shift

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Independent levels of any shape."""
        return shift_levels(torch.sigmoid(self.mean + self.std * torch.randn(shape, generator=generator)), self.shift)

    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        """See `NoiseScheduler.sample`."""
        return self.draw((batch, 1), generator).expand(-1, num_chunks)


class UniformLevel(NoiseScheduler):
    """sigma = shift(U[low, high]), the same for all chunks of a sample (the levels of distribution matching).

    Args:
        low: least level before the shift.
        high: largest level before the shift.
        shift: resolution shift.

    Raises:
        ValueError: not 0 <= low < high <= 1.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, shift: float = 1.0) -> None:
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"uniform levels lie between low and high with 0 <= low < high <= 1, got low {low} and high {high}")
        self.low = low
        self.high = high
        self.shift = shift

    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        """See `NoiseScheduler.sample`."""
        sigma_B1 = self.low + (self.high - self.low) * torch.rand(batch, 1, generator=generator)
        return shift_levels(sigma_B1, self.shift).expand(-1, num_chunks)

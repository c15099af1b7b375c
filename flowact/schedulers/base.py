"""Noise levels: which sigma each latent frame gets in training, and which levels a stream steps through. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class NoiseScheduler(ABC):
    """Noise levels of a window of K chunks. Rectified flow: x_sigma = (1 - sigma) x0 + sigma eps, velocity v = eps - x0."""

    @abstractmethod
    def sample(self, batch: int, num_chunks: int, generator: torch.Generator | None = None) -> Tensor:
        """Training levels sigma_BK in [0, 1], one per chunk."""


def shift_levels(sigma: Tensor, shift: float) -> Tensor:
    """Move levels towards noise: k s / (1 + (k - 1) s) (SD3, equation 23; resolution shift). Written so that rounding keeps 1 at 1."""
    return shift * sigma / (shift * sigma + (1 - sigma))

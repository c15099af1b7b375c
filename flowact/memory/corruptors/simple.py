"""Corruptors that ask for no model: none, and noise. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowact.memory.corruptors.base import Corruption, MemoryCorruptor, Offer, Ramp, noised
from flowact.types import Chunk


class GroundTruthMemory(MemoryCorruptor):
    """Clean memory: "off"."""

    name = "ground_truth"

    def __init__(self) -> None:
        super().__init__()

    def make(self, history: Sequence[Chunk], offer: Offer, generator: torch.Generator | None = None) -> Corruption:
        """See `MemoryCorruptor.make`."""
        return self.changed(history, False)


class GaussianMemory(MemoryCorruptor):
    """Noise of a random small level on every history chunk, while the network is told that memory is clean (Helios' history corruption).

    Args:
        max_sigma: levels are uniform in [0, max_sigma], one per sample.
        probability: share of samples that get noise; the others stay clean.
        ramp: how the probability comes in.

    Raises:
        ValueError: a level or probability outside [0, 1].
    """

    name = "gaussian"

    def __init__(self, max_sigma: float = 0.3, probability: float = 1.0, ramp: Ramp = Ramp()) -> None:
        super().__init__(probability, ramp)
        if not 0 <= max_sigma <= 1:
            raise ValueError(f"max_sigma is a noise level in [0, 1], got {max_sigma}")
        self.max_sigma = max_sigma

    def make(self, history: Sequence[Chunk], offer: Offer, generator: torch.Generator | None = None) -> Corruption:
        """See `MemoryCorruptor.make`."""
        sigma_B = self.max_sigma * torch.rand(history[0].latents_BFCHW.shape[0], generator=generator)
        return self.changed([noised(chunk, sigma_B, generator) for chunk in history])

"""Memory with the model's own past errors (SVI, arXiv 2510.09212). Legend: flowact/types.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowact.memory.corruptors.base import Corruption, MemoryCorruptor, Offer, Ramp
from flowact.types import Chunk


class ErrorBufferMemory(MemoryCorruptor):
    """True memory plus errors that the network made in earlier training steps: drift without an evaluation (SVI's error recycling, on memory alone).

        e = x0_hat - x0 = -sigma (v_hat - v)                 of each chunk of a training step, kept in the bin of its sigma
        memory = x0 + a e,   a ~ U[min_scale, max_scale]     one bin per sample, one error and scale per chunk

    A buffer belongs to one process, lies on the CPU and is full at bins * size chunks; then each new error takes the place of a random one of its
    bin. Checkpoints hold every process's buffer. Until a bin of the range has an error, memory stays clean.

    Args:
        probability: share of samples that get errors; the others stay clean.
        bins: number of equal bins of noise levels in [0, 1].
        size: errors of a bin.
        min_sigma: errors are taken from the bins that lie between this level
        max_sigma: and this one, at least in part.
        min_scale: least factor of an error.
        max_scale: largest factor of an error.
        ramp: how the probability comes in.

    Raises:
        ValueError: a number outside its range.
    """

    name = "error_buffer"
    needs = frozenset(("errors",))
    has_state = True

    def __init__(
        self,
        probability: float = 0.5,
        bins: int = 8,
        size: int = 32,
        min_sigma: float = 0.3,
        max_sigma: float = 0.9,
        min_scale: float = 0.7,
        max_scale: float = 1.3,
        ramp: Ramp = Ramp(),
    ) -> None:
        super().__init__(probability, ramp)
        if bins < 1 or size < 1:
            raise ValueError(f"an error buffer needs bins >= 1 and size >= 1, got bins={bins} and size={size}")
        if not 0 <= min_sigma <= max_sigma <= 1:
            raise ValueError(f"noise levels need 0 <= min_sigma <= max_sigma <= 1, got {min_sigma} and {max_sigma}")
        if not 0 <= min_scale <= max_scale:
            raise ValueError(f"scales of errors need 0 <= min_scale <= max_scale, got {min_scale} and {max_scale}")
        self.bins = bins
        self.size = size
        self.scales = (min_scale, max_scale)
        first = min(int(min_sigma * bins), bins - 1)
        self.drawn = range(first, max(math.ceil(max_sigma * bins), first + 1))
        self.counts = [0] * bins
        self.errors: Tensor | None = None  # [bins, size, n, C, H, W], made when the first error shows its shape

    @torch.no_grad()
    def observe(self, error_BFCHW: Tensor, sigma_BK: Tensor, generator: torch.Generator | None = None) -> None:
        """See `MemoryCorruptor.observe`. Errors that are not finite are left out."""
        chunks = error_BFCHW.detach().unflatten(1, (sigma_BK.shape[1], -1)).flatten(0, 1).cpu()
        if self.errors is None:
            self.errors = chunks.new_zeros((self.bins, self.size, *chunks.shape[1:]))
        where = (sigma_BK.detach().cpu() * self.bins).long().clamp(0, self.bins - 1).flatten()
        for error, index in zip(chunks, where.tolist(), strict=True):
            if not error.isfinite().all():
                continue
            if self.counts[index] < self.size:
                place = self.counts[index]
                self.counts[index] += 1
            else:
                place = int(torch.randint(self.size, (), generator=generator))
            self.errors[index, place] = error

    def make(self, history: Sequence[Chunk], offer: Offer, generator: torch.Generator | None = None) -> Corruption:
        """See `MemoryCorruptor.make`."""
        filled = torch.tensor([index for index in self.drawn if self.counts[index]])
        if self.errors is None or not len(filled):
            return self.changed(history, False)
        batch = history[0].latents_BFCHW.shape[0]
        bin_B = filled[torch.randint(len(filled), (batch,), generator=generator)]
        low, high = self.scales
        made = []
        for chunk in history:
            place_B = (torch.rand(batch, generator=generator) * torch.tensor(self.counts)[bin_B]).long()
            scale_B = low + (high - low) * torch.rand(batch, generator=generator)
            error = scale_B[:, None, None, None, None] * self.errors[bin_B, place_B]
            made.append(replace(chunk, latents_BFCHW=chunk.latents_BFCHW + error.to(chunk.latents_BFCHW)))
        return self.changed(made)

    def state(self) -> dict[str, Any]:
        """See `MemoryCorruptor.state`."""
        return {"counts": list(self.counts), "errors": None if self.errors is None else self.errors.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `MemoryCorruptor.restore`."""
        errors = state["errors"]
        saved = (len(state["counts"]), self.size if errors is None else errors.shape[1])
        if saved != (self.bins, self.size):
            raise ValueError(
                f"the buffer was saved with bins={saved[0]} and size={saved[1]}, this one has bins={self.bins} and size={self.size}; "
                "set them as they were"
            )
        self.counts = [int(count) for count in state["counts"]]
        self.errors = None if errors is None else errors.clone()

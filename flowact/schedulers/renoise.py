"""The sampler of consistency models. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowact.schedulers.solver import Solver, gaussian
from flowact.types import TensorRecord


@dataclass(frozen=True)
class Renoise(Solver):
    """To the clean estimate x0 = x - sigma v, and up again to the next level with fresh noise (consistency models, arXiv 2303.01469, algorithm 1)."""

    draws_noise = True

    def step(
        self,
        latents_BFCHW: Tensor,
        velocity_BFCHW: Tensor,
        levels: Sequence[float],
        trail: TensorRecord | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, None]:
        """See `Solver.step`."""
        now, after, *_ = levels
        if after == 0.0:
            return latents_BFCHW + (after - now) * velocity_BFCHW, None
        clean = latents_BFCHW - now * velocity_BFCHW
        return (1 - after) * clean + after * gaussian(clean, generator), None

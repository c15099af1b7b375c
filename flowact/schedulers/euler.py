"""Euler's method. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowact.schedulers.solver import Solver
from flowact.types import TensorRecord


@dataclass(frozen=True)
class Euler(Solver):
    """Along the probability-flow ODE dx / dsigma = v, straight on to the next level: x' = x + (sigma' - sigma) v. Order 1."""

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
        return latents_BFCHW + (after - now) * velocity_BFCHW, None

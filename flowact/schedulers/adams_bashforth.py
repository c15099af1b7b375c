"""The two-step method of Adams and Bashforth. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowact.schedulers.solver import Solver
from flowact.types import TensorRecord


@dataclass(frozen=True)
class LastVelocity(TensorRecord):
    """Velocity at the level before, and that level."""

    velocity_BFCHW: Tensor
    level: float


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """Along the ODE with a velocity whose last change is carried on: x' = x + h (v + h / 2 (v - v_before) / (sigma - sigma_before)). Order 2.

    The first step of a chunk is Euler's. Levels need not be evenly spaced.
    """

    def step(
        self,
        latents_BFCHW: Tensor,
        velocity_BFCHW: Tensor,
        levels: Sequence[float],
        trail: TensorRecord | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorRecord | None]:
        """See `Solver.step`."""
        now, after, *_ = levels
        mean_velocity = velocity_BFCHW
        if trail is not None:
            assert isinstance(trail, LastVelocity)
            slope = (velocity_BFCHW - trail.velocity_BFCHW) / (now - trail.level)
            mean_velocity = velocity_BFCHW + (after - now) / 2 * slope
        return latents_BFCHW + (after - now) * mean_velocity, LastVelocity(velocity_BFCHW, now)

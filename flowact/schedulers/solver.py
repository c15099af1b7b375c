"""Solvers: how a chunk goes down from one noise level to the next, by one evaluation of the denoiser for each level. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flowact.types import TensorRecord


class Solver(ABC):
    """A way down the stairs. A solver has no state of its own: what a method has to know of earlier levels is a frozen record, the chunk's trail.

    Every chunk in a stream has a trail of its own and stands on a level of its own; all samples of a batch stand on the same. In each micro-step the
    denoiser is evaluated once, at the level where the chunk stands, so a solver that needs trial evaluations elsewhere (Heun, Runge-Kutta) has no
    place here; one that remembers earlier evaluations (Adams-Bashforth, DPM-Solver++ multistep, UniPC) has.
    """

    #: whether a step draws noise: from the generator that it is given, on the CPU, see `gaussian`
    draws_noise: ClassVar[bool] = False

    @abstractmethod
    def step(
        self,
        latents_BFCHW: Tensor,
        velocity_BFCHW: Tensor,
        levels: Sequence[float],
        trail: TensorRecord | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorRecord | None]:
        """One level down.

        Args:
            latents_BFCHW: x at levels[0].
            velocity_BFCHW: v = eps - x0 that the denoiser predicts there.
            levels: the way that is left, descending: where the chunk stands, where it goes in this step, and so on to 0. A chunk may begin below 1,
                and what is left of the way may change between two steps.
            trail: what the step before returned; None in a chunk's first step.
            generator: source of noise.

        Returns:
            x at levels[1], in the number type of `latents_BFCHW`, and the trail for the next step.
        """


def gaussian(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard noise of the shape of `like`, drawn on the CPU so that a seed gives the same noise on every device."""
    return torch.randn(like.shape, generator=generator).to(like)

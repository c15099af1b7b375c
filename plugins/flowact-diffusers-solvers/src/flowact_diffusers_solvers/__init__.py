"""Multistep solvers of diffusers as FlowAct's: the arithmetic is diffusers' own, what it remembers of a chunk travels with the chunk.

A scheduler of diffusers holds the schedule of one clip and what it remembers of it. Here each chunk of a stream stands on a level of its own, so for
each step a copy of a scheduler gets the chunk's levels and memory, steps once, and gives its memory back as a frozen record.
Axes as in `flowact.types`: B batch, F latent frames, C channels, H W.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.schedulers import Solver
from flowact.types import TensorRecord

__all__ = ["DPMSolverPlusPlus", "MultistepTrail", "UniPC"]

#: below pure noise by so much, as diffusers does: the logarithm of the signal-to-noise ratio is finite
MARGIN = 1e-6
ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class MultistepTrail(TensorRecord):
    """What a multistep method remembers of a chunk.

    Attributes:
        levels: at which the chunk was evaluated, oldest first.
        estimates: clean latents as estimated at the newest of them, oldest first, as many as the order.
        corrected_BFCHW: latents from which the last step was taken, after correction.
        order: of the last step.
    """

    levels: tuple[float, ...]
    estimates: tuple[Tensor, ...]
    corrected_BFCHW: Tensor | None
    order: int


class DiffusersSolver(Solver):
    """A multistep scheduler of diffusers; a subclass says which."""

    def __init__(self, order: int) -> None:
        if order not in ORDERS:
            raise ValueError(f"order of {type(self).__name__} is {order}; it is 1, 2 or 3")
        self.order = order

    @property
    @abstractmethod
    def scheduler(self) -> Any:
        """A scheduler of diffusers, to be copied."""

    def step(
        self,
        latents_BFCHW: Tensor,
        velocity_BFCHW: Tensor,
        levels: Sequence[float],
        trail: TensorRecord | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorRecord | None]:
        """See `Solver.step`."""
        before = trail if isinstance(trail, MultistepTrail) else MultistepTrail((), (), None, 1)
        scheduler, passed = copy.copy(self.scheduler), len(before.levels)
        sigmas = [*before.levels, *levels]
        scheduler.sigmas = torch.tensor([min(sigmas[0], 1 - MARGIN), *sigmas[1:]])
        scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
        scheduler.num_inference_steps = len(sigmas) - 1
        scheduler._step_index = passed
        scheduler.model_outputs = [None] * (self.order - len(before.estimates)) + list(before.estimates)
        scheduler.timestep_list = [None] * self.order  # UniPC only hands it to another predictor
        scheduler.lower_order_nums = min(passed, self.order)
        scheduler.last_sample, scheduler.this_order = before.corrected_BFCHW, before.order
        with torch.autocast(latents_BFCHW.device.type, enabled=False):  # bfloat16 would round differences of estimates away
            velocity = velocity_BFCHW.to(latents_BFCHW.dtype)
            (lower,) = scheduler.step(velocity, scheduler.timesteps[passed], latents_BFCHW, return_dict=False)
        if levels[1] == 0.0:
            return lower, None
        estimates = tuple(estimate for estimate in scheduler.model_outputs if estimate is not None)
        return lower, MultistepTrail((*before.levels, levels[0]), estimates, scheduler.last_sample, scheduler.this_order)


class UniPC(DiffusersSolver):
    """UniPC (arXiv 2302.04867): a multistep predictor, and a corrector that uses the next evaluation once it is there, so it costs none.

    Args:
        order: of the predictor, 1 to 3; the corrector adds one. First and last steps of a chunk are of a lower order.

    Raises:
        ValueError: another order.
    """

    solver_type = "bh2"  # the other expansion of diffusers, bh1, is infinity times zero in the step to level 0

    def __init__(self, order: int = 2) -> None:
        super().__init__(order)

    @property
    def scheduler(self) -> Any:
        """See `DiffusersSolver.scheduler`."""
        return scheduler_of("UniPCMultistepScheduler", self.order, self.solver_type)


class DPMSolverPlusPlus(DiffusersSolver):
    """DPM-Solver++ multistep (arXiv 2211.01095) on clean estimates.

    Args:
        order: 1 to 3; 1 is Euler's method. First and last steps of a chunk are of a lower order.
        solver_type: form of the second order.

    Raises:
        ValueError: another order.
    """

    def __init__(self, order: int = 2, solver_type: Literal["midpoint", "heun"] = "midpoint") -> None:
        super().__init__(order)
        self.solver_type = solver_type

    @property
    def scheduler(self) -> Any:
        """See `DiffusersSolver.scheduler`."""
        return scheduler_of("DPMSolverMultistepScheduler", self.order, self.solver_type)


@cache
def scheduler_of(name: str, order: int, solver_type: str) -> Any:
    """A scheduler of diffusers for rectified flow, made once.

    Raises:
        UserError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"this solver is {name} of diffusers, which cannot be imported ({error}): pip install 'diffusers>=0.36'") from error
    return getattr(diffusers, name)(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=order, solver_type=solver_type)

"""The noise staircase of a denoising stream (FlowAct-R1, Figure 2; Rolling Forcing). Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowact.schedulers.base import shift_levels


@dataclass(frozen=True)
class Staircase:
    """Levels of W chunks that move down one stair every M micro-steps: the left chunk leaves clean, fresh noise enters at the right.

    A chunk sees W * M evaluations in its life, and one chunk leaves per M evaluations. The paper gives W = 3 and M = 1 after distillation;
    it does not give the levels, so `shift` is an option.

    Args:
        num_chunks: W.
        micro_steps: M.
        shift: resolution shift of the levels; 1 spaces them evenly.

    Raises:
        ValueError: W or M below 1, or shift not positive.
    """

    num_chunks: int = 3
    micro_steps: int = 1
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.num_chunks < 1 or self.micro_steps < 1 or self.shift <= 0:
            raise ValueError(f"a staircase needs num_chunks >= 1, micro_steps >= 1 and shift > 0, got {self}")

    @property
    def evaluations_per_chunk(self) -> int:
        return self.num_chunks * self.micro_steps

    def at(self, height: Tensor) -> Tensor:
        """Level at a height of the stairs: 0 is clean, W is pure noise; between whole stairs the level moves on evenly before the shift."""
        return shift_levels(height / self.num_chunks, self.shift)

    def stairs(self, micro_step: float) -> Tensor:
        """sigma_K of the W chunks, left to right, after `micro_step` of the M micro-steps since noise entered."""
        return self.at(torch.arange(1, self.num_chunks + 1) - micro_step / self.micro_steps)

    def descent(self, place: int, micro_step: int = 0) -> tuple[float, ...]:
        """Levels from where a chunk stands to clean, one per evaluation that is left, and 0.

        Args:
            place: of the chunk in the window, 0 is the left one, W - 1 the one that entered last.
            micro_step: micro-steps since that one entered.
        """
        steps = torch.arange(micro_step, (place + 1) * self.micro_steps + 1)
        return tuple(self.at((place + 1) - steps / self.micro_steps).tolist())

"""A target network that follows the trained one. Legend: flowact/types.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowact.models.base import Denoiser
from flowact.stages.frozen import Frozen
from flowact.strategies import gather_values, local_values


class MovingTarget(Frozen):
    """A frozen copy whose weights are a moving average, or the last, of a trained network's; see `Frozen` for what it stays out of.

    The average is fp32 whatever the copy computes in. It follows at the start of a step rather than at the end of the one before, so that no order of
    callbacks decides what a checkpoint holds.

    Args:
        decay: weight of the past, in [0, 1).
        start_step: until this optimizer step the copy is the trained network of the last update.

    Raises:
        ValueError: a decay or start outside its range.
    """

    def __init__(self, decay: float, start_step: int = 0) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"target_decay is {decay}; it lies in [0, 1), typically 0.95 to 0.99, and 0 follows without delay")
        if start_step < 0:
            raise ValueError(f"target_start is {start_step}; it is a number of optimizer steps, 0 or more")
        self.decay = decay
        self.start_step = start_step
        self.last_update = 0
        self._averages: dict[str, Tensor] = {}

    @property
    def is_made(self) -> bool:
        """Whether there is a copy."""
        return bool(self._network)

    def copy_from(self, network: Denoiser) -> None:
        """See `Frozen.copy_from`; the average begins here."""
        super().copy_from(network)
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self.network.named_parameters() if name in trained}

    def to(self, like: nn.Module, strategy: Any = None) -> None:
        """See `Frozen.to`; its weights change with every update, so that it stays whole."""
        super().to(like)
        device = next(like.parameters()).device
        self._averages = {name: average.to(device) for name, average in self._averages.items()}

    @torch.no_grad()
    def follow(self, network: nn.Module, update: int) -> None:
        """Take in the weights after optimizer step number `update`, once. Every process calls it: a collective where weights are partitioned."""
        if update == self.last_update:
            return
        self.last_update = update
        decay = self.decay if update > self.start_step else 0.0
        for name, parameter in network.named_parameters():
            if name in self._averages:
                weights = gather_values(local_values(parameter), parameter).float()
                self._averages[name].lerp_(weights, 1.0 - decay)
        self._compute_with_averages()

    def state(self) -> dict[str, Any]:
        """What `restore` needs; the tensors are on the CPU."""
        return {"last_update": self.last_update, "averages": {name: average.cpu() for name, average in self._averages.items()}}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`, on a copy that is made already."""
        self.last_update = int(state["last_update"])
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
        self._compute_with_averages()

    def _compute_with_averages(self) -> None:
        weights = dict(self.network.named_parameters())
        for name, average in self._averages.items():
            weights[name].copy_(average)

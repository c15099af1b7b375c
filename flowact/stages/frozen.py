"""A frozen copy of a denoiser: teacher or intermediate checkpoint. Legend: flowact/types.py."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from flowact.models.base import Denoiser


class Frozen:
    """Holds a network outside of the module tree: no engine, no optimizer state, not in the stage's checkpoint.

    The weights are those of the stage's parent, so the network is made when the stage starts, from `init_from`, and again on resume.
    """

    def __init__(self) -> None:
        self._network: list[Denoiser] = []  # a list keeps nn.Module from registering it

    def copy_from(self, network: Denoiser) -> None:
        """Freeze a copy of a network's present weights."""
        self._network = [copy.deepcopy(network).eval().requires_grad_(False)]

    def load(self, weights: dict[str, Any]) -> None:
        """Replace the weights."""
        self.network.load_state_dict(weights)

    def to(self, like: nn.Module) -> None:
        """Move to the device and number type of another network."""
        parameter = next(like.parameters())
        self.network.to(parameter.device, parameter.dtype)

    @property
    def network(self) -> Denoiser:
        if not self._network:
            raise RuntimeError("the frozen network was not made yet")
        return self._network[0]

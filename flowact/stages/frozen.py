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
        self._engine: Any = None

    def copy_from(self, network: Denoiser) -> None:
        """Freeze a copy of a network's present weights."""
        self._engine = None
        self._network = [copy.deepcopy(network).eval().requires_grad_(False)]

    def load(self, weights: dict[str, Any]) -> None:
        """Replace the weights."""
        self.network.load_state_dict(weights)

    def to(self, like: nn.Module, strategy: Any = None) -> None:
        """Move to the device and number type of another network; a strategy that can shares out the weights, see `DeepSpeed.place_frozen`."""
        parameter, self._engine = next(like.parameters()), None
        self.network.to(parameter.device, parameter.dtype)
        if hasattr(strategy, "place_frozen"):
            self._engine = strategy.place_frozen(self.network)

    @property
    def network(self) -> Denoiser:
        """The network, or the engine that stands in its place."""
        if not self._network:
            raise RuntimeError("the frozen network was not made yet")
        return self._network[0] if self._engine is None else self._engine

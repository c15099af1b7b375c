"""Several corruptors, one of them in each step. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowact.errors import did_you_mean
from flowact.memory.corruptors.base import Corruption, MemoryCorruptor, Offer, Ramp
from flowact.types import Chunk


class CorruptorChain(MemoryCorruptor):
    """Memory from one of several corruptors: the step's is drawn by weight, then the samples that it may change.

        member ~ weights          per step, from the run's seed and the number of the batch: the same on every process
        sample changed with probability (1 - clean) * ramp

    So over a run a member changes (1 - clean) * weight / sum of weights of all samples, once the ramp is over. FlowAct-R1 states no sources but the
    truth and an intermediate model, and no shares.

    Args:
        members: the corruptors by name; they change all samples (`probability: 1.0`), because the chain says how many stay clean. They may have
            ramps of their own.
        weights: how often a member is drawn, by name, relative to the others; one that is not named has weight 1, and one with weight 0 is off.
        clean: share of samples that stay clean.
        ramp: how the share of changed samples comes in.

    Raises:
        ValueError: no member, weights that name none or are negative or all 0, a share outside [0, 1], or a member with a probability below 1.
    """

    name = "chain"

    def __init__(self, members: dict[str, MemoryCorruptor], weights: dict[str, float] | None = None, clean: float = 0.0, ramp: Ramp = Ramp()) -> None:
        if not 0 <= clean <= 1:
            raise ValueError(f"clean is a share of samples in [0, 1], got {clean}")
        super().__init__(1 - clean, ramp)
        weights = weights or {}
        if unknown := sorted(set(weights) - set(members)):
            raise ValueError(f"weights name {unknown[0]!r}, which is no member.{did_you_mean(unknown[0], members)}")
        if wrong := [f"{name}={weight}" for name, weight in weights.items() if not 0 <= weight < float("inf")]:
            raise ValueError(f"weights are finite numbers from 0, got {', '.join(wrong)}")
        self.weights = {name: float(weights.get(name, 1.0)) for name in members}
        if not any(self.weights.values()):
            raise ValueError(f"a chain draws from at least one member with a weight above 0, got {self.weights}")
        if partial := [f"{name} has {member.probability}" for name, member in members.items() if member.probability != 1.0]:
            raise ValueError(
                f"in a chain `clean` says how many samples stay clean, so members change all: set probability to 1.0; {', '.join(partial)}"
            )
        self.members = {name: member for name, member in members.items() if self.weights[name]}
        self.needs = frozenset().union(*(member.needs for member in self.members.values()))
        self.least_history = max(member.least_history for member in self.members.values())
        self.has_state = any(member.has_state for member in self.members.values())

    @property
    def names(self) -> tuple[str, ...]:
        """See `MemoryCorruptor.names`; those of the chain."""
        return tuple(self.members)

    def draw(self, generator: torch.Generator | None) -> str:
        """The name of a step's member."""
        names = list(self.members)
        weights = torch.tensor([self.weights[name] for name in names])
        return names[int(torch.multinomial(weights, 1, generator=generator))]

    def make(self, history: Sequence[Chunk], offer: Offer, generator: torch.Generator | None = None) -> Corruption:
        """See `MemoryCorruptor.make`; `by` is the member's name in the chain."""
        name = self.draw(offer.shared)
        return replace(self.members[name].corrupt(history, offer, generator), by=name)

    def observe(self, error_BFCHW: Tensor, sigma_BK: Tensor, generator: torch.Generator | None = None) -> None:
        """See `MemoryCorruptor.observe`."""
        for member in self.members.values():
            if "errors" in member.needs:
                member.observe(error_BFCHW, sigma_BK, generator)

    def state(self) -> dict[str, Any]:
        """See `MemoryCorruptor.state`."""
        return {name: member.state() for name, member in self.members.items() if member.has_state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `MemoryCorruptor.restore`."""
        for name, member in self.members.items():
            if member.has_state:
                member.restore(state[name])

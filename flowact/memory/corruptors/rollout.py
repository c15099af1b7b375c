"""Memory that the network in training streamed itself. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowact.memory.corruptors.base import Corruption, MemoryCorruptor, Offer, Ramp, asked
from flowact.types import Chunk


class RolloutMemory(MemoryCorruptor):
    """Memory whose newest chunks the network in training streamed itself, without gradient, in front of earlier true history.

    The window engine streams as it does live: a chunk leaves when it is clean and is remembered before the next one leaves. The window starts with
    true chunks noised to their stairs, so the first W - 1 of the streamed chunks still hold some of the truth and those after them none: they show
    what the conditions and memory suggest, at the right time but not frame by frame what the target continues. This is the dearest corruptor: one
    evaluation of the trained network for each chunk and micro-step.

    Args:
        probability: share of samples whose memory is streamed; the others stay clean.
        chunks: newest chunks of the history that are streamed; the memory bank keeps that many.
        micro_steps: M of the staircase; as in the streams that the network will make.
        shift: of the staircase; likewise.
        ramp: how the probability comes in.

    Raises:
        ValueError: a number outside its range.
    """

    name = "rollout"
    needs = frozenset(("rollout",))

    def __init__(self, probability: float = 0.5, chunks: int = 1, micro_steps: int = 1, shift: float = 1.0, ramp: Ramp = Ramp()) -> None:
        super().__init__(probability, ramp)
        if chunks < 1 or micro_steps < 1 or shift <= 0:
            raise ValueError(
                f"a rollout needs chunks >= 1, micro_steps >= 1 and shift > 0, got chunks={chunks}, micro_steps={micro_steps} and shift={shift}"
            )
        self.chunks = chunks
        self.micro_steps = micro_steps
        self.shift = shift
        self.least_history = chunks

    def make(self, history: Sequence[Chunk], offer: Offer, generator: torch.Generator | None = None) -> Corruption:
        """See `MemoryCorruptor.make`."""
        roll_out = asked(offer.rollout, "rollout", self)
        return self.changed(roll_out(history, min(self.chunks, len(history)), self.micro_steps, self.shift))

"""What a corruptor is: which samples get another memory, and which. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flowact.types import Chunk

Source = Literal["checkpoint", "average", "rollout", "errors"]
"""What a stage can offer: denoising by its frozen checkpoint or the moving average of the network in training; that network's stream; its errors."""

Regenerate = Callable[[Sequence[Chunk], Tensor], list[Chunk]]
"""(clean history chunks, sigma_B) -> chunks noised to sigma and denoised by a model, frame by frame aligned with the clean ones."""

RollOut = Callable[[Sequence[Chunk], int, int, float], list[Chunk]]
"""(clean history chunks, chunks, micro-steps, shift) -> the same number of chunks, the last `chunks` of them streamed by the network in training."""


@dataclass(frozen=True)
class Ramp:
    """How a probability comes in: from 0 at the first optimizer step in a straight line to its full value.

    Attributes:
        steps: optimizer steps until the full value; 0 is from the start.
        share: the same as a share of the run's steps. One of the two is 0.

    Raises:
        ValueError: a length outside its range, or two lengths.
    """

    steps: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 <= self.share <= 1:
            raise ValueError(f"a ramp takes steps >= 0 or a share of the run in [0, 1], got steps={self.steps} and share={self.share}")
        if self.steps and self.share:
            raise ValueError(f"a ramp has one length, got steps={self.steps} and share={self.share}; set one of them to 0")

    def at(self, step: int, total_steps: int) -> float:
        """Share of the full value at an optimizer step, in [0, 1]."""
        length = self.steps or self.share * total_steps
        return min(step / length, 1.0) if length else 1.0


@dataclass(frozen=True)
class Offer:
    """What a stage hands to its corruptor in a training step: functions, so that this room needs no model, and where training stands.

    Attributes:
        checkpoint: regenerates history by the frozen checkpoint of `init_from`; None where there is none, as below.
        average: regenerates history by the moving average of the network in training.
        rollout: streams history by the network in training.
        step: optimizer steps done.
        total_steps: of the run.
        shared: a generator that is in the same state on every process; None is torch's own.
    """

    checkpoint: Regenerate | None = None
    average: Regenerate | None = None
    rollout: RollOut | None = None
    step: int = 0
    total_steps: int = 1
    shared: torch.Generator | None = None


@dataclass(frozen=True)
class Corruption:
    """What became of the history of a batch.

    Attributes:
        history: chunks of the shapes and conditions of the clean ones, oldest first.
        by: name of the corruptor whose turn it was.
        chosen_B: which samples it changed, on the CPU; the others are clean.
    """

    history: list[Chunk]
    by: str
    chosen_B: Tensor


class MemoryCorruptor(ABC):
    """Turns clean history chunks into what a model might have left in memory, before they are written to the memory bank.

    No gradient flows into the result. How often a model is evaluated never depends on what one process drew alone: a collective inside the model
    would wait for it for ever. So a corruptor evaluates its model for all samples and then chooses some, and whatever else decides on evaluations
    it draws from `Offer.shared`.

    Args:
        probability: share of samples whose memory is changed, all their chunks alike; the others stay clean.
        ramp: how the probability comes in.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    #: in logs
    name: str
    #: what `corrupt` asks the stage for
    needs: frozenset[Source] = frozenset()
    #: chunks of history without which it cannot do what it is set to
    least_history: int = 0
    #: whether `state` holds anything; the same on every process
    has_state: bool = False

    def __init__(self, probability: float = 1.0, ramp: Ramp = Ramp()) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        self.probability = probability
        self.ramp = ramp

    @property
    def names(self) -> tuple[str, ...]:
        """The values of `Corruption.by`."""
        return (self.name,)

    @abstractmethod
    def make(self, history: Sequence[Chunk], offer: Offer, generator: torch.Generator | None = None) -> Corruption:
        """The changed history of every sample for which there is one, whichever of them `choose` will choose."""

    @torch.no_grad()
    def corrupt(self, history: Sequence[Chunk], offer: Offer = Offer(), generator: torch.Generator | None = None) -> Corruption:
        """History in which each sample's chunks are changed with the probability of this step.

        Args:
            history: clean chunks, oldest first; at least one.
            offer: from the stage.
            generator: source of this process's randomness; None is torch's own.

        Raises:
            ValueError: the stage does not offer what the corruptor needs.
        """
        made = self.make(history, offer, generator)
        chosen_B = made.chosen_B & self.choose(len(made.chosen_B), offer, generator)
        return Corruption(mixed(history, made.history, chosen_B), made.by, chosen_B)

    def choose(self, batch: int, offer: Offer, generator: torch.Generator | None) -> Tensor:
        """Which samples are changed in this step, a boolean mask on the CPU."""
        return torch.rand(batch, generator=generator) < self.probability * self.ramp.at(offer.step, offer.total_steps)

    def changed(self, history: Sequence[Chunk], is_changed: bool = True) -> Corruption:
        """The history as a corruption of all samples, or of none."""
        return Corruption(list(history), self.name, torch.full((history[0].latents_BFCHW.shape[0],), is_changed))

    def observe(self, error_BFCHW: Tensor, sigma_BK: Tensor, generator: torch.Generator | None = None) -> None:
        """Take in the errors x0_hat - x0 of a training step's own predictions; called if "errors" are needed.

        Args:
            error_BFCHW: of K chunks of equal length.
            sigma_BK: the noise levels at which they were predicted.
            generator: source of this process's randomness.
        """
        raise NotImplementedError(f"{type(self).__name__} needs errors, so it defines observe")

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly, of this process; plain values and tensors on the CPU."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`.

        Raises:
            ValueError: the state of one that was set otherwise.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {', '.join(state)}")


def asked(function: Any, source: Source, corruptor: MemoryCorruptor) -> Any:
    """A function of the offer.

    Raises:
        ValueError: the stage does not offer it.
    """
    if function is None:
        raise ValueError(
            f"{type(corruptor).__name__} needs a model ({source}), but this stage hands it none; use it in SelfForcing or a stage derived from it"
        )
    return function


def mixed(clean: Sequence[Chunk], made: Sequence[Chunk], chosen_B: Tensor) -> list[Chunk]:
    """The clean chunks, with the latents of `made` where a sample was chosen."""
    if not chosen_B.any():
        return list(clean)
    chosen = chosen_B.to(clean[0].latents_BFCHW.device)[:, None, None, None, None]
    return [
        replace(before, latents_BFCHW=torch.where(chosen, after.latents_BFCHW, before.latents_BFCHW))
        for before, after in zip(clean, made, strict=True)
    ]


def noised(chunk: Chunk, sigma_B: Tensor, generator: torch.Generator | None = None) -> Chunk:
    """The chunk at noise levels sigma_B."""
    return chunk.noised(sigma_B, torch.randn(chunk.latents_BFCHW.shape, generator=generator).to(chunk.latents_BFCHW))

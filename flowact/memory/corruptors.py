"""Memory corruptors: what a stage trains on in place of clean ground-truth memory (self-forcing variant of FlowAct-R1; METHOD of Helios, SVI).

A corruptor changes history chunks before they are written to the memory bank. Those that denoise are handed a function by the stage, so this
room needs no model. Legend: flowact/types.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowact.types import Chunk

Regenerate = Callable[[Sequence[Chunk], Tensor], list[Chunk]]
"""(clean history chunks, sigma_B) -> chunks noised to sigma and denoised by a model, frame by frame aligned with the clean ones."""


class MemoryCorruptor(ABC):
    """Turns clean history chunks into what a model might have left in memory. No gradient flows into the result."""

    #: whether `corrupt` calls `regenerate`, so the stage must hold a model for it
    needs_model: bool = False

    @abstractmethod
    def corrupt(self, history: Sequence[Chunk], regenerate: Regenerate | None, generator: torch.Generator | None = None) -> list[Chunk]:
        """Chunks of the same shapes and conditions.

        Args:
            history: clean chunks, oldest first.
            regenerate: given by the stage when `needs_model`.
            generator: source of randomness.
        """


class GroundTruthMemory(MemoryCorruptor):
    """Clean memory: "off"."""

    def corrupt(self, history: Sequence[Chunk], regenerate: Regenerate | None, generator: torch.Generator | None = None) -> list[Chunk]:
        """See `MemoryCorruptor.corrupt`."""
        return list(history)


class GaussianMemory(MemoryCorruptor):
    """Noise of a random small level on every history chunk, while the network is told that memory is clean (Helios' history corruption).

    Args:
        max_sigma: levels are uniform in [0, max_sigma], one per sample.
    """

    def __init__(self, max_sigma: float = 0.3) -> None:
        if not 0 <= max_sigma <= 1:
            raise ValueError(f"max_sigma is a noise level in [0, 1], got {max_sigma}")
        self.max_sigma = max_sigma

    def corrupt(self, history: Sequence[Chunk], regenerate: Regenerate | None, generator: torch.Generator | None = None) -> list[Chunk]:
        """See `MemoryCorruptor.corrupt`."""
        sigma_B = self.max_sigma * torch.rand(history[0].latents_BFCHW.shape[0], generator=generator)
        return [noised(chunk, sigma_B, generator) for chunk in history]


class GeneratedMemory(MemoryCorruptor):
    """Memory that a model produced: ground truth is noised and denoised again by an intermediate checkpoint, so it stays frame-aligned
    with the target (FlowAct-R1, self-forcing variant; probability and strength are not in the paper).

    Args:
        probability: share of samples whose memory is generated; the others stay clean.
        min_sigma: least noise level.
        max_sigma: largest noise level; 1 forgets the ground truth.
    """

    needs_model = True

    def __init__(self, probability: float = 0.5, min_sigma: float = 0.3, max_sigma: float = 0.9) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        if not 0 < min_sigma <= max_sigma <= 1:
            raise ValueError(f"noise levels need 0 < min_sigma <= max_sigma <= 1, got {min_sigma} and {max_sigma}")
        self.probability = probability
        self.min_sigma = min_sigma
        self.max_sigma = max_sigma

    @torch.no_grad()
    def corrupt(self, history: Sequence[Chunk], regenerate: Regenerate | None, generator: torch.Generator | None = None) -> list[Chunk]:
        """See `MemoryCorruptor.corrupt`.

        Raises:
            ValueError: no model was handed over.
        """
        if regenerate is None:
            raise ValueError("GeneratedMemory denoises, but this stage hands it no model; use it in the SelfForcing or StepDistillation stage")
        batch = history[0].latents_BFCHW.shape[0]
        sigma_B = self.min_sigma + (self.max_sigma - self.min_sigma) * torch.rand(batch, generator=generator)
        # every rank denoises on every step, whatever it drew: a collective inside the model must never wait for a rank that skipped it
        generated = regenerate(history, sigma_B)
        chosen_B = torch.rand(batch, generator=generator) < self.probability
        return [
            replace(
                clean,
                latents_BFCHW=torch.where(
                    chosen_B.to(clean.latents_BFCHW.device)[:, None, None, None, None], made.latents_BFCHW, clean.latents_BFCHW
                ),
            )
            for clean, made in zip(history, generated, strict=True)
        ]


def noised(chunk: Chunk, sigma_B: Tensor, generator: torch.Generator | None = None) -> Chunk:
    """The chunk with latents (1 - sigma) x0 + sigma eps."""
    latents = chunk.latents_BFCHW
    sigma = sigma_B.to(latents)[:, None, None, None, None]
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return replace(chunk, latents_BFCHW=(1 - sigma) * latents + sigma * noise)

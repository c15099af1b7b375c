"""Dropping conditions in training, so that one network also learns the unconditional model (Ho and Salimans 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowact.types import ConditionTokens


@dataclass(frozen=True)
class ConditionDropout:
    """Zeroes the text, the audio, or both, of whole samples, independently of each other.

    Whole samples, not segments: guidance compares a window with and without a condition.

    Args:
        text: probability that a sample loses its text.
        audio: probability that a sample loses its audio.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    text: float = 0.1
    audio: float = 0.1

    def __post_init__(self) -> None:
        for name, probability in (("text", self.text), ("audio", self.audio)):
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"ConditionDropout.{name} is a probability in [0, 1], got {probability}")

    def masks(self, num_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Boolean text_B and audio_B, true where the condition is dropped, on the generator's device.

        Both are always drawn, so the numbers that follow do not depend on the probabilities.
        """
        device = generator.device if generator is not None else None
        uniform_2B = torch.rand(2, num_samples, generator=generator, device=device)
        return uniform_2B[0] < self.text, uniform_2B[1] < self.audio

    def __call__(self, conditions: ConditionTokens, generator: torch.Generator | None = None) -> ConditionTokens:
        """The conditions of B samples with some dropped."""
        device = conditions.text_BSLD.device
        text_B, audio_B = self.masks(conditions.text_BSLD.shape[0], generator)
        return conditions.drop(text_B=text_B.to(device), audio_B=audio_B.to(device))

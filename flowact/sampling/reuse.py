"""Reuse of memory's features: memory never sees the stream, so they are computed once per change of memory. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from flowact.models.base import Denoiser
from flowact.types import ConditionTokens, MemoryFeatures, MemoryView, Visibility, WindowLayout


def unconditional(conditions: ConditionTokens) -> ConditionTokens:
    """No text and no sound, for every sample."""
    everything = torch.ones(conditions.text_BSLD.shape[0], dtype=torch.bool, device=conditions.text_BSLD.device)
    return conditions.drop(text_B=everything, audio_B=everything)


Kept = tuple[tuple[Hashable, MemoryFeatures], ...]


@dataclass(frozen=True)
class KeptFeatures:
    """Features of memory, kept for the evaluations in front of it and, entry by entry, for as long as an entry stays.

    Attributes:
        entries: one or more features in the order of memory's segments, with what they describe: identity, segment kind and length.
        unconditional: the same without text and sound, for guidance; empty without guidance.
    """

    entries: Kept = ()
    unconditional: Kept = ()

    def joined(self) -> tuple[MemoryFeatures, MemoryFeatures | None]:
        """Features of all entries, with and without conditions."""
        without = MemoryFeatures.joined([features for _, features in self.unconditional]) if self.unconditional else None
        return MemoryFeatures.joined([features for _, features in self.entries]), without

    @classmethod
    def of(cls, denoiser: Denoiser, memory: MemoryView, visibility: Visibility, guided: bool, before: KeptFeatures) -> KeptFeatures:
        """Features of a memory.

        Entries that do not see each other are encoded one by one, and those that `before` holds already are taken from there.
        """
        isolated = visibility.memory == "isolated"
        parts = [memory.entry(i) for i in range(len(memory.segments))] if isolated else [memory]
        names: list[Hashable] = [None] * len(parts)
        if isolated and memory.identities:
            names = [(name, s.kind, s.num_frames) for name, s in zip(memory.identities, memory.segments, strict=True)]

        def encode(part: MemoryView, conditions: ConditionTokens) -> MemoryFeatures:
            return denoiser.encode_memory(part.latents_BFCHW, conditions, WindowLayout(part.segments, visibility))

        def kept(known: Kept, conditions_of: Callable[[MemoryView], ConditionTokens]) -> Kept:
            have = {name: features for name, features in known if name is not None}
            return tuple((name, have[name] if name in have else encode(part, conditions_of(part))) for name, part in zip(names, parts, strict=True))

        entries = kept(before.entries, lambda part: part.conditions)
        return cls(entries, kept(before.unconditional, lambda part: unconditional(part.conditions)) if guided else ())

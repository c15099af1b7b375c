"""Reuse of memory's features: memory never sees the stream, so they are computed once per change of memory. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Hashable
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

        Of entries that do not see each other, those that `before` holds already are taken from there.
        """
        if visibility.memory != "isolated":
            made = encode(denoiser, memory, visibility, drop=False), encode(denoiser, memory, visibility, drop=True) if guided else None
            return cls(((None, made[0]),), ((None, made[1]),) if made[1] else ())
        names: list[Hashable] = [None] * len(memory.segments)
        if memory.identities:
            names = [(name, s.kind, s.num_frames) for name, s in zip(memory.identities, memory.segments, strict=True)]

        def kept(known: Kept, drop: bool) -> Kept:
            have = {name: features for name, features in known if name is not None}
            missing = [i for i, name in enumerate(names) if name not in have]
            made = dict(zip(missing, encode_entries(denoiser, memory.entries(missing), visibility, drop), strict=True)) if missing else {}
            return tuple((name, made[i] if i in made else have[name]) for i, name in enumerate(names))

        return cls(kept(before.entries, drop=False), kept(before.unconditional, drop=True) if guided else ())


def encode(denoiser: Denoiser, memory: MemoryView, visibility: Visibility, drop: bool) -> MemoryFeatures:
    """Features of a memory, with its conditions or without."""
    conditions = unconditional(memory.conditions) if drop else memory.conditions
    return denoiser.encode_memory(memory.latents_BFCHW, conditions, WindowLayout(memory.segments, visibility))


def encode_entries(denoiser: Denoiser, memory: MemoryView, visibility: Visibility, drop: bool) -> list[MemoryFeatures]:
    """Features of each of some entries that do not see each other, in one pass where the denoiser says how to take them apart."""
    features = encode(denoiser, memory, visibility, drop)
    if len(features.lengths) == len(memory.segments):
        return features.split()
    return [encode(denoiser, memory.entries([i]), visibility, drop) for i in range(len(memory.segments))]

"""The structured memory bank of FlowAct-R1 (Figure 2): reference, long-term queue, short-term. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowact.memory.base import MemoryBank
from flowact.types import Chunk, MemoryView, Segment, SegmentKind, TensorRecord


@dataclass(frozen=True)
class MemoryState(TensorRecord):
    """Entries, oldest first; each is a chunk with its own conditions. `reference` never changes."""

    reference: Chunk
    entries: tuple[Chunk, ...]

    def to(self, *args: object, **kwargs: object) -> MemoryState:
        """See `TensorRecord.to`."""
        return MemoryState(self.reference.to(*args, **kwargs), tuple(entry.to(*args, **kwargs) for entry in self.entries))


def tail(chunk: Chunk, num_frames: int) -> Chunk:
    """The last frames of a chunk, with its first frame repeated in front when it is shorter."""
    missing = num_frames - chunk.num_frames
    latents, audio = chunk.latents_BFCHW[:, -num_frames:], chunk.audio_BFAD[:, -num_frames:]
    if missing > 0:
        latents = torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], dim=1)
        audio = torch.cat([audio[:, :1].expand(-1, missing, -1, -1), audio], dim=1)
    return Chunk(latents, audio, chunk.text_BLD, chunk.identity)


def view(entries: Sequence[tuple[Chunk, SegmentKind, int]]) -> MemoryView:
    """A view of chunks with their kinds and positions."""
    chunks = [chunk for chunk, _, _ in entries]
    identities = tuple(chunk.identity for chunk in chunks if chunk.identity is not None)
    return MemoryView(
        torch.cat([chunk.latents_BFCHW for chunk in chunks], dim=1),
        torch.cat([chunk.audio_BFAD for chunk in chunks], dim=1),
        torch.stack([chunk.text_BLD for chunk in chunks], dim=1),
        tuple(Segment(kind, chunk.num_frames, position) for chunk, kind, position in entries),
        identities if len(identities) == len(chunks) else (),
    )


ReferencePosition = Literal["offset", "contiguous", "future"]


def place_reference(policy: ReferencePosition, oldest: int, gap: int) -> int:
    """Rotary position of the reference, given that of the oldest other entry (0 if there is none)."""
    return {"offset": oldest - gap, "contiguous": oldest - 1, "future": gap}[policy]


def check_reference_gap(gap: int) -> None:
    """Refuse a gap at which the reference would stand on another entry.

    Raises:
        ValueError: a gap below 1.
    """
    if gap < 1:
        raise ValueError(f"reference_gap={gap} puts the reference where another entry stands; choose 1 or more")


class StructuredMemory(MemoryBank[MemoryState]):
    """Reference for identity, a queue for the middle range, the latest frames for motion.

    When a chunk is finished, what was the short memory moves to the end of the long queue, the oldest long entry is dropped, and the chunk's
    last frames become the short memory. Slots that nothing has reached yet hold the reference: the person stood still before the stream began.
    The paper draws three long entries and one or three short frames; entry size and positions are not stated, so they are options.

    Args:
        long: entries of the long queue, one latent frame each.
        short: latent frames of the short memory.
        positions: "elapsed" places entries at their true distance from the stream, "contiguous" next to each other.
        chunk_frames: latent frames of the chunks that are written; sets the elapsed distance.
        reference_gap: latent frames from the reference to the oldest other entry, or to the stream if there is none.
        reference_position: the reference keeps a constant offset before the oldest entry ("offset"), stands right before it ("contiguous"),
            or is anchored `reference_gap` frames after the stream's first frame ("future", the pseudo last frame of OmniHuman-1.5); then the gap must
            be at least the stream's length. Positions are relative to the stream, so none ever grows.

    Raises:
        ValueError: a size below its least value, or a short memory longer than a chunk.
    """

    def __init__(
        self,
        long: int = 3,
        short: int = 1,
        positions: Literal["elapsed", "contiguous"] = "elapsed",
        chunk_frames: int = 3,
        reference_gap: int = 3,
        reference_position: ReferencePosition = "offset",
    ) -> None:
        if long < 0 or short < 1:
            raise ValueError(f"structured memory needs long >= 0 and short >= 1, got long={long}, short={short}")
        if short > chunk_frames:
            raise ValueError(f"short memory is taken from one chunk, but short={short} is more than chunk_frames={chunk_frames}")
        check_reference_gap(reference_gap)
        self.long = long
        self.short = short
        self.positions = positions
        self.chunk_frames: int = chunk_frames
        self.reference_gap = reference_gap
        self.reference_position: ReferencePosition = reference_position

    @property
    def num_frames(self) -> int:
        """See `MemoryBank.num_frames`."""
        return 1 + self.long + self.short

    @property
    def num_segments(self) -> int:
        """See `MemoryBank.num_segments`."""
        return 2 + self.long

    @property
    def history_chunks(self) -> int:
        """See `MemoryBank.history_chunks`."""
        return self.long + 1

    def reset(self, reference: Chunk) -> MemoryState:
        """See `MemoryBank.reset`."""
        first = tail(reference, 1)
        return MemoryState(first, (first,) * self.long + (tail(reference, self.short),))

    def write(self, state: MemoryState, chunk: Chunk) -> MemoryState:
        """See `MemoryBank.write`."""
        queue = (*state.entries[:-1], tail(state.entries[-1], 1))[1:] if self.long else ()
        return MemoryState(state.reference, (*queue, tail(chunk, self.short)))

    def read(self, state: MemoryState) -> MemoryView:
        """See `MemoryBank.read`."""
        step = self.chunk_frames if self.positions == "elapsed" else 1
        newest_long = -1 - step if self.positions == "elapsed" else -1 - self.short
        oldest = newest_long - step * (self.long - 1) if self.long else -self.short
        where = place_reference(self.reference_position, oldest, self.reference_gap)
        entries: list[tuple[Chunk, SegmentKind, int]] = [(state.reference, "reference", where)]
        entries += [(entry, "long", newest_long - step * (self.long - 1 - i)) for i, entry in enumerate(state.entries[:-1])]
        entries.append((state.entries[-1], "short", -self.short))
        return view(entries)


def reference_chunk(latents_B1CHW: Tensor, like: Chunk) -> Chunk:
    """The reference as a chunk with neutral conditions: no text, no sound."""
    batch = latents_B1CHW.shape[0]
    audio = like.audio_BFAD.new_zeros((batch, 1, *like.audio_BFAD.shape[2:]))
    return Chunk(latents_B1CHW, audio, torch.zeros_like(like.text_BLD))

"""What memory banks are made of: a state of chunks, ways to cut an entry from a chunk, and places for entries. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from flowact.errors import UserError
from flowact.types import Chunk, MemoryView, Segment, SegmentKind, TensorRecord

ReferencePosition = Literal["offset", "contiguous", "future"]
Which = Literal["first", "middle", "last"]


@dataclass(frozen=True)
class MemoryState(TensorRecord):
    """Entries, oldest first; each is a chunk with its own conditions. A write never changes `reference`.

    Attributes:
        reference: the picture, F = 1.
        entries: what the bank keeps.
        waiting: entries that are kept and not yet read.
    """

    reference: Chunk
    entries: tuple[Chunk, ...]
    waiting: tuple[Chunk, ...] = ()

    def to(self, *args: Any, **kwargs: Any) -> MemoryState:
        """See `TensorRecord.to`."""
        several = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), tuple)}
        moved: dict[str, Any] = {name: tuple(chunk.to(*args, **kwargs) for chunk in chunks) for name, chunks in several.items()}
        return replace(super().to(*args, **kwargs), **moved)


def reference_chunk(latents_B1CHW: Tensor, like: Chunk) -> Chunk:
    """The reference as a chunk with neutral conditions: no text, no sound."""
    batch = latents_B1CHW.shape[0]
    audio = like.audio_BFAD.new_zeros((batch, 1, *like.audio_BFAD.shape[2:]))
    return Chunk(latents_B1CHW, audio, torch.zeros_like(like.text_BLD))


# --- cutting ----------------------------------------------------------------------------------------------------------------------------------------


def tail(chunk: Chunk, num_frames: int) -> Chunk:
    """The last frames of a chunk, with its first frame repeated in front when it is shorter."""
    missing = num_frames - chunk.num_frames
    latents, audio = chunk.latents_BFCHW[:, -num_frames:], chunk.audio_BFAD[:, -num_frames:]
    if missing > 0:
        latents = torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], dim=1)
        audio = torch.cat([audio[:, :1].expand(-1, missing, -1, -1), audio], dim=1)
    return Chunk(latents, audio, chunk.text_BLD, chunk.identity)


def copies(chunk: Chunk, count: int) -> tuple[Chunk, ...]:
    """A chunk `count` times, in tensors of their own: a compiler takes one tensor in two places for another program than two tensors."""
    return tuple(Chunk(chunk.latents_BFCHW.clone(), chunk.audio_BFAD.clone(), chunk.text_BLD.clone(), chunk.identity) for _ in range(count))


def index_of(which: Which, num_frames: int) -> int:
    """The frame of a chunk that is meant."""
    return {"first": 0, "middle": num_frames // 2, "last": num_frames - 1}[which]


def frame(chunk: Chunk, which: Which) -> Chunk:
    """One latent frame of a chunk, with the chunk's text and its own sound."""
    index = index_of(which, chunk.num_frames)
    return Chunk(chunk.latents_BFCHW[:, index : index + 1], chunk.audio_BFAD[:, index : index + 1], chunk.text_BLD, chunk.identity)


def side_for(num_frames: int) -> int:
    """Tiles per side of the smallest mosaic that holds some frames."""
    side = 1
    while side**2 < num_frames:
        side += 1
    return side


def compressed(chunk: Chunk) -> Chunk:
    """All latents of a chunk in one latent frame: a mosaic of pooled latents, oldest first row by row, with the chunk's text and its mean sound.

    Where the mosaic has more tiles than the chunk has latents, the oldest are repeated.
    """
    side = side_for(chunk.num_frames)
    latents = tail(chunk, side**2).latents_BFCHW
    return Chunk(mosaic(latents, side), chunk.audio_BFAD.mean(1, keepdim=True), chunk.text_BLD, chunk.identity)


def mosaic(latents_BFCHW: Tensor, side: int) -> Tensor:
    """side^2 latents, pooled by area and laid in one latent frame [B, 1, C, H, W], row by row. Sizes that do not divide give tiles of two sizes."""
    height, width = latents_BFCHW.shape[-2:]
    rows, columns = ([size * (i + 1) // side - size * i // side for i in range(side)] for size in (height, width))
    lines = [
        torch.cat([adaptive_avg_pool2d(latents_BFCHW[:, r * side + c], (rows[r], columns[c])) for c in range(side)], dim=-1) for r in range(side)
    ]
    return torch.cat(lines, dim=-2)[:, None]


def check_mosaic(reference: Chunk, side: int) -> None:
    """Refuse pictures that are smaller than a mosaic's tiles.

    Raises:
        UserError: fewer latent cells than tiles on a side.
    """
    height, width = reference.latents_BFCHW.shape[-2:]
    if min(height, width) < side:
        raise UserError(f"latents of {height} x {width} cells hold no mosaic of {side} x {side} tiles; choose smaller levels, or larger pictures")


# --- placing ----------------------------------------------------------------------------------------------------------------------------------------


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

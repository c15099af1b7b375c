"""Long history in a constant number of tokens: the older it is, the smaller it is kept. Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flowact.memory.base import MemoryBank, changed_latents
from flowact.memory.entries import MemoryState, ReferencePosition, check_mosaic, check_reference_gap, copies, mosaic, place_reference, tail, view
from flowact.types import Chunk, MemoryView, SegmentKind


class PackedMemory(MemoryBank[MemoryState]):
    """The reference, the newest latents as they are, and one latent frame per level of ever older history, pooled in space and time.

    After FramePack (arXiv 2504.12626), which gives older frames larger patches, so that a history of any length costs a bounded number of tokens.
    There each level has a patch embedding of its own, with kernels of 1, 2 and 4 times the size, started as the mean over what they cover. Here the
    denoiser stays as it is: a level's latents are averaged over as much time and space, which is what those kernels start as, and the small pictures
    are laid side by side as a mosaic in one ordinary latent frame. So any denoiser takes this memory and can be trained on it, without weights of its
    own for a level; what it cannot do is to learn another average than the mean, and the rotary angles of a tile are those of its place in the
    mosaic.

    A level with factor f holds f * f tiles of 1/f the height and width, oldest first row by row; a tile is the mean of `stride` consecutive latents.
    The defaults remember 1 + 4 + 32 latents in three latent frames. A level carries the text of its newest chunk and its mean sound, and stands
    where its newest latent stood.

    Args:
        short: newest latents, kept as they are.
        levels: pooling factors in space, newest history first.
        strides: latents that each level averages in time, one for each of `levels`.
        chunk_frames: latent frames of the chunks that are written.
        reference_gap: latent frames from the reference to the oldest other entry.
        reference_position: see `StructuredMemory`.

    Raises:
        ValueError: a size below 1, a short memory longer than a chunk, no level, or not one stride per level.
    """

    def __init__(
        self,
        short: int = 1,
        levels: tuple[int, ...] = (2, 4),
        strides: tuple[int, ...] = (1, 2),
        chunk_frames: int = 3,
        reference_gap: int = 3,
        reference_position: ReferencePosition = "offset",
    ) -> None:
        if not levels or len(levels) != len(strides):
            raise ValueError(f"packed memory needs levels and one stride for each, got levels={tuple(levels)} and strides={tuple(strides)}")
        if min(short, chunk_frames, *levels, *strides) < 1:
            raise ValueError(
                f"sizes are at least 1, got short={short}, levels={tuple(levels)}, strides={tuple(strides)}, chunk_frames={chunk_frames}"
            )
        if short > chunk_frames:
            raise ValueError(f"short memory is taken from one chunk, but short={short} is more than chunk_frames={chunk_frames}")
        check_reference_gap(reference_gap)
        self.short = short
        self.levels = tuple(levels)
        self.strides = tuple(strides)
        self.chunk_frames: int = chunk_frames
        self.reference_gap = reference_gap
        self.reference_position: ReferencePosition = reference_position

    @property
    def spans(self) -> tuple[int, ...]:
        """Latents of history that each level holds."""
        return tuple(level**2 * stride for level, stride in zip(self.levels, self.strides, strict=True))

    @property
    def num_frames(self) -> int:
        """See `MemoryBank.num_frames`."""
        return 1 + len(self.levels) + self.short

    @property
    def num_segments(self) -> int:
        """See `MemoryBank.num_segments`."""
        return 2 + len(self.levels)

    @property
    def history_chunks(self) -> int:
        """See `MemoryBank.history_chunks`."""
        return -(-(self.short + sum(self.spans)) // self.chunk_frames)

    def reset(self, reference: Chunk) -> MemoryState:
        """See `MemoryBank.reset`.

        Raises:
            UserError: a level has more tiles than the picture has latent cells.
        """
        check_mosaic(reference, max(self.levels))
        return MemoryState(tail(reference, 1), copies(tail(reference, self.chunk_frames), self.history_chunks))

    def write(self, state: MemoryState, chunk: Chunk) -> MemoryState:
        """See `MemoryBank.write`."""
        return MemoryState(state.reference, (*state.entries[1:], tail(chunk, self.chunk_frames)))

    def with_short(self, state: MemoryState, latents_BFCHW: Tensor) -> MemoryState:
        """See `MemoryBank.with_short`."""
        newest = state.entries[-1]
        (short,) = changed_latents(state, (tail(newest, self.short),), latents_BFCHW)
        latents = torch.cat([newest.latents_BFCHW[:, : -self.short], short.latents_BFCHW], dim=1)
        return replace(state, entries=(*state.entries[:-1], replace(newest, latents_BFCHW=latents, identity=short.identity)))

    def read(self, state: MemoryState) -> MemoryView:
        """See `MemoryBank.read`."""
        entries: list[tuple[Chunk, SegmentKind, int]] = [(tail(state.entries[-1], self.short), "short", -self.short)]
        latents = torch.cat([chunk.latents_BFCHW for chunk in state.entries], dim=1)
        audio = torch.cat([chunk.audio_BFAD for chunk in state.entries], dim=1)
        end = latents.shape[1] - self.short
        for level, stride, span in zip(self.levels, self.strides, self.spans, strict=True):
            tiles = latents[:, end - span : end].unflatten(1, (level**2, stride)).mean(2)
            text = state.entries[(end - 1) // self.chunk_frames].text_BLD
            packed = Chunk(mosaic(tiles, level), audio[:, end - span : end].mean(1, keepdim=True), text)
            entries.insert(0, (packed, "long", end - 1 - latents.shape[1]))
            end -= span
        where = place_reference(self.reference_position, entries[0][2], self.reference_gap)
        return view([(state.reference, "reference", where), *entries])

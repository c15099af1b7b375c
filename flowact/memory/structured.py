"""The structured memory bank of FlowAct-R1 (Figure 2): reference, long-term queue, short-term. Legend: flowact/types.py."""

from __future__ import annotations

from typing import Literal

from flowact.memory.base import MemoryBank
from flowact.memory.entries import (
    MemoryState,
    ReferencePosition,
    Which,
    check_mosaic,
    check_reference_gap,
    compressed,
    copies,
    frame,
    index_of,
    place_reference,
    reference_chunk,
    side_for,
    tail,
    view,
)
from flowact.types import Chunk, MemoryView, SegmentKind

__all__ = ["MemoryState", "ReferencePosition", "StructuredMemory", "check_reference_gap", "place_reference", "reference_chunk", "tail", "view"]


class StructuredMemory(MemoryBank[MemoryState]):
    """Reference for identity, a queue for the middle range, the latest frames for motion.

    When a chunk is finished, the chunk before it moves to the end of the long queue, the oldest long entry is dropped, and the finished chunk's
    last frames become the short memory. Slots that nothing has reached yet hold the reference: the person stood still before the stream began.
    The paper draws three long entries and one or three short frames; entry size and positions are not stated, so they are options.

    Each entry keeps the text and the sound that it was made with. An entry that is the chunk's last latent, or any entry where the short memory is
    the whole chunk, is cut from the short memory, so a refined short memory is handed on refined; other entries are cut when the chunk is written.

    Args:
        long: entries of the long queue.
        short: latent frames of the short memory.
        positions: "elapsed" places entries at their true distance from the stream, "contiguous" next to each other.
        chunk_frames: latent frames of the chunks that are written; sets the elapsed distance.
        reference_gap: latent frames from the reference to the oldest other entry, or to the stream if there is none.
        reference_position: the reference keeps a constant offset before the oldest entry ("offset"), stands right before it ("contiguous"),
            or is anchored `reference_gap` frames after the stream's first frame ("future", the pseudo last frame of OmniHuman-1.5); then the gap must
            be at least the stream's length. Positions are relative to the stream, so none ever grows.
        entry: what of a chunk a long entry is: one latent frame ("latent"), the whole chunk ("chunk"), or one latent frame that is a mosaic of all
            its latents, pooled ("compressed"; it stands where the chunk's middle frame stood).
        which: the frame of the chunk that an entry of one latent is.

    Raises:
        ValueError: a size below its least value, a short memory longer than a chunk, or an unknown entry or frame.
    """

    def __init__(
        self,
        long: int = 3,
        short: int = 1,
        positions: Literal["elapsed", "contiguous"] = "elapsed",
        chunk_frames: int = 3,
        reference_gap: int = 3,
        reference_position: ReferencePosition = "offset",
        entry: Literal["latent", "chunk", "compressed"] = "latent",
        which: Which = "last",
    ) -> None:
        if long < 0 or short < 1:
            raise ValueError(f"structured memory needs long >= 0 and short >= 1, got long={long}, short={short}")
        if short > chunk_frames:
            raise ValueError(f"short memory is taken from one chunk, but short={short} is more than chunk_frames={chunk_frames}")
        for name, value, known in (("entry", entry, ("latent", "chunk", "compressed")), ("which", which, ("first", "middle", "last"))):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it is {', '.join(known[:-1])} or {known[-1]}")
        check_reference_gap(reference_gap)
        self.long = long
        self.short = short
        self.positions = positions
        self.chunk_frames: int = chunk_frames
        self.reference_gap = reference_gap
        self.reference_position: ReferencePosition = reference_position
        self.entry = entry
        self.which: Which = which

    @property
    def entry_frames(self) -> int:
        """Latent frames of a long entry."""
        return self.chunk_frames if self.entry == "chunk" else 1

    @property
    def waits(self) -> bool:
        """Whether the short memory lacks what the next long entry is cut from, so that the entry is cut before and waits."""
        return self.long > 0 and self.short < self.chunk_frames and (self.entry, self.which) != ("latent", "last")

    @property
    def num_frames(self) -> int:
        """See `MemoryBank.num_frames`."""
        return 1 + self.long * self.entry_frames + self.short

    @property
    def num_segments(self) -> int:
        """See `MemoryBank.num_segments`."""
        return 2 + self.long

    @property
    def history_chunks(self) -> int:
        """See `MemoryBank.history_chunks`."""
        return self.long + 1

    def entry_of(self, chunk: Chunk) -> Chunk:
        """The long entry that a chunk leaves."""
        if self.entry == "latent":
            return frame(chunk, self.which)
        whole = tail(chunk, self.chunk_frames)
        return whole if self.entry == "chunk" else compressed(whole)

    def reset(self, reference: Chunk) -> MemoryState:
        """See `MemoryBank.reset`.

        Raises:
            UserError: compressed entries have more tiles than the picture has latent cells.
        """
        if self.entry == "compressed":
            check_mosaic(reference, side_for(self.chunk_frames))
        first = tail(reference, 1)
        still = self.entry_of(first)
        short = copies(tail(reference, self.short), 1)
        return MemoryState(first, copies(still, self.long) + short, copies(still, int(self.waits)))

    def write(self, state: MemoryState, chunk: Chunk) -> MemoryState:
        """See `MemoryBank.write`."""
        newest = state.waiting if self.waits else (self.entry_of(state.entries[-1]),) if self.long else ()
        queue = (*state.entries[:-1], *newest)[len(newest) :]
        return MemoryState(state.reference, (*queue, tail(chunk, self.short)), (self.entry_of(chunk),) if self.waits else ())

    def read(self, state: MemoryState) -> MemoryView:
        """See `MemoryBank.read`."""
        size = self.entry_frames
        if self.positions == "elapsed":
            offset = {"latent": index_of(self.which, self.chunk_frames), "chunk": 0, "compressed": self.chunk_frames // 2}[self.entry]
            step, newest_long = self.chunk_frames, offset - 2 * self.chunk_frames
        else:
            step, newest_long = size, -self.short - size
        oldest = newest_long - step * (self.long - 1) if self.long else -self.short
        where = place_reference(self.reference_position, oldest, self.reference_gap)
        entries: list[tuple[Chunk, SegmentKind, int]] = [(state.reference, "reference", where)]
        entries += [(entry, "long", newest_long - step * (self.long - 1 - i)) for i, entry in enumerate(state.entries[:-1])]
        entries.append((state.entries[-1], "short", -self.short))
        return view(entries)

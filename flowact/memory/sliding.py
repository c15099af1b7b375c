"""A sliding window: the reference and the most recent frames (the plain causal baseline). Legend: flowact/types.py."""

from __future__ import annotations

from flowact.memory.base import MemoryBank
from flowact.memory.entries import MemoryState, ReferencePosition, check_reference_gap, copies, place_reference, tail, view
from flowact.types import Chunk, MemoryView, SegmentKind


class SlidingWindowMemory(MemoryBank[MemoryState]):
    """The reference and the last `chunks` whole chunks, contiguous before the stream.

    Args:
        chunks: finished chunks that stay visible.
        chunk_frames: latent frames of a chunk.
        reference_gap: latent frames from the reference to the oldest other entry, or to the stream if there is none.
        reference_position: see `StructuredMemory`.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, chunks: int = 1, chunk_frames: int = 3, reference_gap: int = 3, reference_position: ReferencePosition = "offset") -> None:
        if chunks < 1 or chunk_frames < 1:
            raise ValueError(f"a sliding window needs chunks >= 1 and chunk_frames >= 1, got {chunks} and {chunk_frames}")
        check_reference_gap(reference_gap)
        self.chunks = chunks
        self.chunk_frames: int = chunk_frames
        self.reference_gap = reference_gap
        self.reference_position: ReferencePosition = reference_position

    @property
    def num_frames(self) -> int:
        """See `MemoryBank.num_frames`."""
        return 1 + self.chunks * self.chunk_frames

    @property
    def num_segments(self) -> int:
        """See `MemoryBank.num_segments`."""
        return 1 + self.chunks

    @property
    def history_chunks(self) -> int:
        """See `MemoryBank.history_chunks`."""
        return self.chunks

    def reset(self, reference: Chunk) -> MemoryState:
        """See `MemoryBank.reset`."""
        return MemoryState(tail(reference, 1), copies(tail(reference, self.chunk_frames), self.chunks))

    def write(self, state: MemoryState, chunk: Chunk) -> MemoryState:
        """See `MemoryBank.write`."""
        return MemoryState(state.reference, (*state.entries[1:], tail(chunk, self.chunk_frames)))

    def read(self, state: MemoryState) -> MemoryView:
        """See `MemoryBank.read`."""
        oldest = -self.chunks * self.chunk_frames
        where = place_reference(self.reference_position, oldest, self.reference_gap)
        entries: list[tuple[Chunk, SegmentKind, int]] = [(state.reference, "reference", where)]
        entries += [(entry, "short", oldest + i * self.chunk_frames) for i, entry in enumerate(state.entries)]
        return view(entries)

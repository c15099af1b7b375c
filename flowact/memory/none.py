"""No memory but the reference: what "off" looks like. Legend: flowact/types.py."""

from __future__ import annotations

from flowact.memory.base import MemoryBank
from flowact.memory.entries import MemoryState, ReferencePosition, check_reference_gap, place_reference, tail, view
from flowact.types import Chunk, MemoryView


class NoMemory(MemoryBank[MemoryState]):
    """Only the reference is seen; finished chunks are forgotten. Chunks stay joined through the denoising stream alone.

    Args:
        reference_gap: latent frames from the reference to the oldest other entry, or to the stream if there is none.
        reference_position: see `StructuredMemory`.
    """

    num_frames = 1
    num_segments = 1
    history_chunks = 0

    def __init__(self, reference_gap: int = 4, reference_position: ReferencePosition = "offset") -> None:
        check_reference_gap(reference_gap)
        self.reference_gap = reference_gap
        self.reference_position: ReferencePosition = reference_position

    def reset(self, reference: Chunk) -> MemoryState:
        """See `MemoryBank.reset`."""
        return MemoryState(tail(reference, 1), ())

    def write(self, state: MemoryState, chunk: Chunk) -> MemoryState:
        """See `MemoryBank.write`."""
        return state

    def read(self, state: MemoryState) -> MemoryView:
        """See `MemoryBank.read`."""
        return view([(state.reference, "reference", place_reference(self.reference_position, 0, self.reference_gap))])

"""No memory but the reference: what "off" looks like. Legend: flowact/types.py."""

from __future__ import annotations

from flowact.memory.base import MemoryBank
from flowact.memory.structured import MemoryState, tail, view
from flowact.types import Chunk, MemoryView


class NoMemory(MemoryBank[MemoryState]):
    """Only the reference is seen; finished chunks are forgotten. Chunks stay joined through the denoising stream alone.

    Args:
        reference_gap: latent frames between the stream and the reference.
    """

    num_frames = 1
    num_segments = 1
    history_chunks = 0

    def __init__(self, reference_gap: int = 3) -> None:
        self.reference_gap = reference_gap

    def reset(self, reference: Chunk) -> MemoryState:
        """See `MemoryBank.reset`."""
        return MemoryState(tail(reference, 1), ())

    def write(self, state: MemoryState, chunk: Chunk) -> MemoryState:
        """See `MemoryBank.write`."""
        return state

    def read(self, state: MemoryState) -> MemoryView:
        """See `MemoryBank.read`."""
        return view([(state.reference, "reference", -1 - self.reference_gap)])

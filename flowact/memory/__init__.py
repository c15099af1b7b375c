"""Memory banks and corruptors."""

from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import (
    CorruptorChain,
    ErrorBufferMemory,
    GaussianMemory,
    GeneratedMemory,
    GroundTruthMemory,
    MemoryCorruptor,
    RolloutMemory,
)
from flowact.memory.entries import MemoryState, reference_chunk
from flowact.memory.none import NoMemory
from flowact.memory.novelty import NoveltyMemory
from flowact.memory.packed import PackedMemory
from flowact.memory.sliding import SlidingWindowMemory
from flowact.memory.structured import StructuredMemory

__all__ = [
    "CorruptorChain",
    "ErrorBufferMemory",
    "GaussianMemory",
    "GeneratedMemory",
    "GroundTruthMemory",
    "MemoryBank",
    "MemoryCorruptor",
    "MemoryState",
    "NoMemory",
    "NoveltyMemory",
    "PackedMemory",
    "RolloutMemory",
    "SlidingWindowMemory",
    "StructuredMemory",
    "reference_chunk",
]

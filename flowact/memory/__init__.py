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
from flowact.memory.none import NoMemory
from flowact.memory.sliding import SlidingWindowMemory
from flowact.memory.structured import MemoryState, StructuredMemory, reference_chunk

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
    "RolloutMemory",
    "SlidingWindowMemory",
    "StructuredMemory",
    "reference_chunk",
]

"""Memory banks and corruptors."""

from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import GaussianMemory, GeneratedMemory, GroundTruthMemory, MemoryCorruptor
from flowact.memory.none import NoMemory
from flowact.memory.sliding import SlidingWindowMemory
from flowact.memory.structured import MemoryState, StructuredMemory, reference_chunk

__all__ = [
    "GaussianMemory",
    "GeneratedMemory",
    "GroundTruthMemory",
    "MemoryBank",
    "MemoryCorruptor",
    "MemoryState",
    "NoMemory",
    "SlidingWindowMemory",
    "StructuredMemory",
    "reference_chunk",
]

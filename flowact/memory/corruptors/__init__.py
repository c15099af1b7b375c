"""Memory corruptors: what a stage trains on in place of clean ground-truth memory (self-forcing variant of FlowAct-R1, section on training)."""

from flowact.memory.corruptors.base import Corruption, MemoryCorruptor, Offer, Ramp, Source, noised
from flowact.memory.corruptors.chain import CorruptorChain
from flowact.memory.corruptors.error_buffer import ErrorBufferMemory
from flowact.memory.corruptors.generated import GeneratedMemory
from flowact.memory.corruptors.rollout import RolloutMemory
from flowact.memory.corruptors.simple import GaussianMemory, GroundTruthMemory

__all__ = [
    "Corruption",
    "CorruptorChain",
    "ErrorBufferMemory",
    "GaussianMemory",
    "GeneratedMemory",
    "GroundTruthMemory",
    "MemoryCorruptor",
    "Offer",
    "Ramp",
    "RolloutMemory",
    "Source",
    "noised",
]

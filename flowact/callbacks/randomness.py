"""Random generators as a function of the training step, so that a resumed run draws what the uninterrupted run drew."""

from __future__ import annotations

import random

import numpy as np
import torch

_MASK = 0xFFFFFFFF
_OFFSET = 0x9E3779B9  # keeps the constant of a stream away from the small numbers that indices are


def seed_generators(seed: int, stream: int, index: int) -> None:
    """Set Python's, NumPy's and torch's global generators (on every device) from three numbers.

    Args:
        seed: of the run.
        stream: which of several independent sequences, such as the process.
        index: place in the sequence, such as the number of the batch. Different places get different seeds.
    """
    mixed = _mix(index) ^ _mix(_mix(seed + _OFFSET) + stream)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _mix(value: int) -> int:
    """A bijection of 32-bit numbers that changes about half of the bits when one bit of its argument changes."""
    value &= _MASK
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK
    return value ^ (value >> 16)

"""Behaviour planners: from what is heard to what the character should be seen doing (FlowAct-R1, action planning)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt in force from `start_seconds` until the next one."""

    start_seconds: float
    state: str
    text: str


class Planner(ABC):
    """Writes timed prompts for a soundtrack."""

    @abstractmethod
    def plan(self, samples: np.ndarray) -> Sequence[TimedPrompt]:
        """Prompts, in time order from 0, for the character's own speech: mono float32 at 16 kHz."""

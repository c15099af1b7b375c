"""Synthetic characters with exact truth: they perform, are rendered, and are read back from pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowact.errors import UserError, did_you_mean
from flowact.types import BOXES

Identity = dict[str, list[float]]  # plain numbers: written to JSON beside each clip


@dataclass(frozen=True)
class Readout:
    """What closed-form measurement finds in T frames; NaN where a quantity cannot be read.

    Attributes:
        channels: truth channel name -> float32 (T,), in the units of the character's truth.
        mouth_area: open mouth area (T,), units of the character; comparable with `Character.mouth_area` of the truth.
        state: index into `flowact.types.STATES` (T,), int64, from what is seen alone.
        identity_error: distance (T,) of the measured colours to the identity's, RMS over parts, 0..1 RGB units.
        residual: RMS distance (T,) of the frame to the nearest picture the character can make; a no-reference quality.
    """

    channels: Mapping[str, np.ndarray]
    mouth_area: np.ndarray
    state: np.ndarray
    identity_error: np.ndarray
    residual: np.ndarray


class Character(ABC):
    """A family of synthetic people. One object renders at one size; identities are sampled from it."""

    #: names of the truth channels, the columns of truth_TP
    channels: tuple[str, ...]

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def sample_identity(self, generator: np.random.Generator) -> Identity:
        """A new person: colours and sizes."""

    def identity_of(self, parts: Mapping[str, Sequence[float]], generator: np.random.Generator) -> Identity:
        """A person of stated parts; the others are drawn.

        Raises:
            UserError: a part that this character does not have, or numbers that it can not have.
        """
        identity = self.sample_identity(generator)
        for name, values in parts.items():
            if name not in identity:
                raise UserError(f"a {type(self).__name__} has no part '{name}'.{did_you_mean(name, identity)}")
            numbers = [values] if isinstance(values, (int, float)) else list(values)
            if len(numbers) != len(identity[name]) or not all(isinstance(number, (int, float)) for number in numbers):
                raise UserError(f"{name}: {values!r} should be {len(identity[name])} numbers, such as {identity[name]}")
            identity[name] = [float(number) for number in numbers]
        return identity

    @abstractmethod
    def perform(self, samples: np.ndarray, states_T: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Truth truth_TP, float32, of the person speaking `samples` (16 kHz, float32, 640 * T) in the given states (uint8)."""

    @abstractmethod
    def render(self, identity: Identity, truth_TP: np.ndarray) -> np.ndarray:
        """Frames uint8 (T, size, size, 3)."""

    @abstractmethod
    def mouth_area(self, truth_TP: np.ndarray) -> np.ndarray:
        """True open mouth area (T,)."""

    def boxes(self, identity: Identity, truth_TP: np.ndarray) -> np.ndarray:
        """Where the `flowact.types.BOXES` are, float32 (T, 2, 4): left, top, right, bottom as shares of the picture, NaN where unknown."""
        return np.full((len(truth_TP), len(BOXES), 4), np.nan, np.float32)

    @abstractmethod
    def read(self, frames: np.ndarray, identity: Identity) -> Readout:
        """Measure frames, uint8 or float in [0, 1], (T, size, size, 3), against a known identity. Closed form, deterministic."""

    @abstractmethod
    def identity_distance(self, frames: np.ndarray, identity: Identity) -> float:
        """Mean distance of the frames' measured appearance to an identity; smallest for the right one."""

    @abstractmethod
    def caption(self, state: str, variant: int = 0) -> str:
        """A short caption (at most 8 words) that says what is seen in a state; `variant` picks a paraphrase."""


def shares_of_picture(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Boxes float32 (..., 4) from corners (..., 2) in half pictures, cut to the picture."""
    return np.clip((np.concatenate([low, high], axis=-1) + 1) / 2, 0, 1).astype(np.float32)

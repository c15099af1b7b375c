"""Memory banks: what a stream remembers. Swappable by name. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from flowact.types import Chunk, MemoryView, TensorRecord

State = TypeVar("State", bound=TensorRecord)


class MemoryBank(ABC, Generic[State]):
    """A strategy without state of its own: state is a frozen record, every method returns a new one.

    Shapes never depend on how much has been written, so one compiled graph serves a whole session.
    """

    #: latent frames of the chunks that the bank is made for; None if any will do
    chunk_frames: int | None = None

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """Latent frames that `read` returns."""

    @property
    @abstractmethod
    def num_segments(self) -> int:
        """Segments that `read` returns."""

    @property
    @abstractmethod
    def history_chunks(self) -> int:
        """Chunks that must have been written until nothing older can be seen; training needs that much history."""

    @abstractmethod
    def reset(self, reference: Chunk) -> State:
        """State at the start of a stream. `reference` holds one image latent (F = 1) and its conditions."""

    @abstractmethod
    def write(self, state: State, chunk: Chunk) -> State:
        """State after a finished (clean) chunk left the denoising stream."""

    @abstractmethod
    def read(self, state: State) -> MemoryView:
        """Latents, conditions and positioned segments, oldest first; positions are relative to the first stream frame (0)."""

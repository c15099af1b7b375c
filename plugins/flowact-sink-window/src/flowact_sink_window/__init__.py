"""Sinks and a window as memory. Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowact.memory import MemoryBank, MemoryState
from flowact.memory.entries import copies, tail, view
from flowact.memory.records import select
from flowact.types import Chunk, MemoryView, SegmentKind

__all__ = ["SinkWindowMemory", "SinkWindowState"]


@dataclass(frozen=True)
class SinkWindowState(MemoryState):
    """What a stream remembers. `entries` are the sinks, whole chunks, and then the recent latent frames, one entry each, the newest last.

    Attributes:
        num_written_B: chunks written so far, counted up to `sinks`.
    """

    num_written_B: Tensor = field(kw_only=True)


class SinkWindowMemory(MemoryBank[SinkWindowState]):
    """The first chunks of a stream, kept for ever, and the most recent latent frames.

    Attention sinks (StreamingLLM, arXiv 2309.17453) keep long video rollouts from drifting: LongLive (arXiv 2509.22622) pins the first chunk beside
    a short window, Rolling Forcing (arXiv 2509.25161) gives it positions that move along with the stream. Here the sinks are latents,
    not cached keys, and their positions are always relative to the stream, so neither kind of position grows with the session.

    A window of training history begins in the middle of a clip, so there the oldest chunk of the window plays the sink.

    Args:
        sinks: finished chunks kept from the beginning of the stream.
        recent: most recent latent frames.
        chunk_frames: latent frames of a chunk.
        gap: latent frames of distance between the reference and the sinks, and between the sinks and the recent frames.

    Raises:
        ValueError: `sinks`, `recent` or `chunk_frames` below 1, or a negative `gap`.
    """

    def __init__(self, sinks: int = 1, recent: int = 3, chunk_frames: int = 3, gap: int = 3) -> None:
        for name, value, least in (("sinks", sinks, 1), ("recent", recent, 1), ("chunk_frames", chunk_frames, 1), ("gap", gap, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.sinks = sinks
        self.recent = recent
        self.chunk_frames: int = chunk_frames
        self.gap = gap

    @property
    def num_frames(self) -> int:
        """See `MemoryBank.num_frames`."""
        return 1 + self.sinks * self.chunk_frames + self.recent

    @property
    def num_segments(self) -> int:
        """The reference, each sink, and each recent latent frame: a frame keeps the caption it was made with."""
        return 1 + self.sinks + self.recent

    @property
    def history_chunks(self) -> int:
        """Chunks that fill sinks and window."""
        return self.sinks + -(-self.recent // self.chunk_frames)

    def reset(self, reference: Chunk) -> SinkWindowState:
        """See `MemoryBank.reset`. Empty slots hold the reference: the person stood still before the stream began."""
        # which chunk a sink holds differs from sample to sample, and a chunk's frames are entries of their own: entries have no numbers
        still = replace(reference, identity=None)
        entries = copies(tail(still, self.chunk_frames), self.sinks) + copies(tail(still, 1), self.recent)
        latents = reference.latents_BFCHW
        return SinkWindowState(tail(reference, 1), entries, num_written_B=torch.zeros(latents.shape[0], dtype=torch.long, device=latents.device))

    def write(self, state: SinkWindowState, chunk: Chunk) -> SinkWindowState:
        """See `MemoryBank.write`.

        Raises:
            ValueError: the chunk does not have `chunk_frames` latent frames.
        """
        if chunk.num_frames != self.chunk_frames:
            raise ValueError(f"this memory was made for chunks of {self.chunk_frames} latent frames, got {chunk.num_frames}; set chunk_frames")
        new = replace(chunk, identity=None)
        # masks instead of an index, so that no value is read back from the device
        sinks = tuple(select(state.num_written_B == i, new, sink) for i, sink in enumerate(state.entries[: self.sinks]))
        frames = tuple(
            Chunk(latents, audio, new.text_BLD)
            for latents, audio in zip(new.latents_BFCHW.split(1, dim=1), new.audio_BFAD.split(1, dim=1), strict=True)
        )
        recent = (*state.entries[self.sinks :], *frames)[-self.recent :]
        return SinkWindowState(state.reference, (*sinks, *recent), num_written_B=(state.num_written_B + 1).clamp(max=self.sinks))

    def read(self, state: SinkWindowState) -> MemoryView:
        """See `MemoryBank.read`."""
        first_sink = -self.recent - self.gap - self.sinks * self.chunk_frames
        entries: list[tuple[Chunk, SegmentKind, int]] = [(state.reference, "reference", first_sink - self.gap - 1)]
        entries += [(sink, "long", first_sink + i * self.chunk_frames) for i, sink in enumerate(state.entries[: self.sinks])]
        entries += [(latest, "short", i - self.recent) for i, latest in enumerate(state.entries[self.sinks :])]
        return view(entries)

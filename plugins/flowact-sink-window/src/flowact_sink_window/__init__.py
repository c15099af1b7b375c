"""Sinks and a window as memory. Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowact.memory import MemoryBank
from flowact.types import Chunk, MemoryView, Segment, TensorRecord

__all__ = ["SinkWindowMemory", "SinkWindowState"]


@dataclass(frozen=True)
class SinkWindowState(TensorRecord):
    """What a stream remembers, all in tensors of fixed shape.

    Attributes:
        reference: the reference picture and its conditions, F = 1.
        sinks_latents_BFCHW: F = sinks * chunk_frames; slots of chunks that are not written yet hold the reference.
        sinks_audio_BFAD: audio of the same frames.
        sinks_text_BSLD: one caption per sink, S = sinks.
        recent_latents_BFCHW: F = recent, the newest last.
        recent_audio_BFAD: audio of the same frames.
        recent_text_BSLD: one caption per recent latent frame, S = recent.
        num_written: chunks written so far, one integer, counted up to `sinks`.
    """

    reference: Chunk
    sinks_latents_BFCHW: Tensor
    sinks_audio_BFAD: Tensor
    sinks_text_BSLD: Tensor
    recent_latents_BFCHW: Tensor
    recent_audio_BFAD: Tensor
    recent_text_BSLD: Tensor
    num_written: Tensor


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
        self.chunk_frames = chunk_frames
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
        num_sink_frames = self.sinks * self.chunk_frames
        return SinkWindowState(
            reference,
            reference.latents_BFCHW.expand(-1, num_sink_frames, -1, -1, -1),
            reference.audio_BFAD.expand(-1, num_sink_frames, -1, -1),
            reference.text_BLD[:, None].expand(-1, self.sinks, -1, -1),
            reference.latents_BFCHW.expand(-1, self.recent, -1, -1, -1),
            reference.audio_BFAD.expand(-1, self.recent, -1, -1),
            reference.text_BLD[:, None].expand(-1, self.recent, -1, -1),
            torch.zeros((), dtype=torch.long, device=reference.latents_BFCHW.device),
        )

    def write(self, state: SinkWindowState, chunk: Chunk) -> SinkWindowState:
        """See `MemoryBank.write`.

        Raises:
            ValueError: the chunk does not have `chunk_frames` latent frames.
        """
        if chunk.num_frames != self.chunk_frames:
            raise ValueError(f"this memory was made for chunks of {self.chunk_frames} latent frames, got {chunk.num_frames}; set chunk_frames")
        text_BFLD = chunk.text_BLD[:, None].expand(-1, chunk.num_frames, -1, -1)
        frame_slot = torch.arange(self.sinks * self.chunk_frames, device=state.num_written.device) // self.chunk_frames
        written_F = (frame_slot == state.num_written)[None, :, None, None]
        written_S = (torch.arange(self.sinks, device=state.num_written.device) == state.num_written)[None, :, None, None]
        return SinkWindowState(
            state.reference,
            # masks instead of an index, so that no value is read back from the device
            torch.where(written_F[..., None], chunk.latents_BFCHW.repeat(1, self.sinks, 1, 1, 1), state.sinks_latents_BFCHW),
            torch.where(written_F, chunk.audio_BFAD.repeat(1, self.sinks, 1, 1), state.sinks_audio_BFAD),
            torch.where(written_S, chunk.text_BLD[:, None], state.sinks_text_BSLD),
            torch.cat([state.recent_latents_BFCHW, chunk.latents_BFCHW], dim=1)[:, -self.recent :],
            torch.cat([state.recent_audio_BFAD, chunk.audio_BFAD], dim=1)[:, -self.recent :],
            torch.cat([state.recent_text_BSLD, text_BFLD], dim=1)[:, -self.recent :],
            (state.num_written + 1).clamp(max=self.sinks),
        )

    def read(self, state: SinkWindowState) -> MemoryView:
        """See `MemoryBank.read`."""
        first_sink = -self.recent - self.gap - self.sinks * self.chunk_frames
        segments = [Segment("reference", 1, first_sink - self.gap - 1)]
        segments += [Segment("long", self.chunk_frames, first_sink + i * self.chunk_frames) for i in range(self.sinks)]
        segments += [Segment("short", 1, i - self.recent) for i in range(self.recent)]
        return MemoryView(
            torch.cat([state.reference.latents_BFCHW, state.sinks_latents_BFCHW, state.recent_latents_BFCHW], dim=1),
            torch.cat([state.reference.audio_BFAD, state.sinks_audio_BFAD, state.recent_audio_BFAD], dim=1),
            torch.cat([state.reference.text_BLD[:, None], state.sinks_text_BSLD, state.recent_text_BSLD], dim=1),
            tuple(segments),
        )

"""A stream of one or more characters: sound and prompts go in chunk by chunk, frames come out. Legend: flowact/types.py."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowact.autoencoders.base import Autoencoder
from flowact.memory.structured import reference_chunk
from flowact.sampling.window import WindowEngine, WindowState, gaussian
from flowact.types import FRAMES_PER_SECOND, Chunk


@dataclass
class Timing:
    """Wall-clock facts of a stream.

    Attributes:
        started: clock when the sound of the first chunk was there.
        first_frame_seconds: from then until the first frames were decoded.
        chunk_seconds: time spent on each emitted chunk, denoising and decoding.
    """

    started: float = 0.0
    first_frame_seconds: float = float("nan")
    chunk_seconds: list[float] = field(default_factory=list)


class StreamSession:
    """The only thing that remembers: drives the pure step of a `WindowEngine` and keeps the decoder's state.

    Chunk k's sound must be there when chunk k enters the stream; it leaves W - 1 chunks later. So the first frames follow after W steps, and a
    prompt set now is seen W chunks from now.

    Args:
        engine: the window engine.
        autoencoder: decodes what leaves the stream.
        reference_B1CHW: image latents of the characters, one per sample of the batch.
        still_BFCHW: motion latents of the pictures standing still, at least (W - 1) chunks.
        silence_AD: audio features of silence for one latent frame.
        rest_LD: text features of the caption that describes standing still.
        chunk_frames: n.
        generator: source of the noise; the same seed gives the same stream.

    Raises:
        ValueError: too few still latents.
    """

    def __init__(
        self,
        engine: WindowEngine,
        autoencoder: Autoencoder,
        reference_B1CHW: Tensor,
        still_BFCHW: Tensor,
        silence_AD: Tensor,
        rest_LD: Tensor,
        chunk_frames: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.engine = engine
        self.autoencoder = autoencoder
        self.chunk_frames = chunk_frames
        self.generator = generator
        self.evaluations = 0
        self.timing = Timing()
        self._like = reference_B1CHW.expand(-1, chunk_frames, -1, -1, -1)
        batch = reference_B1CHW.shape[0]
        rest = rest_LD.expand(batch, -1, -1)
        silence = silence_AD.expand(batch, chunk_frames, -1, -1)
        count = engine.staircase.num_chunks - 1
        if still_BFCHW.shape[1] < count * chunk_frames:
            raise ValueError(f"the stream starts with {count * chunk_frames} still latent frames, got {still_BFCHW.shape[1]}")
        still = [Chunk(still_BFCHW[:, k * chunk_frames : (k + 1) * chunk_frames], silence, rest) for k in range(count)]
        first = reference_chunk(reference_B1CHW, Chunk(self._like, silence, rest))
        self._state: WindowState = engine.start(first, still, generator)
        _, self._decoder_state = autoencoder.decode_stream(reference_B1CHW)
        self._counter = _count_evaluations(self)

    @property
    def steps(self) -> int:
        """Chunks that entered."""
        return self._state.emitted + self.engine.staircase.num_chunks - 1

    @property
    def emitted(self) -> int:
        """Chunks whose frames came out."""
        return max(self._state.emitted, 0)

    @torch.no_grad()
    def next_chunk(self, audio_BFAD: Tensor, text_BLD: Tensor) -> Tensor | None:
        """Let a chunk enter with its conditions; frames_BCTHW in [-1, 1] of the chunk that leaves, None while the stream fills.

        Args:
            audio_BFAD: features of the entering chunk's sound, F = n.
            text_BLD: features of its caption.
        """
        begin = time.perf_counter()
        if self.timing.started == 0.0:
            self.timing.started = begin
        entering = Chunk(gaussian(self._like, self.generator), audio_BFAD, text_BLD)
        was_still = self._state.emitted < 0
        with self._counter:
            self._state, done = self.engine.step(self._state, entering, self.generator)
        if was_still:
            return None
        frames, self._decoder_state = self.autoencoder.decode_stream(done.latents_BFCHW, self._decoder_state)
        end = time.perf_counter()
        if self._state.emitted == 1:
            self.timing.first_frame_seconds = end - self.timing.started
        self.timing.chunk_seconds.append(end - begin)
        return frames

    @property
    def frames_per_second(self) -> float:
        """Frames of one character per second of work, once the stream is full."""
        full = self.timing.chunk_seconds[1:] or self.timing.chunk_seconds
        frames = self.chunk_frames * self.autoencoder.temporal_stride
        return frames * len(full) / sum(full) if full else float("nan")

    @property
    def seconds_per_chunk(self) -> float:
        """Playing time of a chunk."""
        return self.chunk_frames * self.autoencoder.temporal_stride / FRAMES_PER_SECOND


class _count_evaluations:
    """Counts forward passes of the denoiser while active."""

    def __init__(self, session: StreamSession) -> None:
        self.session = session

    def __enter__(self) -> None:
        self.handle = self.session.engine.denoiser.register_forward_hook(self._count)

    def __exit__(self, *unused: object) -> None:
        self.handle.remove()

    def _count(self, *unused: object) -> None:
        self.session.evaluations += 1


def evaluations_per_chunk(session: StreamSession) -> float:
    """Evaluations that an emitted chunk has seen: every step evaluates all W chunks of the stream together, and a chunk stays for W steps."""
    return session.evaluations / max(session.steps, 1) * session.engine.staircase.num_chunks


def latency_budget(engine: WindowEngine, chunk_seconds: float) -> dict[str, float]:
    """Seconds of sound that must be buffered, and until a new prompt is seen, for the engine's geometry."""
    num_chunks = engine.staircase.num_chunks
    return {"audio_lookahead_seconds": num_chunks * chunk_seconds, "prompt_to_motion_seconds": num_chunks * chunk_seconds}

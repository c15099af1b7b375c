"""A stream chunk by chunk: conditions of one chunk go in, the frames of another come out. Legend: flowact/types.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowact.autoencoders.base import Autoencoder
from flowact.errors import UserError
from flowact.memory.structured import reference_chunk
from flowact.sampling.refinement import NoRefinement, Refinement, Watch
from flowact.sampling.window import WindowEngine, WindowState, gaussian
from flowact.types import FRAMES_PER_SECOND, Chunk, MemoryView


@dataclass
class Timing:
    """Wall-clock facts of a stream.

    Attributes:
        started: clock when the sound of the first chunk was there.
        first_frame_seconds: from then until the first frames were decoded.
        chunk_seconds: time spent on each emitted chunk, denoising and decoding; the latest 10 000.
    """

    started: float = 0.0
    first_frame_seconds: float = float("nan")
    chunk_seconds: list[float] = field(default_factory=list)

    def note(self, seconds: float) -> None:
        """Count a chunk that left."""
        if not self.chunk_seconds:
            self.first_frame_seconds = time.perf_counter() - self.started
        self.chunk_seconds.append(seconds)
        if len(self.chunk_seconds) > 2 * KEPT_TIMES:  # a stream may run for days
            del self.chunk_seconds[:-KEPT_TIMES]


KEPT_TIMES = 10_000
NOT_FINITE = (
    "chunk {} is not finite, even after the window began anew; the checkpoint or the precision is at fault (try float32, or an earlier checkpoint)"
)


class ChunkStream:
    """Drives the pure step of a `WindowEngine` for one or more characters and keeps the decoder's state.

    Chunk k's sound must be there when chunk k enters the stream; it leaves W - 1 chunks later. So the first frames follow after W steps, and a
    prompt set now is seen W chunks from now. `next_chunk` is `enter` followed by `decode`; a live stream runs the two on threads of their own.

    Args:
        engine: the window engine.
        autoencoder: decodes what leaves the stream.
        reference_B1CHW: image latents of the characters, one per sample of the batch.
        still_BFCHW: motion latents of the pictures standing still, at least (W - 1) chunks.
        silence_AD: audio features of silence for one latent frame.
        rest_LD: text features of the caption that describes standing still.
        chunk_frames: n.
        generator: source of the noise; the same seed gives the same stream.
        refinement: of the short memory, after each chunk that leaves.

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
        refinement: Refinement = NoRefinement(),
    ) -> None:
        self.engine = engine
        self.autoencoder = autoencoder
        self.chunk_frames = chunk_frames
        self.generator = generator
        self.refinement = refinement
        self.watch = Watch()
        self.evaluations = 0
        self.timing = Timing()
        self._like = reference_B1CHW.expand(-1, chunk_frames, -1, -1, -1)
        batch = reference_B1CHW.shape[0]
        self._rest = Chunk(self._like, silence_AD.expand(batch, chunk_frames, -1, -1), rest_LD.expand(batch, -1, -1))
        count = engine.staircase.num_chunks - 1
        if still_BFCHW.shape[1] < count * chunk_frames:
            raise ValueError(f"the stream starts with {count * chunk_frames} still latent frames, got {still_BFCHW.shape[1]}")
        self._still = still_BFCHW[:, : count * chunk_frames].split(chunk_frames, dim=1) if count else ()
        self._notes: list[str] = []
        still = [replace(self._rest, latents_BFCHW=run) for run in self._still]
        self._state: WindowState = engine.start(reference_chunk(reference_B1CHW, self._rest), still, generator)
        self.reference_frames_BCTHW, self._decoder_state = autoencoder.decode_stream(reference_B1CHW)

    @property
    def steps(self) -> int:
        """Chunks that entered."""
        return self._state.emitted + self.engine.staircase.num_chunks - 1

    @property
    def emitted(self) -> int:
        """Chunks whose frames came out."""
        return max(self._state.emitted, 0)

    @property
    def remembered(self) -> MemoryView:
        """What memory holds now, for all samples."""
        return self.engine.bank.read(self._state.memory)

    @torch.no_grad()
    def next_chunk(self, audio_BFAD: Tensor, text_BLD: Tensor) -> Tensor | None:
        """Let a chunk enter with its conditions; frames_BCTHW in [-1, 1] of the chunk that leaves, None while the stream fills.

        Args:
            audio_BFAD: features of the entering chunk's sound, F = n.
            text_BLD: features of its caption.
        """
        begin = time.perf_counter()
        done = self.enter(audio_BFAD, text_BLD)
        if done is None:
            return None
        frames = self.decode(done)
        self.timing.note(time.perf_counter() - begin)
        return frames

    @torch.no_grad()
    def enter(self, audio_BFAD: Tensor, text_BLD: Tensor) -> Chunk | None:
        """Let a chunk enter; the clean chunk that leaves, None while the stream fills."""
        self._started()
        entering = Chunk(gaussian(self._like, self.generator), audio_BFAD, text_BLD)
        before = self._state
        with self._counted(self.engine.staircase.micro_steps):
            self._state, done = self.engine.step(before, entering, self.generator)
        if not all(bool(torch.isfinite(chunk.latents_BFCHW).all()) for chunk in (done, *self._state.stream)):
            done = self._begun_anew(before, entering)
        return None if before.emitted < 0 else self._remembered(done)

    def _begun_anew(self, before: WindowState, entering: Chunk) -> Chunk:
        """The step once more after the window's chunks became numbers that are none: they begin again from the picture standing still."""
        runs = (replace(chunk, latents_BFCHW=run) for chunk, run in zip(before.stream, self._still, strict=True))
        stream = self.engine.on_stairs(tuple(runs), self.generator)
        entering = replace(entering, latents_BFCHW=gaussian(self._like, self.generator))
        with self._counted(self.engine.staircase.micro_steps):
            self._state, done = self.engine.step(replace(before, stream=stream), entering, self.generator)
        if not bool(torch.isfinite(done.latents_BFCHW).all()):
            raise UserError(NOT_FINITE.format(before.emitted))
        self._notes.append("recovered")
        return done

    def take_notes(self) -> list[str]:
        """What happened since the last call besides chunks going their way: "recovered", "refined"."""
        notes, self._notes = self._notes, []
        return notes

    @torch.no_grad()
    def begin_anew(self, conditions: Sequence[tuple[Tensor, Tensor]]) -> Chunk:
        """Drop the chunks in the stream, let W begin from noise together, and the first of them leave; see `WindowEngine.step_anew`.

        Args:
            conditions: (audio_BFAD, text_BLD) of W chunks.
        """
        self._started()
        chunks = [Chunk(gaussian(self._like, self.generator), audio, text) for audio, text in conditions]
        with self._counted(self.engine.staircase.evaluations_per_chunk):
            self._state, done = self.engine.step_anew(self._state, chunks, self.generator)
        if not bool(torch.isfinite(done.latents_BFCHW).all()):
            raise UserError(NOT_FINITE.format(self._state.emitted - 1))
        return self._remembered(done)

    def _remembered(self, done: Chunk) -> Chunk:
        """The chunk that left, after memory was refined if that was due."""
        refinements = self.watch.refinements
        self._state, self.watch = self.refinement.after(self.engine, self._state, self.watch, self.generator)
        if self.watch.refinements > refinements:
            self._notes.append("refined")
        return done

    def rewrite(self, conditions: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Give the chunks in the stream, left to right, other conditions (audio_BFAD, text_BLD); they count for the evaluations to come.

        Raises:
            ValueError: not one pair for each.
        """
        pairs = zip(self._state.stream, conditions, strict=True)
        stream = tuple(replace(chunk, audio_BFAD=audio, text_BLD=text) for chunk, (audio, text) in pairs)
        self._state = replace(self._state, stream=stream)

    def swap_reference(self, reference_B1CHW: Tensor) -> None:
        """Give memory another reference; what the character did until now stays in memory."""
        first = replace(reference_chunk(reference_B1CHW, self._rest), identity=-self.steps - self.engine.staircase.num_chunks)
        self._state = replace(self._state, memory=self.engine.bank.with_reference(self._state.memory, first))

    @torch.no_grad()
    def decode(self, done: Chunk) -> Tensor:
        """frames_BCTHW in [-1, 1] of a chunk that left; chunks are decoded in the order in which they leave."""
        frames, self._decoder_state = self.autoencoder.decode_stream(done.latents_BFCHW, self._decoder_state)
        return frames

    def use_micro_steps(self, micro_steps: int) -> None:
        """Evaluate M times per stair from the next chunk on. Between chunks all stand on whole stairs, so M can change."""
        self.engine = replace(self.engine, staircase=replace(self.engine.staircase, micro_steps=micro_steps))

    def _started(self) -> None:
        if self.timing.started == 0.0:
            self.timing.started = time.perf_counter()

    @contextmanager
    def _counted(self, micro_steps: int) -> Iterator[None]:
        """Count the denoiser's evaluations, and refuse another number than `micro_steps` asks for."""
        expected, counted = micro_steps * self.engine.guidance.evaluations, 0
        here = threading.get_ident()  # streams of other threads may share the denoiser

        def count(*unused: object) -> None:
            nonlocal counted
            counted += threading.get_ident() == here

        handle = self.engine.denoiser.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()
        self.evaluations += counted
        if counted != expected:
            raise RuntimeError(f"the denoiser was evaluated {counted} times where {expected} were due; a wrapper around it hides or repeats calls")

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


def evaluations_per_chunk(stream: ChunkStream) -> float:
    """Evaluations that an emitted chunk has seen: every step evaluates all W chunks of the stream together, and a chunk stays for W steps."""
    return stream.evaluations / max(stream.steps, 1) * stream.engine.staircase.num_chunks

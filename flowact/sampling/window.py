"""The window engine: a frozen state and a pure step. It serves the offline loop, the live stream and rollouts inside training.

W chunks of n latent frames stand on a noise staircase in front of the memory. A step moves every chunk down one stair, in M micro-steps; the left
chunk comes out clean, is written to memory, and fresh noise enters at the right. W = 1 is plain chunkwise autoregression.
Legend: flowact/types.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowact.memory.base import MemoryBank
from flowact.models.base import Denoiser
from flowact.sampling.reuse import KeptFeatures, unconditional
from flowact.schedulers.euler import Euler
from flowact.schedulers.solver import Solver, gaussian
from flowact.schedulers.staircase import Staircase
from flowact.types import Chunk, ConditionTokens, MemoryFeatures, MemoryView, Segment, Visibility, WindowLayout, concatenate_chunks


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: v = v(no text, no audio) + scale * (v(conditions) - v(no text, no audio)).

    Scale 1 is no guidance and costs nothing; any other scale costs a second evaluation.
    """

    scale: float = 1.0

    @property
    def evaluations(self) -> int:
        return 1 if self.scale == 1.0 else 2


@dataclass(frozen=True)
class WindowState:
    """Memory and the chunks in the stream, left (nearly clean) to right (noisy).

    Attributes:
        memory: the bank's state.
        stream: W - 1 chunks, each with its trail (see `Solver`).
        emitted: chunks that left.
        features: features of memory's entries as of the last step.
    """

    memory: Any
    stream: tuple[Chunk, ...]
    emitted: int = 0
    features: KeptFeatures = KeptFeatures()


def window_layout(memory: MemoryView, chunks: Sequence[int], visibility: Visibility = Visibility()) -> WindowLayout:
    """Layout of memory followed by stream chunks of the given lengths, the first at position 0."""
    segments, position = list(memory.segments), 0
    for num_frames in chunks:
        segments.append(Segment("stream", num_frames, position))
        position += num_frames
    return WindowLayout(tuple(segments), visibility)


def predict_velocity(
    denoiser: Denoiser,
    memory: MemoryView,
    stream: Sequence[Chunk],
    sigma_BK: Tensor,
    *,
    visibility: Visibility = Visibility(),
    guidance: Guidance | None = None,
    drop: tuple[Tensor, Tensor] | None = None,
    scales_BG: Tensor | None = None,
    features: tuple[MemoryFeatures, MemoryFeatures | None] | None = None,
) -> Tensor:
    """Velocity [B, stream frames, C, H, W] of chunks at noise levels sigma_BK in front of a clean memory.

    Args:
        denoiser: predicts velocities.
        memory: what the bank offers.
        stream: noisy chunks with their conditions.
        sigma_BK: one noise level per chunk.
        visibility: who may attend to whom.
        guidance: classifier-free guidance; None is none.
        drop: boolean masks (text_B, audio_B) of samples that lose a condition.
        scales_BG: guidance scales (text, audio) that a model distilled with them takes as inputs; they cost no evaluation. None asks for none.
        features: features of the same memory, and those without conditions if there is guidance; None computes memory with the stream.

    Raises:
        ValueError: scales for a denoiser that takes none.
    """
    if scales_BG is not None and not denoiser.takes_guidance:
        raise ValueError(f"{type(denoiser).__name__} takes no guidance scales as inputs; use one with a guidance embedding, or Guidance")
    latents, audio, text = concatenate_chunks(stream)
    layout = window_layout(memory, [chunk.num_frames for chunk in stream], visibility)
    frames = torch.tensor([chunk.num_frames for chunk in stream], device=latents.device)
    # levels stay in float32: bfloat16 latents would round neighbouring levels to one
    sigma = sigma_BK.to(latents.device, torch.float32).repeat_interleave(frames, dim=1, output_size=latents.shape[1])
    conditions = ConditionTokens(text, audio, scales_BG)
    if features is None:
        sigma = torch.cat([sigma.new_zeros(memory.latents_BFCHW.shape[:2]), sigma], dim=1)
        latents = torch.cat([memory.latents_BFCHW, latents], dim=1)
        conditions = ConditionTokens(torch.cat([memory.text_BSLD, text], dim=1), torch.cat([memory.audio_BFAD, audio], dim=1), scales_BG)
    if drop is not None:
        conditions = conditions.drop(text_B=drop[0], audio_B=drop[1])
    kept: list[dict[str, Any]] = [{}, {}] if features is None else [{"memory": made} for made in features]
    velocity = denoiser(latents, sigma, conditions, layout, **kept[0])
    if guidance is None or guidance.scale == 1.0:
        return velocity
    without = denoiser(latents, sigma, unconditional(conditions), layout, **kept[1])
    return without + guidance.scale * (velocity - without)


def split_frames(latents_BFCHW: Tensor, chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks with their latents replaced by consecutive runs of frames."""
    runs = latents_BFCHW.split([chunk.num_frames for chunk in chunks], dim=1)
    return [replace(chunk, latents_BFCHW=run) for chunk, run in zip(chunks, runs, strict=True)]


@dataclass(frozen=True)
class WindowEngine:
    """The pure step and what it needs.

    Args:
        denoiser: predicts velocities.
        bank: memory strategy.
        staircase: levels of the W chunks.
        guidance: classifier-free guidance; off for a distilled model.
        solver: takes each chunk from level to level; what it remembers of a chunk travels with the chunk.
        visibility: who may attend to whom; that of training.
        reuse_memory: compute memory's features once per step, and once in an entry's life where entries are isolated, instead of once per evaluation.
            Changes nothing but the time. Without effect for denoisers that cannot.
        scales: guidance scales (text, audio) for a denoiser that takes them as inputs; None for one that does not.
    """

    denoiser: Denoiser
    bank: MemoryBank[Any]
    staircase: Staircase
    guidance: Guidance = Guidance()
    solver: Solver = Euler()
    visibility: Visibility = Visibility()
    reuse_memory: bool = True
    scales: tuple[float, float] | None = None

    @property
    def reuse_pays(self) -> bool:
        """Whether features of memory serve more than one evaluation."""
        able = self.reuse_memory and self.denoiser.reuses_memory and self.visibility.causal
        return able and (self.staircase.micro_steps > 1 or self.visibility.memory == "isolated")

    @property
    def evaluations_per_chunk(self) -> int:
        """Network evaluations that a chunk sees in its life."""
        return self.staircase.evaluations_per_chunk * self.guidance.evaluations

    def start(self, reference: Chunk, still: Sequence[Chunk], generator: torch.Generator | None = None) -> WindowState:
        """State before the first real chunk: the person has been standing still in the reference pose.

        Args:
            reference: the image latent, F = 1.
            still: W - 1 chunks of the picture standing still; they are noised to their stairs, and leave the stream unseen.
            generator: source of the noise.

        Raises:
            ValueError: not W - 1 still chunks.
        """
        expected = self.staircase.num_chunks - 1
        if len(still) != expected:
            raise ValueError(f"a staircase of {self.staircase.num_chunks} chunks starts with {expected} still chunks, got {len(still)}")
        return WindowState(self.bank.reset(replace(reference, identity=-expected - 1)), self.on_stairs(still, generator), -expected)

    def step(self, state: WindowState, entering: Chunk, generator: torch.Generator | None = None) -> tuple[WindowState, Chunk]:
        """Let a chunk enter and one leave.

        Args:
            state: W - 1 chunks in the stream.
            entering: conditions of the new chunk; its latents are the noise it starts from.
            generator: source of further noise, for solvers that draw some.

        Returns:
            the new state, and the clean chunk that left. While `state.emitted` is negative that chunk is one of the still chunks.
        """
        stream = [*state.stream, entering]
        memory = self.bank.read(state.memory)
        guided = self.guidance.scale != 1.0
        kept = KeptFeatures.of(self.denoiser, memory, self.visibility, guided, state.features) if self.reuse_pays else KeptFeatures()
        features = kept.joined() if self.reuse_pays else None
        for micro_step in range(self.staircase.micro_steps):
            velocity = self.velocity(memory, stream, micro_step, features)
            stream = self.descend(stream, velocity, micro_step, generator)
        return self.leave(replace(state, features=kept), stream)

    def step_anew(self, state: WindowState, entering: Sequence[Chunk], generator: torch.Generator | None = None) -> tuple[WindowState, Chunk]:
        """Let the whole window begin anew: W chunks go down together from noise to clean, and the left one leaves.

        The others are noised back to the stairs on which a stream's chunks stand, so that `step` goes on from there. So a stream can start with the
        sound of one chunk (synchronous start; how FlowAct-R1 starts is not stated), and react within a chunk. W M evaluations.

        Args:
            state: its chunks in the stream are dropped.
            entering: W chunks; their latents are the noise they start from.
            generator: source of further noise.
        """
        memory, stream, stairs = self.bank.read(state.memory), list(entering), self.staircase.num_chunks
        levels = self.staircase.at(torch.arange(self.staircase.evaluations_per_chunk, -1, -1) / self.staircase.micro_steps).tolist()
        for passed in range(len(levels) - 1):
            velocity = self._velocity(memory, stream, torch.full((stairs,), levels[passed]), None)
            stream = self._descend(stream, velocity, [levels[passed:]] * stairs, generator)
        state, done = self.leave(replace(state, features=KeptFeatures(), emitted=max(state.emitted, 0)), stream)
        return replace(state, stream=self.on_stairs(state.stream, generator)), done

    def velocity(
        self, memory: MemoryView, stream: Sequence[Chunk], micro_step: int, features: tuple[MemoryFeatures, MemoryFeatures | None] | None = None
    ) -> Tensor:
        """Velocity [B, stream frames, C, H, W] of all W chunks, `micro_step` micro-steps after the last one entered; see `predict_velocity`."""
        return self._velocity(memory, stream, self.staircase.stairs(micro_step), features)

    def _velocity(
        self, memory: MemoryView, stream: Sequence[Chunk], sigma_K: Tensor, features: tuple[MemoryFeatures, MemoryFeatures | None] | None
    ) -> Tensor:
        like = stream[0].latents_BFCHW
        scales_BG = None if self.scales is None else torch.tensor(self.scales, device=like.device).expand(like.shape[0], -1)
        return predict_velocity(
            self.denoiser,
            memory,
            stream,
            sigma_K.expand(like.shape[0], -1),
            visibility=self.visibility,
            guidance=self.guidance,
            scales_BG=scales_BG,
            features=features,
        )

    def descend(self, stream: Sequence[Chunk], velocity: Tensor, micro_step: int, generator: torch.Generator | None = None) -> list[Chunk]:
        """The chunks one micro-step further down, by the solver."""
        ways = [self.staircase.descent(place, micro_step) for place in range(len(stream))]
        return self._descend(stream, velocity, ways, generator)

    def leave(self, state: WindowState, stream: Sequence[Chunk]) -> tuple[WindowState, Chunk]:
        """The state after the left one of W chunks left clean and was written to memory, and that chunk."""
        done = replace(stream[0], identity=state.emitted, trail=None)
        return replace(state, memory=self.bank.write(state.memory, done), stream=tuple(stream[1:]), emitted=state.emitted + 1), done

    def on_stairs(self, clean: Sequence[Chunk], generator: torch.Generator | None) -> tuple[Chunk, ...]:
        """Clean chunks, noised to the lower stairs from the left on."""
        sigma_K = self.staircase.stairs(0.0).tolist()
        return tuple(chunk.noised(sigma, gaussian(chunk.latents_BFCHW, generator)) for chunk, sigma in zip(clean, sigma_K, strict=False))

    def _descend(
        self, stream: Sequence[Chunk], velocity: Tensor, ways: Sequence[Sequence[float]], generator: torch.Generator | None
    ) -> list[Chunk]:
        """The chunks one level further on their ways."""
        lower = []
        for chunk, run, levels in zip(stream, split_frames(velocity, stream), ways, strict=True):
            latents, trail = self.solver.step(chunk.latents_BFCHW, run.latents_BFCHW, levels, chunk.trail, generator)
            lower.append(replace(chunk, latents_BFCHW=latents, trail=trail))
        return lower

"""Memory refinement (FlowAct-R1, Figure 2): the short memory is noised and denoised again while reference and long memory hold on to it.

Noise of one level goes onto reference, long and short memory; clean copies of reference and long memory are the condition; of the result only the
short memory is kept, the others stay what they were, to the bit. The stream is not looked at. When it is done, and at which level in how many steps,
the paper does not say. Legend: flowact/types.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.models.base import Denoiser, check_window
from flowact.models.windowed import Window, WindowDenoiser
from flowact.sampling.reuse import KeptFeatures
from flowact.sampling.window import WindowEngine, WindowState, gaussian, predict_velocity, split_frames
from flowact.types import Chunk, ConditionTokens, MemoryFeatures, MemoryView, TensorRecord, WindowLayout


@dataclass(frozen=True)
class Watch(TensorRecord):
    """What a refinement has seen and done in a stream.

    Attributes:
        refined_at: chunks that had left when memory was last refined; None if it never was.
        refinements: how often it was.
        evaluations: network evaluations that were spent on it.
        early_BC2: mean and standard deviation of each channel, averaged over the stream's beginning; None before it began, or if nobody measures.
        early_chunks: chunks that `early_BC2` is of.
        drift_B: how far the short memory has drifted, as of the last look; None if nobody measures.
    """

    refined_at: int | None = None
    refinements: int = 0
    evaluations: int = 0
    early_BC2: Tensor | None = None
    early_chunks: int = 0
    drift_B: Tensor | None = None


class Refinement(ABC):
    """When the short memory is refined, and how. Has no state of its own; what has been seen and done is a `Watch`."""

    @abstractmethod
    def due(self, state: WindowState, watch: Watch) -> bool:
        """Whether memory is to be refined now, after a chunk left and before the next step."""

    @abstractmethod
    def refine(self, engine: WindowEngine, state: WindowState, generator: torch.Generator | None = None) -> WindowState:
        """The state with a refined short memory; nothing else of it changes."""

    @abstractmethod
    def evaluations(self, engine: WindowEngine) -> int:
        """Network evaluations of one `refine`."""

    def observe(self, engine: WindowEngine, state: WindowState, watch: Watch) -> Watch:
        """What is known after another chunk left. Most measure nothing."""
        return watch

    def after(self, engine: WindowEngine, state: WindowState, watch: Watch, generator: torch.Generator | None = None) -> tuple[WindowState, Watch]:
        """Observe, and refine if it is due. To be called once after each step of the engine.

        Args:
            engine: of the stream.
            state: after the step.
            watch: that of the step before; `Watch()` at the start.
            generator: source of the noise.
        """
        watch = self.observe(engine, state, watch)
        if not self.due(state, watch):
            return state, watch
        spent = watch.evaluations + self.evaluations(engine)
        return self.refine(engine, state, generator), replace(watch, refined_at=state.emitted, refinements=watch.refinements + 1, evaluations=spent)


@dataclass(frozen=True)
class NoRefinement(Refinement):
    """Memory is never refined: what "off" looks like."""

    def due(self, state: WindowState, watch: Watch) -> bool:
        """See `Refinement.due`."""
        return False

    def refine(self, engine: WindowEngine, state: WindowState, generator: torch.Generator | None = None) -> WindowState:
        """See `Refinement.refine`."""
        return state

    def evaluations(self, engine: WindowEngine) -> int:
        """See `Refinement.evaluations`."""
        return 0


@dataclass(frozen=True)
class ShortMemoryRefinement(Refinement):
    """How refinements refine; a subclass says when. The arguments are described there."""

    sigma: float = 0.3
    steps: int = 1
    condition: Literal["clean_tokens", "clean_copies"] = "clean_tokens"

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 1 or self.steps < 1:
            raise ValueError(f"a refinement needs 0 < sigma <= 1 and steps >= 1, got sigma={self.sigma}, steps={self.steps}")
        if self.condition not in ("clean_tokens", "clean_copies"):
            raise ValueError(f"condition is {self.condition!r}; it is clean_tokens or clean_copies")

    def evaluations(self, engine: WindowEngine) -> int:
        """See `Refinement.evaluations`."""
        return self.steps * engine.guidance.evaluations

    def refine(self, engine: WindowEngine, state: WindowState, generator: torch.Generator | None = None) -> WindowState:
        """See `Refinement.refine`. Steps are evenly spaced on the probability-flow ODE.

        A sample whose result is not finite keeps its short memory.

        Raises:
            UserError: the bank has no short memory or cannot replace it, or the denoiser takes no clean copies and `condition` asks for them.
        """
        held, short = held_and_short(engine, state)
        levels = [self.sigma * (1 - i / self.steps) for i in range(self.steps + 1)]
        stream = [chunk.noised(self.sigma, gaussian(chunk.latents_BFCHW, generator)) for chunk in short]
        noise = gaussian(held.latents_BFCHW, generator) if self.condition == "clean_copies" else None
        for now, after in pairwise(levels):
            velocity = velocity_of(engine, held, stream, now, noise)
            runs = split_frames(velocity, stream)
            stream = [
                replace(chunk, latents_BFCHW=chunk.latents_BFCHW + (after - now) * run.latents_BFCHW) for chunk, run in zip(stream, runs, strict=True)
            ]
        refined = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
        return replace(state, memory=engine.bank.with_short(state.memory, refined), features=without_short(state.features))


@dataclass(frozen=True)
class PeriodicRefinement(ShortMemoryRefinement):
    """The short memory is refined each time another `every` chunks have left the stream.

    Args:
        sigma: noise level that memory is noised to.
        steps: evaluations from there down to clean.
        condition: how reference and long memory hold on. "clean_tokens": they stay clean, at level 0, which any denoiser has learnt. "clean_copies":
            they are noised to the same level and lie clean beside themselves in further channels, as the paper draws it; for denoisers with such
            channels that have seen noisy memory in training.
        every: chunks from one refinement to the next.

    Raises:
        ValueError: a level outside (0, 1], or a size below 1.
    """

    every: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"memory is refined every 1 or more chunks, got every={self.every}")

    def due(self, state: WindowState, watch: Watch) -> bool:
        """See `Refinement.due`."""
        return state.emitted > 0 and state.emitted % self.every == 0


@dataclass(frozen=True)
class DriftRefinement(ShortMemoryRefinement):
    """The short memory is refined when its colours have drifted.

    Drift is measured on latents, since colours and contrast live in their channels' means and standard deviations: per channel |m - m0| / s0 + |log(s
    / s0)|, averaged over channels. 1 is a shift by a standard deviation, or a contrast e times as high. Each chunk is looked at once, which reads one
    value back from the device. If one sample of a batch has drifted, all are refined.

    Args:
        sigma: see `PeriodicRefinement`.
        steps: see `PeriodicRefinement`.
        condition: see `PeriodicRefinement`.
        threshold: drift above which memory is refined.
        pause: chunks that leave at least between two refinements.
        against: what m0 and s0 are of: the first chunks that left ("early"), or the reference ("reference"), which an image latent of a causal
            autoencoder allows only if it is like latents of motion.
        early: chunks that count as the beginning.

    Raises:
        ValueError: a level outside (0, 1], a threshold not above 0, a size below 1, or an unknown comparison.
    """

    threshold: float = 0.25
    pause: int = 4
    against: Literal["early", "reference"] = "early"
    early: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold <= 0 or self.pause < 1 or self.early < 1:
            raise ValueError(f"drift needs threshold > 0, pause >= 1 and early >= 1, got {self.threshold}, {self.pause} and {self.early}")
        if self.against not in ("early", "reference"):
            raise ValueError(f"against is {self.against!r}; it is early or reference")

    def observe(self, engine: WindowEngine, state: WindowState, watch: Watch) -> Watch:
        """See `Refinement.observe`."""
        if state.emitted < 1:
            return watch  # still chunks are not the stream's beginning
        view = engine.bank.read(state.memory)
        now_BC2 = channel_statistics(frames_of_kind(view, "short", engine))
        if self.against == "reference":
            return replace(watch, drift_B=drift_of(now_BC2, channel_statistics(frames_of_kind(view, "reference", engine))))
        count, early_BC2 = watch.early_chunks, watch.early_BC2
        if count < self.early:
            early_BC2 = now_BC2 if early_BC2 is None else (count * early_BC2 + now_BC2) / (count + 1)
            return replace(watch, early_BC2=early_BC2, early_chunks=count + 1)
        assert early_BC2 is not None  # early >= 1
        return replace(watch, drift_B=drift_of(now_BC2, early_BC2))

    def due(self, state: WindowState, watch: Watch) -> bool:
        """See `Refinement.due`."""
        if watch.drift_B is None or (watch.refined_at is not None and state.emitted - watch.refined_at < self.pause):
            return False
        return bool((watch.drift_B > self.threshold).any())


# --- measuring --------------------------------------------------------------------------------------------------------------------------------------


def channel_statistics(latents_BFCHW: Tensor) -> Tensor:
    """Mean and standard deviation [B, C, 2] of each channel over frames and places."""
    values_BCV = latents_BFCHW.float().transpose(1, 2).flatten(2)
    return torch.stack([values_BCV.mean(2), values_BCV.std(2, correction=0)], dim=2)


def drift_of(now_BC2: Tensor, then_BC2: Tensor, least: float = 1e-3) -> Tensor:
    """drift_B from one set of channel statistics to another; see `DriftRefinement`. Deviations below `least` count as that."""
    (mean, deviation), (mean0, deviation0) = (statistics.unbind(2) for statistics in (now_BC2, then_BC2))
    deviation, deviation0 = deviation.clamp(min=least), deviation0.clamp(min=least)
    return ((mean - mean0).abs() / deviation0 + (deviation / deviation0).log().abs()).mean(1)


def frames_of_kind(view: MemoryView, kind: str, engine: WindowEngine) -> Tensor:
    """Latents of all segments of a kind.

    Raises:
        UserError: there is none.
    """
    indices = [i for i, segment in enumerate(view.segments) if segment.kind == kind]
    if not indices:
        raise UserError(f"{type(engine.bank).__name__} has no {kind} memory to measure drift by; choose another bank, or NoRefinement")
    return view.entries(indices).latents_BFCHW


# --- refining ---------------------------------------------------------------------------------------------------------------------------------------


def held_and_short(engine: WindowEngine, state: WindowState) -> tuple[MemoryView, list[Chunk]]:
    """All of memory but the short, in positions relative to its first frame, and the short memory as chunks.

    Raises:
        UserError: there is no short memory, nothing else, or it does not stand in one piece.
    """
    view, name = engine.bank.read(state.memory), type(engine.bank).__name__
    short = [i for i, segment in enumerate(view.segments) if segment.kind == "short"]
    others = [i for i, segment in enumerate(view.segments) if segment.kind != "short"]
    if not short or not others:
        lacks = "short memory to refine" if not short else "reference or long memory to refine by"
        raise UserError(f"{name} has no {lacks}; choose StructuredMemory, SlidingWindowMemory or another bank that has, or NoRefinement")
    segments = [view.segments[i] for i in short]
    if any(a.position + a.num_frames != b.position for a, b in pairwise(segments)):
        raise UserError(f"{name} keeps its short memory in pieces at {[s.position for s in segments]}; one run of frames can be refined")
    held = view.entries(others)
    moved = tuple(replace(segment, position=segment.position - segments[0].position) for segment in held.segments)
    parts = [view.entries([i]) for i in short]
    return replace(held, segments=moved), [Chunk(part.latents_BFCHW, part.audio_BFAD, part.text_BSLD[:, 0]) for part in parts]


def velocity_of(engine: WindowEngine, held: MemoryView, stream: list[Chunk], sigma: float, noise: Tensor | None) -> Tensor:
    """Velocity of a short memory that stands where else the stream stands, in front of clean memory, or of memory with noise and clean copies."""
    like = stream[0].latents_BFCHW
    return predict_velocity(
        engine.denoiser if noise is None else NoisyMemory(engine.denoiser, noise, sigma),
        held,
        stream,
        torch.full((like.shape[0], len(stream)), sigma),
        visibility=engine.visibility,
        guidance=engine.guidance,
        scales_BG=None if engine.scales is None else torch.tensor(engine.scales, device=like.device).expand(like.shape[0], -1),
    )


def without_short(features: KeptFeatures) -> KeptFeatures:
    """Kept features without those of the short memory, which are computed again."""

    def others(kept: Any) -> Any:
        return tuple((name, made) for name, made in kept if not (isinstance(name, tuple) and name[1] == "short"))

    return KeptFeatures(others(features.entries), others(features.unconditional))


@dataclass(frozen=True)
class NoisyWindow(Window):
    """A window whose memory is noisy, with clean copies beside it.

    Attributes:
        copies_BFCHW: clean latents of the computed frames; those of the stream are not looked at.
    """

    copies_BFCHW: Tensor | None = None

    @property
    def input_BFCHW(self) -> Tensor:
        """See `Window.input_BFCHW`."""
        assert self.copies_BFCHW is not None
        copied = replace(self, latents_BFCHW=self.copies_BFCHW)
        beside = super(NoisyWindow, copied).input_BFCHW[:, :, self.latents_BFCHW.shape[2] :]
        return torch.cat([self.latents_BFCHW, beside], dim=2)


class NoisyMemory(Denoiser):
    """A denoiser in front of memory that is noised to one level, with its clean copies in the denoiser's further channels.

    Args:
        denoiser: one with channels for clean copies.
        noise_BFCHW: noise of the memory frames.
        sigma: their level.

    Raises:
        UserError: the denoiser has no such channels.
    """

    def __init__(self, denoiser: Denoiser, noise_BFCHW: Tensor, sigma: float) -> None:
        super().__init__()
        if not isinstance(denoiser, WindowDenoiser) or not (denoiser.clean_copies or denoiser.reference == "channels"):
            raise UserError(f"{type(denoiser).__name__} has no channels for clean copies of memory; refine with condition: clean_tokens")
        self.denoiser = denoiser
        self.noise_BFCHW = noise_BFCHW
        self.sigma = sigma
        self.latent_channels, self.text_width, self.audio_width = denoiser.latent_channels, denoiser.text_width, denoiser.audio_width
        self.takes_guidance = denoiser.takes_guidance

    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        """See `Denoiser.forward`."""
        model = self.denoiser
        check_window(latents_BFCHW, sigma_BF, conditions, layout, denoiser=model)
        frames = layout.num_memory_frames
        noise = torch.cat([self.noise_BFCHW, torch.zeros_like(latents_BFCHW[:, frames:])], dim=1)
        # noise is laid out as the latents are, so that both lose the reference where it lies beside all frames
        clean, noise_window = (model.lay_beside(Window(tensor, sigma_BF, conditions, layout)) for tensor in (latents_BFCHW, noise))
        in_memory_F = torch.tensor([clean.segments[s].is_memory for s in clean.frame_segments], device=latents_BFCHW.device)
        noisy = (1 - self.sigma) * clean.latents_BFCHW + self.sigma * noise_window.latents_BFCHW
        window = NoisyWindow(
            torch.where(in_memory_F[:, None, None, None], noisy, clean.latents_BFCHW),
            torch.where(in_memory_F, self.sigma, clean.sigma_BF),
            clean.conditions,
            clean.layout,
            reference_BFCHW=clean.reference_BFCHW,
            copies_BFCHW=clean.latents_BFCHW,
        )
        vector_BFD = model.frame_vector(window)
        visual_BFLD, _, _ = model.transform(window, vector_BFD)
        stream = slice(-layout.num_stream_frames, None)
        return model.velocity(visual_BFLD[:, stream], vector_BFD[:, stream], window.latents_BFCHW[:, stream], window.sigma_BF[:, stream])

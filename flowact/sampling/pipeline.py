"""From a checkpoint folder to video: builds what the checkpoint names and drives a stream offline. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowact.autoencoders import load_autoencoder
from flowact.autoencoders.base import Autoencoder
from flowact.checkpoints import IMPORTED, load_into, open_checkpoint
from flowact.conditioning.base import AudioEncoder, TextEncoder
from flowact.errors import UserError
from flowact.machine import computes_bfloat16
from flowact.memory.base import MemoryBank
from flowact.models.base import Denoiser
from flowact.models.lora_files import with_loras
from flowact.registry import instantiate
from flowact.sampling.latency import LatencyBudget
from flowact.sampling.refinement import NoRefinement, Refinement
from flowact.sampling.stream import ChunkStream, evaluations_per_chunk
from flowact.sampling.window import Guidance, WindowEngine
from flowact.schedulers.euler import Euler
from flowact.schedulers.named import solver_of
from flowact.schedulers.solver import Solver
from flowact.schedulers.staircase import Staircase
from flowact.types import SAMPLES_PER_FRAME, STATES, Visibility

Captions = Sequence[tuple[int, str]]
"""(first frame, caption), in order, the first at frame 0."""


@dataclass(frozen=True)
class GeneratedBatch:
    """Streamed clips.

    Attributes:
        frames: one uint8 (T, H, W, 3) per clip.
        ttff_seconds: from the moment the first chunk's sound was there until its frames were decoded.
        frames_per_second: of one clip of the batch, times the number of clips: throughput of the whole batch.
        evaluations_per_chunk: network evaluations that each chunk saw.
        num_chunks: chunks streamed.
        chunk_seconds: time spent on each chunk.
    """

    frames: list[np.ndarray]
    ttff_seconds: float
    frames_per_second: float
    evaluations_per_chunk: float
    num_chunks: int
    chunk_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Pipeline:
    """Everything that streaming needs.

    Args:
        denoiser: in evaluation mode.
        autoencoder: decodes, and encodes the reference picture.
        text: caption encoder.
        audio: sound encoder.
        bank: memory strategy.
        staircase: W, M and shift of the stream.
        chunk_frames: n.
        latent_size: height and width of the latents that the denoiser was trained on.
        guidance: classifier-free guidance scale; 1 is none.
        rest_caption: caption of the still seconds before the stream.
        state_captions: captions of each behaviour state in the words of the training set.
        autocast: compute in bfloat16; None does where that is no slower.
        visibility: who may attend to whom, as in training.
        scales: guidance scales (text, audio) for a denoiser that takes them as inputs; see `WindowEngine`.
        solver: see `WindowEngine`.
        refinement: of the short memory, while a stream runs.
    """

    denoiser: Denoiser
    autoencoder: Autoencoder
    text: TextEncoder
    audio: AudioEncoder
    bank: MemoryBank[Any]
    staircase: Staircase
    chunk_frames: int
    latent_size: tuple[int, int] = (0, 0)
    guidance: float = 1.0
    rest_caption: str = ""
    state_captions: Mapping[str, list[str]] = field(default_factory=dict)
    autocast: bool | None = None
    visibility: Visibility = Visibility()
    scales: tuple[float, float] | None = None
    solver: Solver = Euler()
    refinement: Refinement = NoRefinement()

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        device: str = "cpu",
        micro_steps: int | None = None,
        guidance: float | tuple[float, float] = 1.0,
        shift: float | None = None,
        refinement: Refinement = NoRefinement(),
        solver: Solver | None = None,
        loras: Sequence[str | Path] = (),
    ) -> Pipeline:
        """Build from a checkpoint folder; a recipe in it may only name registered components.

        Args:
            folder: checkpoint folder.
            device: where to compute.
            micro_steps: M; the default is what the checkpoint's stage says, else 1. A chunk sees W M evaluations.
            guidance: classifier-free guidance scale; for a model that takes scales as inputs also one each for (text, audio).
            shift: of the staircase; the default is what the stage was trained with, else 1.
            refinement: of the short memory, while a stream runs.
            solver: takes chunks down the stairs; the default is what the checkpoint says, else `Euler`.
            loras: LoRAs to merge into the weights, in order, as `flowact.models.lora_files.read_lora` takes them.

        Raises:
            UserError: damaged or incomplete checkpoint, or guidance that the model was not trained for.
        """
        if micro_steps is not None and micro_steps < 1:
            raise UserError(f"{micro_steps} evaluations per stair: at least 1 is needed, and more for a model that is not distilled")
        checkpoint = open_checkpoint(Path(folder))
        arguments = checkpoint.stage_arguments
        lineage = checkpoint.lineage
        if lineage.get("stage") == IMPORTED:
            raise UserError(f"{folder} holds imported weights alone, without autoencoder and encoders; train a stage with init_from: {folder} first")
        guidance_scale, scales = asked_guidance(guidance, lineage)
        denoiser: Denoiser = instantiate(arguments["denoiser"], "denoisers")
        load_into(denoiser, with_loras(checkpoint, loras))
        bank_spec = arguments.get("memory") or {"class_path": lineage.get("memory", "StructuredMemory")}
        encoders = lineage["encoders"]
        return cls(
            denoiser.eval().requires_grad_(False).to(device),
            load_autoencoder(checkpoint.path / checkpoint.autoencoder_name).to(device),
            instantiate(encoders["text"], "conditioning").to(device),
            instantiate(encoders["audio"], "conditioning").to(device),
            instantiate(bank_spec, "memory"),
            trained_staircase(lineage, arguments, micro_steps, shift),
            int(lineage["chunk_frames"]),
            tuple(lineage["latent_shape"][1:]),
            guidance_scale,
            *character_captions(lineage.get("character")),
            visibility=trained_visibility(arguments),
            scales=scales,
            solver=solver_of(lineage.get("solver", "euler")) if solver is None else solver,
            refinement=refinement,
        )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the denoiser was trained on."""
        height, width = self.latent_size
        return height * self.autoencoder.spatial_stride, width * self.autoencoder.spatial_stride

    @property
    def latency_budget(self) -> LatencyBudget:
        """What a stream's geometry costs in time."""
        return LatencyBudget(
            self.staircase.num_chunks,
            self.chunk_frames,
            self.autoencoder.temporal_stride,
            self.staircase.micro_steps,
            encoder_lookahead_frames=self.audio.lookahead_frames,
            guidance_evaluations=self.engine.guidance.evaluations,
        )

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def engine(self) -> WindowEngine:
        """The window engine of this pipeline."""
        return WindowEngine(
            self.denoiser, self.bank, self.staircase, Guidance(self.guidance), self.solver, visibility=self.visibility, scales=self.scales
        )

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Tensor], num_latents: int = 0) -> Tensor:
        """latents_BFCHW of pictures (3, H, W) in [-1, 1]: an image latent each, and `num_latents` of standing still."""
        with self.precision():
            return self.autoencoder.encode_still(torch.stack(list(pictures)).to(self.device), num_latents).float()

    @torch.no_grad()
    def chunk_stream(self, references: Sequence[Tensor], seed: int = 0) -> ChunkStream:
        """A stream of the characters of one or more pictures (3, H, W) in [-1, 1], all of one size."""
        latents = self.encode_pictures(references, (self.staircase.num_chunks - 1) * self.chunk_frames)
        silence = self.audio.encode(torch.zeros((self.audio.context_frames + self.autoencoder.temporal_stride) * SAMPLES_PER_FRAME))
        rest = self.text.encode([self.rest_caption])[0]
        return ChunkStream(
            self.engine,
            self.autoencoder,
            latents[:, :1],
            latents[:, 1:],
            silence[-self.autoencoder.temporal_stride :].to(self.device),
            rest.to(self.device),
            self.chunk_frames,
            torch.Generator().manual_seed(seed),
            self.refinement,
        )

    def precision(self) -> Any:
        """bfloat16 autocast, or nothing."""
        wanted = computes_bfloat16(self.device) if self.autocast is None else self.autocast
        return torch.autocast(self.device.type, torch.bfloat16) if wanted else nullcontext()

    def conditions(self, samples: np.ndarray, captions: Captions, num_chunks: int) -> tuple[Tensor, Tensor]:
        """Audio features [K, n, A, D] and text features [K, L, D] of `num_chunks` chunks; silence follows the end of the sound."""
        stride = self.autoencoder.temporal_stride
        frames = num_chunks * self.chunk_frames * stride
        padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
        padded[: len(samples)] = samples[: len(padded)]
        features_TD = self.audio.encode(torch.from_numpy(padded))
        audio = features_TD.view(num_chunks, self.chunk_frames, stride, -1)
        starts = [start for start, _ in captions]
        if not captions or starts[0] > 0 or starts != sorted(starts):
            raise UserError(f"captions must begin at frame 0 and be in order of time, got starts {starts[:5]}")
        middles = (np.arange(num_chunks) + 0.5) * self.chunk_frames * stride
        chosen = np.searchsorted(starts, middles, side="right") - 1
        return audio, self.text.encode([captions[i][1] for i in chosen])

    def clips(self, references: Sequence[Tensor], samples: Sequence[np.ndarray], captions: Sequence[Captions], seed: int = 0) -> ClipStream:
        """Clips to be streamed side by side, chunk by chunk through the memory bank.

        Args:
            references: a picture (3, H, W) in [-1, 1] per clip.
            samples: sound per clip, 16 kHz mono; the batch is as long as the longest, in whole chunks.
            captions: timed captions per clip.
            seed: of the noise.

        Raises:
            UserError: numbers of pictures, sounds and captions differ.
        """
        if not len(references) == len(samples) == len(captions):
            raise UserError(f"every clip needs a picture, a sound and captions; got {len(references)}, {len(samples)} and {len(captions)}")
        chunk_samples = self.chunk_frames * self.autoencoder.temporal_stride * SAMPLES_PER_FRAME
        num_chunks = max(1, -(-max(len(sound) for sound in samples) // chunk_samples))
        steps = num_chunks + self.staircase.num_chunks - 1  # the last chunks leave while silence enters
        pairs = [self.conditions(sound, timed, steps) for sound, timed in zip(samples, captions, strict=True)]
        audio_KBFAD = torch.stack([audio for audio, _ in pairs], dim=1)
        text_KBLD = torch.stack([text for _, text in pairs], dim=1)
        return ClipStream(self, self.chunk_stream(references, seed), audio_KBFAD, text_KBLD, num_chunks)

    def generate(
        self,
        references: Sequence[Tensor],
        samples: Sequence[np.ndarray],
        captions: Sequence[Captions],
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> GeneratedBatch:
        """Stream `clips` and keep all their frames.

        Args:
            references: see `clips`.
            samples: see `clips`.
            captions: see `clips`.
            seed: of the noise.
            progress: called with (chunks done, chunks in all).
        """
        clips, made = self.clips(references, samples, captions, seed), []
        for frames_BTHWC in clips:
            made.append(frames_BTHWC)
            if progress:
                progress(len(made), clips.num_chunks)
        timing = clips.stream.timing
        return GeneratedBatch(
            list(np.concatenate(made, axis=1)),
            timing.first_frame_seconds,
            clips.stream.frames_per_second * len(references),
            evaluations_per_chunk(clips.stream),
            clips.num_chunks,
            tuple(timing.chunk_seconds),
        )


@dataclass(frozen=True)
class ClipStream:
    """Clips on their way: iterate once for the uint8 frames (B, T, H, W, 3) of each chunk as it leaves.

    Attributes:
        pipeline: what streams.
        stream: the stepper; it knows times and evaluations.
        audio_KBFAD: features of every chunk's sound, those that only push the last ones out included.
        text_KBLD: likewise of captions.
        num_chunks: chunks that leave.
    """

    pipeline: Pipeline
    stream: ChunkStream
    audio_KBFAD: Tensor
    text_KBLD: Tensor
    num_chunks: int

    def __iter__(self) -> Iterator[np.ndarray]:
        device = self.pipeline.device
        for audio_BFAD, text_BLD in zip(self.audio_KBFAD, self.text_KBLD, strict=True):
            with torch.no_grad(), self.pipeline.precision():
                frames = self.stream.next_chunk(audio_BFAD.to(device), text_BLD.to(device))
            if frames is not None:
                yield to_pixels(frames)


#: stages after which one evaluation per stair is enough
FEW_STEP_STAGES = {"distillation", "consistency_distillation", "distribution_matching"}
UNDISTILLED_MICRO_STEPS = 4
STREAM_CHUNKS = 3
"""W of the stream for a checkpoint that says none: one whose stage trains no stream."""


def to_pixels(frames_BCTHW: Tensor) -> np.ndarray:
    """uint8 (B, T, H, W, 3) of frames in [-1, 1]."""
    scaled = (frames_BCTHW.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()


def trained_staircase(
    lineage: Mapping[str, Any], arguments: Mapping[str, Any], micro_steps: int | None = None, shift: float | None = None
) -> Staircase:
    """The staircase of a checkpoint's streams.

    Args:
        lineage: of the checkpoint; W is its `stream_chunks`.
        arguments: of its stage, as in the recipe.
        micro_steps: M; the default is that of the lineage, else 1.
        shift: the default is what the stage was trained with, else 1.
    """
    return Staircase(
        num_chunks=int(lineage.get("stream_chunks", STREAM_CHUNKS)),
        micro_steps=int(lineage.get("micro_steps", 1)) if micro_steps is None else micro_steps,
        shift=trained_shift(arguments) if shift is None else shift,
    )


def steps_to_stream(folder: str | Path, micro_steps: int | None) -> tuple[int | None, str]:
    """M for a stream that is to look well, and what to tell the user of it.

    Args:
        folder: checkpoint.
        micro_steps: what was asked for; None takes what the checkpoint says, and `UNDISTILLED_MICRO_STEPS` for one that was not distilled.

    Returns:
        M as for `Pipeline.from_checkpoint`, and a sentence that is empty where nothing is unusual.
    """
    lineage = open_checkpoint(Path(folder)).lineage
    stages = {lineage.get("stage"), *(ancestor.get("stage") for ancestor in lineage.get("ancestors", ()))}
    if micro_steps is not None or stages & FEW_STEP_STAGES:
        return micro_steps, ""
    steps = max(UNDISTILLED_MICRO_STEPS, int(lineage.get("micro_steps", 1)))
    return steps, (
        f"{folder} was not distilled (its stage is {lineage.get('stage')}): it is evaluated {steps} times per stair, so a chunk costs "
        f"{steps} times as much as of a distilled model. --micro-steps 1 is faster and looks worse"
    )


def trained_shift(arguments: Mapping[str, Any]) -> float:
    """The shift of the noise levels that a stage with these recipe arguments trains on."""
    levels = arguments.get("levels") or {}
    return float(arguments.get("shift") or (levels.get("init_args") or {}).get("shift") or 1.0)


def asked_guidance(guidance: float | tuple[float, float], lineage: Mapping[str, Any]) -> tuple[float, tuple[float, float] | None]:
    """The scale by which a stream extrapolates, and the scales (text, audio) that the model gets as inputs, or None.

    Args:
        guidance: one scale for both conditions, or one each for (text, audio).
        lineage: of the checkpoint; one that takes scales as inputs states their `guidance_ranges`.

    Raises:
        UserError: scales outside these ranges, or two scales for a model that takes none.
    """
    ranges = lineage.get("guidance_ranges")
    if ranges is None:
        if isinstance(guidance, tuple):
            raise UserError(f"guidance {guidance}: this model takes no scales as inputs, so there is one scale for all conditions; give one number")
        return guidance, None
    scales = guidance if isinstance(guidance, tuple) else (guidance, guidance)
    for (condition, (low, high)), scale in zip(ranges.items(), scales, strict=True):
        if not low <= scale <= high:
            raise UserError(f"guidance {scale:g} for {condition}: the model was distilled for scales from {low:g} to {high:g}; choose one of these")
    return 1.0, scales


def trained_visibility(arguments: Mapping[str, Any]) -> Visibility:
    """The visibility that a stage with these recipe arguments trains with. One that trains with full visibility streams with the default."""
    return Visibility(**(arguments.get("visibility") or {}))


def character_captions(spec: dict[str, Any] | None) -> tuple[str, dict[str, list[str]]]:
    """The caption of standing still, and all captions by state, of a synthetic character's specification; empty without one."""
    if not spec:
        return "", {}
    character = instantiate(spec, "characters")
    return character.caption("idle"), {state: sorted({character.caption(state, variant) for variant in range(8)}) for state in STATES}

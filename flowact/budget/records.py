"""What a plan says. Every record becomes JSON by its field names, which stay. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowact.budget.states import RoleSize, States, Strategy
from flowact.devices import Device


@dataclass(frozen=True)
class Geometry:
    """Sizes of pictures, latents and chunks.

    Attributes:
        picture: height and width in pixels; None if the autoencoder's stride is unknown.
        latent: channels, height and width of a latent frame.
        chunk_frames: n, latent frames of a chunk.
        num_chunks: W of a training window.
        video_frames_per_chunk: pixel frames.
        seconds_per_chunk: playing time.
    """

    picture: tuple[int, int] | None
    latent: tuple[int, int, int]
    chunk_frames: int
    num_chunks: int
    video_frames_per_chunk: int
    seconds_per_chunk: float


@dataclass(frozen=True)
class SegmentTokens:
    """Tokens of one segment of the training window in joint attention; conditions that come in by cross-attention have none."""

    kind: str
    latent_frames: int
    visual: int
    audio: int
    text: int


@dataclass(frozen=True)
class Tokens:
    """Tokens of the training window.

    Attributes:
        segments: in order.
        memory: of all memory segments.
        stream: of all stream segments.
        attended_pairs: pairs of query and key that attention computes in a layer: the true area under the window's visibility.
    """

    segments: tuple[SegmentTokens, ...]
    memory: int
    stream: int
    attended_pairs: int


@dataclass(frozen=True)
class EvaluationPlan:
    """Operations of one forward pass of one sample.

    Attributes:
        over: the whole training window, the whole window of the stream if that is another, the stream before kept memory, or memory alone.
        flops: all.
        linear_flops: of matrix products.
        attention_flops: of attention.
    """

    over: str
    flops: float
    linear_flops: float
    attention_flops: float


@dataclass(frozen=True)
class StepEvaluations:
    """How often a training step evaluates a network, on average.

    Attributes:
        role: which network.
        over: the whole window, the stream before kept memory, or memory alone.
        latent_frames: of the window.
        gradient: a backward pass follows.
        per_step: evaluations.
    """

    role: str
    over: str
    latent_frames: int
    gradient: bool
    per_step: float


@dataclass(frozen=True)
class TrainingPlan:
    """A training step.

    Attributes:
        evaluations: of each network.
        batch_size: samples of a device in a forward pass.
        accumulated: forward passes before an optimizer step.
        checkpointing: the recipe's choice; None if the denoiser has none.
        model_flops_per_sample: three times the products of a trained forward pass, 3.5 times its attention, and what is evaluated without gradient.
        flops_per_sample: as computed, with what checkpointing computes again.
        flops_per_step: of an optimizer step on all devices.
        saved_bytes_per_sample: kept for the backward pass, by checkpointing; only "none" for a denoiser without the choice.
        seconds_per_step: predicted, of an optimizer step.
        samples_per_second: predicted, of all devices.
    """

    evaluations: tuple[StepEvaluations, ...]
    batch_size: int
    accumulated: int
    checkpointing: str | None
    model_flops_per_sample: float
    flops_per_sample: float
    flops_per_step: float
    saved_bytes_per_sample: Mapping[str, int]
    seconds_per_step: float
    samples_per_second: float


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device in training.

    Attributes:
        states: what stays.
        working_bytes: most that a forward and backward pass needs besides: activations, copies of weights, what is computed again.
        peak_bytes: the sum: an upper bound, since gradients grow while activations go.
        fits: in nine tenths of the device's memory, the rest being CUDA's and NCCL's and lost between blocks; None if it is unknown.
    """

    states: States
    working_bytes: int
    peak_bytes: int
    fits: bool | None


@dataclass(frozen=True)
class StreamPlan:
    """A stream of one character on one device, in the number type of streams, once its memory is full.

    Attributes:
        evaluations_per_chunk: that a chunk sees in its life.
        reuses_memory: the engine keeps features of memory.
        flops_per_chunk: of the denoiser, for a chunk that leaves.
        flops_per_chunk_without_reuse: the same with memory computed again in each evaluation.
        decode_flops_per_chunk: of the autoencoder; None if it is unknown.
        memory_bytes: weights in float32, kept features, and the most that an evaluation or decoding needs besides.
        seconds_per_chunk: predicted, with decoding.
        frames_per_second: predicted.
        first_frame_seconds: predicted, from when all sound of the first W chunks is there.
        audio_lookahead_seconds: sound that must be buffered.
        prompt_to_motion_seconds: until a new prompt is seen.
    """

    evaluations_per_chunk: int
    reuses_memory: bool
    flops_per_chunk: float
    flops_per_chunk_without_reuse: float
    decode_flops_per_chunk: float | None
    memory_bytes: int
    seconds_per_chunk: float
    frames_per_second: float
    first_frame_seconds: float
    audio_lookahead_seconds: float
    prompt_to_motion_seconds: float


@dataclass(frozen=True)
class Plan:
    """What a recipe will cost.

    Attributes:
        recipe: file or name.
        stage: class of the stage.
        denoiser: class of the denoiser.
        device: that predictions are for.
        utilisation: share of its peak that is assumed.
        precision: of training.
        strategy: ZeRO stage, processes and buckets.
        assumed: what no data said.
        geometry: pictures, latents and chunks.
        roles: networks of the stage, and the autoencoder if it is known.
        tokens: of the training window; None for denoisers that do not attend as ours do.
        evaluations: forward passes of the denoiser.
        training: a step.
        memory: a device's, as the recipe has it.
        memory_by_zero: a device's under each ZeRO stage of DeepSpeed.
        stream: of the trained model.
        warnings: where the plan is known to hurt.
    """

    recipe: str
    stage: str
    denoiser: str
    device: Device
    utilisation: float
    precision: str
    strategy: Strategy
    assumed: tuple[str, ...]
    geometry: Geometry
    roles: tuple[RoleSize, ...]
    tokens: Tokens | None
    evaluations: tuple[EvaluationPlan, ...]
    training: TrainingPlan
    memory: DeviceMemory
    memory_by_zero: tuple[DeviceMemory, ...]
    stream: StreamPlan
    warnings: tuple[str, ...]

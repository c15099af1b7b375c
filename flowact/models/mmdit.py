"""A multimodal diffusion transformer over segments, with one noise level per latent frame.

After SD3 (arXiv 2403.03206, section 4) and HunyuanVideo (arXiv 2412.03603): double-stream blocks in which each modality has its own weights and all
share one attention, then single-stream blocks. What diffusion forcing changes: the modulation vector belongs to a latent frame, not to a sample.
Legend: flowact/types.py; G groups of tokens that share a modulation vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.models.attention import Backend, KeyValue, TokenCounts
from flowact.models.base import Denoiser, check_memory_layout, check_window
from flowact.models.blocks import BlockShape, Checkpointing, DoubleBlock, Geometry, Modulation, SingleBlock, Streams, run_blocks
from flowact.models.operations import Activation, NormKind, modulated_norm
from flowact.models.rope import split_axes
from flowact.types import ConditionTokens, MemoryFeatures, Segment, SegmentKind, WindowLayout

KINDS: tuple[SegmentKind, ...] = ("reference", "long", "short", "stream")
#: towers of text, audio and visual tokens, by the way audio comes in
TOWERS = {"branch": ("text", "audio", "visual"), "joint": ("condition", "condition", "visual"), "cross": ("text", "visual")}
GUIDED = ("text", "audio")

Module = TypeVar("Module", bound=nn.Module)


class MMDiT(Denoiser):
    """See the module's docstring.

    Args:
        latent_channels: C of the latents.
        text_width: width of the text encoder's features.
        audio_width: width of the audio encoder's features.
        audio_per_latent: audio features per latent frame, the autoencoder's temporal stride.
        width: token width.
        num_heads: attention heads; each head's width must be even.
        num_double_blocks: blocks with own weights for conditions and pictures.
        num_single_blocks: blocks with shared weights.
        mlp_ratio: hidden width of the MLPs over `width`.
        patch: latent cells per token and side.
        audio: how sound comes in: a third branch in the joint attention ("branch", OmniHuman-1.5), tokens that share the text's weights ("joint",
            the left tower of FlowAct-R1's Figure 2), or cross-attention of each latent frame to its own sound ("cross"), which starts at zero effect.
        reference: the reference picture is a memory segment of its own tokens ("segment"), or is laid beside every frame as further input channels
            with a mask ("channels"): memory frames carry their own clean copy and mask 1, stream frames the reference and mask 0.
        guidance_embedding: take guidance scales for text and audio as inputs of the stream, for models distilled from guided ones; starts at
            zero effect.
        absolute_positions: add a fixed sine code of row and column to visual tokens; helps small models whose pictures are all framed alike.
        prediction: what the last layer gives: the velocity, or the clean sample from which the velocity is computed.
            The loss is on the velocity either way.
        theta: base of the rotary frequencies.
        initial_gate: where the gates of the residual branches start; above 0, small models learn sooner.
        activation: of the MLPs: GELU (tanh form) as in SD3, or SiLU, which a CPU computes twice as fast (benchmarks/cpu_kernels.py).
        query_key_norm: RMS norm as in SD3, or layer norm without bias, which a CPU computes twice as fast.
        checkpointing: what training keeps of each block for the backward pass: all ("none"), attention and the narrow matrix products ("selective"),
            or only the block's input ("full").
        attention: who computes the attention: a plan of unmasked rectangles, or FlexAttention with a block mask.
        compile_blocks: compile each block with torch.compile at its first use.

    Raises:
        ValueError: width does not divide into heads of even width.
    """

    reuses_memory = True

    def __init__(
        self,
        latent_channels: int,
        text_width: int,
        audio_width: int,
        audio_per_latent: int = 4,
        width: int = 192,
        num_heads: int = 4,
        num_double_blocks: int = 2,
        num_single_blocks: int = 4,
        mlp_ratio: float = 4.0,
        patch: int = 1,
        audio: Literal["branch", "joint", "cross"] = "branch",
        reference: Literal["segment", "channels"] = "segment",
        guidance_embedding: bool = False,
        absolute_positions: bool = False,
        prediction: Literal["velocity", "sample"] = "velocity",
        theta: float = 256.0,
        initial_gate: float = 0.0,
        activation: Activation = "gelu",
        query_key_norm: NormKind = "rms",
        checkpointing: Checkpointing = "none",
        attention: Backend = "rectangles",
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 2:
            raise ValueError(f"width {width} does not divide into {num_heads} heads of even width; choose a multiple of {2 * num_heads}")
        self.latent_channels = latent_channels
        self.text_width = text_width
        self.audio_width = audio_width
        self.audio_per_latent: int = audio_per_latent
        self.patch = patch
        self.audio = audio
        self.reference = reference
        self.absolute_positions = absolute_positions
        self.prediction = prediction
        self.theta = theta
        self.width = width
        self.checkpointing: Checkpointing = checkpointing
        self.attention: Backend = attention
        self.shape = BlockShape(width, num_heads, mlp_ratio, initial_gate, activation, query_key_norm)
        input_channels = latent_channels if reference == "segment" else 2 * latent_channels + 1

        def embed(size: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

        self.visual_in = nn.Linear(input_channels * patch**2, width)
        self.text_in = embed(text_width)
        self.audio_in = embed(audio_width)
        self.level_in = embed(256)
        self.pooled_text_in = embed(text_width)
        self.pooled_audio_in = embed(audio_per_latent * audio_width)
        self.guidance_in = nn.ModuleList(zero_last(embed(256)) for _ in GUIDED) if guidance_embedding else None
        self.kind = nn.Embedding(len(KINDS), width)
        nn.init.normal_(self.kind.weight, std=0.02)
        crosses = audio == "cross"
        self.double_blocks = nn.ModuleList(DoubleBlock(self.shape, TOWERS[audio], crosses) for _ in range(num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(self.shape, crosses) for _ in range(num_single_blocks))
        self.out_modulation = Modulation(width, 2)
        self.out = zero_last(nn.Linear(width, latent_channels * patch**2))
        if compile_blocks:
            for block in self.blocks:
                block.compile(fullgraph=True, dynamic=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in order."""
        return [*self.double_blocks, *self.single_blocks]

    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        """See `Denoiser.forward`. Latents and conditions may be of another number type than the weights; the velocity is float32."""
        check_window(latents_BFCHW, sigma_BF, conditions, layout, memory is not None, self)
        window = Window(latents_BFCHW, sigma_BF, conditions, layout, memory)
        if self.reference == "channels":
            window = window.with_reference_beside()
        vector_BFD = self.frame_vector(window)
        streams, _ = self.transform(window, vector_BFD)
        stream = slice(-layout.num_stream_frames, None)
        shift, scale = self.out_modulation(vector_BFD[:, stream])
        patches = self.out(modulated_norm(streams[-1][:, stream], shift, scale))
        predicted = self.from_patches(patches, latents_BFCHW.shape[-2:]).float()
        if self.prediction == "velocity":
            return predicted
        sigma = sigma_BF[:, stream, None, None, None].clamp(min=0.05)  # the division is bounded near clean frames
        return (latents_BFCHW[:, stream] - predicted) / sigma

    def encode_memory(self, latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> MemoryFeatures:
        """See `Denoiser.encode_memory`."""
        check_memory_layout(latents_BFCHW, conditions, layout)
        window = Window(latents_BFCHW, latents_BFCHW.new_zeros(latents_BFCHW.shape[:2], dtype=torch.float32), conditions, layout)
        if self.reference == "channels":
            if all(segment.kind == "reference" for segment in layout.segments):  # it has no tokens
                nothing = latents_BFCHW.new_zeros(latents_BFCHW.shape[0], 0, self.shape.num_heads, self.shape.head_width)
                lengths = (0,) * len(layout.segments)
                return MemoryFeatures((nothing,) * len(self.blocks), (nothing,) * len(self.blocks), latents_BFCHW, lengths=lengths)
            window = window.with_reference_beside()
        _, kept = self.transform(window, self.frame_vector(window), keep=True)
        lengths = self.geometry(window).entry_lengths(layout.segments, self.reference == "channels")
        has_reference = any(segment.kind == "reference" for segment in layout.segments)
        beside = window.reference_BFCHW if has_reference else None
        return MemoryFeatures(tuple(key for key, _ in kept), tuple(value for _, value in kept), beside, lengths=lengths)

    def transform(self, window: Window, vector_BFD: Tensor, keep: bool = False) -> tuple[Streams, list[KeyValue]]:
        """Tokens of a window through all blocks; with `keep` also each block's keys and values."""
        dtype = self.kind.weight.dtype
        text_BGLD = self.text_in(window.conditions.text_BSLD.to(dtype))
        audio_BGLD = self.audio_in(window.conditions.audio_BFAD.to(dtype))
        visual_BGLD = self.visual_in(self.to_patches(window.input_BFCHW).to(dtype))
        if self.absolute_positions:
            visual_BGLD = visual_BGLD + self.spatial_code(window.latents_BFCHW).to(visual_BGLD.dtype)
        crosses = self.audio == "cross"
        streams = (text_BGLD, visual_BGLD) if crosses else (text_BGLD, audio_BGLD, visual_BGLD)
        geometry = self.geometry(window, keep)
        memory = None if window.memory is None else zip(window.memory.keys, window.memory.values, strict=True)
        vectors = geometry.vectors(vector_BFD, len(streams))
        return run_blocks(self.blocks, streams, vectors, geometry, memory, audio_BGLD if crosses else None, self.checkpointing)

    def frame_vector(self, window: Window) -> Tensor:
        """The modulation vector of each computed latent frame: noise level, pooled text of its segment, its audio, and the segment's kind."""
        dtype, conditions, sigma_BF = self.kind.weight.dtype, window.conditions, window.sigma_BF
        segments = window.frame_segments
        kinds = torch.tensor([KINDS.index(window.segments[s].kind) for s in segments], device=sigma_BF.device)
        text_BFD = self.pooled_text_in(conditions.text_BSLD.to(dtype).mean(2))[:, segments]
        vector_BFD = self.level_in(level_code(sigma_BF).to(dtype)) + text_BFD
        vector_BFD = vector_BFD + self.pooled_audio_in(conditions.audio_BFAD.to(dtype).flatten(2)) + self.kind(kinds)
        if self.guidance_in is None or conditions.guidance_BG is None:
            return vector_BFD
        scales = zip(self.guidance_in, conditions.guidance_BG.unbind(1), strict=True)
        guidance_BD = sum(embed(level_code(scale / 10.0).to(dtype)) for embed, scale in scales)  # scales up to 10 cover the code's range
        streaming = torch.tensor([not window.segments[s].is_memory for s in segments], device=sigma_BF.device)
        return vector_BFD + guidance_BD[:, None] * streaming[:, None]

    def geometry(self, window: Window, keep: bool = False) -> Geometry:
        """Attention plan and rotary angles; the same object serves every block."""
        height, width = (size // self.patch for size in window.latents_BFCHW.shape[-2:])
        audio = 0 if self.audio == "cross" else window.conditions.audio_BFAD.shape[2]
        counts = TokenCounts(window.conditions.text_BSLD.shape[2], audio, height * width)
        axes, device = split_axes(self.shape.head_width), window.latents_BFCHW.device
        kept_memory = window.memory is not None
        made = Geometry.of(window.layout, counts, (height, width), axes, self.theta, device, kept_memory=kept_memory, backend=self.attention)
        return replace(made, keep=keep)

    def to_patches(self, input_BFCHW: Tensor) -> Tensor:
        """Tokens [B, F, L, C * patch * patch]."""
        batch, height, width = input_BFCHW.shape[0], *input_BFCHW.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"latents of {height}x{width} cells do not divide into patches of side {self.patch}; choose another patch")
        folded = nnf.pixel_unshuffle(input_BFCHW.flatten(0, 1), self.patch) if self.patch > 1 else input_BFCHW.flatten(0, 1)
        return folded.flatten(2).transpose(1, 2).unflatten(0, (batch, -1))

    def from_patches(self, patches_BFLD: Tensor, size: torch.Size) -> Tensor:
        """Latents [B, F, C, H, W] of tokens."""
        folded = patches_BFLD.flatten(0, 1).transpose(1, 2).unflatten(2, (size[0] // self.patch, size[1] // self.patch))
        latents = nnf.pixel_shuffle(folded, self.patch) if self.patch > 1 else folded
        return latents.unflatten(0, (patches_BFLD.shape[0], -1))

    def spatial_code(self, latents_BFCHW: Tensor) -> Tensor:
        """Sine code [L, width] of row and column."""
        height, width = (size // self.patch for size in latents_BFCHW.shape[-2:])
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        half = self.width // 2
        code = torch.cat([sine_code(rows.flatten().float(), half), sine_code(columns.flatten().float(), self.width - half)], dim=-1)
        return code.to(latents_BFCHW)


@dataclass(frozen=True)
class Window:
    """What one evaluation computes: the whole window, or the stream alone in front of memory that was encoded before.

    Attributes:
        latents_BFCHW: of the computed frames.
        sigma_BF: of the computed frames.
        conditions: of the computed segments and frames.
        layout: of the whole window.
        memory: what was encoded before, or None.
        reference_BFCHW: the reference that is laid beside every frame, or None.
    """

    latents_BFCHW: Tensor
    sigma_BF: Tensor
    conditions: ConditionTokens
    layout: WindowLayout
    memory: MemoryFeatures | None = None
    reference_BFCHW: Tensor | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The computed segments."""
        return self.layout.segments if self.memory is None else self.layout.segments[self.layout.num_memory_segments :]

    @property
    def frame_segments(self) -> list[int]:
        """Index into `segments` of each computed frame."""
        return [i for i, segment in enumerate(self.segments) for _ in range(segment.num_frames)]

    @property
    def input_BFCHW(self) -> Tensor:
        """What the first layer sees: latents, and beside them the clean copy and the mask if there is a reference to lay there."""
        if self.reference_BFCHW is None:
            return self.latents_BFCHW
        clean = torch.tensor([self.segments[s].is_memory for s in self.frame_segments], device=self.latents_BFCHW.device)[:, None, None, None]
        copy_BFCHW = torch.where(clean, self.latents_BFCHW, self.reference_BFCHW)
        mask = clean.to(copy_BFCHW.dtype).expand_as(copy_BFCHW[:, :, :1])
        return torch.cat([self.latents_BFCHW, copy_BFCHW, mask], dim=2)

    def with_reference_beside(self) -> Window:
        """The window whose reference segment became channels beside all other frames; zeros where there is none."""
        kinds = [self.segments[s].kind for s in self.frame_segments]
        others = [i for i, kind in enumerate(kinds) if kind != "reference"]
        own = [i for i, kind in enumerate(kinds) if kind == "reference"]
        reference = self.latents_BFCHW[:, own[-1:]] if own else torch.zeros_like(self.latents_BFCHW[:, :1])
        if self.memory is not None and self.memory.reference_BFCHW is not None:
            reference = self.memory.reference_BFCHW[:, -1:]
        texts = [i for i, segment in enumerate(self.segments) if segment.kind != "reference"]
        conditions = replace(self.conditions, text_BSLD=self.conditions.text_BSLD[:, texts], audio_BFAD=self.conditions.audio_BFAD[:, others])
        layout = replace(self.layout, segments=tuple(segment for segment in self.layout.segments if segment.kind != "reference"))
        return Window(self.latents_BFCHW[:, others], self.sigma_BF[:, others], conditions, layout, self.memory, reference)


def zero_last(module: Module) -> Module:
    """The module with its last linear map set to zero: it starts without effect."""
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return module


def sine_code(positions: Tensor, width: int, longest: float = 64.0) -> Tensor:
    """Sines and cosines [..., width] at geometric wavelengths up to `longest`."""
    num_pairs = width // 2
    frequency = torch.exp(-math.log(longest) * torch.arange(num_pairs, dtype=torch.float32, device=positions.device) / max(num_pairs - 1, 1))
    angle = positions[..., None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return nnf.pad(code, (0, width - code.shape[-1]))


def level_code(sigma: Tensor, width: int = 256) -> Tensor:
    """Sine code of noise levels; sigma is stretched to 0..1000, the field's timestep range. Computed in float32: bf16 loses levels."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, dtype=torch.float32, device=sigma.device) / (width // 2))
    angle = 1000.0 * sigma.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)

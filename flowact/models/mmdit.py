"""A multimodal diffusion transformer over segments, with one noise level per latent frame.

After SD3 (arXiv 2403.03206, section 4) and HunyuanVideo (arXiv 2412.03603): double-stream blocks in which each modality has its own weights and all
share one attention, then single-stream blocks. What diffusion forcing changes: the modulation vector belongs to a latent frame, not to a sample.
Legend: flowact/types.py; G groups of tokens that share a modulation vector.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from flowact.models.attention import Backend, KeyValue, TokenCounts
from flowact.models.blocks import BlockShape, Checkpointing, DoubleBlock, Geometry, Modulation, SingleBlock, run_blocks
from flowact.models.embeddings import GUIDED, from_patches, level_code, sine_code, to_patches, two_layers, zero_last
from flowact.models.operations import Activation, NormKind, modulated_norm
from flowact.models.rope import split_axes
from flowact.models.windowed import Reference, Window, WindowDenoiser
from flowact.types import SegmentKind

KINDS: tuple[SegmentKind, ...] = ("reference", "long", "short", "stream")
#: towers of text, audio and visual tokens, by the way audio comes in
TOWERS = {"branch": ("text", "audio", "visual"), "joint": ("condition", "condition", "visual"), "cross": ("text", "visual")}


class MMDiT(WindowDenoiser):
    """Text, audio and visual tokens with weights of their own and one attention, a noise level per latent frame (see the module).

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
        reference: Reference = "segment",
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
        self.reference: Reference = reference
        self.absolute_positions = absolute_positions
        self.prediction = prediction
        self.theta = theta
        self.width = width
        self.checkpointing: Checkpointing = checkpointing
        self.attention: Backend = attention
        self.shape = BlockShape(width, num_heads, mlp_ratio, initial_gate, activation, query_key_norm)
        input_channels = latent_channels if reference == "segment" else 2 * latent_channels + 1

        self.visual_in = nn.Linear(input_channels * patch**2, width)
        self.text_in = two_layers(text_width, width)
        self.audio_in = two_layers(audio_width, width)
        self.level_in = two_layers(256, width)
        self.pooled_text_in = two_layers(text_width, width)
        self.pooled_audio_in = two_layers(audio_per_latent * audio_width, width)
        self.takes_guidance = guidance_embedding
        self.guidance_in = nn.ModuleList(zero_last(two_layers(256, width)) for _ in GUIDED) if guidance_embedding else None
        self.kind = nn.Embedding(len(KINDS), width)
        nn.init.normal_(self.kind.weight, std=0.02)
        crosses = audio == "cross"
        self.double_blocks = nn.ModuleList(DoubleBlock(self.shape, TOWERS[audio], crosses) for _ in range(num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(self.shape, crosses) for _ in range(num_single_blocks))
        self.out_modulation = Modulation(width, 2)
        self.out = zero_last(nn.Linear(width, latent_channels * patch**2))
        if compile_blocks:
            self.compile_blocks()

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in order."""
        return [*self.double_blocks, *self.single_blocks]

    @property
    def kept_shape(self) -> tuple[int, int, int]:
        """See `WindowDenoiser.kept_shape`."""
        return len(self.blocks), self.shape.num_heads, self.shape.head_width

    def transform(self, window: Window, vector_BFD: Tensor, keep: bool = False) -> tuple[Tensor, list[KeyValue], Geometry]:
        """See `WindowDenoiser.transform`."""
        dtype = self.kind.weight.dtype
        text_BGLD = self.text_in(window.conditions.text_BSLD.to(dtype))
        audio_BGLD = self.audio_in(window.conditions.audio_BFAD.to(dtype))
        visual_BGLD = self.visual_in(to_patches(window.input_BFCHW, self.patch).to(dtype))
        if self.absolute_positions:
            visual_BGLD = visual_BGLD + self.spatial_code(window.latents_BFCHW).to(visual_BGLD.dtype)
        crosses = self.audio == "cross"
        streams = (text_BGLD, visual_BGLD) if crosses else (text_BGLD, audio_BGLD, visual_BGLD)
        geometry = replace(self.geometry(window), keep=keep)
        memory = None if window.memory is None else zip(window.memory.keys, window.memory.values, strict=True)
        vectors = geometry.vectors(vector_BFD, len(streams))
        done, kept = run_blocks(self.blocks, streams, vectors, geometry, memory, audio_BGLD if crosses else None, self.checkpointing)
        return done[-1], kept, geometry

    def velocity(self, visual_BFLD: Tensor, vector_BFD: Tensor, latents_BFCHW: Tensor, sigma_BF: Tensor) -> Tensor:
        """See `WindowDenoiser.velocity`."""
        shift, scale = self.out_modulation(vector_BFD)
        patches_BFLD = self.out(modulated_norm(visual_BFLD, shift, scale))
        predicted = from_patches(patches_BFLD, latents_BFCHW.shape[-2:], self.patch).float()
        if self.prediction == "velocity":
            return predicted
        sigma = sigma_BF[..., None, None, None].clamp(min=0.05)  # the division is bounded near clean frames
        return (latents_BFCHW - predicted) / sigma

    def frame_vector(self, window: Window) -> Tensor:
        """The modulation vector of each computed latent frame: noise level, pooled text of its segment, its audio, and the segment's kind."""
        dtype, conditions, sigma_BF = self.kind.weight.dtype, window.conditions, window.sigma_BF
        segments = window.frame_segments
        kinds = torch.tensor([KINDS.index(window.segments[s].kind) for s in segments], device=sigma_BF.device)
        text_BFD = self.pooled_text_in(conditions.text_BSLD.to(dtype).mean(2))[:, segments]
        vector_BFD = self.level_in(level_code(sigma_BF).to(dtype)) + text_BFD
        vector_BFD = vector_BFD + self.pooled_audio_in(conditions.audio_BFAD.to(dtype).flatten(2)) + self.kind(kinds)
        return vector_BFD if self.guidance_in is None else vector_BFD + window.guidance(self.guidance_in)

    def geometry(self, window: Window) -> Geometry:
        """Attention plan and rotary angles; the same object serves every block."""
        height, width = (size // self.patch for size in window.latents_BFCHW.shape[-2:])
        audio = 0 if self.audio == "cross" else window.conditions.audio_BFAD.shape[2]
        counts = TokenCounts(window.conditions.text_BSLD.shape[2], audio, height * width)
        axes, device = split_axes(self.shape.head_width), window.latents_BFCHW.device
        kept_memory = window.memory is not None
        return Geometry.of(window.layout, counts, (height, width), axes, self.theta, device, kept_memory=kept_memory, backend=self.attention)

    def spatial_code(self, latents_BFCHW: Tensor) -> Tensor:
        """Sine code [L, width] of row and column."""
        height, width = (size // self.patch for size in latents_BFCHW.shape[-2:])
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        half = self.width // 2
        code = torch.cat([sine_code(rows.flatten().float(), half), sine_code(columns.flatten().float(), self.width - half)], dim=-1)
        return code.to(latents_BFCHW)

"""What both generations of HunyuanVideo share as FlowAct denoisers. Legend: flowact/types.py; S segments, G guidance scales."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from flowact.models.attention import Backend, KeyValue, TokenCounts
from flowact.models.blocks import BlockShape, Checkpointing, DoubleBlock, Geometry, Modulation, SingleBlock, run_blocks
from flowact.models.embeddings import GUIDED, from_patches, level_code, to_patches, two_layers, zero_last
from flowact.models.operations import modulated_norm
from flowact.models.windowed import Reference, Window, WindowDenoiser

TOWERS = ("text", "visual")


class HunyuanDenoiser(WindowDenoiser):
    """Segments, noise levels per frame, kept memory and ears for HunyuanVideo's transformer.

    Args:
        latent_channels: C of the latents.
        text_width: width of the text encoder's features.
        audio_width: width of the audio encoder's features.
        width: token width.
        num_heads: attention heads.
        num_double_blocks: blocks with own weights for text and pictures.
        num_single_blocks: blocks with shared weights.
        mlp_ratio: hidden width of the MLPs over `width`.
        patch: latent cells per token and side.
        rope_axes: rotary channels of a head for time, height and width.
        theta: base of the rotary frequencies.
        clean_copies: the input has further channels: memory frames carry their own clean copy and a mask of ones, stream frames zeros.
        reference: the reference picture is a memory segment of its own tokens ("segment"), or has none and lies in the further channels of every
            stream frame, with mask 0 ("channels").
        guidance_embedding: take guidance scales for text and audio as inputs of the stream, for models distilled from guided ones.
        audio_every: one in so many blocks, beginning with the first, lets the visual tokens of a latent frame look at its sound, at first without
            effect; 0 makes a model without ears.
        checkpointing: what training keeps of each block for the backward pass: all ("none"), attention and the narrow matrix products ("selective"),
            or only the block's input ("full").
        attention: who computes the attention: a plan of unmasked rectangles, or FlexAttention with a block mask.
        compile_blocks: compile each block with torch.compile at its first use.

    Raises:
        ValueError: width, heads and rotary channels do not fit each other, or a reference in channels that are not there.
    """

    #: text guidance where the conditions ask for none; None adds nothing then
    default_guidance: float | None = None

    def __init__(
        self,
        latent_channels: int,
        text_width: int,
        audio_width: int,
        width: int,
        num_heads: int,
        num_double_blocks: int,
        num_single_blocks: int,
        mlp_ratio: float,
        patch: int,
        rope_axes: tuple[int, int, int],
        theta: float,
        clean_copies: bool,
        reference: Reference,
        guidance_embedding: bool,
        audio_every: int = 3,
        checkpointing: Checkpointing = "none",
        attention: Backend = "rectangles",
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads or sum(rope_axes) != width // num_heads or any(axis % 2 for axis in rope_axes):
            raise ValueError(
                f"width {width} with {num_heads} heads and rotary channels {tuple(rope_axes)}: the width divides into heads, "
                "and the rotary channels of an axis are even and sum up to a head's width"
            )
        if reference == "channels" and not clean_copies:
            raise ValueError("a reference in channels needs an input with channels for clean copies")
        if audio_every < 0:
            raise ValueError(f"audio_every is {audio_every}; it is 0 for none, or 1 for every block, 2 for every second, ...")
        self.latent_channels = latent_channels
        self.text_width = text_width
        self.audio_width = audio_width
        self.patch = patch
        self.rope_axes = (rope_axes[0], rope_axes[1], rope_axes[2])
        self.theta = theta
        self.clean_copies = clean_copies
        self.reference: Reference = reference
        self.checkpointing: Checkpointing = checkpointing
        self.attention: Backend = attention
        self.shape = BlockShape(width, num_heads, mlp_ratio)
        self.visual_in = nn.Linear((2 * latent_channels + 1 if clean_copies else latent_channels) * patch**2, width)
        self.level_in = two_layers(256, width)
        self.audio_in = two_layers(audio_width, width) if audio_every else None
        guided = [name for name in GUIDED if name == "text" or audio_every] if guidance_embedding else []
        self.guidance_in = nn.ModuleDict({name: zero_last(two_layers(256, width)) for name in guided})
        hears = [bool(audio_every) and index % audio_every == 0 for index in range(num_double_blocks + num_single_blocks)]
        self.double_blocks = nn.ModuleList(DoubleBlock(self.shape, TOWERS, hear) for hear in hears[:num_double_blocks])
        self.single_blocks = nn.ModuleList(SingleBlock(self.shape, hear) for hear in hears[num_double_blocks:])
        self.out_modulation = Modulation(width, 2)
        self.out = zero_last(nn.Linear(width, latent_channels * patch**2))
        if compile_blocks:
            self.compile_blocks()

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in order."""
        return [*self.double_blocks, *self.single_blocks]

    @abstractmethod
    def embed_text(self, text_BSLD: Tensor, sigma_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, S, L, width] of each segment's caption at its noise level, and a mask [B, S, L] that is False for padding."""

    @abstractmethod
    def unguided_vector(self, window: Window) -> Tensor:
        """The modulation vector [B, F, width] of each computed latent frame, without guidance."""

    @property
    def kept_shape(self) -> tuple[int, int, int]:
        """See `WindowDenoiser.kept_shape`."""
        return len(self.blocks), self.shape.num_heads, self.shape.head_width

    def velocity(self, visual_BFLD: Tensor, vector_BFD: Tensor, latents_BFCHW: Tensor, sigma_BF: Tensor) -> Tensor:
        """See `WindowDenoiser.velocity`."""
        shift, scale = self.out_modulation(vector_BFD)
        return from_patches(self.out(modulated_norm(visual_BFLD, shift, scale)), latents_BFCHW.shape[-2:], self.patch).float()

    def transform(self, window: Window, vector_BFD: Tensor, keep: bool = False) -> tuple[Tensor, list[KeyValue], Geometry]:
        """See `WindowDenoiser.transform`."""
        dtype = self.visual_in.weight.dtype
        visual_BFLD = self.visual_in(to_patches(window.input_BFCHW, self.patch).to(dtype))
        # a segment may begin with a clean picture: its text belongs to the frames that are made of it
        lasts = [end - 1 for end in accumulate(segment.num_frames for segment in window.segments)]
        text_BSLD, mask_BSL = self.embed_text(window.conditions.text_BSLD, window.sigma_BF[:, lasts])
        height, width = (size // self.patch for size in window.latents_BFCHW.shape[-2:])
        counts = TokenCounts(text_BSLD.shape[2], 0, height * width)
        options: dict[str, Any] = {"kept_memory": window.memory is not None, "text_at": "start", "backend": self.attention}
        geometry = Geometry.of(window.layout, counts, (height, width), self.rope_axes, self.theta, visual_BFLD.device, **options)
        mask_BL = geometry.plan.join([mask_BSL.flatten(1), mask_BSL.new_ones(visual_BFLD.shape[:3]).flatten(1)])
        memory = None
        if window.memory is not None:
            memory = zip(window.memory.keys, window.memory.values, strict=True)
            assert window.memory.key_mask_BL is not None  # encode_memory makes one
            mask_BL = torch.cat([window.memory.key_mask_BL, mask_BL], dim=1)
        geometry = replace(geometry, key_mask_BL=mask_BL, keep=keep)
        audio_BFAD = None if self.audio_in is None else self.audio_in(window.conditions.audio_BFAD.to(dtype))
        vectors = (vector_BFD[:, lasts], vector_BFD)
        streams, kept = run_blocks(self.blocks, (text_BSLD, visual_BFLD), vectors, geometry, memory, audio_BFAD, self.checkpointing)
        return streams[-1], kept, geometry

    def frame_vector(self, window: Window) -> Tensor:
        """See `WindowDenoiser.frame_vector`; with the guidance that is asked for unless the frame is clean, as all memory is."""
        vector_BFD = self.unguided_vector(window)
        if not self.guidance_in:
            return vector_BFD
        guidance_BG = window.conditions.guidance_BG
        if guidance_BG is None:
            if self.default_guidance is None:
                return vector_BFD
            guidance_BG = vector_BFD.new_full((vector_BFD.shape[0], 1), self.default_guidance)
        scales = zip(self.guidance_in.values(), guidance_BG.unbind(1), strict=False)
        guidance_BD = sum(embed(level_code(scale).to(vector_BFD.dtype)) for embed, scale in scales)
        return vector_BFD + guidance_BD[:, None] * (window.sigma_BF > 0)[..., None]

"""What both generations of HunyuanVideo share as FlowAct denoisers. Legend: flowact/types.py; S segments, G guidance scales."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.models.attention import Backend, KeyValue, TokenCounts
from flowact.models.base import Denoiser, check_memory_layout, check_window
from flowact.models.blocks import BlockShape, Checkpointing, DoubleBlock, Geometry, Modulation, SingleBlock, Streams, run_blocks
from flowact.models.mmdit import GUIDED, Window, level_code, sine_code, zero_last
from flowact.models.operations import modulated_norm
from flowact.types import ConditionTokens, MemoryFeatures, WindowLayout
from flowact_hunyuan.text import embedding

Reference = Literal["segment", "channels"]
TOWERS = ("text", "visual")


class HunyuanDenoiser(Denoiser):
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

    reuses_memory = True
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
        self.level_in = embedding(256, width)
        self.audio_in = embedding(audio_width, width) if audio_every else None
        guided = [name for name in GUIDED if name == "text" or audio_every] if guidance_embedding else []
        self.guidance_in = nn.ModuleDict({name: zero_last(embedding(256, width)) for name in guided})
        hears = [bool(audio_every) and index % audio_every == 0 for index in range(num_double_blocks + num_single_blocks)]
        self.double_blocks = nn.ModuleList(DoubleBlock(self.shape, TOWERS, hear) for hear in hears[:num_double_blocks])
        self.single_blocks = nn.ModuleList(SingleBlock(self.shape, hear) for hear in hears[num_double_blocks:])
        self.out_modulation = Modulation(width, 2)
        self.out = zero_last(nn.Linear(width, latent_channels * patch**2))
        if compile_blocks:
            for block in self.blocks:
                block.compile(fullgraph=True, dynamic=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in order."""
        return [*self.double_blocks, *self.single_blocks]

    @abstractmethod
    def embed_text(self, text_BSLD: Tensor, sigma_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, S, L, width] of each segment's caption at its noise level, and a mask [B, S, L] that is False for padding."""

    @abstractmethod
    def frame_vector(self, window: Window) -> Tensor:
        """The modulation vector [B, F, width] of each computed latent frame, without guidance."""

    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        """See `Denoiser.forward`. Latents and conditions may be of another number type than the weights; the velocity is float32."""
        check_window(latents_BFCHW, sigma_BF, conditions, layout, kept_memory=memory is not None)
        window = self.with_clean_copies(Window(latents_BFCHW, sigma_BF, conditions, layout, memory))
        vector_BFD = self.guided_vector(window)
        streams, _, _ = self.transform(window, vector_BFD)
        stream = slice(-layout.num_stream_frames, None)
        shift, scale = self.out_modulation(vector_BFD[:, stream])
        patches = self.out(modulated_norm(streams[-1][:, stream], shift, scale))
        return self.from_patches(patches, latents_BFCHW.shape[-2:]).float()

    def encode_memory(self, latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> MemoryFeatures:
        """See `Denoiser.encode_memory`."""
        check_memory_layout(latents_BFCHW, conditions, layout)
        beside = None
        references = [i for i, segment in enumerate(layout.frame_segments) if layout.segments[segment].kind == "reference"]
        if self.reference == "channels" and references:
            beside = latents_BFCHW[:, references]
            if len(references) == layout.num_frames:  # they have no tokens
                nothing = (latents_BFCHW.new_zeros(latents_BFCHW.shape[0], 0, self.shape.num_heads, self.shape.head_width),) * len(self.blocks)
                mask_BL = latents_BFCHW.new_zeros(latents_BFCHW.shape[0], 0, dtype=torch.bool)
                return MemoryFeatures(nothing, nothing, beside, mask_BL, (0,) * len(layout.segments))
        sigma_BF = latents_BFCHW.new_zeros(latents_BFCHW.shape[:2], dtype=torch.float32)
        window = self.with_clean_copies(Window(latents_BFCHW, sigma_BF, conditions, layout))
        _, kept, geometry = self.transform(window, self.guided_vector(window), keep=True)
        lengths = geometry.entry_lengths(layout.segments, self.reference == "channels")
        return MemoryFeatures(tuple(key for key, _ in kept), tuple(value for _, value in kept), beside, geometry.key_mask_BL, lengths)

    def with_clean_copies(self, window: Window) -> Window:
        """The window with what lies beside its latents."""
        if self.reference == "channels":
            return window.with_reference_beside()
        if self.clean_copies:
            return replace(window, reference_BFCHW=torch.zeros_like(window.latents_BFCHW[:, :1]))
        return window

    def transform(self, window: Window, vector_BFD: Tensor, keep: bool = False) -> tuple[Streams, list[KeyValue], Geometry]:
        """Tokens of a window through all blocks; with `keep` also each block's keys and values. Last, what the blocks shared."""
        dtype = self.visual_in.weight.dtype
        visual_BFLD = self.visual_in(self.to_patches(window.input_BFCHW).to(dtype))
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
        audio_BFAD = self.audio_tokens(window.conditions.audio_BFAD.to(dtype))
        streams, vectors = (text_BSLD, visual_BFLD), (vector_BFD[:, lasts], vector_BFD)
        return *run_blocks(self.blocks, streams, vectors, geometry, memory, audio_BFAD, self.checkpointing), geometry

    def audio_tokens(self, audio_BFAD: Tensor) -> Tensor | None:
        """Tokens of each latent frame's sound, which know their order; None for a model without ears."""
        if self.audio_in is None:
            return None
        order_A = torch.arange(audio_BFAD.shape[2], dtype=torch.float32, device=audio_BFAD.device)
        return self.audio_in(audio_BFAD) + sine_code(order_A, self.shape.width).to(audio_BFAD.dtype)

    def guided_vector(self, window: Window) -> Tensor:
        """The modulation vector of each computed latent frame, with the guidance that is asked for unless the frame is clean, as all memory is."""
        vector_BFD = self.frame_vector(window)
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

    def to_patches(self, input_BFCHW: Tensor) -> Tensor:
        """Tokens [B, F, L, C * patch * patch]."""
        if input_BFCHW.shape[-2] % self.patch or input_BFCHW.shape[-1] % self.patch:
            size = "x".join(map(str, input_BFCHW.shape[-2:]))
            raise ValueError(f"latents of {size} cells do not divide into patches of side {self.patch}; choose another size of picture")
        return nnf.pixel_unshuffle(input_BFCHW, self.patch).flatten(3).transpose(2, 3)

    def from_patches(self, patches_BFLD: Tensor, size: torch.Size) -> Tensor:
        """Latents [B, F, C, H, W] of tokens."""
        cells = (size[0] // self.patch, size[1] // self.patch)
        return nnf.pixel_shuffle(patches_BFLD.transpose(2, 3).unflatten(3, cells), self.patch)

"""Wan (arXiv 2503.20314) over segments, with one noise level per latent frame. Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.models.attention import Backend, KeyValue, TokenCounts
from flowact.models.blocks import Checkpointing, Geometry, run_blocks
from flowact.models.embeddings import GUIDED, level_code, to_patches, two_layers, zero_last
from flowact.models.operations import modulated_norm
from flowact.models.rope import split_axes
from flowact.models.windowed import Reference, Window, WindowDenoiser
from flowact_wan.block import WanBlock

THETA = 10_000.0


class WanDenoiser(WindowDenoiser):
    """Wan 2.1 and 2.2: with converted weights, audio aside, it computes what diffusers' `WanTransformer3DModel` computes.

    What differs from a plain Wan, and is without effect when a window is one segment at one noise level:

    - The modulation belongs to a latent frame. Wan 2.2 5B was trained with a clean first frame beside noisy ones, so it knows levels that differ.
    - Each segment looks at its own text, so memory does not depend on the stream. Padding is looked at, as in Wan, which pads captions to 512 tokens
      of UMT5 with zeros; a text encoder for Wan's weights must do so too.
    - Rotary positions in time are those of the layout and may be negative.
    - Every `audio_every`-th block has a cross-attention of each latent frame to its own sound, which starts at zero effect.

    Wan is trained by flow matching with x = (1 - sigma) x0 + sigma eps and timestep 1000 sigma; its schedulers take x0 = x - sigma * output
    (`prediction_type="flow_prediction"`), so it predicts eps - x0, which is FlowAct's velocity.

    The defaults are the sizes of the 1.3B model.

    Args:
        latent_channels: C of the latents: 16, and 48 for the 5B model.
        text_width: width of the text encoder's features; 4096 for UMT5-XXL.
        audio_width: width of the audio encoder's features.
        width: token width.
        num_heads: attention heads; each head's width must be even.
        num_blocks: transformer blocks.
        hidden: hidden width of the MLPs.
        patch: latent cells per token and side.
        audio_every: one block of so many hears, beginning with the first; Wan 2.2 S2V has 12 of 40. 0 makes a model without ears.
        clean_copies: the input has further channels, as in Wan's image-to-video models: memory frames carry a mask of ones and their own clean copy,
            stream frames zeros.
        mask_channels: channels that the mask is repeated to; counts with `clean_copies` only.
        reference: the reference picture is a memory segment of its own tokens ("segment"), or has none and lies in the further channels of every
            stream frame, with mask 0 ("channels").
        image_tokens: rows at the end of each segment's text that are not text but CLIP's features of a picture, padded with zeros to `text_width`;
            257 for image-to-video models of Wan 2.1, 0 for all others.
        image_width: channels of these rows that are read.
        guidance_embedding: take guidance scales for text and audio as inputs of the stream, for models distilled from guided ones; starts at
            zero effect.
        checkpointing: what training keeps of each block for the backward pass: all ("none"), attention and the narrow matrix products ("selective"),
            or only the block's input ("full").
        attention: who computes the attention: a plan of unmasked rectangles, or FlexAttention with a block mask.
        compile_blocks: compile each block with torch.compile at its first use.

    Raises:
        ValueError: width does not divide into heads of even width, a count is negative, a reference in channels that are not there, or
            pictures that are wider than text.
    """

    def __init__(
        self,
        latent_channels: int,
        text_width: int,
        audio_width: int,
        width: int = 1536,
        num_heads: int = 12,
        num_blocks: int = 30,
        hidden: int = 8960,
        patch: int = 2,
        audio_every: int = 3,
        clean_copies: bool = False,
        mask_channels: int = 4,
        reference: Reference = "segment",
        image_tokens: int = 0,
        image_width: int = 1280,
        guidance_embedding: bool = False,
        checkpointing: Checkpointing = "none",
        attention: Backend = "rectangles",
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 2:
            raise ValueError(f"width {width} does not divide into {num_heads} heads of even width; choose a multiple of {2 * num_heads}")
        for name, value in (("audio_every", audio_every), ("mask_channels", mask_channels), ("image_tokens", image_tokens)):
            if value < 0:
                raise ValueError(f"{name} must be 0 (none) or more, got {value}")
        if reference == "channels" and not clean_copies:
            raise ValueError("a reference in channels needs an input that has them; set clean_copies")
        if image_tokens and image_width > text_width:
            raise ValueError(f"rows of {text_width} channels (text_width) cannot hold image features of {image_width} (image_width)")
        self.latent_channels = latent_channels
        self.text_width = text_width
        self.audio_width = audio_width
        self.width = width
        self.num_heads = num_heads
        self.patch = patch
        self.clean_copies = clean_copies
        self.mask_channels = mask_channels
        self.reference: Reference = reference
        self.image_tokens = image_tokens
        self.image_width = image_width
        self.checkpointing: Checkpointing = checkpointing
        self.attention: Backend = attention
        input_channels = 2 * latent_channels + mask_channels if clean_copies else latent_channels

        self.visual_in = nn.Linear(input_channels * patch**2, width)
        self.text_in = two_layers(text_width, width, nn.GELU("tanh"))
        self.image_in = image_embedding(image_width, width) if image_tokens else None
        self.time_in = two_layers(256, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.guidance_in = nn.ModuleList(zero_last(two_layers(256, width)) for _ in GUIDED) if guidance_embedding else None
        self.audio_in = two_layers(audio_width, width) if audio_every else None
        hears = [bool(audio_every) and i % audio_every == 0 for i in range(num_blocks)]
        self.blocks = nn.ModuleList(WanBlock(width, num_heads, hidden, hearing, image_tokens) for hearing in hears)
        self.out_modulation = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.out = zero_last(nn.Linear(width, latent_channels * patch**2))
        if compile_blocks:
            self.compile_blocks()

    @property
    def kept_shape(self) -> tuple[int, int, int]:
        """See `WindowDenoiser.kept_shape`."""
        return len(self.blocks), self.num_heads, self.width // self.num_heads

    def transform(self, window: Window, vector_BFD: Tensor, keep: bool = False) -> tuple[Tensor, list[KeyValue], Geometry]:
        """See `WindowDenoiser.transform`."""
        dtype = self.visual_in.weight.dtype
        visual_BFLD = self.visual_in(to_patches(self.input_of(window), self.patch).to(dtype))
        text_BSLD = self.text_tokens(window.conditions.text_BSLD.to(dtype))
        modulation_BFD = self.modulation(nnf.silu(vector_BFD))
        audio_BFAD = None if self.audio_in is None else self.audio_in(window.conditions.audio_BFAD.to(dtype))
        geometry = replace(self.geometry(window), keep=keep)
        memory = None if window.memory is None else zip(window.memory.keys, window.memory.values, strict=True)
        streams, kept = run_blocks(self.blocks, (visual_BFLD, text_BSLD), (modulation_BFD,), geometry, memory, audio_BFAD, self.checkpointing)
        return streams[0], kept, geometry

    def velocity(self, visual_BFLD: Tensor, vector_BFD: Tensor, latents_BFCHW: Tensor, sigma_BF: Tensor) -> Tensor:
        """See `WindowDenoiser.velocity`."""
        shift, scale = (self.out_modulation + vector_BFD[:, :, None]).unbind(2)
        return self.from_patches(self.out(modulated_norm(visual_BFLD, shift, scale)), latents_BFCHW.shape[-2:]).float()

    def frame_vector(self, window: Window) -> Tensor:
        """See `WindowDenoiser.frame_vector`: the frame's noise level, and in the stream the guidance scales asked for."""
        vector_BFD = self.time_in(level_code(window.sigma_BF).to(self.visual_in.weight.dtype))
        return vector_BFD if self.guidance_in is None else vector_BFD + window.guidance(self.guidance_in)

    def text_tokens(self, text_BSLD: Tensor) -> Tensor:
        """Tokens of each segment's text, and behind them those of its picture if there are any.

        Raises:
            ValueError: there are not more rows than those of the picture.
        """
        if self.image_in is None:
            return self.text_in(text_BSLD)
        num_text = text_BSLD.shape[2] - self.image_tokens
        if num_text < 1:
            raise ValueError(f"a segment's text has {text_BSLD.shape[2]} rows; needed are rows of text and then {self.image_tokens} of a picture")
        image_BSLD = self.image_in(text_BSLD[:, :, num_text:, : self.image_width])
        return torch.cat([self.text_in(text_BSLD[:, :, :num_text]), image_BSLD], dim=2)

    def geometry(self, window: Window) -> Geometry:
        """Attention plan and rotary angles; the same object serves every block."""
        height, width = (size // self.patch for size in window.latents_BFCHW.shape[-2:])
        axes, device, kept_memory = split_axes(self.width // self.num_heads), window.latents_BFCHW.device, window.memory is not None
        counts = TokenCounts(0, 0, height * width)
        return Geometry.of(window.layout, counts, (height, width), axes, THETA, device, kept_memory=kept_memory, backend=self.attention)

    def input_of(self, window: Window) -> Tensor:
        """What the first layer sees [B, F, C, H, W]: latents, and behind them as in Wan the mask and then the clean copies."""
        if not self.clean_copies:
            return window.latents_BFCHW
        latents, clean, mask = window.input_BFCHW.split([self.latent_channels, self.latent_channels, 1], dim=2)
        return torch.cat([latents, mask.expand(-1, -1, self.mask_channels, -1, -1), clean], dim=2)

    def from_patches(self, patches_BFLD: Tensor, size: torch.Size) -> Tensor:
        """Latents [B, F, C, H, W] of tokens [B, F, L, patch * patch * C]: on this side Wan has the channels innermost."""
        cells = patches_BFLD.unflatten(2, (size[0] // self.patch, size[1] // self.patch)).unflatten(-1, (self.patch, self.patch, -1))
        return cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def image_embedding(image_width: int, width: int) -> nn.Sequential:
    """CLIP's features of a picture to tokens, as Wan 2.1 has it for image to video."""
    layers = nn.Linear(image_width, image_width), nn.GELU(), nn.Linear(image_width, width)
    return nn.Sequential(nn.LayerNorm(image_width), *layers, nn.LayerNorm(width))

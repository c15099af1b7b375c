"""HunyuanVideo (arXiv 2412.03603) as a FlowAct denoiser. Legend: flowact/types.py."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from flowact.models.embeddings import level_code, two_layers
from flowact.models.windowed import Reference, Window
from flowact_hunyuan.base import HunyuanDenoiser
from flowact_hunyuan.text import TokenRefiner, present

ImageCondition = Literal["none", "token_replace", "latent_concat"]


class HunyuanVideoDenoiser(HunyuanDenoiser):
    """HunyuanVideo 13B and its picture-to-video forms, with noise levels per frame, segments, kept memory and sound.

    A segment's text is the language model's tokens, rows of zeros being padding, and in the last row CLIP's pooled vector, padded with zeros to the
    width of the others. Text of zeros throughout is no text: the segment has no tokens and a pooled vector of zeros.

    Args:
        audio_width: width of the audio encoder's features.
        latent_channels: C of the latents.
        text_width: width of the language model's features.
        pooled_width: width of CLIP's pooled vector.
        width: token width.
        num_heads: attention heads.
        num_double_blocks: blocks with own weights for text and pictures.
        num_single_blocks: blocks with shared weights.
        num_refiner_blocks: blocks over a caption alone, before it meets the pictures.
        mlp_ratio: hidden width of the MLPs over `width`.
        patch: latent cells per token and side.
        rope_axes: rotary channels of a head for time, height and width.
        theta: base of the rotary frequencies.
        image_condition: how the weights were taught a given first frame: not at all ("none"), by level 0 ("token_replace", the same network), or by
            further input channels ("latent_concat"), where memory frames carry their own clean copy and a mask of ones, and stream frames zeros.
        reference: the reference picture is a memory segment of its own tokens ("segment"), or has none and lies in the further channels of every
            stream frame, with mask 0 ("channels"), which has to be trained.
        guidance_embedding: take guidance scales for text and audio as inputs of the stream; the released weights are distilled from a guided model.
        guidance: scale for text where none is asked for, if `guidance_embedding`.
        options: as `HunyuanDenoiser`.

    Raises:
        ValueError: see `HunyuanDenoiser`, or the pooled vector does not fit into a row.
    """

    def __init__(
        self,
        audio_width: int,
        latent_channels: int = 16,
        text_width: int = 4096,
        pooled_width: int = 768,
        width: int = 3072,
        num_heads: int = 24,
        num_double_blocks: int = 20,
        num_single_blocks: int = 40,
        num_refiner_blocks: int = 2,
        mlp_ratio: float = 4.0,
        patch: int = 2,
        rope_axes: tuple[int, int, int] = (16, 56, 56),
        theta: float = 256.0,
        image_condition: ImageCondition = "none",
        reference: Reference = "segment",
        guidance_embedding: bool = True,
        guidance: float = 6.0,
        **options: Any,
    ) -> None:
        super().__init__(
            latent_channels, text_width, audio_width, width, num_heads, num_double_blocks, num_single_blocks, mlp_ratio, patch, rope_axes, theta,
            image_condition == "latent_concat", reference, guidance_embedding, **options,
        )  # fmt: skip
        if pooled_width > text_width:
            raise ValueError(f"a pooled vector of {pooled_width} channels does not fit into a row of text of width {text_width}")
        self.pooled_width = pooled_width
        self.default_guidance = guidance
        self.refiner = TokenRefiner(text_width, width, num_heads, num_refiner_blocks)
        self.pooled_in = two_layers(pooled_width, width)

    def embed_text(self, text_BSLD: Tensor, sigma_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See `HunyuanDenoiser.embed_text`: all rows but the last."""
        tokens_BSLD = text_BSLD[:, :, :-1]
        mask_BSL = present(tokens_BSLD)
        return self.refiner(tokens_BSLD, mask_BSL, sigma_BS), mask_BSL

    def unguided_vector(self, window: Window) -> Tensor:
        """See `HunyuanDenoiser.unguided_vector`: the frame's noise level and its segment's pooled text."""
        dtype = self.visual_in.weight.dtype
        pooled_BSD = window.conditions.text_BSLD[:, :, -1, : self.pooled_width]
        level_BFD = self.level_in(level_code(window.sigma_BF).to(dtype))
        return level_BFD + self.pooled_in(pooled_BSD.to(dtype))[:, window.frame_segments]

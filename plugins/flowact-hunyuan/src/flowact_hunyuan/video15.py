"""HunyuanVideo-1.5 (arXiv 2511.18870) as a FlowAct denoiser. Legend: flowact/types.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowact.models.embeddings import level_code, two_layers
from flowact.models.windowed import Reference, Window
from flowact_hunyuan.base import HunyuanDenoiser
from flowact_hunyuan.text import TokenRefiner, glyph_projection, image_projection, present

#: rows of `text_kinds`
LANGUAGE, GLYPHS, IMAGE = range(3)


class HunyuanVideo15Denoiser(HunyuanDenoiser):
    """HunyuanVideo-1.5 8.3B, with noise levels per frame, segments, kept memory and sound.

    A segment's text is the language model's tokens, then ByT5's for words to be drawn, then SigLIP's of a picture, each padded with zeros to the
    width of the widest; rows of zeros are padding. Text of zeros throughout is no text: the segment has no tokens.

    Args:
        audio_width: width of the audio encoder's features.
        latent_channels: C of the latents.
        text_width: width of a row of text, that of the language model's features.
        glyph_tokens: how many rows of a segment's text are ByT5's.
        image_tokens: how many rows, the last ones, are SigLIP's. At 0, as in text-to-video, the weights for them are kept but not trained.
        glyph_width: width of ByT5's features.
        image_width: width of SigLIP's features.
        width: token width.
        num_heads: attention heads.
        num_double_blocks: blocks with own weights for text and pictures.
        num_refiner_blocks: blocks over a caption alone, before it meets the pictures.
        mlp_ratio: hidden width of the MLPs over `width`.
        patch: latent cells per token and side.
        rope_axes: rotary channels of a head for time, height and width.
        theta: base of the rotary frequencies.
        reference: the input has channels in which memory frames carry their own clean copy and a mask of ones, and stream frames zeros. The reference
            picture is such a memory segment ("segment"), or has no tokens and lies in these channels of every stream frame, with mask 0
            ("channels"), which has to be trained.
        guidance_embedding: take guidance scales for text and audio as inputs of the stream, for models distilled from guided ones. Starts at zero
            effect.
        use_meanflow: the weights have a second time embedding (MeanFlow, arXiv 2505.13447). It is given each frame's own level, where the average
            velocity that such weights predict is the velocity.
        target_size: side in pixels of the pictures that the weights were made for. Says nothing to the network, kept for export.
        task_type: "t2v" or "i2v", as `target_size`.
        options: as `HunyuanDenoiser`.

    Raises:
        ValueError: see `HunyuanDenoiser`, or features of an encoder do not fit into a row.
    """

    def __init__(
        self,
        audio_width: int,
        latent_channels: int = 32,
        text_width: int = 3584,
        glyph_tokens: int = 256,
        image_tokens: int = 0,
        glyph_width: int = 1472,
        image_width: int = 1152,
        width: int = 2048,
        num_heads: int = 16,
        num_double_blocks: int = 54,
        num_refiner_blocks: int = 2,
        mlp_ratio: float = 4.0,
        patch: int = 1,
        rope_axes: tuple[int, int, int] = (16, 56, 56),
        theta: float = 256.0,
        reference: Reference = "segment",
        guidance_embedding: bool = False,
        use_meanflow: bool = False,
        target_size: int = 640,
        task_type: str = "i2v",
        **options: Any,
    ) -> None:
        super().__init__(
            latent_channels, text_width, audio_width, width, num_heads, num_double_blocks, 0, mlp_ratio, patch, rope_axes, theta, True,
            reference, guidance_embedding, **options,
        )  # fmt: skip
        if max(glyph_width, image_width) > text_width:
            raise ValueError(f"features of width {glyph_width} (glyphs) and {image_width} (image) do not fit into rows of text of width {text_width}")
        self.glyph_tokens = glyph_tokens
        self.image_tokens = image_tokens
        self.glyph_width = glyph_width
        self.image_width = image_width
        self.refiner = TokenRefiner(text_width, width, num_heads, num_refiner_blocks)
        self.glyphs_in = glyph_projection(glyph_width, width)
        self.image_in = image_projection(image_width, width).requires_grad_(image_tokens > 0)
        self.text_kinds = nn.Embedding(3, width)
        self.second_level_in = two_layers(256, width) if use_meanflow else None

    def embed_text(self, text_BSLD: Tensor, sigma_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See `HunyuanDenoiser.embed_text`. Text has no positions, so the order of its tokens is free.

        Raises:
            ValueError: fewer rows than ByT5 and SigLIP take.
        """
        language_tokens = text_BSLD.shape[2] - self.glyph_tokens - self.image_tokens
        if language_tokens < 1:
            raise ValueError(
                f"a segment's text has {text_BSLD.shape[2]} rows, of which {self.glyph_tokens} are for glyphs and {self.image_tokens} for an image; "
                "leave rows for the language model, or set glyph_tokens and image_tokens to what the text encoder gives"
            )
        dtype, kinds = self.visual_in.weight.dtype, self.text_kinds.weight
        language, glyphs, image = text_BSLD.split([language_tokens, self.glyph_tokens, self.image_tokens], dim=2)
        mask_BSL = present(text_BSLD)
        tokens = [self.refiner(language, mask_BSL[:, :, :language_tokens], sigma_BS) + kinds[LANGUAGE]]
        if self.glyph_tokens:
            tokens.append(self.glyphs_in(glyphs[..., : self.glyph_width].to(dtype)) + kinds[GLYPHS])
        if self.image_tokens:
            tokens.append(self.image_in(image[..., : self.image_width].to(dtype)) + kinds[IMAGE])
        return torch.cat(tokens, dim=2), mask_BSL

    def unguided_vector(self, window: Window) -> Tensor:
        """See `HunyuanDenoiser.unguided_vector`: the frame's noise level."""
        code = level_code(window.sigma_BF).to(self.visual_in.weight.dtype)
        return self.level_in(code) if self.second_level_in is None else self.level_in(code) + self.second_level_in(code)

"""Text on its way into HunyuanVideo: a small transformer per caption, and projections of what other encoders give. Legend: flowact/types.py."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.models.attention import attention
from flowact.models.embeddings import level_code, two_layers

GLYPH_HIDDEN = 2048  # fixed in HunyuanVideo-1.5, whatever the model's width


def glyph_projection(glyph_width: int, width: int) -> nn.Sequential:
    """ByT5's features to tokens."""
    hidden = [nn.Linear(glyph_width, GLYPH_HIDDEN), nn.GELU(), nn.Linear(GLYPH_HIDDEN, GLYPH_HIDDEN), nn.GELU()]
    return nn.Sequential(nn.LayerNorm(glyph_width), *hidden, nn.Linear(GLYPH_HIDDEN, width))


def image_projection(image_width: int, width: int) -> nn.Sequential:
    """SigLIP's features to tokens."""
    return nn.Sequential(
        nn.LayerNorm(image_width), nn.Linear(image_width, image_width), nn.GELU(), nn.Linear(image_width, width), nn.LayerNorm(width)
    )


def present(text_BSLD: Tensor) -> Tensor:
    """True for rows [B, S, L] that hold a token; rows of zeros are padding."""
    return (text_BSLD != 0).any(-1)


class RefinerBlock(nn.Module):
    """Self-attention and an MLP over one caption, both gated by its modulation vector.

    Args:
        width: D of the tokens.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over `width`.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp_in = nn.Linear(width, int(width * mlp_ratio))
        self.mlp_out = nn.Linear(int(width * mlp_ratio), width)
        self.gates = nn.Linear(width, 2 * width)

    def forward(self, text_BLD: Tensor, vector_BD: Tensor, mask_BL: Tensor) -> Tensor:
        """Tokens [B, L, D]; only keys where the mask is true are seen."""
        attention_gate, mlp_gate = self.gates(nnf.silu(vector_BD))[:, None].chunk(2, dim=-1)
        query, key, value = self.qkv(self.attention_norm(text_BLD)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attention(query, key, value, mask_BL[:, None, None]).transpose(1, 2).flatten(2)
        text_BLD = torch.addcmul(text_BLD, attention_gate, self.out(mixed))
        return torch.addcmul(text_BLD, mlp_gate, self.mlp_out(nnf.silu(self.mlp_in(self.mlp_norm(text_BLD)))))


class TokenRefiner(nn.Module):
    """A language model's tokens, made bidirectional and told the noise level (HunyuanVideo, arXiv 2412.03603, on its text encoder).

    Args:
        text_width: width of the language model's features.
        width: D of the tokens.
        num_heads: attention heads.
        num_blocks: blocks.
    """

    def __init__(self, text_width: int, width: int, num_heads: int, num_blocks: int) -> None:
        super().__init__()
        self.level_in = two_layers(256, width)
        self.pooled_in = two_layers(text_width, width)
        self.text_in = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(RefinerBlock(width, num_heads) for _ in range(num_blocks))

    def forward(self, text_BSLD: Tensor, mask_BSL: Tensor, sigma_BS: Tensor) -> Tensor:
        """Tokens [B, S, L, width]; every segment's caption for itself.

        Args:
            text_BSLD: the language model's features.
            mask_BSL: False for padding, which nobody sees. A caption of padding alone gives tokens that nobody may use.
            sigma_BS: noise level of the segments.
        """
        dtype = self.text_in.weight.dtype
        mask_BSL1 = mask_BSL[..., None].float()
        pooled_BSD = (text_BSLD * mask_BSL1).sum(2) / mask_BSL1.sum(2).clamp(min=1)
        vector_BSD = self.level_in(level_code(sigma_BS).to(dtype)) + self.pooled_in(pooled_BSD.to(dtype))
        tokens = self.text_in(text_BSLD.to(dtype)).flatten(0, 1)
        # where nothing may be seen all is, because a softmax over nothing is not a number
        visible = (mask_BSL | ~mask_BSL.any(-1, keepdim=True)).flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens, vector_BSD.flatten(0, 1), visible)
        return tokens.unflatten(0, text_BSLD.shape[:2])

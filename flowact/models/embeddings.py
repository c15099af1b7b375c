"""Numbers and pictures to token features, and back. Legend: flowact/types.py."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

#: conditions whose guidance scale a distilled model may take as an input, in the order of `ConditionTokens.guidance_BG`
GUIDED = ("text", "audio")

Module = TypeVar("Module", bound=nn.Module)


def two_layers(size: int, width: int, activation: nn.Module | None = None) -> nn.Sequential:
    """The field's usual embedding: a linear map, SiLU (or another activation), a linear map."""
    return nn.Sequential(nn.Linear(size, width), activation or nn.SiLU(), nn.Linear(width, width))


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


def to_patches(input_BFCHW: Tensor, side: int) -> Tensor:
    """Tokens [B, F, L, C * side * side] of square patches, row by row, channels outermost.

    Raises:
        ValueError: height or width does not divide into patches.
    """
    height, width = input_BFCHW.shape[-2:]
    if height % side or width % side:
        raise ValueError(f"latents of {height}x{width} cells do not divide into patches of side {side}; choose another patch or size of picture")
    folded = nnf.pixel_unshuffle(input_BFCHW, side) if side > 1 else input_BFCHW
    return folded.flatten(3).transpose(2, 3)


def from_patches(patches_BFLD: Tensor, size: torch.Size, side: int) -> Tensor:
    """Latents [B, F, C, H, W] of tokens: the inverse of `to_patches`."""
    folded = patches_BFLD.transpose(2, 3).unflatten(3, (size[0] // side, size[1] // side))
    return nnf.pixel_shuffle(folded, side) if side > 1 else folded

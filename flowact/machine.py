"""What the machine at hand computes well."""

from __future__ import annotations

import torch


def computes_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether matrix products in bfloat16 are at least as fast as in float32.

    A CPU needs AVX512-BF16 or AMX for that; without them torch falls back to code that takes some ten times as long. GPUs have it.
    """
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

"""Sizes of MMDiT that have a name. A preset is a function that returns the arguments of `MMDiT` that make up its shape.

Text and sound share a tower, as the left one of FlowAct-R1's Figure 2. Blocks come in HunyuanVideo's proportion, about two single ones for a double
one. Large presets have heads of 128, the width that attention kernels are made for, and widths that are multiples of 512, so that every matrix
product of a block has dimensions that GPUs divide well. Counts are for 16 latent channels, UMT5-XXL's 4096 and Whisper base's 512 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowact.errors import UserError, did_you_mean
from flowact.models.mmdit import MMDiT

Shape = dict[str, Any]

#: latents of Wan 2.1 or HunyuanVideo, captions of UMT5-XXL, sound of Whisper base: what the counts of the docstrings are for
PUBLISHED_INPUTS: Shape = {"latent_channels": 16, "text_width": 4096, "audio_width": 512}


def debug() -> Shape:
    """The least that has every kind of block; for "does the code run at all?"."""
    return tiny() | {"width": 32, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1}


def tiny() -> Shape:
    """The quickstart's: it trains in minutes on two CPU cores."""
    return {
        "width": 192,
        "num_heads": 4,
        "num_double_blocks": 2,
        "num_single_blocks": 4,
        "audio": "joint",
        "absolute_positions": True,
        "initial_gate": 0.5,
        "activation": "silu",
        "query_key_norm": "layer",
    }


def _large(width: int, num_heads: int, num_double_blocks: int, num_single_blocks: int) -> Shape:
    return {
        "width": width,
        "num_heads": num_heads,
        "num_double_blocks": num_double_blocks,
        "num_single_blocks": num_single_blocks,
        "audio": "joint",
        "patch": 2,
    }


def mmdit_300m() -> Shape:
    """294 million parameters: width 768 in 12 heads of 64, 7 double and 15 single blocks. For one consumer GPU."""
    return _large(768, 12, 7, 15)


def mmdit_1_3b() -> Shape:
    """1.28 billion parameters: width 1536 in 12 heads, 8 double and 16 single blocks. The width and heads of Wan's 1.3B."""
    return _large(1536, 12, 8, 16)


def mmdit_5b() -> Shape:
    """5.07 billion parameters: width 2560 in 20 heads, 12 double and 22 single blocks."""
    return _large(2560, 20, 12, 22)


def mmdit_13b() -> Shape:
    """12.56 billion parameters: HunyuanVideo's width 3072 in 24 heads, 20 double and 40 single blocks (arXiv 2412.03603)."""
    return _large(3072, 24, 20, 40)


PRESETS: dict[str, Callable[[], Shape]] = {
    "debug": debug,
    "tiny": tiny,
    "300M": mmdit_300m,
    "1.3B": mmdit_1_3b,
    "5B": mmdit_5b,
    "13B": mmdit_13b,
}


def preset(name: str, **arguments: Any) -> MMDiT:
    """A denoiser of a named size.

    Args:
        name: a key of `PRESETS`.
        arguments: of `MMDiT`: the widths of its inputs, and whatever is to differ from the preset.

    Raises:
        UserError: there is no preset of this name; says the nearest.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'.{did_you_mean(name, PRESETS)}")
    return MMDiT(**(PRESETS[name]() | arguments))

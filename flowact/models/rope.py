"""Rotary positions in time, height and width. Legend: flowact/types.py; N heads, D head width."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from flowact.models.attention import TokenCounts, plan_attention
from flowact.types import WindowLayout

TextPosition = Literal["middle", "start"]
Rotation = tuple[Tensor, Tensor]
"""Cosine and sine [L, D / 2], float32."""


def split_axes(head_width: int) -> tuple[int, int, int]:
    """Rotary channels for time, height and width; even, and time gets what is left (HunyuanVideo: 16, 56, 56 of 128 leaves time the least)."""
    space = head_width // 3 // 2 * 2
    return head_width - 2 * space, space, space


def angles(positions_L: Tensor, width: int, theta: float) -> Tensor:
    """Rotation angles [L, width / 2] of positions along one axis (RoFormer, equation 15)."""
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return positions_L.double()[:, None] * frequency


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # cached during validation, used in training
def window_rotation(
    layout: WindowLayout,
    counts: TokenCounts,
    size: tuple[int, int],
    axes: tuple[int, int, int],
    theta: float,
    device: torch.device,
    text_at: TextPosition = "middle",
) -> Rotation:
    """Cosine and sine of a window's tokens in group order (see `flowact.models.attention`).

    Audio tokens stand at the fraction of the latent frame that they belong to. Neither they nor text tokens rotate in space.

    Args:
        layout: the whole window.
        counts: tokens per segment and frame; `counts.visual` is height times width.
        size: visual tokens per column and row of a frame.
        axes: rotary channels for time, height and width.
        theta: base of the frequencies.
        device: where the table lies.
        text_at: a text token stands at the middle of its segment, or at its "start". HunyuanVideo does not rotate text, whose place then is that of
            the clip's first frame; "start" is the same for a clip that starts at 0, and stays true wherever a segment is moved to.
    """
    time_width, *space_widths = axes
    frames = torch.tensor(layout.frame_positions, dtype=torch.float64)
    places = [s.position + (s.num_frames - 1) / 2 if text_at == "middle" else s.position for s in layout.segments]
    text = torch.tensor(places, dtype=torch.float64).repeat_interleave(counts.text)
    fractions = (torch.arange(counts.audio, dtype=torch.float64) + 0.5) / max(counts.audio, 1) - 0.5
    audio = (frames[:, None] + fractions).flatten()
    time = [text, audio, frames.repeat_interleave(counts.visual)]
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    parts = [angles(torch.cat(time), time_width, theta)]
    for axis, axis_width in zip((rows, columns), space_widths, strict=True):
        positions = torch.cat([torch.zeros(len(text) + len(audio), dtype=torch.float64), axis.flatten().double().repeat(len(frames))])
        parts.append(angles(positions, axis_width, theta))
    angle_LD = torch.cat(parts, dim=-1)
    runs = [run[None] for run in angle_LD.split([len(t) for t in time]) if len(run)]
    angle_LD = plan_attention(layout, counts).join(runs)[0]
    return angle_LD.cos().float().to(device), angle_LD.sin().float().to(device)


def rotated_in_front(memory_BLND: Tensor, rotation: Rotation, key_BLND: Tensor) -> Tensor:
    """Kept keys, which are rotated now, and behind them keys that are rotated already."""
    if torch.compiler.is_compiling() or memory_BLND.requires_grad or key_BLND.requires_grad:
        return torch.cat([rotate(memory_BLND, rotation).to(key_BLND.dtype), key_BLND], dim=1)
    length = memory_BLND.shape[1]
    joined = key_BLND.new_empty(key_BLND.shape[0], length + key_BLND.shape[1], *key_BLND.shape[2:])  # written in place: nothing is copied twice
    joined[:, length:] = key_BLND
    cosine, sine = (part[:, None].to(memory_BLND.dtype) for part in rotation)
    first, second = memory_BLND.chunk(2, dim=-1)
    out_first, out_second = joined[:, :length].chunk(2, dim=-1)
    torch.mul(first, cosine, out=out_first).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=out_second).addcmul_(first, sine)
    return joined


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pairs of channels (first half with second half) of queries or keys [B, L, ..., D]."""
    between = (1,) * (x.ndim - 3)
    cosine, sine = (part.view(part.shape[0], *between, part.shape[1]).to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)

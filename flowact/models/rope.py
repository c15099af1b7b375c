"""Rotary positions in time, height and width. Legend: flowact/types.py; D head width."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from flowact.models.attention import TokenCounts
from flowact.types import WindowLayout


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
    layout: WindowLayout, counts: TokenCounts, height: int, width: int, head_width: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [L, D / 2] for a window's tokens in stored order: text, audio, visual.

    Audio tokens stand at the fraction of the latent frame that they belong to; a text token at the middle of its segment. Neither rotates in space.
    """
    time_width, *space_widths = split_axes(head_width)
    frames = torch.tensor(layout.frame_positions, dtype=torch.float64)
    text = torch.tensor([s.position + (s.num_frames - 1) / 2 for s in layout.segments], dtype=torch.float64).repeat_interleave(counts.text)
    fractions = (torch.arange(counts.audio, dtype=torch.float64) + 0.5) / max(counts.audio, 1) - 0.5
    audio = (frames[:, None] + fractions).flatten()
    time = torch.cat([text, audio, frames.repeat_interleave(counts.visual)])
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    still = torch.zeros(len(text) + len(audio), dtype=torch.float64)
    parts = [angles(time, time_width, theta)]
    for axis, axis_width in zip((rows, columns), space_widths, strict=True):
        parts.append(angles(torch.cat([still, axis.flatten().double().repeat(len(frames))]), axis_width, theta))
    angle = torch.cat(parts, dim=-1)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of channels (first half with second half) of queries and keys [B, L, ..., D]."""
    between = (1,) * (x.ndim - 3)
    cosine, sine = (part.view(part.shape[0], *between, part.shape[1]).to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)

"""Attention over segments as a short list of unmasked rectangles.

Tokens of a window are kept text first, then audio, then visual. For attention they are put in the order of *groups*: runs of neighbouring
segments that see, and are seen by, the same segments. Then whoever sees whom is a list of (query slice, key slices), each one plain
scaled-dot-product attention, and no mask is ever built. Legend: flowact/types.py; N heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import Tensor

from flowact.types import WindowLayout


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one segment (text) or one latent frame (audio, visual)."""

    text: int
    audio: int
    visual: int


@dataclass(frozen=True)
class AttentionPlan:
    """How to reorder tokens and which rectangles to compute.

    Attributes:
        pieces: sizes of the runs of tokens in stored order (text, audio, visual; each split by group).
        order: permutation of the pieces that makes each group contiguous.
        rectangles: (query start, query end, key ranges) in reordered positions; the query ranges tile the sequence.
    """

    pieces: tuple[int, ...]
    order: tuple[int, ...]
    rectangles: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]

    def gather(self, tokens_BL: Tensor) -> Tensor:
        """Tokens [B, L, ...] from stored to group order."""
        return _permute(tokens_BL, self.pieces, self.order)

    def scatter(self, tokens_BL: Tensor) -> Tensor:
        """Tokens [B, L, ...] from group to stored order."""
        pieces = tuple(self.pieces[i] for i in self.order)
        inverse = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return _permute(tokens_BL, pieces, inverse)


def _permute(tokens: Tensor, pieces: tuple[int, ...], order: tuple[int, ...]) -> Tensor:
    # split and cat have each other as derivative, which is one copy; an index_select would scatter-add on the way back
    if order == tuple(range(len(order))):
        return tokens
    parts = tokens.split(pieces, dim=1)
    return torch.cat([parts[i] for i in order], dim=1)


def _groups(layout: WindowLayout) -> list[list[int]]:
    indices = range(len(layout.segments))

    def pattern(segment: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        return tuple(layout.visible(segment, other) for other in indices), tuple(layout.visible(other, segment) for other in indices)

    groups: list[list[int]] = []
    for segment in indices:
        if groups and pattern(groups[-1][0]) == pattern(segment):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


@lru_cache(maxsize=256)
def plan_attention(layout: WindowLayout, counts: TokenCounts) -> AttentionPlan:
    """The plan for a layout; equal layouts share one plan."""
    groups = _groups(layout)
    frames = [sum(layout.segments[i].num_frames for i in group) for group in groups]
    sizes = [
        [len(group) * counts.text for group in groups],
        [count * counts.audio for count in frames],
        [count * counts.visual for count in frames],
    ]
    pieces = tuple(size for modality in sizes for size in modality)
    order = tuple(modality * len(groups) + group for group in range(len(groups)) for modality in range(3))
    ends = [0]
    for group in range(len(groups)):
        ends.append(ends[-1] + sum(modality[group] for modality in sizes))
    rectangles = []
    for query, members in enumerate(groups):
        ranges: list[tuple[int, int]] = []
        for key, others in enumerate(groups):
            if not layout.visible(members[0], others[0]):
                continue
            if ranges and ranges[-1][1] == ends[key]:
                ranges[-1] = (ranges[-1][0], ends[key + 1])
            else:
                ranges.append((ends[key], ends[key + 1]))
        rectangles.append((ends[query], ends[query + 1], tuple(ranges)))
    return AttentionPlan(pieces, order, tuple(rectangles))


def attend(query_key: Tensor, value_BLND: Tensor, plan: AttentionPlan) -> Tensor:
    """Attention over tokens in stored order, as the plan allows; [B, L, N, D].

    Args:
        query_key: queries and keys [B, L, 2, N, D].
        value_BLND: values.
        plan: who sees whom.
    """
    query, key = plan.gather(query_key).permute(2, 0, 3, 1, 4).unbind(0)
    value = plan.gather(value_BLND).transpose(1, 2)
    parts = []
    for start, end, ranges in plan.rectangles:
        keys, values = (_slices(x, ranges) for x in (key, value))
        parts.append(attention(query[:, :, start:end], keys, values))
    mixed = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return plan.scatter(mixed.transpose(1, 2))


def _slices(x_BNLD: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    if len(ranges) > 1:
        return torch.cat([x_BNLD[:, :, start:end] for start, end in ranges], dim=2)
    return x_BNLD[:, :, ranges[0][0] : ranges[0][1]]


def attention(query_BNLD: Tensor, key_BNLD: Tensor, value_BNLD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    Where gradients are needed on a CPU in bfloat16 it is written out: torch's fused backward takes half as long again there
    (benchmarks/cpu_kernels.py).
    """
    if query_BNLD.device.type == "cpu" and query_BNLD.dtype == torch.bfloat16 and query_BNLD.requires_grad:
        weights = torch.softmax(query_BNLD * query_BNLD.shape[-1] ** -0.5 @ key_BNLD.transpose(-1, -2), dim=-1)
        return weights @ value_BNLD
    return nnf.scaled_dot_product_attention(query_BNLD, key_BNLD, value_BNLD)


def dense_mask(layout: WindowLayout, counts: TokenCounts) -> Tensor:
    """The boolean mask [L, L] that the plan stands for, in stored order: the reference for tests."""
    text = [s for s in range(len(layout.segments)) for _ in range(counts.text)]
    audio = [s for s in layout.frame_segments for _ in range(counts.audio)]
    visual = [s for s in layout.frame_segments for _ in range(counts.visual)]
    owner = text + audio + visual
    segments = range(len(layout.segments))
    table = torch.tensor([[layout.visible(query, key) for key in segments] for query in segments])
    index = torch.tensor(owner)
    return table[index][:, index]

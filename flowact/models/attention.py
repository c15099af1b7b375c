"""Attention over segments without a mask in memory: a short list of unmasked rectangles, or FlexAttention's block mask.

A window's tokens come as up to three modalities (text per segment, audio and visual per latent frame). For attention they are put in the order of
*groups*: runs of neighbouring segments that see, and are seen by, the same segments. Then whoever sees whom is a list of (query slice, key slices),
each one plain scaled-dot-product attention. Memory groups stand first, so kept keys and values of memory simply stand in front.
Legend: flowact/types.py; N heads, D head width, M modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from flowact.types import WindowLayout

Backend = Literal["rectangles", "flex"]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one segment (text) or one latent frame (audio, visual)."""

    text: int
    audio: int
    visual: int


@dataclass(frozen=True)
class AttentionPlan:
    """How tokens are ordered and which rectangles are computed.

    Attributes:
        sizes: tokens of each modality (text, audio, visual) in each group.
        memory: tokens of memory whose keys and values are handed in instead of being computed; they stand in front of all keys.
        rectangles: (query start, query end, key ranges) in group order; the query ranges tile the computed tokens.
        owners: segment of each key in group order, memory first: what FlexAttention's mask is made of.
        layout: the layout that the plan stands for.
        backend: who computes the attention.
    """

    sizes: tuple[tuple[int, ...], ...]
    memory: int
    rectangles: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]
    owners: tuple[int, ...]
    layout: WindowLayout
    backend: Backend

    @property
    def num_groups(self) -> int:
        return len(self.sizes[0])

    @property
    def group_lengths(self) -> tuple[int, ...]:
        """Computed tokens of each group."""
        return tuple(map(sum, zip(*self.sizes, strict=True)))

    @property
    def num_tokens(self) -> int:
        """Computed tokens."""
        return sum(map(sum, self.sizes))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor [B, L, ...] in group order, of a tensor per modality, each in the order of segments and frames.

        Modalities without tokens are left out.
        """
        if len(parts) == 1:
            return parts[0]
        # split and cat have each other as derivative, which is one copy; an index_select would scatter-add on the way back
        runs = [part.split(sizes, dim=1) for part, sizes in zip(parts, self._present, strict=True)]
        return torch.cat([run[group] for group in range(self.num_groups) for run in runs], dim=1)

    def part(self, tokens: Tensor) -> list[Tensor]:
        """The inverse of `join`."""
        present = self._present
        if len(present) == 1:
            return [tokens]
        runs = tokens.split([sizes[group] for group in range(self.num_groups) for sizes in present], dim=1)
        count = len(present)
        return [torch.cat(runs[modality::count], dim=1) if self.num_groups > 1 else runs[modality] for modality in range(count)]

    @property
    def _present(self) -> list[tuple[int, ...]]:
        return [sizes for sizes in self.sizes if sum(sizes)]


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
def plan_attention(layout: WindowLayout, counts: TokenCounts, kept_memory: bool = False, backend: Backend = "rectangles") -> AttentionPlan:
    """The plan for a layout; equal layouts share one plan.

    Args:
        layout: the whole window.
        counts: tokens per segment and frame.
        kept_memory: only the stream is computed; keys and values of memory are handed in.
        backend: who computes the attention.
    """
    groups = _groups(layout)
    frames = [sum(layout.segments[i].num_frames for i in group) for group in groups]
    texts = [len(group) * counts.text for group in groups]
    totals = [text + count * (counts.audio + counts.visual) for text, count in zip(texts, frames, strict=True)]
    ends = [0]
    for total in totals:
        ends.append(ends[-1] + total)
    first = sum(layout.segments[group[0]].is_memory for group in groups) if kept_memory else 0
    rectangles = []
    for query, members in enumerate(groups[first:], start=first):
        ranges: list[tuple[int, int]] = []
        for key, others in enumerate(groups):
            if not layout.visible(members[0], others[0]) or ends[key] == ends[key + 1]:
                continue
            if ranges and ranges[-1][1] == ends[key]:
                ranges[-1] = (ranges[-1][0], ends[key + 1])
            else:
                ranges.append((ends[key], ends[key + 1]))
        if ends[query] < ends[query + 1]:
            rectangles.append((ends[query] - ends[first], ends[query + 1] - ends[first], tuple(ranges)))
    sizes = (tuple(texts[first:]), tuple(n * counts.audio for n in frames[first:]), tuple(n * counts.visual for n in frames[first:]))
    owners = tuple(group[0] for group, total in zip(groups, totals, strict=True) for _ in range(total))
    return AttentionPlan(sizes, ends[first], tuple(rectangles), owners, layout, backend)


def attend(query_BLND: Tensor, key_BLND: Tensor, value_BLND: Tensor, plan: AttentionPlan, key_mask_BL: Tensor | None = None) -> Tensor:
    """Attention over tokens in group order, as the plan allows; [B, L, N, D].

    Args:
        query_BLND: of the computed tokens.
        key_BLND: of memory that was handed in, then of the computed tokens.
        value_BLND: as the keys.
        plan: who sees whom.
        key_mask_BL: False for keys that nobody may see (padding of captions), in the keys' order; None if all may be seen.
    """
    query, key, value = (x.transpose(1, 2) for x in (query_BLND, key_BLND, value_BLND))
    if plan.backend == "flex":
        return _flex(query, key, value, plan, key_mask_BL).transpose(1, 2)
    parts = []
    for start, end, ranges in plan.rectangles:
        keys, values = (_slices(x, ranges, 2) for x in (key, value))
        mask = None if key_mask_BL is None else _slices(key_mask_BL, ranges, 1)[:, None, None]
        parts.append(attention(query[:, :, start:end], keys, values, mask))
    mixed = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return mixed.transpose(1, 2)


def _slices(x: Tensor, ranges: tuple[tuple[int, int], ...], dim: int) -> Tensor:
    runs = [x.narrow(dim, start, end - start) for start, end in ranges]
    return torch.cat(runs, dim=dim) if len(runs) > 1 else runs[0]


def attention(query_BNLD: Tensor, key_BNLD: Tensor, value_BNLD: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    Where gradients are needed on a CPU in bfloat16 it is written out: torch's fused backward takes half as long again there
    (benchmarks/cpu_kernels.py).
    """
    if mask is None and query_BNLD.device.type == "cpu" and query_BNLD.dtype == torch.bfloat16 and query_BNLD.requires_grad:
        weights = torch.softmax(query_BNLD * query_BNLD.shape[-1] ** -0.5 @ key_BNLD.transpose(-1, -2), dim=-1)
        return weights @ value_BNLD
    return nnf.scaled_dot_product_attention(query_BNLD, key_BNLD, value_BNLD, attn_mask=mask)


def _flex(query_BNLD: Tensor, key_BNLD: Tensor, value_BNLD: Tensor, plan: AttentionPlan, key_mask_BL: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def hide(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert key_mask_BL is not None
        return torch.where(key_mask_BL[batch, key], score, -torch.inf)

    # without a GPU flex_attention computes the whole product and is there to be tested, not to be fast
    function: Any = _compiled_flex() if query_BNLD.is_cuda else flex_attention
    # padding changes with every batch, so it goes into the scores: the block mask stays that of the plan
    score = None if key_mask_BL is None else hide
    return function(query_BNLD, key_BNLD, value_BNLD, score_mod=score, block_mask=_block_mask(plan, query_BNLD.device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _block_mask(plan: AttentionPlan, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    segments = range(len(plan.layout.segments))
    table = torch.tensor([[plan.layout.visible(query, key) for key in segments] for query in segments], device=device)
    keys = torch.tensor(plan.owners, device=device)
    queries = keys[plan.memory :]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return table[queries[query], keys[key]]

    return create_block_mask(visible, None, None, len(queries), len(keys), device=str(device))


def dense_mask(layout: WindowLayout, counts: TokenCounts) -> Tensor:
    """The boolean mask [L, L] that the plan stands for, in the order text, audio, visual: the reference for tests."""
    text = [s for s in range(len(layout.segments)) for _ in range(counts.text)]
    audio = [s for s in layout.frame_segments for _ in range(counts.audio)]
    visual = [s for s in layout.frame_segments for _ in range(counts.visual)]
    owner = text + audio + visual
    segments = range(len(layout.segments))
    table = torch.tensor([[layout.visible(query, key) for key in segments] for query in segments])
    index = torch.tensor(owner)
    return table[index][:, index]

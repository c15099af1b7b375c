"""Wan's transformer block over segments. Legend: flowact/types.py; N heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowact.models.attention import KeyValue, attention
from flowact.models.blocks import AudioCrossAttention, Geometry, Streams, gated
from flowact.models.operations import EPSILON, after_activation, head_norm, modulated_norm
from flowact.models.rope import rotate


class WanBlock(nn.Module):
    """Self-attention of all visual tokens, cross-attention of each segment to its own text, MLP (Wan, arXiv 2503.20314, section 4.2).

    Wan adds to one modulation, which all blocks share, what each block has learnt; here both belong to a latent frame.

    Args:
        width: D of the tokens.
        num_heads: attention heads.
        hidden: hidden width of the MLP.
        hears: has a cross-attention to sound.
        image_tokens: see `TextCrossAttention`.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, hears: bool, image_tokens: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_key_norm = nn.Parameter(torch.ones(2, width))
        self.out = nn.Linear(width, width)
        self.text_norm = nn.LayerNorm(width, eps=EPSILON)
        self.text = TextCrossAttention(width, num_heads, image_tokens)
        self.audio = AudioCrossAttention(width, num_heads) if hears else None
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(
        self, streams: Streams, vectors: Streams, geometry: Geometry, memory: KeyValue | None = None, audio_BFAD: Tensor | None = None
    ) -> tuple[Streams, KeyValue | None]:
        """See `flowact.models.blocks.run_blocks`. Streams: visual tokens, and text, which comes back as it was. Vectors: six in a row per frame."""
        visual, text = streams
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (self.modulation + vectors[0].unflatten(-1, (6, -1))).unbind(2)
        query_key, value = self.project(modulated_norm(visual, shift, scale))
        query, key = rotate(query_key, geometry.rotation).unbind(2)
        visual = gated(visual, gate, self.out(geometry.mix(query, key, value, memory).flatten(2)))
        visual = visual + self.text(self.text_norm(visual), text, geometry.segment_frames)
        if self.audio is not None and audio_BFAD is not None:
            visual = self.audio(visual, audio_BFAD)
        change = after_activation(self.mlp_in(modulated_norm(visual, mlp_shift, mlp_scale)), "gelu", self.mlp_out, geometry.recompute)
        return (gated(visual, mlp_gate, change), text), (query_key[:, :, 1], value) if geometry.keep else None

    def project(self, visual_BFLD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with keys [B, L, 2, N, D], normalised over all heads together and not rotated, and values [B, L, N, D]."""
        query_key, value = self.qkv(visual_BFLD.flatten(1, 2)).unflatten(-1, (3, -1)).split([2, 1], dim=2)
        query_key = head_norm(query_key, self.query_key_norm, "rms")
        return query_key.unflatten(-1, (self.num_heads, -1)), value.squeeze(2).unflatten(-1, (self.num_heads, -1))


class TextCrossAttention(nn.Module):
    """The visual tokens of a segment look at the text of that segment, its padding included: Wan was trained so.

    Args:
        width: D of visual and text tokens.
        num_heads: attention heads.
        image_tokens: the last so many tokens of each text stand for a picture; they have their own keys and values, and a softmax of their own.
    """

    def __init__(self, width: int, num_heads: int, image_tokens: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.image_tokens = image_tokens
        self.query = nn.Linear(width, width)
        self.query_norm = nn.RMSNorm(width, eps=EPSILON)
        self.key_value = nn.Linear(width, 2 * width)
        self.key_norm = nn.RMSNorm(width, eps=EPSILON)
        self.image_key_value = nn.Linear(width, 2 * width) if image_tokens else None
        self.image_key_norm = nn.RMSNorm(width, eps=EPSILON) if image_tokens else None
        self.out = nn.Linear(width, width)

    def forward(self, visual_BFLD: Tensor, text_BSLD: Tensor, segment_frames: tuple[int, ...]) -> Tensor:
        """What is added to the visual tokens; `segment_frames` are the first frames of the segments."""
        query = self.query_norm(self.query(visual_BFLD))
        text, image = text_BSLD.tensor_split([text_BSLD.shape[2] - self.image_tokens], dim=2)
        key, value = self.key_value(text).chunk(2, dim=-1)
        mixed = self.look(query, self.key_norm(key), value, segment_frames)
        if self.image_key_value is not None and self.image_key_norm is not None:
            key, value = self.image_key_value(image).chunk(2, dim=-1)
            mixed = mixed + self.look(query, self.image_key_norm(key), value, segment_frames)
        return self.out(mixed)

    def look(self, query_BFLD: Tensor, key_BSLD: Tensor, value_BSLD: Tensor, segment_frames: tuple[int, ...]) -> Tensor:
        """Attention of each segment to its own keys and values, in one call per run of equally long segments."""

        def heads(x: Tensor, part: slice, count: int) -> Tensor:
            return x[:, part].reshape(x.shape[0] * count, -1, self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)

        mixed = []
        for segments, frames in equal_runs(segment_frames, query_BFLD.shape[1]):
            count = segments.stop - segments.start
            run = attention(heads(query_BFLD, frames, count), heads(key_BSLD, segments, count), heads(value_BSLD, segments, count))
            mixed.append(run.transpose(1, 2).reshape(query_BFLD[:, frames].shape))
        return torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]


def equal_runs(segment_frames: tuple[int, ...], num_frames: int) -> Iterator[tuple[slice, slice]]:
    """Runs of neighbouring segments with equally many frames, as slices of segments and of frames: one attention call serves a run."""
    ends = (*segment_frames[1:], num_frames)
    lengths = [end - start for start, end in zip(segment_frames, ends, strict=True)]
    first = 0
    for last in range(len(lengths)):
        if last + 1 == len(lengths) or lengths[last + 1] != lengths[first]:
            yield slice(first, last + 1), slice(segment_frames[first], ends[last])
            first = last + 1

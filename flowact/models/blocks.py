"""Blocks of a multimodal diffusion transformer over segments; the denoisers are made of them. Legend: flowact/types.py.

Tokens of a modality are kept as [B, G, L, D]: G groups that share a modulation vector (segments for text, latent frames for audio and visual).
A block takes the modalities side by side and returns them side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from flowact.models.attention import AttentionPlan, Backend, KeyValue, TokenCounts, attend, plan_attention
from flowact.models.embeddings import sine_code
from flowact.models.operations import Activation, NormKind, after_activation, applied, head_norm, modulated_norm, normed_rotation
from flowact.models.rope import Rotation, TextPosition, rotated_in_front, window_rotation
from flowact.types import Segment, WindowLayout

Checkpointing = Literal["none", "selective", "full"]
Streams = tuple[Tensor, ...]
"""One tensor [B, G, L, D] per modality."""


@dataclass(frozen=True)
class Geometry:
    """What every block of one forward pass shares.

    Attributes:
        plan: who sees whom, and the order in which attention wants the tokens.
        rotation: angles of the computed tokens, in that order.
        stream_rotations: the same angles per modality, in the order of segments and frames.
        memory_rotation: angles of memory whose keys are handed in.
        segment_frames: first computed frame of each computed segment.
        key_mask_BL: see `attend`.
        keep: whether blocks return their keys and values.
        recompute: whether blocks trade a little time for saved activations; see `after_activation`.
    """

    plan: AttentionPlan
    rotation: Rotation
    stream_rotations: tuple[Rotation, ...]
    memory_rotation: Rotation
    segment_frames: tuple[int, ...]
    key_mask_BL: Tensor | None = None
    keep: bool = False
    recompute: bool = True

    @classmethod
    def of(
        cls,
        layout: WindowLayout,
        counts: TokenCounts,
        size: tuple[int, int],
        axes: tuple[int, int, int],
        theta: float,
        device: torch.device,
        *,
        kept_memory: bool = False,
        text_at: TextPosition = "middle",
        backend: Backend = "rectangles",
    ) -> Geometry:
        """The geometry of a window; see `window_rotation` and `plan_attention` for the arguments."""
        plan = plan_attention(layout, counts, kept_memory, backend)
        cosine, sine = window_rotation(layout, counts, size, axes, theta, device, text_at)
        starts, frame = [], 0
        for segment in layout.segments:
            if not (kept_memory and segment.is_memory):
                starts.append(frame)
                frame += segment.num_frames
        computed, memory = slice(plan.memory, None), slice(plan.memory)
        streams = tuple((c[0], s[0]) for c, s in zip(plan.part(cosine[None, computed]), plan.part(sine[None, computed]), strict=True))
        return cls(plan, (cosine[computed], sine[computed]), streams, (cosine[memory], sine[memory]), tuple(starts))

    def entry_lengths(self, segments: Sequence[Segment], reference_beside: bool = False) -> tuple[int, ...]:
        """Tokens of each memory segment, if segments are isolated, else nothing.

        Args:
            segments: of the memory that was asked for.
            reference_beside: reference segments became channels beside the other frames and have no tokens.
        """
        if self.plan.layout.visibility.memory != "isolated":
            return ()
        lengths = iter(self.plan.group_lengths)
        return tuple(0 if reference_beside and segment.kind == "reference" else next(lengths) for segment in segments)

    def vectors(self, vector_BFD: Tensor, num_streams: int) -> Streams:
        """The modulation vector of each group of each modality; text takes that of its segment's first frame."""
        if num_streams == 1:
            return (vector_BFD,)
        return (vector_BFD[:, list(self.segment_frames)], *(vector_BFD,) * (num_streams - 1))

    def mix(self, query_BLND: Tensor, key_BLND: Tensor, value_BLND: Tensor, memory: KeyValue | None) -> Tensor:
        """Attention of rotated queries and keys in the plan's order, in front of memory whose keys are not rotated yet."""
        if memory is not None:
            key_BLND = rotated_in_front(memory[0], self.memory_rotation, key_BLND)
            value_BLND = torch.cat([memory[1].to(value_BLND.dtype), value_BLND], dim=1)
        return attend(query_BLND, key_BLND, value_BLND, self.plan, self.key_mask_BL)


@dataclass(frozen=True)
class BlockShape:
    """Sizes and choices that all blocks share.

    Attributes:
        width: D of the tokens.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over `width`.
        gate: where the gates of the residual branches start; 0 makes a block start as the identity (adaLN-Zero, DiT).
        activation: of the MLPs: GELU (tanh form) as in SD3, or SiLU, which a CPU computes twice as fast (benchmarks/cpu_kernels.py).
        query_key_norm: RMS norm as in SD3, or layer norm without bias, which a CPU computes twice as fast.
    """

    width: int
    num_heads: int
    mlp_ratio: float = 4.0
    gate: float = 0.0
    activation: Activation = "gelu"
    query_key_norm: NormKind = "rms"

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def hidden(self) -> int:
        return int(self.width * self.mlp_ratio)

    def split_heads(self, qkv_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with keys [B, L, 2, N, head width], and values [B, L, N, head width]."""
        # one split: the gradient of two slices would be two full tensors of zeros with a part filled in, added up
        query_key, value = qkv_BLD.unflatten(-1, (3, self.num_heads, self.head_width)).split([2, 1], dim=2)
        return query_key, value.squeeze(2)


class QueryKeyNorm(nn.Module):
    """Normalises queries and keys per head, each with its own weight, and rotates them."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1, shape.head_width))
        self.kind: NormKind = shape.query_key_norm

    def forward(self, query_key: Tensor, rotation: Rotation) -> Tensor:
        return normed_rotation(query_key, self.weight, *rotation, self.kind)

    def unrotated_key(self, query_key: Tensor) -> Tensor:
        """The normalised keys [B, L, N, D] before rotation: what is kept of memory."""
        return head_norm(query_key[:, :, 1], self.weight[1], self.kind)


class Modulation(nn.Module):
    """silu and a linear map to `parts` vectors (shift, scale, gate, ...) per latent frame.

    Starts at zero but for the gates, which start at `gate`: 0 makes a block start as the identity (adaLN-Zero, DiT).
    """

    def __init__(self, width: int, parts: int, gate: float = 0.0) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.bias.view(parts, width)[2::3] = gate

    def forward(self, vector_BFD: Tensor) -> tuple[Tensor, ...]:
        return self.linear(nnf.silu(vector_BFD)).chunk(self.parts, dim=-1)


def gated(x_BGLD: Tensor, gate_BGD: Tensor, change: Tensor) -> Tensor:
    """x + gate * change; the change may have its tokens in one row [B, G * L, D]."""
    return torch.addcmul(x_BGLD, gate_BGD[:, :, None], change.view_as(x_BGLD))


class Tower(nn.Module):
    """The weights of one modality in a double-stream block."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.modulation = Modulation(shape.width, 6, shape.gate)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.norm = QueryKeyNorm(shape)
        self.out = nn.Linear(shape.width, shape.width)
        self.mlp_in = nn.Linear(shape.width, shape.hidden)
        self.mlp_out = nn.Linear(shape.hidden, shape.width)

    def project(self, x_BGLD: Tensor, shift_BGD: Tensor, scale_BGD: Tensor, recompute: bool) -> tuple[Tensor, Tensor]:
        """Queries with keys, and values, of modulated tokens; see `BlockShape.split_heads`."""
        return self.shape.split_heads(applied(self.qkv, lambda: modulated_norm(x_BGLD, shift_BGD, scale_BGD).flatten(1, 2), recompute))

    def mlp(self, x_BGLD: Tensor, shift_BGD: Tensor, scale_BGD: Tensor, recompute: bool) -> Tensor:
        """Two linear maps of modulated tokens with an activation between them."""
        hidden = applied(self.mlp_in, lambda: modulated_norm(x_BGLD, shift_BGD, scale_BGD), recompute)
        return after_activation(hidden, self.shape.activation, self.mlp_out, recompute)


class AudioCrossAttention(nn.Module):
    """Visual tokens of a latent frame look at that frame's audio tokens, whose order they know.

    It starts at zero effect, so that a pretrained model can be given ears.

    Memory frames look at their own audio, which is clean and theirs, so memory still never depends on the stream.

    Args:
        width: D of visual and audio tokens.
        num_heads: attention heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, visual_BFLD: Tensor, audio_BFAD: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        order_A = torch.arange(audio_BFAD.shape[2], dtype=torch.float32, device=audio_BFAD.device)
        audio_BFAD = audio_BFAD + sine_code(order_A, audio_BFAD.shape[-1]).to(audio_BFAD.dtype)
        key, value = (heads(x) for x in self.key_value(audio_BFAD).chunk(2, dim=-1))
        mixed = nnf.scaled_dot_product_attention(heads(self.query(self.norm(visual_BFLD))), key, value)
        return visual_BFLD + self.out(mixed.transpose(1, 2).flatten(2).view_as(visual_BFLD))


class DoubleBlock(nn.Module):
    """Own weights per modality and one attention over all of them (SD3, figure 2b; HunyuanVideo).

    Args:
        shape: sizes.
        modalities: name of the tower of each modality, in the order of the streams; modalities of one name share a tower.
        audio_cross_attention: let the visual tokens look at audio that is not among the streams.
    """

    def __init__(self, shape: BlockShape, modalities: Sequence[str], audio_cross_attention: bool = False) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.towers = nn.ModuleDict({name: Tower(shape) for name in dict.fromkeys(modalities)})
        self.audio = AudioCrossAttention(shape.width, shape.num_heads) if audio_cross_attention else None

    def forward(
        self, streams: Streams, vectors: Streams, geometry: Geometry, memory: KeyValue | None = None, audio_BFAD: Tensor | None = None
    ) -> tuple[Streams, KeyValue | None]:
        towers: list[Any] = [self.towers[name] for name in self.modalities]
        parts = [tower.modulation(vector) for tower, vector in zip(towers, vectors, strict=True)]
        projected = [tower.project(x, p[0], p[1], geometry.recompute) for tower, x, p in zip(towers, streams, parts, strict=True)]
        rotated = [tower.norm(qk, rotation) for tower, (qk, _), rotation in zip(towers, projected, geometry.stream_rotations, strict=True)]
        query, key = geometry.plan.join(rotated).unbind(2)
        value = geometry.plan.join([value for _, value in projected])
        kept = None
        if geometry.keep:
            kept = geometry.plan.join([tower.norm.unrotated_key(qk) for tower, (qk, _) in zip(towers, projected, strict=True)]), value
        mixed = geometry.plan.part(geometry.mix(query, key, value, memory).flatten(2))
        changed = [gated(x, p[2], tower.out(m)) for tower, x, p, m in zip(towers, streams, parts, mixed, strict=True)]
        if self.audio is not None and audio_BFAD is not None:
            changed[-1] = self.audio(changed[-1], audio_BFAD)
        done = [gated(x, p[5], tower.mlp(x, p[3], p[4], geometry.recompute)) for tower, x, p in zip(towers, changed, parts, strict=True)]
        return tuple(done), kept


class SingleBlock(nn.Module):
    """One set of weights for all tokens; attention and MLP side by side (HunyuanVideo, after Flux).

    Args:
        shape: sizes.
        audio_cross_attention: see `DoubleBlock`.
    """

    def __init__(self, shape: BlockShape, audio_cross_attention: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.modulation = Modulation(shape.width, 3, shape.gate)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.norm = QueryKeyNorm(shape)
        self.mlp_in = nn.Linear(shape.width, shape.hidden)
        # what Flux keeps as one linear map of both results side by side; apart, they need not be copied together
        self.out = nn.Linear(shape.width, shape.width)
        self.mlp_out = nn.Linear(shape.hidden, shape.width, bias=False)
        bound = (shape.width + shape.hidden) ** -0.5  # they start as that one map would
        for parameter in (self.out.weight, self.out.bias, self.mlp_out.weight):
            nn.init.uniform_(parameter, -bound, bound)
        self.audio = AudioCrossAttention(shape.width, shape.num_heads) if audio_cross_attention else None

    def forward(
        self, streams: Streams, vectors: Streams, geometry: Geometry, memory: KeyValue | None = None, audio_BFAD: Tensor | None = None
    ) -> tuple[Streams, KeyValue | None]:
        parts = [self.modulation(vector) for vector in vectors]
        tokens = geometry.plan.join([modulated_norm(x, p[0], p[1]).flatten(1, 2) for x, p in zip(streams, parts, strict=True)])
        query_key, value = self.shape.split_heads(self.qkv(tokens))
        query, key = self.norm(query_key, geometry.rotation).unbind(2)
        kept = (self.norm.unrotated_key(query_key), value.contiguous()) if geometry.keep else None  # not a view that holds queries and keys too
        change = self.out(geometry.mix(query, key, value, memory).flatten(2))
        change = change + after_activation(self.mlp_in(tokens), self.shape.activation, self.mlp_out, geometry.recompute)
        done = [gated(x, p[2], c) for x, p, c in zip(streams, parts, geometry.plan.part(change), strict=True)]
        if self.audio is not None and audio_BFAD is not None:
            done[-1] = self.audio(done[-1], audio_BFAD)
        return tuple(done), kept


def run_blocks(
    blocks: Iterable[nn.Module],
    streams: Streams,
    vectors: Streams,
    geometry: Geometry,
    memory: Iterable[KeyValue] | None = None,
    audio_BFAD: Tensor | None = None,
    checkpointing: Checkpointing = "none",
) -> tuple[Streams, list[KeyValue]]:
    """All blocks in turn.

    Args:
        blocks: double and single blocks.
        streams: tokens of each modality.
        vectors: modulation vector of each group of each modality.
        geometry: shared by all blocks.
        memory: keys and values that are handed in, one pair per block; None if memory is among the streams, or absent.
        audio_BFAD: audio tokens for blocks that look at them from outside of the streams.
        checkpointing: what is kept for the backward pass: all ("none"), the results of matrix products but the widest ("selective"), or the
            block's input ("full").

    Returns:
        the streams, and each block's keys and values if the geometry says `keep`.
    """
    blocks = list(blocks)
    handed: list[KeyValue | None] = [None] * len(blocks) if memory is None else list(memory)
    training = torch.is_grad_enabled() and checkpointing != "none"
    if training:
        geometry = replace(geometry, recompute=False)
    kept = []
    for block, pair in zip(blocks, handed, strict=True):
        if training:
            options: dict[str, Any] = {"context_fn": _save_products} if checkpointing == "selective" else {}
            streams, keys_values = checkpoint(block, streams, vectors, geometry, pair, audio_BFAD, use_reentrant=False, **options)
        else:
            streams, keys_values = block(streams, vectors, geometry, pair, audio_BFAD)
        if keys_values is not None:
            kept.append(keys_values)
    return streams, kept


def _save_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)


#: only products that bring their bias: to a bare product a bias is added in place (by torch for some layouts, and by ZeRO-3's linear), and what
#: was kept of it would be wrong
_PRODUCT = torch.ops.aten.addmm.default
_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Keep what is dear to compute and small: attention, and matrix products that do not widen to an MLP's hidden width."""
    if operation in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if operation is _PRODUCT:
        weight = arguments[-1]
        widens = weight.shape[-1] > 3 * weight.shape[-2]
        return CheckpointPolicy.PREFER_RECOMPUTE if widens else CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE

"""A multimodal diffusion transformer over segments, with one noise level per latent frame.

After SD3 (arXiv 2403.03206, section 4) and HunyuanVideo (arXiv 2412.03603): double-stream blocks in which condition tokens (text and audio,
the left tower of FlowAct-R1's Figure 2) and visual tokens have their own weights and one joint attention, then single-stream blocks.
What diffusion forcing changes: the modulation vector belongs to a latent frame, not to a sample. Legend: flowact/types.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.models.attention import AttentionPlan, TokenCounts, attend, plan_attention
from flowact.models.base import Denoiser, check_window
from flowact.models.rope import rotate, window_rotation
from flowact.types import ConditionTokens, SegmentKind, WindowLayout

KINDS: tuple[SegmentKind, ...] = ("reference", "long", "short", "stream")


@dataclass(frozen=True)
class Geometry:
    """What every block of one forward pass shares."""

    plan: AttentionPlan
    rotation: tuple[Tensor, Tensor]
    counts: TokenCounts
    segment_starts: tuple[int, ...]

    def expand(self, modulation_BFD: Tensor) -> tuple[Tensor, Tensor]:
        """Per-frame vectors as token vectors: conditions [B, text + audio tokens, D] and visual [B, F, 1, D]."""
        text = modulation_BFD[:, list(self.segment_starts)].repeat_interleave(self.counts.text, dim=1)
        audio = modulation_BFD.repeat_interleave(self.counts.audio, dim=1)
        return torch.cat([text, audio], dim=1), modulation_BFD[:, :, None]


@dataclass(frozen=True)
class BlockShape:
    """Sizes and choices that all blocks share; see `MMDiT` for their meaning."""

    width: int
    num_heads: int
    mlp_ratio: float
    gate: float
    activation: Literal["gelu", "silu"]
    query_key_norm: Literal["rms", "layer"]

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def hidden(self) -> int:
        return int(self.width * self.mlp_ratio)

    def act(self, x: Tensor) -> Tensor:
        return nnf.gelu(x, approximate="tanh") if self.activation == "gelu" else nnf.silu(x)

    def split_heads(self, qkv_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with keys [B, L, 2, N, head width], and values [B, L, N, head width]."""
        qkv = qkv_BLD.unflatten(-1, (3, self.num_heads, self.head_width))
        return qkv[:, :, :2], qkv[:, :, 2]


class QueryKeyNorm(nn.Module):
    """Normalises queries and keys per head, each with its own weight."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1, shape.head_width))
        self.kind = shape.query_key_norm

    def forward(self, query_key: Tensor) -> Tensor:
        size = query_key.shape[-1:]
        normed = nnf.rms_norm(query_key, size, eps=1e-6) if self.kind == "rms" else nnf.layer_norm(query_key, size, eps=1e-6)
        return normed * self.weight.to(normed.dtype)


class Tower(nn.Module):
    """The weights of one modality in a double-stream block."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.norm = QueryKeyNorm(shape)
        self.out = nn.Linear(shape.width, shape.width)
        self.mlp_in = nn.Linear(shape.width, shape.hidden)
        self.mlp_out = nn.Linear(shape.hidden, shape.width)

    def project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries with keys, and values; see `BlockShape.split_heads`."""
        query_key, value = self.shape.split_heads(self.qkv(x_BLD))
        return self.norm(query_key), value

    def mlp(self, x: Tensor) -> Tensor:
        """Two linear maps with an activation between them."""
        return self.mlp_out(self.shape.act(self.mlp_in(x)))


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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer normalisation without weights, then scale and shift."""
    return torch.addcmul(shift, nnf.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class DoubleBlock(nn.Module):
    """Conditions and pictures each with their own weights, one attention over both."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.condition = Tower(shape)
        self.visual = Tower(shape)
        self.condition_modulation = Modulation(shape.width, 6, shape.gate)
        self.visual_modulation = Modulation(shape.width, 6, shape.gate)

    def forward(self, condition_BLD: Tensor, visual_BFLD: Tensor, vector_BFD: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        shift_c, scale_c, gate_c, mlp_shift_c, mlp_scale_c, mlp_gate_c = (geometry.expand(m)[0] for m in self.condition_modulation(vector_BFD))
        shift_v, scale_v, gate_v, mlp_shift_v, mlp_scale_v, mlp_gate_v = (m[:, :, None] for m in self.visual_modulation(vector_BFD))
        projected_c = self.condition.project(modulate(condition_BLD, shift_c, scale_c))
        projected_v = self.visual.project(modulate(visual_BFLD, shift_v, scale_v).flatten(1, 2))
        query_key, value = (torch.cat(pair, dim=1) for pair in zip(projected_c, projected_v, strict=True))
        mixed = attend(rotate(query_key, geometry.rotation), value, geometry.plan).flatten(2)
        mixed_c, mixed_v = mixed.split([condition_BLD.shape[1], mixed.shape[1] - condition_BLD.shape[1]], dim=1)
        condition = torch.addcmul(condition_BLD, gate_c, self.condition.out(mixed_c))
        visual = torch.addcmul(visual_BFLD, gate_v, self.visual.out(mixed_v).view_as(visual_BFLD))
        condition = torch.addcmul(condition, mlp_gate_c, self.condition.mlp(modulate(condition, mlp_shift_c, mlp_scale_c)))
        visual = torch.addcmul(visual, mlp_gate_v, self.visual.mlp(modulate(visual, mlp_shift_v, mlp_scale_v)))
        return condition, visual


class SingleBlock(nn.Module):
    """One set of weights for all tokens; attention and MLP side by side (HunyuanVideo, after Flux)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.into = nn.Linear(shape.width, 3 * shape.width + shape.hidden)
        self.norm = QueryKeyNorm(shape)
        self.out = nn.Linear(shape.width + shape.hidden, shape.width)
        self.modulation = Modulation(shape.width, 3, shape.gate)

    def forward(self, condition_BLD: Tensor, visual_BFLD: Tensor, vector_BFD: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        (shift_c, shift_v), (scale_c, scale_v), (gate_c, gate_v) = (geometry.expand(m) for m in self.modulation(vector_BFD))
        tokens = torch.cat([modulate(condition_BLD, shift_c, scale_c), modulate(visual_BFLD, shift_v, scale_v).flatten(1, 2)], dim=1)
        qkv, hidden = self.into(tokens).split([3 * self.shape.width, self.shape.hidden], dim=-1)
        query_key, value = self.shape.split_heads(qkv)
        mixed = attend(rotate(self.norm(query_key), geometry.rotation), value, geometry.plan).flatten(2)
        change = self.out(torch.cat([mixed, self.shape.act(hidden)], dim=-1))
        change_c, change_v = change.split([condition_BLD.shape[1], change.shape[1] - condition_BLD.shape[1]], dim=1)
        return torch.addcmul(condition_BLD, gate_c, change_c), torch.addcmul(visual_BFLD, gate_v, change_v.view_as(visual_BFLD))


class MMDiT(Denoiser):
    """See the module's docstring.

    Args:
        latent_channels: C of the latents.
        text_width: width of the text encoder's features.
        audio_width: width of the audio encoder's features.
        audio_per_latent: audio features per latent frame, the autoencoder's temporal stride.
        width: token width.
        num_heads: attention heads; each head's width must be even.
        num_double_blocks: blocks with own weights for conditions and pictures.
        num_single_blocks: blocks with shared weights.
        mlp_ratio: hidden width of the MLPs over `width`.
        patch: latent cells per token and side.
        absolute_positions: add a fixed sine code of row and column to visual tokens; helps small models whose pictures are all framed alike.
        prediction: what the last layer gives: the velocity, or the clean sample from which the velocity is computed.
            The loss is on the velocity either way.
        theta: base of the rotary frequencies.
        initial_gate: where the gates of the residual branches start; above 0, small models learn sooner.
        activation: of the MLPs: GELU (tanh form) as in SD3, or SiLU, which a CPU computes twice as fast (benchmarks/cpu_kernels.py).
        query_key_norm: RMS norm as in SD3, or layer norm without bias, which a CPU computes twice as fast.

    Raises:
        ValueError: width does not divide into heads of even width.
    """

    def __init__(
        self,
        latent_channels: int,
        text_width: int,
        audio_width: int,
        audio_per_latent: int = 4,
        width: int = 192,
        num_heads: int = 4,
        num_double_blocks: int = 2,
        num_single_blocks: int = 4,
        mlp_ratio: float = 4.0,
        patch: int = 1,
        absolute_positions: bool = False,
        prediction: Literal["velocity", "sample"] = "velocity",
        theta: float = 256.0,
        initial_gate: float = 0.0,
        activation: Literal["gelu", "silu"] = "gelu",
        query_key_norm: Literal["rms", "layer"] = "rms",
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 2:
            raise ValueError(f"width {width} does not divide into {num_heads} heads of even width; choose a multiple of {2 * num_heads}")
        self.latent_channels = latent_channels
        self.text_width = text_width
        self.audio_width = audio_width
        self.audio_per_latent = audio_per_latent
        self.patch = patch
        self.head_width = width // num_heads
        self.absolute_positions = absolute_positions
        self.prediction = prediction
        self.theta = theta
        self.width = width
        patch_width = latent_channels * patch**2

        def embed(size: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

        self.visual_in = nn.Linear(patch_width, width)
        self.text_in = embed(text_width)
        self.audio_in = embed(audio_width)
        self.level_in = embed(256)
        self.pooled_text_in = embed(text_width)
        self.pooled_audio_in = embed(audio_per_latent * audio_width)
        self.kind = nn.Embedding(len(KINDS), width)
        nn.init.normal_(self.kind.weight, std=0.02)
        shape = BlockShape(width, num_heads, mlp_ratio, initial_gate, activation, query_key_norm)
        self.double_blocks = nn.ModuleList(DoubleBlock(shape) for _ in range(num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(shape) for _ in range(num_single_blocks))
        self.out_modulation = Modulation(width, 2)
        self.out = nn.Linear(width, patch_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> Tensor:
        """See `Denoiser.forward`. Latents and conditions may be of another number type than the weights; the velocity is float32."""
        check_window(latents_BFCHW, sigma_BF, conditions, layout)
        dtype = self.kind.weight.dtype
        conditions = conditions.to(dtype)
        vector_BFD = self.frame_vector(sigma_BF, conditions, layout)
        condition_BLD = torch.cat([self.text_in(conditions.text_BSLD).flatten(1, 2), self.audio_in(conditions.audio_BFAD).flatten(1, 2)], dim=1)
        visual_BFLD = self.visual_in(self.to_patches(latents_BFCHW).to(dtype))
        if self.absolute_positions:
            visual_BFLD = visual_BFLD + self.spatial_code(latents_BFCHW).to(visual_BFLD.dtype)
        geometry = self.geometry(latents_BFCHW, conditions, layout)
        for block in (*self.double_blocks, *self.single_blocks):
            condition_BLD, visual_BFLD = block(condition_BLD, visual_BFLD, vector_BFD, geometry)
        memory = layout.num_memory_frames
        shift, scale = (m[:, :, None] for m in self.out_modulation(vector_BFD[:, memory:]))
        patches = self.out(modulate(visual_BFLD[:, memory:], shift, scale))
        predicted = self.from_patches(patches, latents_BFCHW.shape[-2:]).float()
        if self.prediction == "velocity":
            return predicted
        sigma = sigma_BF[:, memory:, None, None, None].clamp(min=0.05)  # the division is bounded near clean frames
        return (latents_BFCHW[:, memory:] - predicted) / sigma

    def frame_vector(self, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> Tensor:
        """The modulation vector of each latent frame: noise level, pooled text of its segment, its audio, and the segment's kind."""
        segments = list(layout.frame_segments)
        kinds = torch.tensor([KINDS.index(layout.segments[s].kind) for s in segments], device=sigma_BF.device)
        text_BFD = self.pooled_text_in(conditions.text_BSLD.mean(2))[:, segments]
        level_BFD = self.level_in(level_code(sigma_BF).to(self.kind.weight.dtype))
        return level_BFD + text_BFD + self.pooled_audio_in(conditions.audio_BFAD.flatten(2)) + self.kind(kinds)

    def geometry(self, latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> Geometry:
        """Attention plan and rotary angles; the same object serves every block."""
        height, width = (size // self.patch for size in latents_BFCHW.shape[-2:])
        counts = TokenCounts(conditions.text_BSLD.shape[2], conditions.audio_BFAD.shape[2], height * width)
        rotation = window_rotation(layout, counts, height, width, self.head_width, self.theta, latents_BFCHW.device)
        starts, frame = [], 0
        for segment in layout.segments:
            starts.append(frame)
            frame += segment.num_frames
        return Geometry(plan_attention(layout, counts), rotation, counts, tuple(starts))

    def to_patches(self, latents_BFCHW: Tensor) -> Tensor:
        """Tokens [B, F, L, C * patch * patch]."""
        batch, height, width = latents_BFCHW.shape[0], *latents_BFCHW.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"latents of {height}x{width} cells do not divide into patches of side {self.patch}; choose another patch")
        folded = nnf.pixel_unshuffle(latents_BFCHW.flatten(0, 1), self.patch) if self.patch > 1 else latents_BFCHW.flatten(0, 1)
        return folded.flatten(2).transpose(1, 2).unflatten(0, (batch, -1))

    def from_patches(self, patches_BFLD: Tensor, size: torch.Size) -> Tensor:
        """Latents [B, F, C, H, W] of tokens."""
        folded = patches_BFLD.flatten(0, 1).transpose(1, 2).unflatten(2, (size[0] // self.patch, size[1] // self.patch))
        latents = nnf.pixel_shuffle(folded, self.patch) if self.patch > 1 else folded
        return latents.unflatten(0, (patches_BFLD.shape[0], -1))

    def spatial_code(self, latents_BFCHW: Tensor) -> Tensor:
        """Sine code [L, width] of row and column."""
        height, width = (size // self.patch for size in latents_BFCHW.shape[-2:])
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        half = self.width // 2
        code = torch.cat([sine_code(rows.flatten().float(), half), sine_code(columns.flatten().float(), self.width - half)], dim=-1)
        return code.to(latents_BFCHW)


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

"""Operations of a transformer block written so that eager mode moves and keeps less memory: they save inputs and compute the rest again.

torch.compile fuses the plain formulas by itself, so under it those are used; they are also what the tests compare with.
Legend: flowact/types.py; G groups of tokens that share a modulation (segments or latent frames), N heads, D width of tokens or of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

NormKind = Literal["rms", "layer"]
Activation = Literal["gelu", "silu"]
Linear = Callable[[Tensor], Tensor]
EPSILON = 1e-6
#: elements that a CPU core keeps at hand while several operations go over them
_CACHED = 1 << 17


def modulated_norm(x_BGLD: Tensor, shift_BGD: Tensor, scale_BGD: Tensor) -> Tensor:
    """Layer normalisation without weights, then (1 + scale) and shift per group (adaLN, DiT section 3.2). Keeps the input only."""
    shift, scale = shift_BGD[:, :, None], scale_BGD[:, :, None]
    mixed = not x_BGLD.dtype == shift.dtype == scale.dtype  # left to torch's own promotion
    if torch.compiler.is_compiling() or mixed:
        return torch.addcmul(shift, nnf.layer_norm(x_BGLD, x_BGLD.shape[-1:], eps=EPSILON), 1 + scale)
    return _ModulatedNorm.apply(x_BGLD, shift, scale)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
        ctx.save_for_backward(x, mean, deviation, scale)
        return torch.addcmul(shift, normed, 1 + scale, out=normed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, mean, deviation, scale = ctx.saved_tensors
        normed = (x - mean).mul_(deviation)
        to_scale = torch.mul(gradient, normed.to(gradient.dtype)).sum(2, keepdim=True)
        to_shift = gradient.sum(2, keepdim=True)
        mask = [True, False, False]
        to_x = torch.ops.aten.native_layer_norm_backward(gradient * (1 + scale), x, x.shape[-1:], mean, deviation, None, None, mask)[0]
        return to_x, to_shift, to_scale


def normed_rotation(x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, kind: NormKind) -> Tensor:
    """Normalise queries and keys per head, weigh them, and rotate them (RMS norm as in SD3, equation 6; rotary positions, RoFormer).

    Keeps the input only.

    Args:
        x: queries and keys [B, L, 2, N, D].
        weight: [2, 1, D].
        cosine: [L, D / 2].
        sine: [L, D / 2].
        kind: RMS norm, or layer norm without bias.
    """
    weight, cosine, sine = weight.to(x.dtype), cosine.to(x.dtype), sine.to(x.dtype)
    if torch.compiler.is_compiling():
        return _plain_normed_rotation(x, weight, cosine, sine, kind)
    return _NormedRotation.apply(x, weight, cosine, sine, kind)


def head_norm(x: Tensor, weight: Tensor, kind: NormKind) -> Tensor:
    """The normalisation of `normed_rotation` alone."""
    size = x.shape[-1:]
    normed = nnf.rms_norm(x, size, eps=EPSILON) if kind == "rms" else nnf.layer_norm(x, size, eps=EPSILON)
    return normed * weight.to(normed.dtype)


def _plain_normed_rotation(x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, kind: NormKind) -> Tensor:
    first, second = head_norm(x, weight, kind).chunk(2, dim=-1)
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class _NormedRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, kind: NormKind) -> Tensor:
        # the weights go into the table of angles, which all heads and samples share
        table = [(part[:, None, None] * half) for part in (cosine, sine) for half in weight.chunk(2, dim=-1)]
        cosine_first, cosine_second, sine_first, sine_second = table
        source, inverse = _scale(x, kind)
        first, second = source.chunk(2, dim=-1)
        out = torch.empty_like(source, memory_format=torch.contiguous_format)
        out_first, out_second = out.chunk(2, dim=-1)
        torch.mul(first, cosine_first, out=out_first).addcmul_(second, sine_second, value=-1)
        torch.mul(second, cosine_second, out=out_second).addcmul_(first, sine_first)
        if kind == "rms":  # a rotation does not change lengths, so that they may be set afterwards, in place
            out.mul_(inverse)
        ctx.save_for_backward(x, weight, cosine, sine, inverse)
        ctx.kind = kind
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, cosine, sine, inverse = ctx.saved_tensors
        normed = (x - x.mean(-1, keepdim=True)).mul_(inverse) if ctx.kind == "layer" else x * inverse
        cosine, sine = cosine[:, None, None], sine[:, None, None]
        first, second = gradient.chunk(2, dim=-1)
        back = torch.empty_like(normed)  # rotated back: the gradient of the weighted, normalised input
        back_first, back_second = back.chunk(2, dim=-1)
        torch.mul(first, cosine, out=back_first).addcmul_(second, sine)
        torch.mul(second, cosine, out=back_second).addcmul_(first, sine, value=-1)
        product = back * normed
        to_weight = product.sum((0, 1, 3))[:, None].to(weight.dtype)
        inner = product.mul_(weight).mean(-1, keepdim=True)
        back.mul_(weight)
        if ctx.kind == "layer":
            back.sub_(back.mean(-1, keepdim=True))
        return back.sub_(normed.mul_(inner)).mul_(inverse), to_weight, None, None, None


def _scale(x: Tensor, kind: NormKind) -> tuple[Tensor, Tensor]:
    """What is to be rotated, and the inverse scale [..., 1] by which RMS norm multiplies it; layer norm gives it normalised already."""
    if kind == "layer":
        normed, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
        return normed, inverse.to(x.dtype)
    # one pass, and no square of x in memory
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x, (length.square() / x.shape[-1]).add_(EPSILON).rsqrt_().to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form. On a CPU torch's own computes tanh, which takes more than twice as long as the logistic function that it equals."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return nnf.gelu(x, approximate="tanh")
    return _LogisticGelu.apply(x)


_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715


class _LogisticGelu(torch.autograd.Function):
    """0.5 x (1 + tanh(u / 2)) = x logistic(u) with u = x (a + b x^2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _logistic(x).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        u = (x * x).mul_(_CUBIC).add_(_LINEAR).mul_(x)
        gate = u.sigmoid()
        slope = u.mul_(3).add_(x, alpha=-2 * _LINEAR).mul_(gate)  # x u' logistic, as x u' = 3 u - 2 a x
        return slope.addcmul_(slope, gate, value=-1).add_(gate).mul_(gradients[0])


def _logistic(x: Tensor) -> Tensor:
    return (x * x).mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_()


def activate(x: Tensor, kind: Activation, in_place: bool = False) -> Tensor:
    """GELU in its tanh form, or SiLU.

    Args:
        x: any shape.
        kind: which.
        in_place: put the result in the place of `x`, which must be contiguous and need no gradient.
    """
    if kind == "silu":
        return nnf.silu(x, inplace=in_place)
    if not in_place or x.device.type != "cpu" or x.dtype != torch.float32:
        return gelu(x)
    for block in x.view(-1).split(_CACHED):
        block.mul_(_logistic(block))
    return x


def after_activation(hidden: Tensor, kind: Activation, linear: Linear, recompute: bool) -> Tensor:
    """linear(activation(hidden)). Nobody else may hold `hidden`: without gradients its place is taken. See `applied` for the arguments."""
    if not torch.compiler.is_compiling() and not hidden.requires_grad:
        return linear(activate(hidden, kind, in_place=True))
    return applied(linear, lambda: activate(hidden, kind), recompute)


def applied(linear: Linear, make: Callable[[], Tensor], recompute: bool) -> Tensor:
    """linear(make()). With `recompute` what `make` gives is not kept for the backward pass but made again.

    For eager training without activation checkpointing: a checkpoint keeps nothing here anyway, and a compiler decides by itself.

    Args:
        linear: called as it is, so wrapped layers (LoRA, ZeRO-3) do what they do.
        make: cheap and without randomness; what it needs stays alive.
        recompute: make again.
    """
    made = make()
    if not recompute or torch.compiler.is_compiling() or not made.requires_grad:
        return linear(made)
    address, shape = made.data_ptr(), made.shape

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        same = tensor.data_ptr() == address and tensor.numel() == shape.numel() and tensor.is_contiguous()
        return tensor.shape if same else tensor

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return make().view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return linear(made)

"""Streaming through the networks of HunyuanVideo-1.5's autoencoder, as `diffusers` builds them: their own layers, called with a feature cache.

Every layer looks back in time only, so nothing has to be computed twice: a causal convolution needs the last two frames of its input, attention
the keys and values of the past. The first latent frame (one pixel frame) goes through alone, each later one with its `temporal stride` frames.
Legend: flowact/types.py; here F is frames at any depth of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

Features = Tensor | tuple[Tensor, Tensor]


class FeatureCache:
    """What the layers that look back have kept, one entry each, in the order in which they are called.

    Args:
        past: `kept` of the call before; None at the start of a clip.
        horizon: latent frames of the past that attention sees.
    """

    def __init__(self, past: Sequence[Features] | None, horizon: int) -> None:
        self.at_start = past is None
        self.kept: list[Features] = []
        self._past: Any = None if past is None else iter(past)
        self._horizon = horizon

    def convolve(self, layer: Any, x_BDFHW: Tensor) -> Tensor:
        """A causal convolution; before the first frame time stands still."""
        before = x_BDFHW[:, :, :1].expand(-1, -1, 2, -1, -1) if self.at_start else next(self._past)
        x_BDFHW = torch.cat([before, x_BDFHW], dim=2)
        self.kept.append(x_BDFHW[:, :, -2:].clone())  # not a view, which would hold all frames of a wide layer
        left, right, top, bottom, *_ = layer.time_causal_padding
        return layer.conv(nnf.pad(x_BDFHW, (left, right, top, bottom, 0, 0), mode=layer.pad_mode))

    def attend(self, layer: Any, x_BDFHW: Tensor) -> Tensor:
        """Attention of a frame to itself and to at most `horizon` frames before it. One frame at a time, so no mask is built."""
        normed = layer.norm(x_BDFHW)
        query, key, value = (project(normed).permute(0, 2, 3, 4, 1).flatten(1, 3) for project in (layer.to_q, layer.to_k, layer.to_v))
        if not self.at_start:
            past_key, past_value = next(self._past)
            key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
        cells = self._horizon * query.shape[1]
        self.kept.append((key[:, -cells:], value[:, -cells:]))
        attended = nnf.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return x_BDFHW + layer.proj_out(attended.transpose(1, 2).unflatten(2, x_BDFHW.shape[2:]))


def encode_next(encoder: Any, frames_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
    """Moments [B, 2 C, 1, H, W] of the next latent frame: one pixel frame at the start, then `temporal stride` of them."""
    x = cache.convolve(encoder.conv_in, frames_BCTHW)
    for block in encoder.down_blocks:
        x = _residuals(block.resnets, x, cache)
        for layer in block.downsamplers or ():
            x = _downsample(layer, x, cache)
    x = _middle(encoder.mid_block, x, cache)
    shortcut = x.unflatten(1, (-1, encoder.group_size)).mean(dim=2)
    return cache.convolve(encoder.conv_out, encoder.conv_act(encoder.norm_out(x))) + shortcut


def decode_next(decoder: Any, raw_BC1HW: Tensor, cache: FeatureCache) -> Tensor:
    """Pixel frames of the next latent frame."""
    x = cache.convolve(decoder.conv_in, raw_BC1HW) + raw_BC1HW.repeat_interleave(decoder.repeat, dim=1)
    x = _middle(decoder.mid_block, x, cache)
    for block in decoder.up_blocks:
        x = _residuals(block.resnets, x, cache)
        for layer in block.upsamplers or ():
            x = _upsample(layer, x, cache)
    return cache.convolve(decoder.conv_out, decoder.conv_act(decoder.norm_out(x)))


def _residuals(blocks: Any, x: Tensor, cache: FeatureCache) -> Tensor:
    for block in blocks:
        h = cache.convolve(block.conv1, block.nonlinearity(block.norm1(x)))
        h = cache.convolve(block.conv2, block.nonlinearity(block.norm2(h)))
        x = h + (x if block.conv_shortcut is None else block.conv_shortcut(x))
    return x


def _middle(block: Any, x: Tensor, cache: FeatureCache) -> Tensor:
    x = _residuals(block.resnets[:1], x, cache)
    for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = cache.attend(attention, x)
        x = _residuals([residual], x, cache)
    return x


def _downsample(layer: Any, x: Tensor, cache: FeatureCache) -> Tensor:
    """Space, and time unless the layer or the start of a clip forbids it, into channels; the shortcut averages groups of them."""
    h = cache.convolve(layer.conv, x)
    fold: Callable[..., Tensor] = layer._dcae_downsample_rearrange
    if not layer.add_temporal_downsample:
        return fold(h) + fold(x).unflatten(1, (-1, layer.group_size)).mean(dim=2)
    if cache.at_start:  # one frame stands for the two that the others have
        return fold(h).repeat(1, 2, 1, 1, 1) + fold(x).unflatten(1, (-1, layer.group_size // 2)).mean(dim=2)
    return fold(h, r1=2) + fold(x, r1=2).unflatten(1, (-1, layer.group_size)).mean(dim=2)


def _upsample(layer: Any, x: Tensor, cache: FeatureCache) -> Tensor:
    """Channels into space, and into time unless the layer or the start of a clip forbids it; the shortcut repeats channels."""
    h = cache.convolve(layer.conv, x)
    unfold: Callable[..., Tensor] = layer._dcae_upsample_rearrange
    if not layer.add_temporal_upsample:
        return unfold(h) + unfold(x.repeat_interleave(layer.repeats, dim=1))
    if cache.at_start:  # of the two frames that the others become, the first alone
        h = unfold(h)
        return h[:, : h.shape[1] // 2] + unfold(x).repeat_interleave(layer.repeats // 2, dim=1)
    return unfold(h, r1=2) + unfold(x, r1=2).repeat_interleave(layer.repeats, dim=1)

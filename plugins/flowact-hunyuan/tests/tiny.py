"""Tiny models of both generations, and windows with captions of uneven length for them."""

from __future__ import annotations

from functools import cache

import torch
from flowact_hunyuan import HunyuanVideo15Denoiser, HunyuanVideoDenoiser

from flowact.testing import random_window, stream_layout

CHANNELS, SIZE, ROWS, TEXT, AUDIO = 3, (4, 6), 5, 12, 6
SHAPE = {"width": 32, "num_heads": 2, "num_refiner_blocks": 1, "mlp_ratio": 2.0, "rope_axes": (4, 6, 6), "audio_every": 1}


def bare_video(**options):
    sizes = {"latent_channels": CHANNELS, "text_width": TEXT, "pooled_width": 5, "num_double_blocks": 1, "num_single_blocks": 1}
    return HunyuanVideoDenoiser(AUDIO, **(sizes | SHAPE | options))


def bare_video15(**options):
    sizes = {"latent_channels": CHANNELS, "text_width": TEXT, "glyph_tokens": 2, "glyph_width": 9, "image_width": 7, "num_double_blocks": 2}
    return HunyuanVideo15Denoiser(AUDIO, **(sizes | SHAPE | options))


BARE = {"video": bare_video, "video15": bare_video15}


def randomised(model):
    """The model away from the zeros that modulation, output and hearing start with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return model.eval()


def fresh(name, **options):
    """A model that a test may change."""
    return randomised(BARE[name](**options))


make = cache(fresh)


layout = stream_layout


def drawn(layout, **options):
    """Random contents; every second row of text or so is padding, and one caption has no text at all."""
    sizes = {"size": SIZE, "audio_per_latent": 4, "num_tokens": ROWS, "padding": 0.5}
    return random_window(make("video"), layout, **(sizes | options))


def window(layout, **options):
    random = drawn(layout, **options)
    return random.latents_BFCHW, random.sigma_BF, random.conditions, random.layout

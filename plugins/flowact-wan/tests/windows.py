"""Small windows and denoisers that the tests share."""

from __future__ import annotations

import torch
from flowact_wan import WanDenoiser

from flowact.testing import random_window, stream_layout

CHANNELS, TOKENS, AUDIO = 3, 2, 4
layout = stream_layout


def drawn(layout, **options):
    return random_window(fresh(), layout, audio_per_latent=AUDIO, num_tokens=TOKENS, **options)


def window(layout, **options):
    random = drawn(layout, **options)
    return random.latents_BFCHW, random.sigma_BF, random.conditions, random.layout


def fresh(**options):
    torch.manual_seed(0)
    sizes = {"latent_channels": CHANNELS, "text_width": 5, "audio_width": 6, "width": 24, "num_heads": 2, "num_blocks": 3, "hidden": 40}
    return WanDenoiser(**(sizes | {"audio_every": 2} | options)).eval()


def nudged(model):
    """The model away from the zeros that its ears and its output start with."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def make(**options):
    return nudged(fresh(**options))

"""Tiny models of both generations, and windows with captions of uneven length for them."""

from __future__ import annotations

from functools import cache

import torch
from flowact_hunyuan import HunyuanVideo15Denoiser, HunyuanVideoDenoiser

from flowact.types import ConditionTokens, Segment, Visibility, WindowLayout

CHANNELS, SIZE, ROWS, TEXT, AUDIO = 3, (4, 6), 5, 12, 6
MEMORY = (Segment("reference", 1, -9), Segment("long", 1, -4), Segment("short", 1, -1))
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


def layout(chunks=(2, 2), memory=MEMORY, visibility=Visibility()):
    stream, position = [], 0
    for length in chunks:
        stream.append(Segment("stream", length, position))
        position += length
    return WindowLayout((*memory, *stream), visibility)


def window(layout, batch=2, seed=0):
    """Random contents; every second row of text or so is padding, and some segments have no text at all."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, layout.num_frames, CHANNELS, *SIZE, generator=generator)
    lengths = torch.tensor([s.num_frames for s in layout.segments if not s.is_memory])
    sigma_BK = torch.rand(batch, len(lengths), generator=generator)
    sigma = torch.cat([torch.zeros(batch, layout.num_memory_frames), sigma_BK.repeat_interleave(lengths, 1)], dim=1)
    text = torch.randn(batch, len(layout.segments), ROWS, TEXT, generator=generator)
    kept = torch.rand(text.shape[:3], generator=generator) < 0.5
    kept[0, -1] = False
    audio = torch.randn(batch, layout.num_frames, 4, AUDIO, generator=generator)
    return latents, sigma, ConditionTokens(text * kept[..., None], audio), layout

"""Small windows and denoisers that the tests share."""

from __future__ import annotations

import torch
from flowact_wan import WanDenoiser

from flowact.types import ConditionTokens, Segment, Visibility, WindowLayout

CHANNELS, SIZE, TOKENS, AUDIO = 3, 4, 2, 4
MEMORY = (Segment("reference", 1, -9), Segment("long", 1, -4), Segment("short", 1, -1))


def layout(chunks=(2, 2), memory=MEMORY, visibility=Visibility()):
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    return WindowLayout((*memory, *(Segment("stream", n, start) for n, start in zip(chunks, starts, strict=True))), visibility)


def window(layout, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, layout.num_frames, CHANNELS, SIZE, SIZE, generator=generator)
    sigma = torch.rand(batch, layout.num_frames, generator=generator)
    sigma[:, : layout.num_memory_frames] = 0
    text = torch.randn(batch, len(layout.segments), TOKENS, 5, generator=generator)
    audio = torch.randn(batch, layout.num_frames, AUDIO, 6, generator=generator)
    return latents, sigma, ConditionTokens(text, audio), layout


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

"""Small networks and windows for tests of costs, on any device."""

from __future__ import annotations

import torch

from flowact.budget.costs import Sizes
from flowact.models.presets import preset
from flowact.types import ConditionTokens, Segment, WindowLayout

SIZES = Sizes(latent=(4, 6, 4), text=(5, 8), audio=(4, 7))
MEMORY = (Segment("reference", 1, -9), Segment("long", 1, -4), Segment("short", 1, -1))
LAYOUT = WindowLayout((*MEMORY, Segment("stream", 2, 0), Segment("stream", 2, 2)))


def network(device="meta", **options):
    torch.manual_seed(0)
    shape = {"width": 48, "num_single_blocks": 2, "latent_channels": 4, "text_width": 8, "audio_width": 7, "patch": 2}
    with torch.device(device):
        return preset("debug", **(shape | options))


def window(device="cpu", batch=2, layout=LAYOUT):
    latents, sigma, conditions = SIZES.window(layout, batch, False, torch.float32)

    def zeros(tensor):
        return torch.zeros(tensor.shape, device=device)

    return zeros(latents), zeros(sigma), ConditionTokens(zeros(conditions.text_BSLD), zeros(conditions.audio_BFAD)), layout


def given(model, inputs):
    latents, sigma, conditions, _ = inputs
    return [*model.parameters(), *model.buffers(), latents, sigma, conditions.text_BSLD, conditions.audio_BFAD]

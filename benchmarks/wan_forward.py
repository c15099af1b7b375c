"""WanDenoiser against diffusers' WanTransformer3DModel of equal size and weights: whole forward passes, and steps of training.

    pip install -e plugins/flowact-wan
    OMP_NUM_THREADS=1 python benchmarks/wan_forward.py

Eager mode on one thread, float32, one segment at one noise level, no ears. CPU time of the process, the least of several runs, A and B in turn; a
ratio below 1 means that ours is faster. Outputs are compared before anything is timed. One JSON line.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import WanTransformer3DModel
from flowact_wan import WanDenoiser, WanDiffusers
from measuring import cpu_seconds, report
from torch import Tensor

from flowact.models.translation import import_state
from flowact.types import FULL_VISIBILITY, ConditionTokens, Segment, WindowLayout

TEXT_ROWS, TEXT_WIDTH = 64, 64
#: heads, head width, blocks, MLP; latent frames, height, width; rounds
SIZES = {
    "width 128, 192 tokens": ((4, 32, 6, 512), (3, 16, 16), 15),
    "width 384, 720 tokens": ((6, 64, 4, 2240), (3, 24, 40), 6),
    "width 1536, 288 tokens": ((12, 128, 2, 8960), (3, 16, 24), 5),
}


def pair(model: tuple[int, int, int, int], latents: tuple[int, int, int]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Our forward pass and theirs, of equal weights and inputs.

    Raises:
        AssertionError: they do not compute the same to 1e-4.
    """
    torch.manual_seed(0)
    heads, head_width, blocks, hidden = model
    theirs = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=head_width, num_layers=blocks, ffn_dim=hidden, text_dim=TEXT_WIDTH
    ).eval()
    form = WanDiffusers()
    config = form.complete(theirs.config)
    ours = WanDenoiser(**form.arguments(config), audio_width=1, audio_every=0).eval()
    ours.load_state_dict(import_state(form.rules(config), theirs.state_dict()))
    frames, height, width = latents
    latents_BFCHW, text_BLD = torch.randn(1, frames, 16, height, width), torch.randn(1, TEXT_ROWS, TEXT_WIDTH)
    conditions = ConditionTokens(text_BLD[:, None], torch.zeros(1, frames, 1, 1))
    layout, sigma_BF = WindowLayout((Segment("stream", frames, 0),), FULL_VISIBILITY), torch.full((1, frames), 0.4)
    latents_BCFHW, timestep = latents_BFCHW.transpose(1, 2).contiguous(), 1000 * sigma_BF[:, 0]

    def own() -> Tensor:
        return ours(latents_BFCHW, sigma_BF, conditions, layout)

    def other() -> Tensor:
        return theirs(latents_BCFHW, timestep, text_BLD).sample

    torch.testing.assert_close(own(), other().transpose(1, 2), atol=1e-4, rtol=1e-4)
    return own, other


def training(call: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: call().square().mean().backward()


def main() -> None:
    torch.set_num_threads(1)
    ratios = {}
    for name, (model, latents, rounds) in SIZES.items():
        own, other = pair(model, latents)
        with torch.no_grad():
            mine, reference = cpu_seconds(own, other, rounds)
        ratios[f"{name}: forward"] = round(mine / reference, 3)
        mine, reference = cpu_seconds(training(own), training(other), rounds)
        ratios[f"{name}: training"] = round(mine / reference, 3)
    report("wan_forward", ratios, "eager, float32")


if __name__ == "__main__":
    main()

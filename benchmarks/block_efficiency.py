"""Our transformer blocks against diffusers' HunyuanVideo blocks of equal size and weights, and both against the heavy operations in them alone.

    pip install -e plugins/flowact-hunyuan
    OMP_NUM_THREADS=1 python benchmarks/block_efficiency.py

Forward passes in eager mode on one thread, width 256, 960 visual and 64 text tokens. CPU time of the process, the least of several runs, A and B in
turn. The floor replays the matrix products and attention of a pass and nothing else. Outputs are compared before anything is timed. One JSON line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from flowact_hunyuan import HunyuanVideoDenoiser, HunyuanVideoDiffusers
from measuring import cpu_seconds, floor_of, report
from torch import Tensor

from flowact.models.attention import TokenCounts
from flowact.models.blocks import Geometry
from flowact.models.translation import import_state
from flowact.types import Segment, WindowLayout

WIDTH, HEADS, AXES, TEXT = 256, 4, (16, 24, 24), 64
FRAMES, HEIGHT, COLUMNS = 6, 10, 16


def pairs() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Our block and theirs, of equal weights, ready to be called on equal inputs.

    Raises:
        AssertionError: they do not compute the same to 1e-5.
    """
    torch.manual_seed(0)
    form = HunyuanVideoDiffusers()
    config = form.complete(
        {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1,
         "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": AXES}
    )  # fmt: skip
    theirs = HunyuanVideoTransformer3DModel(**config)
    ours = HunyuanVideoDenoiser(1, **form.arguments(config), audio_every=0)
    ours.load_state_dict(import_state(form.rules(config), theirs.state_dict()))

    size, patch, device = (HEIGHT, COLUMNS), ours.patch, torch.device("cpu")
    visual, text, vector = torch.randn(1, FRAMES * HEIGHT * COLUMNS, WIDTH), torch.randn(1, TEXT, WIDTH), torch.randn(1, WIDTH)
    rotary = theirs.rope(torch.empty(1, 1, FRAMES, HEIGHT * patch, COLUMNS * patch))
    layout, counts = WindowLayout((Segment("stream", FRAMES, 0),)), TokenCounts(TEXT, 0, HEIGHT * COLUMNS)
    geometry = Geometry.of(layout, counts, size, AXES, ours.theta, device, text_at="start")
    streams, vectors = (text[:, None], visual.unflatten(1, (FRAMES, -1))), (vector[:, None], vector[:, None].expand(-1, FRAMES, -1))

    def make(own: Any, other: Any) -> tuple[Callable[[], tuple[Tensor, ...]], Callable[[], tuple[Tensor, ...]]]:
        return lambda: own(streams, vectors, geometry)[0], lambda: other(visual, text, vector, None, rotary)

    made = {
        "double": make(ours.double_blocks[0], theirs.transformer_blocks[0]),
        "single": make(ours.single_blocks[0], theirs.single_transformer_blocks[0]),
    }
    for own, other in made.values():
        for mine, expected in zip(own(), reversed(other()), strict=True):
            torch.testing.assert_close(mine.flatten(1, 2), expected, atol=1e-5, rtol=1e-5)
    return made


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    ratios = {}
    for name, (own, other) in pairs().items():
        for key, first, second in (
            ("ours / diffusers", own, other),
            ("ours / floor", own, floor_of(own)),
            ("diffusers / floor", other, floor_of(other)),
        ):
            mine, reference = cpu_seconds(first, second)
            ratios[f"{name} block, {key}"] = round(mine / reference, 3)
    report("block_efficiency", ratios, "forward, float32")


if __name__ == "__main__":
    main()

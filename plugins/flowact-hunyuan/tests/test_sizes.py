"""The released sizes, counted without allocating them."""

from __future__ import annotations

import pytest
import torch
from flowact_hunyuan import HunyuanVideo15Denoiser, HunyuanVideoDenoiser

diffusers = pytest.importorskip("diffusers")


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "config", "count"),
    [
        (HunyuanVideoDenoiser, "HunyuanVideoTransformer3DModel", {}, {}, 12_821_012_544),
        (
            HunyuanVideoDenoiser, "HunyuanVideoTransformer3DModel", {"image_condition": "latent_concat", "guidance_embedding": False},
            {"in_channels": 33, "guidance_embeds": False, "image_condition_type": "latent_concat"}, 12_810_991_680,
        ),
        (HunyuanVideo15Denoiser, "HunyuanVideo15Transformer3DModel", {}, {}, 8_326_608_160),
        (HunyuanVideo15Denoiser, "HunyuanVideo15Transformer3DModel", {"use_meanflow": True}, {"use_meanflow": True}, 8_331_330_848),
    ],
)  # fmt: skip
def test_the_released_sizes_are_those_of_diffusers(ours, theirs, options, config, count):
    with torch.device("meta"):
        assert num_parameters(ours(1280, audio_every=0, **options)) == num_parameters(getattr(diffusers, theirs)(**config)) == count


def test_ears_cost_what_the_readme_says():
    with torch.device("meta"):
        assert num_parameters(HunyuanVideoDenoiser(1280)) == 13_599_961_152
        assert num_parameters(HunyuanVideo15Denoiser(1280)) == 8_635_639_072

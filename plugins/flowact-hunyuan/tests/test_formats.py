"""Weights of diffusers' classes go to ours and back, and what ours cannot express is refused by name."""

from __future__ import annotations

import inspect

import pytest
import torch
from flowact_hunyuan import HunyuanVideo15Diffusers, HunyuanVideoDiffusers

from flowact.errors import UserError
from flowact.models.translation import export_state, import_state
from flowact.testing import check_constructor, check_format

diffusers = pytest.importorskip("diffusers")

SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "num_refiner_layers": 1, "rope_axes_dim": [4, 4, 4], "out_channels": 3,
         "text_embed_dim": 10}  # fmt: skip
VIDEO = {**SIZES, "in_channels": 3, "num_single_layers": 1, "pooled_projection_dim": 5}
VIDEO15 = {**SIZES, "in_channels": 7, "text_embed_2_dim": 9, "image_embed_dim": 7}
CONCAT = {"in_channels": 7, "image_condition_type": "latent_concat"}
VARIANTS = {
    "HunyuanVideo": (HunyuanVideoDiffusers, VIDEO, {}),
    "without guidance": (HunyuanVideoDiffusers, {**VIDEO, "guidance_embeds": False}, {}),
    "token replace": (HunyuanVideoDiffusers, {**VIDEO, "image_condition_type": "token_replace"}, {"audio_every": 1}),
    "latent concat": (HunyuanVideoDiffusers, {**VIDEO, **CONCAT}, {"reference": "channels"}),
    "HunyuanVideo-1.5": (HunyuanVideo15Diffusers, VIDEO15, {"guidance_embedding": True}),
    "720p": (HunyuanVideo15Diffusers, {**VIDEO15, "target_size": 960, "task_type": "t2v"}, {"guidance_embedding": True}),
    "MeanFlow": (HunyuanVideo15Diffusers, {**VIDEO15, "use_meanflow": True}, {"guidance_embedding": True, "image_tokens": 4}),
}
FORMATS = [HunyuanVideoDiffusers, HunyuanVideo15Diffusers]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_diffusers_saves_keeps_the_laws_of_a_format(variant, tmp_path):
    form, config, settings = VARIANTS[variant]
    getattr(diffusers, form.class_name)(**config).save_pretrained(tmp_path)
    check_format(form(), tmp_path, audio_width=6, **settings)


@pytest.mark.parametrize("form", FORMATS)
def test_absent_keys_stand_for_what_diffusers_takes_them_for(form):
    parameters = inspect.signature(getattr(diffusers, form.class_name)).parameters.values()
    assert form.defaults == {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}


@pytest.mark.parametrize("form", FORMATS)
def test_the_released_sizes_are_our_defaults(form):
    assert form().exported_config({"init_args": {"audio_width": 1280}}) == {"_class_name": form.class_name, **form.defaults}


def test_rotary_pairs_become_halves_and_scale_comes_after_shift():
    form, config = HunyuanVideoDiffusers(), HunyuanVideoDiffusers().complete(VIDEO)
    weights = diffusers.HunyuanVideoTransformer3DModel(**VIDEO).state_dict()
    ours = import_state(form.rules(config), weights)
    query = weights["transformer_blocks.0.attn.to_q.weight"].view(2, 6, 2, 24)  # head, pair, member
    assert torch.equal(ours["double_blocks.0.towers.visual.qkv.weight"][:24].view(2, 2, 6, 24), query.transpose(1, 2))
    assert torch.equal(ours["out_modulation.linear.bias"], weights["norm_out.linear.bias"].roll(24))


def test_tensors_that_are_missing_or_too_many_are_all_listed():
    form, config = HunyuanVideo15Diffusers(), HunyuanVideo15Diffusers().complete(VIDEO15)
    weights = diffusers.HunyuanVideo15Transformer3DModel(**VIDEO15).state_dict()
    ours = import_state(form.rules(config), weights)
    again = export_state(form.rules(config), ours)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    del weights["transformer_blocks.0.attn.add_k_proj.bias"], weights["image_embedder.norm_in.weight"]
    weights["byt5_in.fc1.weight"] = torch.zeros(3)
    weights["time_embed.timestep_embedder_r.linear_1.weight"] = torch.zeros(24, 256)
    with pytest.raises(UserError, match="nothing was converted") as refused:
        import_state(form.rules(config), weights, ours)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "missing: image_embedder.norm_in.weight",
        "missing: transformer_blocks.0.attn.add_k_proj.bias",
        "unexpected: byt5_in.fc1.weight",
        "unexpected: time_embed.timestep_embedder_r.linear_1.weight",
    ]


@pytest.mark.parametrize(
    ("form", "wrong", "message"),
    [
        (HunyuanVideoDiffusers, {"patch_size_t": 2}, "patch_size_t=2; ours is made for 1 only"),
        (HunyuanVideoDiffusers, {"qk_norm": "layer_norm"}, "qk_norm='layer_norm'; ours is made for 'rms_norm' only"),
        (HunyuanVideoDiffusers, {"in_channels": 7}, "in_channels=7; 3 latent channels are 3"),
        (HunyuanVideoDiffusers, {"in_channels": 6, "image_condition_type": "latent_concat"}, "in_channels=6; 3 latent channels, .* and a mask are 7"),
        (HunyuanVideoDiffusers, {"has_image_proj": True}, "has the key 'has_image_proj'"),
        (HunyuanVideo15Diffusers, {"in_channels": 3}, "in_channels=3; 3 latent channels, their clean copy and a mask are 7"),
    ],
)
def test_what_ours_cannot_express_is_refused_by_its_key(form, wrong, message):
    with pytest.raises(UserError, match=message):
        form().denoiser_spec((VIDEO if form is HunyuanVideoDiffusers else VIDEO15) | wrong, audio_width=6)


@pytest.mark.parametrize("form", FORMATS)
def test_constructors_are_documented(form):
    check_constructor(form)

"""Weights of diffusers' class go to ours and back, and what ours cannot express is refused by name."""

from __future__ import annotations

import pytest
import torch
from flowact_wan import WanDiffusers

from flowact.errors import UserError
from flowact.models.translation import export_state, import_state
from flowact.testing import check_constructor, check_format

diffusers = pytest.importorskip("diffusers")

TINY = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 10, "ffn_dim": 40, "num_layers": 2, "in_channels": 3, "out_channels": 3}
VARIANTS = {
    "text to video": {},
    "5B": {"in_channels": 48, "out_channels": 48},
    "image to video": {"in_channels": 10},
    "with a picture": {"in_channels": 10, "image_dim": 8, "added_kv_proj_dim": 24},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_diffusers_saves_keeps_the_laws_of_a_format(variant, tmp_path):
    diffusers.WanTransformer3DModel(**TINY | VARIANTS[variant]).save_pretrained(tmp_path)
    check_format(WanDiffusers(), tmp_path, audio_width=6, audio_every=1, guidance_embedding=True)


@pytest.mark.parametrize(
    "sizes", [{"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, {}, {"in_channels": 36}, {"in_channels": 48, "out_channels": 48}]
)
def test_published_configurations_are_read_and_written_alike(sizes):
    form = WanDiffusers()
    config = form.complete(sizes)
    spec = form.denoiser_spec(config, audio_width=768)
    assert form.exported_config(spec) == {"_class_name": "WanTransformer3DModel", **config}
    assert spec["init_args"]["width"] == config["num_attention_heads"] * 128


def test_absent_keys_stand_for_what_diffusers_takes_them_for():
    diffusers_defaults = dict(diffusers.WanTransformer3DModel(**TINY).config)
    form = WanDiffusers()
    ours = form.complete(TINY)
    assert ours == {key: list(value) if isinstance(value, tuple) else value for key, value in diffusers_defaults.items() if not key.startswith("_")}


def test_tensors_that_are_missing_or_too_many_are_all_listed():
    form, config = WanDiffusers(), WanDiffusers().complete(TINY)
    weights = diffusers.WanTransformer3DModel(**TINY).state_dict()
    ours = import_state(form.rules(config), weights)
    again = export_state(form.rules(config), ours)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    del weights["blocks.1.attn1.to_k.bias"], weights["proj_out.weight"]
    weights["blocks.0.attn2.add_k_proj.weight"] = torch.zeros(24, 24)
    weights["vace_blocks.0.proj_in.weight"] = torch.zeros(3)
    weights["blocks.0.attn2.norm_added_q.weight"] = torch.zeros(24)  # left out silently, as diffusers does
    with pytest.raises(UserError, match="nothing was converted") as refused:
        import_state(form.rules(config), weights, ours)
    lines = str(refused.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "missing: blocks.1.attn1.to_k.bias",
        "missing: proj_out.weight",
        "unexpected: blocks.0.attn2.add_k_proj.weight",
        "unexpected: vace_blocks.0.proj_in.weight",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eps": 1e-5}, "eps=1e-05; ours is made for 1e-06 only"),
        ({"cross_attn_norm": False}, "cross_attn_norm=False"),
        ({"patch_size": [2, 2, 2]}, r"patch_size=\[2, 2, 2\]; a noise level per latent frame"),
        ({"in_channels": 5}, "in_channels=5 and out_channels=3; ours takes 3, or 6 and more"),
        ({"pos_embed_seq_len": 514, "image_dim": 8, "added_kv_proj_dim": 24}, "pos_embed_seq_len=514: a model of first and last frame"),
        ({"image_dim": 8}, "image_dim=8 and added_kv_proj_dim=None"),
        ({"vace_layers": [0, 5]}, "has the key 'vace_layers'"),
    ],
)
def test_what_ours_cannot_express_is_refused_by_its_key(wrong, message):
    with pytest.raises(UserError, match=message):
        WanDiffusers().denoiser_spec(TINY | wrong, audio_width=6)


def test_the_constructor_is_documented():
    check_constructor(WanDiffusers)

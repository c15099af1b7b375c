"""Weights of diffusers' `WanTransformer3DModel` as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowact.errors import UserError
from flowact.models.formats import Addition, WeightFormat
from flowact.models.rules import Ignored, Part, PermuteHeads, Rearrange, Rename, Rule, Stack

KIND = "{kind:weight|bias}"
#: tokens of the picture's encoder, CLIP ViT-H/14 at 224 pixels; config.json does not say it
CLIP_TOKENS = 257
#: linear maps and norms whose weight and bias have other names only
SAME_LAYOUT = {
    "condition_embedder.text_embedder.linear_1": "text_in.0",
    "condition_embedder.text_embedder.linear_2": "text_in.2",
    "condition_embedder.time_embedder.linear_1": "time_in.0",
    "condition_embedder.time_embedder.linear_2": "time_in.2",
    "condition_embedder.time_proj": "modulation",
    "condition_embedder.image_embedder.norm1": "image_in.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "image_in.1",
    "condition_embedder.image_embedder.ff.net.2": "image_in.3",
    "condition_embedder.image_embedder.norm2": "image_in.4",
    "blocks.{i}.attn1.to_out.0": "blocks.{i}.out",
    "blocks.{i}.norm2": "blocks.{i}.text_norm",
    "blocks.{i}.attn2.to_q": "blocks.{i}.text.query",
    "blocks.{i}.attn2.to_out.0": "blocks.{i}.text.out",
    "blocks.{i}.ffn.net.0.proj": "blocks.{i}.mlp_in",
    "blocks.{i}.ffn.net.2": "blocks.{i}.mlp_out",
    "proj_out": "out",
}


class WanDiffusers(WeightFormat):
    """Weights of diffusers' `WanTransformer3DModel`: Wan 2.1 and 2.2, text to video and image to video, one transformer at a time."""

    class_name = "WanTransformer3DModel"
    denoiser = "WanDenoiser"
    defaults = {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    }
    additions = (
        Addition("audio", ("audio_in.*", "blocks.*.audio.*"), ("blocks.*.audio.out.*",)),
        Addition("guidance", ("guidance_in.*",), ("guidance_in.*.2.*",)),
    )

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `WeightFormat.arguments`. `rope_max_seq_len` is the length of a table that ours does not need."""
        for key in ("freq_dim", "cross_attn_norm", "qk_norm", "eps"):
            if config[key] != self.defaults[key]:
                raise UserError(f"config.json of {self.class_name} has {key}={config[key]!r}; ours is made for {self.defaults[key]!r} only")
        time, height, width = config["patch_size"]
        if time != 1 or height != width:
            raise UserError(f"config.json of {self.class_name} has patch_size={config['patch_size']}; a noise level per latent frame needs 1, n, n")
        channels = config["out_channels"] or config["in_channels"]
        further = config["in_channels"] - 2 * channels
        if config["in_channels"] != channels and further < 0:
            raise UserError(
                f"config.json of {self.class_name} has in_channels={config['in_channels']} and out_channels={channels}; ours takes {channels}, "
                f"or {2 * channels} and more: latents, mask and clean copies"
            )
        copies = {"clean_copies": False} if config["in_channels"] == channels else {"clean_copies": True, "mask_channels": further}
        return {
            "latent_channels": channels,
            "text_width": config["text_dim"],
            "width": config["num_attention_heads"] * config["attention_head_dim"],
            "num_heads": config["num_attention_heads"],
            "num_blocks": config["num_layers"],
            "hidden": config["ffn_dim"],
            "patch": height,
            **copies,
            **self._image_arguments(config),
        }

    def _image_arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config["pos_embed_seq_len"] is not None:
            raise UserError(
                f"config.json of {self.class_name} has pos_embed_seq_len={config['pos_embed_seq_len']}: a model of first and last frame, which looks "
                "at two pictures. Read are models that look at none (Wan 2.1 T2V, all of Wan 2.2) or at one (Wan 2.1 I2V)"
            )
        width = config["num_attention_heads"] * config["attention_head_dim"]
        if config["added_kv_proj_dim"] != (None if config["image_dim"] is None else width):
            raise UserError(
                f"config.json of {self.class_name} has image_dim={config['image_dim']} and added_kv_proj_dim={config['added_kv_proj_dim']}; "
                f"both are null, or the latter is the tokens' width, {width}"
            )
        return {"image_tokens": 0} if config["image_dim"] is None else {"image_tokens": CLIP_TOKENS, "image_width": config["image_dim"]}

    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `WeightFormat.config`."""
        channels, pictures = arguments["latent_channels"], arguments["image_tokens"]
        return {
            **self.defaults,
            "patch_size": [1, arguments["patch"], arguments["patch"]],
            "num_attention_heads": arguments["num_heads"],
            "attention_head_dim": arguments["width"] // arguments["num_heads"],
            "in_channels": 2 * channels + arguments["mask_channels"] if arguments["clean_copies"] else channels,
            "out_channels": channels,
            "text_dim": arguments["text_width"],
            "ffn_dim": arguments["hidden"],
            "num_layers": arguments["num_blocks"],
            "image_dim": arguments["image_width"] if pictures else None,
            "added_kv_proj_dim": arguments["width"] if pictures else None,
        }

    def rules(self, config: Mapping[str, Any]) -> Sequence[Rule]:
        """See `WeightFormat.rules`. Theirs rotates neighbouring channels of a head, ours the first half with the second."""
        turned, row = PermuteHeads(config["num_attention_heads"]), Rearrange("D -> 1 D")
        patch = {"h": config["patch_size"][1], "w": config["patch_size"][2]}
        return [
            *(Rename(f"{theirs}.{KIND}", f"{ours}.{KIND}") for theirs, ours in SAME_LAYOUT.items()),
            Rename("patch_embedding.weight", "visual_in.weight", Rearrange("D C 1 h w -> D (C h w)", patch)),
            Rename("patch_embedding.bias", "visual_in.bias"),
            Rename("scale_shift_table", "out_modulation", Rearrange("1 P D -> P D")),
            Rename("blocks.{i}.scale_shift_table", "blocks.{i}.modulation", Rearrange("1 P D -> P D")),
            Stack(
                [
                    Part(f"blocks.{{i}}.attn1.to_q.{KIND}", turned),
                    Part(f"blocks.{{i}}.attn1.to_k.{KIND}", turned),
                    f"blocks.{{i}}.attn1.to_v.{KIND}",
                ],
                f"blocks.{{i}}.qkv.{KIND}",
            ),
            Stack([Part(f"blocks.{{i}}.attn1.norm_{x}.weight", turned, row) for x in "qk"], "blocks.{i}.query_key_norm"),
            Rename("blocks.{i}.attn2.norm_q.weight", "blocks.{i}.text.query_norm.weight"),
            Rename("blocks.{i}.attn2.norm_k.weight", "blocks.{i}.text.key_norm.weight"),
            Stack([f"blocks.{{i}}.attn2.to_{x}.{KIND}" for x in "kv"], f"blocks.{{i}}.text.key_value.{KIND}"),
            Rename("blocks.{i}.attn2.norm_added_k.weight", "blocks.{i}.text.image_key_norm.weight"),
            Stack([f"blocks.{{i}}.attn2.add_{x}_proj.{KIND}" for x in "kv"], f"blocks.{{i}}.text.image_key_value.{KIND}"),
            Ignored("blocks.*.attn2.norm_added_q.weight"),  # in some files, used by no version of the model
        ]

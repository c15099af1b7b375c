"""The weights of diffusers' classes as ours. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.models.formats import Addition, WeightFormat
from flowact.models.rules import Part, PermuteHeads, Rearrange, Rename, Rule, Split, Stack, TensorMap

KIND = "{kind:weight|bias}"
AUDIO = Addition("audio", ("audio_in.*", "guidance_in.audio.*", "*_blocks.*.audio.*"), ("*_blocks.*.audio.out.*", "guidance_in.audio.2.*"))


@dataclass(frozen=True)
class SwapHalves(TensorMap):
    """The second half of the first axis before the first: (scale, shift) and (shift, scale)."""

    def to_ours(self, theirs: Tensor) -> Tensor:
        """See `TensorMap.to_ours`."""
        if theirs.shape[0] % 2:
            raise ValueError(f"axis 0 is {theirs.shape[0]} long, which has no halves")
        return torch.cat(theirs.chunk(2)[::-1])

    def to_theirs(self, ours: Tensor) -> Tensor:
        """See `TensorMap.to_theirs`."""
        return self.to_ours(ours)


def linear(theirs: str, ours: str, *maps: TensorMap) -> Rename:
    """Weight and bias."""
    return Rename(f"{theirs}.{KIND}", f"{ours}.{KIND}", *maps)


def embedding(theirs: str, ours: str) -> list[Rule]:
    """Two linear maps with an activation between them."""
    return [linear(f"{theirs}.linear_1", f"{ours}.0"), linear(f"{theirs}.linear_2", f"{ours}.2")]


def mlp(theirs: str, ours: str) -> list[Rule]:
    """diffusers' `FeedForward`."""
    return [linear(f"{theirs}.net.0.proj", f"{ours}.mlp_in"), linear(f"{theirs}.net.2", f"{ours}.mlp_out")]


def rotated_attention(attention: str, names: Sequence[str], norms: Sequence[str], ours: str, num_heads: int) -> list[Rule]:
    """Queries, keys and values as one map, and the norms of queries and keys as one tensor. Theirs rotate neighbouring channels."""
    turned = PermuteHeads(num_heads)
    query, key, value = (f"{attention}.{name}.{KIND}" for name in names)
    return [
        Stack([Part(query, turned), Part(key, turned), value], f"{ours}.qkv.{KIND}"),
        Stack([Part(f"{attention}.{norm}.weight", PermuteHeads(1), Rearrange("D -> 1 1 D")) for norm in norms], f"{ours}.norm.weight"),
    ]


def refiner() -> list[Rule]:
    """The transformer over a caption."""
    theirs, ours = "context_embedder.token_refiner.refiner_blocks.{i}", "refiner.blocks.{i}"
    return [
        *embedding("context_embedder.time_text_embed.timestep_embedder", "refiner.level_in"),
        *embedding("context_embedder.time_text_embed.text_embedder", "refiner.pooled_in"),
        linear("context_embedder.proj_in", "refiner.text_in"),
        linear(f"{theirs}.norm1", f"{ours}.attention_norm"),
        Stack([f"{theirs}.attn.{name}.{KIND}" for name in ("to_q", "to_k", "to_v")], f"{ours}.qkv.{KIND}"),
        linear(f"{theirs}.attn.to_out.0", f"{ours}.out"),
        linear(f"{theirs}.norm2", f"{ours}.mlp_norm"),
        *mlp(f"{theirs}.ff", ours),
        linear(f"{theirs}.norm_out.linear", f"{ours}.gates"),
    ]


def double_blocks(num_heads: int) -> list[Rule]:
    """Blocks with own weights for text and pictures."""
    rules: list[Rule] = []
    attention = "transformer_blocks.{i}.attn"
    towers = {
        "visual": ("", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "to_out.0"),
        "text": ("_context", ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"), "to_add_out"),
    }
    for tower, (suffix, names, norms, out) in towers.items():
        ours = f"double_blocks.{{i}}.towers.{tower}"
        rules += [
            linear(f"transformer_blocks.{{i}}.norm1{suffix}.linear", f"{ours}.modulation.linear"),
            *rotated_attention(attention, names, norms, ours, num_heads),
            linear(f"{attention}.{out}", f"{ours}.out"),
            *mlp(f"transformer_blocks.{{i}}.ff{suffix}", ours),
        ]
    return rules


def single_blocks(num_heads: int, width: int, hidden: int) -> list[Rule]:
    """Blocks with shared weights; what they keep as one map of attention and MLP side by side is two of ours."""
    theirs, ours = "single_transformer_blocks.{i}", "single_blocks.{i}"
    return [
        linear(f"{theirs}.norm.linear", f"{ours}.modulation.linear"),
        *rotated_attention(f"{theirs}.attn", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), ours, num_heads),
        linear(f"{theirs}.proj_mlp", f"{ours}.mlp_in"),
        Split(f"{theirs}.proj_out.weight", [f"{ours}.out.weight", f"{ours}.mlp_out.weight"], dim=1, sizes=[width, hidden]),
        Rename(f"{theirs}.proj_out.bias", f"{ours}.out.bias"),
    ]


def ends(patch: int) -> list[Rule]:
    """Patches in and out."""
    return [
        Rename("x_embedder.proj.weight", "visual_in.weight", Rearrange("D C t h w -> D (C t h w)", {"t": 1, "h": patch, "w": patch})),
        Rename("x_embedder.proj.bias", "visual_in.bias"),
        linear("norm_out.linear", "out_modulation.linear", SwapHalves()),
        linear("proj_out", "out"),
    ]


def shared_arguments(config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Arguments that both generations have.

    Raises:
        UserError: a patch in time, or another norm of queries and keys.
    """
    for key, only in (("patch_size_t", 1), ("qk_norm", "rms_norm")):
        if config[key] != only:
            raise UserError(f"config.json of {class_name} has {key}={config[key]!r}; ours is made for {only!r} only")
    return {
        "text_width": config["text_embed_dim"],
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "num_double_blocks": config["num_layers"],
        "num_refiner_blocks": config["num_refiner_layers"],
        "mlp_ratio": config["mlp_ratio"],
        "patch": config["patch_size"],
        "rope_axes": list(config["rope_axes_dim"]),
        "theta": config["rope_theta"],
    }


def shared_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back."""
    return {
        "out_channels": arguments["latent_channels"],
        "num_attention_heads": arguments["num_heads"],
        "attention_head_dim": arguments["width"] // arguments["num_heads"],
        "num_layers": arguments["num_double_blocks"],
        "num_refiner_layers": arguments["num_refiner_blocks"],
        "mlp_ratio": arguments["mlp_ratio"],
        "patch_size": arguments["patch"],
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "text_embed_dim": arguments["text_width"],
        "rope_theta": arguments["theta"],
        "rope_axes_dim": list(arguments["rope_axes"]),
    }


def latent_channels(config: Mapping[str, Any], class_name: str, copies: bool) -> int:
    """C of the latents.

    Raises:
        UserError: the input does not have the channels that C latents need, with their clean copies and mask or without.
    """
    channels = config["out_channels"] or config["in_channels"]
    expected = 2 * channels + 1 if copies else channels
    if config["in_channels"] != expected:
        what = f"{channels} latent channels" + (", their clean copy and a mask" if copies else "")
        raise UserError(f"config.json of {class_name} has in_channels={config['in_channels']}; {what} are {expected}")
    return channels


class HunyuanVideoDiffusers(WeightFormat):
    """Weights of diffusers' `HunyuanVideoTransformer3DModel`."""

    class_name = "HunyuanVideoTransformer3DModel"
    denoiser = "HunyuanVideoDenoiser"
    defaults = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "num_layers": 20,
        "num_single_layers": 40,
        "num_refiner_layers": 2,
        "mlp_ratio": 4.0,
        "patch_size": 2,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": True,
        "text_embed_dim": 4096,
        "pooled_projection_dim": 768,
        "rope_theta": 256.0,
        "rope_axes_dim": [16, 56, 56],
        "image_condition_type": None,
    }
    additions = (AUDIO,)

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `WeightFormat.arguments`."""
        condition = config["image_condition_type"] or "none"
        return {
            "latent_channels": latent_channels(config, self.class_name, copies=condition == "latent_concat"),
            **shared_arguments(config, self.class_name),
            "pooled_width": config["pooled_projection_dim"],
            "num_single_blocks": config["num_single_layers"],
            "image_condition": condition,
            "guidance_embedding": config["guidance_embeds"],
        }

    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `WeightFormat.config`."""
        channels, condition = arguments["latent_channels"], arguments["image_condition"]
        return {
            "in_channels": 2 * channels + 1 if condition == "latent_concat" else channels,
            **shared_config(arguments),
            "pooled_projection_dim": arguments["pooled_width"],
            "num_single_layers": arguments["num_single_blocks"],
            "image_condition_type": None if condition == "none" else condition,
            "guidance_embeds": arguments["guidance_embedding"],
        }

    def rules(self, config: Mapping[str, Any]) -> Sequence[Rule]:
        """See `WeightFormat.rules`."""
        heads = config["num_attention_heads"]
        width = heads * config["attention_head_dim"]
        guidance = embedding("time_text_embed.guidance_embedder", "guidance_in.text") if config["guidance_embeds"] else []
        return [
            *ends(config["patch_size"]),
            *refiner(),
            *embedding("time_text_embed.timestep_embedder", "level_in"),
            *embedding("time_text_embed.text_embedder", "pooled_in"),
            *guidance,
            *double_blocks(heads),
            *single_blocks(heads, width, int(width * config["mlp_ratio"])),
        ]


class HunyuanVideo15Diffusers(WeightFormat):
    """Weights of diffusers' `HunyuanVideo15Transformer3DModel`."""

    class_name = "HunyuanVideo15Transformer3DModel"
    denoiser = "HunyuanVideo15Denoiser"
    defaults = {
        "in_channels": 65,
        "out_channels": 32,
        "num_attention_heads": 16,
        "attention_head_dim": 128,
        "num_layers": 54,
        "num_refiner_layers": 2,
        "mlp_ratio": 4.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "text_embed_dim": 3584,
        "text_embed_2_dim": 1472,
        "image_embed_dim": 1152,
        "rope_theta": 256.0,
        "rope_axes_dim": [16, 56, 56],
        "target_size": 640,
        "task_type": "i2v",
        "use_meanflow": False,
    }
    additions = (AUDIO, Addition("guidance", ("guidance_in.text.*",), ("guidance_in.text.2.*",)))

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `WeightFormat.arguments`."""
        return {
            "latent_channels": latent_channels(config, self.class_name, copies=True),
            **shared_arguments(config, self.class_name),
            "glyph_width": config["text_embed_2_dim"],
            "image_width": config["image_embed_dim"],
            "use_meanflow": config["use_meanflow"],
            "target_size": config["target_size"],
            "task_type": config["task_type"],
        }

    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `WeightFormat.config`."""
        return {
            "in_channels": 2 * arguments["latent_channels"] + 1,
            **shared_config(arguments),
            "text_embed_2_dim": arguments["glyph_width"],
            "image_embed_dim": arguments["image_width"],
            "use_meanflow": arguments["use_meanflow"],
            "target_size": arguments["target_size"],
            "task_type": arguments["task_type"],
        }

    def rules(self, config: Mapping[str, Any]) -> Sequence[Rule]:
        """See `WeightFormat.rules`."""
        glyphs = {"norm": 0, "linear_1": 1, "linear_2": 3, "linear_3": 5}
        image = {"norm_in": 0, "linear_1": 1, "linear_2": 3, "norm_out": 4}
        return [
            *ends(config["patch_size"]),
            *refiner(),
            *embedding("time_embed.timestep_embedder", "level_in"),
            *(embedding("time_embed.timestep_embedder_r", "second_level_in") if config["use_meanflow"] else []),
            *(linear(f"context_embedder_2.{theirs}", f"glyphs_in.{ours}") for theirs, ours in glyphs.items()),
            *(linear(f"image_embedder.{theirs}", f"image_in.{ours}") for theirs, ours in image.items()),
            Rename("cond_type_embed.weight", "text_kinds.weight"),
            *double_blocks(config["num_attention_heads"]),
        ]

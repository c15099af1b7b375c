"""A plugin file: a denoiser of a few thousand numbers, and the format of a library that keeps the same network under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowact.errors import UserError
from flowact.models import Addition, Denoiser, WeightFormat
from flowact.models.rules import Constant, Ignored, Part, PermuteHeads, Rearrange, Rename, Rule, Stack
from flowact.types import ConditionTokens, MemoryFeatures, WindowLayout

PATCH = 2


class TinyBlock(nn.Module):
    """Weights of one block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.Parameter(torch.ones(2, width // num_heads))
        self.out = nn.Linear(width, width)


class TinyDenoiser(Denoiser):
    """It holds weights; nobody asks it for a velocity.

    Args:
        latent_channels: C of the latents.
        text_width: width of the text features.
        audio_width: width of the audio features.
        width: token width.
        num_heads: attention heads.
        num_blocks: blocks.
        audio_gate: where the audio branch's gates start.
    """

    def __init__(
        self,
        latent_channels: int,
        text_width: int,
        audio_width: int,
        width: int = 8,
        num_heads: int = 2,
        num_blocks: int = 2,
        audio_gate: float = 0.0,
    ) -> None:
        super().__init__()
        self.latent_channels, self.text_width, self.audio_width = latent_channels, text_width, audio_width
        self.visual_in = nn.Linear(latent_channels * PATCH**2, width)
        self.text_in = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(TinyBlock(width, num_heads) for _ in range(num_blocks))
        self.audio_in = nn.Linear(audio_width, width)
        self.audio_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(num_blocks))
        for block in self.audio_blocks:
            nn.init.constant_(block.weight, audio_gate)
            nn.init.constant_(block.bias, audio_gate)

    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        raise NotImplementedError("the tests of weight formats compute nothing")


class TinyFormat(WeightFormat):
    """The weights of a TinyTransformer."""

    class_name = "TinyTransformer"
    denoiser = "TinyDenoiser"
    defaults = {"channels": 4, "text_dim": 6, "dim": 8, "heads": 2, "layers": 2, "norm": "rms"}
    additions = (Addition("audio", tensors=("audio_in.*", "audio_blocks.*"), gates=("audio_blocks.*",)),)

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config["norm"] != "rms":
            raise UserError(f"norm is {config['norm']!r} in config.json; TinyDenoiser has 'rms' only")
        names = {"latent_channels": "channels", "text_width": "text_dim", "width": "dim", "num_heads": "heads", "num_blocks": "layers"}
        return {ours: config[theirs] for ours, theirs in names.items()}

    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        names = {"channels": "latent_channels", "text_dim": "text_width", "dim": "width", "heads": "num_heads", "layers": "num_blocks"}
        return {**{theirs: arguments[ours] for theirs, ours in names.items()}, "norm": "rms"}

    def rules(self, config: Mapping[str, Any]) -> Sequence[Rule]:
        turn = PermuteHeads(config["heads"])
        return [
            Rename("embed.weight", "visual_in.weight", Rearrange("D C 1 h w -> D (h w C)", {"h": PATCH, "w": PATCH})),
            Rename("embed.bias", "visual_in.bias"),
            Rename("context.{kind:weight|bias}", "text_in.{kind:weight|bias}"),
            Stack(
                [
                    Part("layers.{i}.to_q.{kind:weight|bias}", turn),
                    Part("layers.{i}.to_k.{kind:weight|bias}", turn),
                    "layers.{i}.to_v.{kind:weight|bias}",
                ],
                "blocks.{i}.qkv.{kind:weight|bias}",
            ),
            Stack([Part(f"layers.{{i}}.norm_{which}.weight", PermuteHeads(1), Rearrange("D -> 1 D")) for which in "qk"], "blocks.{i}.norm"),
            Rename("layers.{i}.to_out.{kind:weight|bias}", "blocks.{i}.out.{kind:weight|bias}"),
            Constant("frequencies", torch.arange(4.0)),
            Ignored("statistics.*"),
        ]

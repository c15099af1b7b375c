"""What the denoiser will see: taken from the recipe's data where they are there, assumed, and said to be, where they are not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowact.autoencoders import SPEC, Autoencoder, DiffusersAutoencoder
from flowact.budget.costs import Sizes
from flowact.errors import UserError
from flowact.models.base import Denoiser
from flowact.registry import instantiate

#: latent channels -> temporal and spatial stride of the published autoencoders that have so many, and whose they are
LATENT_SPACES = {
    16: (4, 8, "Wan 2.1 and HunyuanVideo"),
    32: (4, 16, "HunyuanVideo 1.5"),
    48: (4, 16, "Wan 2.2"),
    96: (4, 16, "CausalVideoAutoencoder"),
}
TEXT_TOKENS = 512
CONFIG = "config.json"


@dataclass(frozen=True)
class Wishes:
    """What the user states about data that are not there, or instead of those that are.

    Attributes:
        size: height and width of the picture in pixels.
        strides: temporal and spatial stride of the autoencoder.
        text_tokens: rows of a caption.
        autoencoder: folder, or the class of diffusers whose released sizes are meant, such as AutoencoderKLWan.
    """

    size: tuple[int, int] | None = None
    strides: tuple[int, int] | None = None
    text_tokens: int | None = None
    autoencoder: str | None = None


@dataclass(frozen=True)
class Facts:
    """Sizes of the data and where they come from.

    Attributes:
        sizes: of the denoiser's inputs.
        temporal_stride: video frames of a latent frame.
        spatial_stride: pixels of a latent cell, per side; None if unknown.
        autoencoder: on the meta device; None if unknown.
        assumed: sentences that say what was not taken from data.
    """

    sizes: Sizes
    temporal_stride: int
    spatial_stride: int | None
    autoencoder: Autoencoder | None
    assumed: tuple[str, ...]


def gather(data: Any, denoiser: Denoiser, wishes: Wishes) -> Facts:
    """The facts of a recipe's data module.

    Args:
        data: the data module; its `conditions` are read, no shard is opened.
        denoiser: whose widths captions and sound have.
        wishes: stand in front of what the data say.

    Raises:
        UserError: the data are not there and `wishes` do not say enough; or the picture does not divide into latent cells.
    """
    conditions, absent = _conditions(data)
    source = wishes.autoencoder or conditions.get("autoencoder_path")
    autoencoder = outline_of_autoencoder(source) if source else None
    assumed = [f"the data could not be read ({absent})"] if absent else []
    temporal, spatial = _strides(conditions, denoiser, wishes, autoencoder, assumed)
    latent = _latent(conditions, denoiser, wishes, spatial, absent)
    rows = wishes.text_tokens or (conditions["text_shape"][0] if conditions else TEXT_TOKENS)
    if not conditions and wishes.text_tokens is None:
        assumed.append(f"captions have {rows} tokens, as those of T5 and UMT5 (--text-tokens)")
    per_latent = denoiser.audio_per_latent or temporal
    return Facts(Sizes(latent, (rows, denoiser.text_width), (per_latent, denoiser.audio_width)), temporal, spatial, autoencoder, tuple(assumed))


def _conditions(data: Any) -> tuple[Mapping[str, Any], str]:
    """What the data module says, or nothing and why."""
    try:
        return data.conditions, ""
    except (UserError, OSError) as error:
        return {}, str(error)
    except AttributeError:
        return {}, f"{type(data).__name__} does not describe its data"


def _strides(
    conditions: Mapping[str, Any], denoiser: Denoiser, wishes: Wishes, autoencoder: Autoencoder | None, assumed: list[str]
) -> tuple[int, int | None]:
    if autoencoder is not None:
        if autoencoder.latent_channels != denoiser.latent_channels:
            raise UserError(
                f"the autoencoder makes latents of {autoencoder.latent_channels} channels, the recipe's denoiser takes {denoiser.latent_channels}; "
                "set model.init_args.denoiser.init_args.latent_channels, or name another --autoencoder"
            )
        return autoencoder.temporal_stride, autoencoder.spatial_stride
    if wishes.strides is not None:
        return wishes.strides
    temporal, spatial, whose = LATENT_SPACES.get(denoiser.latent_channels, (None, None, ""))
    temporal = conditions.get("temporal_stride") or temporal or denoiser.audio_per_latent
    if temporal is None:
        raise UserError(f"nothing says what latent frames of {denoiser.latent_channels} channels stand for; give --strides, such as 4x8")
    if spatial is not None:
        strides = f"strides {temporal}x{spatial} (--strides, --autoencoder)"
        assumed.append(f"latents of {denoiser.latent_channels} channels are those of {whose}: {strides}")
    return temporal, spatial


def _latent(conditions: Mapping[str, Any], denoiser: Denoiser, wishes: Wishes, spatial: int | None, absent: str) -> tuple[int, int, int]:
    if wishes.size is None:
        if not conditions:
            raise UserError(f"the data could not be read ({absent}); say what size of picture to plan for, such as --size 480x832 (height, width)")
        channels, height, width = conditions["latent_shape"]
        return channels, height, width
    if spatial is None:
        raise UserError(f"nothing says how many pixels a cell of {denoiser.latent_channels} latent channels has; give --strides, such as 4x8")
    height, width = wishes.size
    if height % spatial or width % spatial:
        nearest = "x".join(str(max(round(side / spatial), 1) * spatial) for side in wishes.size)
        raise UserError(f"--size {height}x{width}: does not divide into latent cells of {spatial} pixels; the nearest size is {nearest}")
    return denoiser.latent_channels, height // spatial, width // spatial


def outline_of_autoencoder(source: str) -> Autoencoder:
    """An autoencoder on the meta device: its weights are not read, and need not be there.

    Args:
        source: folder of an autoencoder of ours, `vae` folder of diffusers, or the name of one of diffusers' classes for its released size.

    Raises:
        UserError: none of these.
    """
    folder = Path(source)
    with torch.device("meta"):
        if (folder / SPEC).is_file():
            return instantiate(json.loads((folder / SPEC).read_text()), "autoencoders")
        if (folder / CONFIG).is_file():
            return DiffusersAutoencoder(str(json.loads((folder / CONFIG).read_text()).get("_class_name")), source)
        if folder.exists() or not source.isidentifier():
            raise UserError(f"{source} holds no autoencoder: neither {SPEC} nor {CONFIG} is there")
        with tempfile.TemporaryDirectory() as released:  # a configuration that says nothing means the released one
            (Path(released) / CONFIG).write_text(json.dumps({"_class_name": source}))
            return DiffusersAutoencoder(source, released)

"""Autoencoders, and the folder in which one is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from flowact.autoencoders.base import Autoencoder
from flowact.autoencoders.causal import CausalVideoAutoencoder
from flowact.autoencoders.diffusers import DiffusersAutoencoder
from flowact.eight_bit import load_weights
from flowact.errors import UserError

WEIGHTS, SPEC = "autoencoder.safetensors", "autoencoder.json"
#: of a folder in the layout of diffusers
CONFIG, DIFFUSERS_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
#: entries of our config.json that diffusers has not: our class, and arguments of the wrapper
_CLASS, _WRAPPER = "_class_name", "_flowact_arguments"

__all__ = [
    "Autoencoder",
    "CausalVideoAutoencoder",
    "DiffusersAutoencoder",
    "latent_space",
    "load_autoencoder",
    "save_autoencoder",
    "save_diffusers_layout",
]


def save_autoencoder(autoencoder: Autoencoder, spec: dict[str, object], folder: Path) -> None:
    """Write weights and `spec` {class_path, init_args} so that `load_autoencoder` builds the same object."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in autoencoder.state_dict().items()}, str(folder / WEIGHTS))
    (folder / SPEC).write_text(json.dumps(spec, indent=2, sort_keys=True) + "\n")


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder of a folder that `save_autoencoder` or `save_diffusers_layout` wrote, in evaluation mode.

    Raises:
        UserError: the folder holds no autoencoder.
    """
    from flowact.registry import instantiate

    folder = Path(folder)
    if not (folder / SPEC).is_file() and (folder / CONFIG).is_file() and (folder / DIFFUSERS_WEIGHTS).is_file():
        return _load_diffusers_layout(folder)
    if not (folder / SPEC).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no autoencoder: {SPEC} and {WEIGHTS} are expected there. Train one with a recipe of AutoencoderTraining.")
    autoencoder: Autoencoder = instantiate(json.loads((folder / SPEC).read_text()), "autoencoders")
    autoencoder.load_state_dict(load_weights(folder / WEIGHTS))
    return autoencoder.eval().requires_grad_(False)


def save_diffusers_layout(autoencoder: Autoencoder, spec: Mapping[str, Any], folder: Path) -> str:
    """Write config.json and weights as diffusers lays them out; what is wrapped by `DiffusersAutoencoder` is a folder that diffusers reads itself.

    Args:
        autoencoder: as loaded.
        spec: its {class_path, init_args}.
        folder: gets the files; absent.

    Returns:
        The class in config.json.
    """
    folder.mkdir(parents=True)
    arguments = dict(spec.get("init_args") or {})
    if isinstance(autoencoder, DiffusersAutoencoder):
        autoencoder.model.save_pretrained(str(folder), safe_serialization=True, max_shard_size="1000GB")
        config = json.loads((folder / CONFIG).read_text())
        config |= {_WRAPPER: {"context": autoencoder.context}}
        config.pop("_name_or_path", None)  # a place on this machine
    else:
        save_file({name: tensor.float().contiguous() for name, tensor in autoencoder.state_dict().items()}, folder / DIFFUSERS_WEIGHTS)
        config = {_CLASS: str(spec["class_path"]).rpartition(".")[2], **arguments}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return str(config[_CLASS])


def _load_diffusers_layout(folder: Path) -> Autoencoder:
    from flowact.autoencoders.diffusers import CODECS
    from flowact.registry import instantiate

    config = json.loads((folder / CONFIG).read_text())
    if config.get(_CLASS) in CODECS:
        return DiffusersAutoencoder(config[_CLASS], str(folder), **config.get(_WRAPPER, {})).eval().requires_grad_(False)
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    autoencoder: Autoencoder = instantiate({"class_path": config.get(_CLASS), "init_args": arguments}, "autoencoders")
    autoencoder.load_state_dict(load_weights(folder / DIFFUSERS_WEIGHTS))
    return autoencoder.eval().requires_grad_(False)


def latent_space(folder: str | Path) -> str:
    """Name of the latent space of an autoencoder folder: eight hex digits of its class, arguments and weights."""
    folder = Path(folder)
    digest = hashlib.sha256((folder / SPEC).read_bytes())
    digest.update((folder / WEIGHTS).read_bytes())
    return digest.hexdigest()[:8]

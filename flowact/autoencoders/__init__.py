"""Autoencoders, and the folder in which one is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import save_file

from flowact.autoencoders.base import Autoencoder
from flowact.autoencoders.causal import CausalVideoAutoencoder
from flowact.autoencoders.diffusers import DiffusersAutoencoder
from flowact.eight_bit import load_weights
from flowact.errors import UserError

WEIGHTS, SPEC = "autoencoder.safetensors", "autoencoder.json"

__all__ = ["Autoencoder", "CausalVideoAutoencoder", "DiffusersAutoencoder", "latent_space", "load_autoencoder", "save_autoencoder"]


def save_autoencoder(autoencoder: Autoencoder, spec: dict[str, object], folder: Path) -> None:
    """Write weights and `spec` {class_path, init_args} so that `load_autoencoder` builds the same object."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in autoencoder.state_dict().items()}, str(folder / WEIGHTS))
    (folder / SPEC).write_text(json.dumps(spec, indent=2, sort_keys=True) + "\n")


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder of a folder, in evaluation mode.

    Raises:
        UserError: the folder holds no autoencoder.
    """
    from flowact.registry import instantiate

    folder = Path(folder)
    if not (folder / SPEC).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no autoencoder: {SPEC} and {WEIGHTS} are expected there. Train one with a recipe of AutoencoderTraining.")
    autoencoder: Autoencoder = instantiate(json.loads((folder / SPEC).read_text()), "autoencoders")
    autoencoder.load_state_dict(load_weights(folder / WEIGHTS))
    return autoencoder.eval().requires_grad_(False)


def latent_space(folder: str | Path) -> str:
    """Name of the latent space of an autoencoder folder: eight hex digits of its class, arguments and weights."""
    folder = Path(folder)
    digest = hashlib.sha256((folder / SPEC).read_bytes())
    digest.update((folder / WEIGHTS).read_bytes())
    return digest.hexdigest()[:8]

"""Checkpoints to export: a base, a LoRA on it, and one with other weights everywhere."""

from __future__ import annotations

import torch

from flowact.autoencoders import CausalVideoAutoencoder, save_autoencoder
from flowact.checkpoints import open_checkpoint, write_checkpoint
from flowact.cli import main
from flowact.conditioning import LogMel
from flowact.lora import LORA_WEIGHTS
from flowact.models.adapters import LoRA
from flowact.registry import instantiate

SPEC = {
    "class_path": "MMDiT",
    "init_args": {
        "latent_channels": 3, "text_width": 16, "audio_width": LogMel(num_mels=5).width, "width": 16, "num_heads": 2,
        "num_double_blocks": 1, "num_single_blocks": 1,
    },
}  # fmt: skip
AUTOENCODER = {"latent_channels": 3, "width": 8}
ENCODERS = {
    "text": {"class_path": "HashedText", "init_args": {"num_tokens": 4, "buckets": 16}},
    "audio": {"class_path": "LogMel", "init_args": {"num_mels": 5}},
}


def numbers(shape, seed):
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def checkpoint_at(folder, weights, ema=None, stage="diffusion_forcing", adapter=None, **lineage):
    arguments = {"denoiser": SPEC} | ({"adapter": adapter} if adapter else {})
    facts = {"stage": stage, "step": 3, "chunk_frames": 3, "ancestors": [], "encoders": ENCODERS, "latent_shape": [3, 2, 2], "character": None}
    return write_checkpoint(
        folder, weights=weights, ema=ema, recipe={"model": {"class_path": "ChunkwiseDiffusionForcing", "init_args": arguments}},
        lineage=facts | lineage, autoencoder_folder=folder.parent / "ae", engine_saver=None,
        weights_name=LORA_WEIGHTS if adapter else "denoiser.safetensors",
    )  # fmt: skip


def write_exportable(tmp_path):
    """`base`, a LoRA on it, `lora`, and `tuned`, which has other weights everywhere."""
    torch.manual_seed(0)
    save_autoencoder(CausalVideoAutoencoder(**AUTOENCODER), {"class_path": "CausalVideoAutoencoder", "init_args": AUTOENCODER}, tmp_path / "ae")
    weights = {name: value + numbers(value.shape, i) for i, (name, value) in enumerate(instantiate(SPEC, "denoisers").state_dict().items())}
    checkpoint_at(tmp_path / "base", weights, {name: value + 0.01 for name, value in weights.items()}, stage="pretraining")
    base = open_checkpoint(tmp_path / "base")
    network = instantiate(SPEC, "denoisers")
    adapter = LoRA(rank=2, alpha=3.0, exclude=["visual_in", "out"], train_also=["visual_in.*"])
    adapter.attach(network)
    live = network.state_dict()
    state = {stored: numbers(live[name].shape, 100 + i) for i, (name, stored) in enumerate(adapter.stored_names(network).items())}
    checkpoint_at(
        tmp_path / "lora", state | adapter.constants(network), {name: value * 2 for name, value in state.items()}, adapter={"class_path": "LoRA"},
        base=base.identity,
    )  # fmt: skip
    checkpoint_at(tmp_path / "tuned", {name: value + numbers(value.shape, 200 + i) for i, (name, value) in enumerate(base.weights().items())})


def refused(capsys, *arguments):
    """The message of a command that is refused."""
    assert main([*arguments]) == 2
    return capsys.readouterr().err

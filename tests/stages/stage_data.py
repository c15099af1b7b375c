"""Data and sizes small enough that a stage trains in a second: random windows with the facts that stages ask their data for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from flowact.autoencoders import CausalVideoAutoencoder, save_autoencoder
from flowact.checkpoints import write_checkpoint
from flowact.models.mmdit import MMDiT
from flowact.types import Batch, FrameBatch

CHANNELS, SIZE, TOKENS, TEXT_WIDTH, AUDIO, AUDIO_WIDTH = 2, 2, 3, 5, 4, 6
ENCODERS = {"text": {"class_path": "HashedText", "init_args": {}}, "audio": {"class_path": "LogMel", "init_args": {}}}
LINEAGE = {"latent_space": "0123abcd", "fps": 25, "encoders": ENCODERS, "latent_shape": [CHANNELS, SIZE, SIZE], "character": None}


def denoiser(seed: int = 0, **options: Any) -> MMDiT:
    torch.manual_seed(seed)
    shape = {"width": 16, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1, "mlp_ratio": 2.0, "initial_gate": 0.5}
    model = MMDiT(CHANNELS, TEXT_WIDTH, AUDIO_WIDTH, **(shape | options))
    nn.init.normal_(model.out.weight, std=0.1)
    return model


def random_batch(num_frames: int, batch: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    index = torch.randint(2, (batch, num_frames), generator=generator)
    return Batch(
        noise(num_frames, CHANNELS, SIZE, SIZE),
        noise(1, CHANNELS, SIZE, SIZE),
        noise(num_frames, AUDIO, AUDIO_WIDTH),
        noise(2, TOKENS, TEXT_WIDTH),
        index,
        tuple(f"clip-{seed}@{i}" for i in range(batch)),
    )


class WindowData(pl.LightningDataModule):
    """Random windows of the length that a stage wants."""

    def __init__(self, history_frames: int, window_frames: int, folder: Path = Path("autoencoder"), num_batches: int = 6) -> None:
        super().__init__()
        self.history_frames, self.window_frames, self.num_batches = history_frames, window_frames, num_batches
        self.lineage = dict(LINEAGE)
        self.conditions = self.lineage | {
            "autoencoder_path": str(folder), "text_shape": [TOKENS, TEXT_WIDTH], "audio_shape": [AUDIO, AUDIO_WIDTH],
        }  # fmt: skip

    @classmethod
    def of(cls, stage: Any, **options: Any) -> WindowData:
        return cls(stage.history_frames, stage.num_chunks * stage.chunk_frames, **options)

    def loader(self, first_seed: int) -> DataLoader:
        rank = self.trainer.global_rank if self.trainer else 0
        frames = self.history_frames + self.window_frames
        seeds = [first_seed + 100 * rank + i for i in range(self.num_batches)]
        return DataLoader([random_batch(frames, seed=seed) for seed in seeds], batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self.loader(1)

    def val_dataloader(self) -> DataLoader:
        return self.loader(1000)


class FrameData(pl.LightningDataModule):
    """Random pixel clips of 5 frames."""

    conditions = lineage = {"fps": 25, "character": None, "states": None}

    def __init__(self, batch: int = 4, num_batches: int = 4) -> None:
        super().__init__()
        self.batch, self.num_batches = batch, num_batches

    def loader(self, split: str) -> DataLoader:
        generator = torch.Generator().manual_seed({"train": 0, "val": 1}[split])
        size = (self.batch, 3, 5, 32, 32)
        return DataLoader([FrameBatch(torch.rand(size, generator=generator) * 2 - 1) for _ in range(self.num_batches)], batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")


def write_parent(folder: Path, model: MMDiT, ema: dict[str, torch.Tensor] | None = None, **lineage: Any) -> Path:
    """A checkpoint of an earlier stage."""
    arguments = {"latent_channels": CHANNELS, "width": 8}
    save_autoencoder(CausalVideoAutoencoder(**arguments), {"class_path": "CausalVideoAutoencoder", "init_args": arguments}, folder.parent / "ae")
    facts = {"schema": 1, "stage": "pretraining", "step": 7, "chunk_frames": 2, "ancestors": [], **LINEAGE} | lineage
    return write_checkpoint(
        folder, weights=model.state_dict(), ema=ema, recipe={"model": {}}, lineage=facts, autoencoder_folder=folder.parent / "ae", engine_saver=None
    )


def trainer(**options: Any) -> pl.Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "max_steps": 2, "max_epochs": -1, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "logger": False, "use_distributed_sampler": False, "limit_val_batches": 1, "val_check_interval": 2,
        "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**(settings | options))

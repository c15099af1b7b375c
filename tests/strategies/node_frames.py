"""A plugin file for runs on several nodes: clips of noise, and a callback that says what a process holds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from flowact.types import FrameBatch


class NoiseFrames(LightningDataModule):
    """Clips of 5 frames of noise, others on every process."""

    conditions = lineage = {"fps": 25, "character": None, "states": None}

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        generator = torch.Generator().manual_seed(self.trainer.global_rank)
        return DataLoader([FrameBatch(torch.rand((2, 3, 5, 32, 32), generator=generator) * 2 - 1) for _ in range(4)], batch_size=None)


class Witness(Callback):
    """Writes down a process's weights and place.

    Args:
        folder: for a file from each process.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        digest = hashlib.sha256()
        for parameter in pl_module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        seen: dict[str, Any] = {"weights": digest.hexdigest(), "step": trainer.global_step, "node": trainer.node_rank, "of": trainer.world_size}
        seen["loss"], seen["pid"] = float(trainer.callback_metrics["train/loss"]), os.getpid()
        Path(self.folder, f"rank-{trainer.global_rank}.json").write_text(json.dumps(seen))

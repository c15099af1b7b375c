"""A tiny stage with dropout and noise, and data whose position can be restored: everything that could make resuming inexact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from flowact.strategies import full_fp32_weights

BATCHES_PER_EPOCH = 5


class Positions(IterableDataset):
    """Each epoch's samples in an order of its own, differing by process; resumes inside an epoch."""

    def __init__(self, rank: int) -> None:
        self.rank, self.epoch, self.at = rank, 0, 0

    def __len__(self) -> int:
        return 4 * BATCHES_PER_EPOCH

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < len(self):
            generator = torch.Generator().manual_seed(10_000 * self.epoch + 100 * self.rank + self.at)
            self.at += 1
            yield torch.randn(8, generator=generator)
        self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"rank": self.rank, "epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state["rank"] == self.rank, "the position of another process"
        self.epoch, self.at = state["epoch"], state["at"]


class Data(LightningDataModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(Positions(self.trainer.global_rank), batch_size=4, num_workers=self.num_workers)


class TinyStage(LightningModule):
    """Denoises eight numbers. `losses` are those of this process's steps."""

    def __init__(self, fail_at: int | None = None, nan_at: int | None = None) -> None:
        super().__init__()
        self.denoiser = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.teacher = nn.Linear(8, 8).requires_grad_(False)
        self.recipe: dict[str, Any] = {"seed": 0, "model": {"class_path": "TinyStage"}}
        self.autoencoder_folder: Path | None = None
        self.weights_name = "denoiser.safetensors"
        self.fail_at, self.nan_at = fail_at, nan_at
        self.losses: list[float] = []
        self.inputs: list[float] = []

    @property
    def num_updates(self) -> int:
        return self.global_step

    def trained_module(self) -> nn.Module:
        return self.denoiser

    def checkpoint_weights(self) -> dict[str, Tensor]:
        return full_fp32_weights(self.denoiser)

    def lineage(self) -> dict[str, Any]:
        return {"schema": 1, "stage": "tiny", "step": self.global_step, "ancestors": []}

    def documents(self) -> dict[str, str]:
        return {"notes.txt": "tiny"}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.fail_at == self.global_step:
            raise RuntimeError("the experiment's own failure")
        self.inputs.append(float(batch.sum()))
        loss = (self.denoiser(batch + torch.randn_like(batch)) - self.teacher(batch)).float().pow(2).mean()
        if self.nan_at == self.global_step:
            loss = loss * float("nan")
        self.losses.append(float(loss.detach()))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

"""A stage, data, banks and a callback that are as small as can be: a plugin file for tests of registry, recipes and commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class _Stage(LightningModule):
    """What the registry takes for the base class of stages."""


_Stage.__name__, _Stage.__module__ = "Stage", "flowact.stages.base"


class _MemoryBank(ABC):
    @abstractmethod
    def read(self) -> int: ...


_MemoryBank.__name__, _MemoryBank.__module__ = "MemoryBank", "flowact.memory.base"


class ToyBank(_MemoryBank):
    """Remembers a number.

    Args:
        num_long: chunks kept for long.
        inner: a bank in the bank.
        label: shown in reports.
    """

    def __init__(self, num_long: int = 3, inner: _MemoryBank | None = None, label: str = "a") -> None:
        self.num_long, self.inner, self.label = num_long, inner, label

    def read(self) -> int:
        return self.num_long


class OtherBank(_MemoryBank):
    """Remembers nothing."""

    def __init__(self, width: float = 0.5) -> None:
        if width <= 0:
            raise ValueError(f"width {width} is not positive")
        self.width = width

    def read(self) -> int:
        return 0


@dataclass
class Rates:
    """Learning rates."""

    slow: float = 1e-3
    fast: float = 1e-2


DEFAULT_RATES = Rates()


@dataclass(frozen=True)
class Decay:
    """How rates fall."""

    rate: float = 0.1


class ToyStage(_Stage):
    """Fits a line."""

    def __init__(self, memory: _MemoryBank, width: int, rates: Rates = DEFAULT_RATES, mode: str = "plain", decay: Decay | None = None) -> None:
        super().__init__()
        self.memory, self.rates, self.mode = memory, rates, mode
        self.linear = torch.nn.Linear(width, 1)
        self.initialised_from: str | None = None

    def initialise_from(self, path: str) -> None:
        self.initialised_from = path
        print(f"initialised from {path}")

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.linear(batch[0]).square().mean()

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.log("val/loss", self.linear(batch[0]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rates.slow)


class ToyData(LightningDataModule):
    """Noise."""

    def __init__(self, width: int, batch_size: int = 2) -> None:
        super().__init__()
        self.width, self.batch_size = width, batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(8, self.width)), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class ToyWitness(Callback):
    """Writes what it saw.

    Args:
        path: file that gets the number of steps and the stage's width.
    """

    def __init__(self, path: str = "", every: int = 1) -> None:
        self.path, self.every = path, every

    def on_train_end(self, trainer: object, pl_module: ToyStage) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{trainer.global_step} {pl_module.linear.in_features} {pl_module.recipe['model']['init_args']['width']}\n")

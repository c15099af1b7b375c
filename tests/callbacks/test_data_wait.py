"""How long training waits for data, and how far it has come in each set, on a clock that only the data and the step move."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny import TinyStage
from torch.utils.data import DataLoader, Dataset

from flowact.callbacks import Throughput


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowNumbers(Dataset):
    """Each batch takes `seconds` to read."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> torch.Tensor:
        self.clock.now += self.seconds
        return torch.randn(2, 8)


class Slow(L.LightningDataModule):
    def __init__(self, clock: Clock, seconds: float, counts: bool) -> None:
        super().__init__()
        self.numbers = SlowNumbers(clock, seconds)
        if counts:
            self.counters = lambda: {"data/anna/windows": float(self.trainer.global_step), "data/anna/epochs": 0.5}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.numbers, batch_size=None)


class Steps(TinyStage):
    """Each step takes a second."""

    clock: Clock

    def training_step(self, *args: Any) -> Any:
        self.clock.now += 1.0
        return super().training_step(*args)


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, counts: bool = False) -> tuple[dict[str, float], str]:
    """The rates of a run whose data takes so long, and its log."""
    clock, throughput, stage, logger = Clock(), Throughput(count_steps=0), Steps(), CSVLogger(tmp_path)
    stage.clock = clock
    monkeypatch.setattr("flowact.callbacks.throughput.time", SimpleNamespace(perf_counter=clock.perf_counter))
    trainer = L.Trainer(
        accelerator="cpu", max_steps=6, logger=logger, log_every_n_steps=3, callbacks=[throughput], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Slow(clock, seconds, counts))
    logger.save()
    return throughput.rates(), Path(logger.log_dir, "metrics.csv").read_text()


@pytest.mark.parametrize("seconds", [0.0, 1.0, 3.0])
def test_the_wait_for_data_is_what_the_data_takes(tmp_path, monkeypatch, seconds):
    rates, log = measured(tmp_path, monkeypatch, seconds)
    # the loader is one batch ahead or not: over six batches that is one wait more or less
    assert rates["throughput/data_wait_seconds"] == pytest.approx(seconds, rel=1 / 5)
    assert rates["throughput/data_wait_share"] == pytest.approx(seconds / (1 + seconds), rel=1 / 5)
    assert "throughput/data_wait_seconds" in log


def test_counters_of_the_data_are_logged(tmp_path, monkeypatch):
    _, log = measured(tmp_path, monkeypatch, 0.5, counts=True)
    names, *rows = [line.split(",") for line in log.splitlines()]
    found = [row[names.index("data/anna/windows")] for row in rows]
    assert [float(value) for value in found if value] == [3.0, 6.0]
    assert "data/anna" not in measured(tmp_path / "other", monkeypatch, 0.5)[1]

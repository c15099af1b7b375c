"""What `NonFiniteGuard` counts, writes and says. That a skipped step changes nothing stands in tests/stages/test_bad_steps.py."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny import Data, TinyStage
from torch import Tensor

from flowact.callbacks import CheckpointFolder, NonFiniteGuard
from flowact.checkpoints import open_checkpoint
from flowact.errors import UserError


class Failing(TinyStage):
    """The loss is infinite at some steps, and the running mean of its inputs follows."""

    def __init__(self, bad: Collection[int]) -> None:
        super().__init__()
        self.bad = bad
        self.register_buffer("running", torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.running += batch.mean()
        loss = super().training_step(batch, batch_idx)
        return loss * torch.inf if self.global_step in self.bad else loss


def fit(stage: TinyStage, guard: NonFiniteGuard, folder: Path, *callbacks: L.Callback, logger: Any = False, steps: int = 8) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, logger=logger, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=bool(callbacks), default_root_dir=folder, callbacks=[guard, *callbacks],
    )  # fmt: skip
    trainer.fit(stage, datamodule=Data())
    return trainer


def test_a_run_goes_on_after_a_bad_step_and_writes_it_down(tmp_path: Path) -> None:
    guard, logger = NonFiniteGuard(), CSVLogger(tmp_path)
    stage = Failing({1, 2, 4, 5})
    trainer = fit(stage, guard, tmp_path, logger=logger)
    assert (trainer.global_step, guard.num_skipped) == (8, 4)
    lines = [json.loads(line) for line in (Path(logger.log_dir) / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    assert lines[0] == {"step": 1, "networks": ["network"], "processes": [[{"keys": [], "losses": ["inf"]}]]}
    assert trainer.callback_metrics["train/skipped_steps"] == 4
    good = [seen / 32 for step, seen in enumerate(stage.inputs) if step not in stage.bad]
    torch.testing.assert_close(stage.running, torch.tensor(sum(good)))


def test_a_run_stops_after_three_in_a_row_with_the_last_good_weights_written(tmp_path: Path) -> None:
    guard, stage = NonFiniteGuard(), Failing(range(3, 8))
    with pytest.raises(UserError, match=r"loss was not finite in 3 updates of the network in a row, the last at step 5 .*skipped\.jsonl"):
        fit(stage, guard, tmp_path, CheckpointFolder(str(tmp_path / "run")))
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.step == 6
    expected = Failing(())
    fit(expected, NonFiniteGuard(), tmp_path / "other", CheckpointFolder(str(tmp_path / "three")), steps=3)
    assert checkpoint.weights().keys() == open_checkpoint(tmp_path / "three").weights().keys()
    assert all(torch.isfinite(value).all() for value in checkpoint.weights().values())
    assert not (tmp_path / "other" / "skipped.jsonl").exists()


def test_counts_survive_a_checkpoint_and_a_good_step_ends_a_row(tmp_path: Path) -> None:
    first, second = NonFiniteGuard(max_in_a_row=2), NonFiniteGuard(max_in_a_row=2)
    fit(Failing({2}), first, tmp_path, steps=3)
    second.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="in 2 updates"):
        fit(Failing({0}), second, tmp_path)
    third = NonFiniteGuard(max_in_a_row=2)
    third.load_state_dict(first.state_dict())
    fit(Failing({1}), third, tmp_path)
    assert third.num_skipped == 2


def test_a_row_has_at_least_one_step() -> None:
    with pytest.raises(UserError, match="max_in_a_row of NonFiniteGuard is 0"):
        NonFiniteGuard(max_in_a_row=0)

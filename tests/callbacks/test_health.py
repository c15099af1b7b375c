"""Each known failure is named once, a healthy run never, and watching changes nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tiny import Data, TinyStage

from flowact.callbacks import CheckpointFolder, ExponentialMovingAverage, Throughput, TrainingHealth
from flowact.callbacks.health import Curve
from flowact.checkpoints import open_checkpoint
from flowact.errors import UserError

Sick = Callable[[int, float], Mapping[str, float]]
EVERY, STEPS = 10, 600


def healthy(step: int, noise: float) -> dict[str, float]:
    """A run as it should be: noisy, with a loss that falls and everything else where it belongs."""
    return {
        "train/loss": 0.5 + 1.5 * math.exp(-step / 150) + 0.2 * noise,
        "train/grad_norm": 0.4 + 0.1 * noise + (1.5 if step in (250, 260) else 0.0),
        "train/fake_score_loss": 1.0 + 0.2 * noise,
        "train/student_updates": step // 5,
        "train/fake_score_updates": step,
        "train/saturation": 1.0 + 0.1 * noise,
        "val/saturation": 0.8 + 0.02 * (step // 100),
        "val/beyond_range": 0.0005 + 0.0001 * (step // 100),
        "val/motion": 0.9 - 0.02 * (step // 100),
        "preview/motion": 1.1 - 0.05 * (step // 200),
        "ema/decay": 0.99,
        "ema/distance": 0.05 + 0.02 * noise,
        "throughput/data_wait_share": 0.05 + 0.04 * noise,
    }


def watch(sick: Sick, health: TrainingHealth | None = None, *, steps: int = STEPS, seed: int = 0) -> list[tuple[int, str, str]]:
    """Step, name and message of the warnings over a synthetic run."""
    health = health or TrainingHealth()
    noise = np.random.default_rng(seed).standard_normal(steps // EVERY + 1).clip(-2, 2)
    found = []
    for index in range(1, steps // EVERY + 1):
        step = index * EVERY
        points = healthy(step, noise[index]) | sick(step, noise[index])
        found += [(step, name, message) for name, message in health.observe(step, points).items()]
    return found


FAILURES: dict[str, tuple[str, Sick, str]] = {
    "no learning": ("nothing is learnt", lambda step, noise: {"train/loss": 2.0 + 0.01 * noise}, "optimizer.lr"),
    "no gradient": ("nothing is learnt", lambda step, noise: {"train/grad_norm": 0.0}, "frozen"),
    "explosion": ("gradient explosion", lambda step, noise: {"train/grad_norm": 0.4 if step < 300 else 8.0}, "gradient_clip_val"),
    "a norm that is no number": ("gradient explosion", lambda step, noise: {"train/student_grad_norm": 0.4 if step < 300 else math.nan}, "clip"),
    "critic falls": ("critic lags", lambda step, noise: {"train/fake_score_loss": 0.2 + 3 * math.exp(-step / 150) + 0.05 * noise}, "student_every"),
    "critic rises": ("critic lags", lambda step, noise: {"train/fake_score_loss": 0.5 + step / 200 + 0.05 * noise}, "student_every"),
    "burning": ("saturation", lambda step, noise: {"train/saturation": 1.0 + step / 500}, "lower `guidance`"),
    "dull": ("saturation", lambda step, noise: {"val/saturation": 0.2 + 1e-4 * step}, "dull"),
    "outliers": ("saturation", lambda step, noise: {"val/beyond_range": 1e-4 * step}, "99.9 %"),
    "still": ("motion collapse", lambda step, noise: {"preview/motion": 0.1 + 1e-5 * step}, "stand still"),
    "slower and slower": ("motion collapse", lambda step, noise: {"val/motion": math.exp(-step / 250)}, "stand still"),
    "slow average": ("moving average behind", lambda step, noise: {"ema/distance": 0.5, "ema/decay": 0.9999}, "0.9999"),
    "slow data": ("data starvation", lambda step, noise: {"throughput/data_wait_share": 0.6}, "num_workers"),
}


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_left_in_peace(seed: int) -> None:
    assert watch(lambda step, noise: {}, steps=2000, seed=seed) == []


@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_is_named_exactly_once(case: str) -> None:
    name, sick, remedy = FAILURES[case]
    found = watch(sick)
    assert [warning[1] for warning in found] == [name]
    step, _, message = found[0]
    assert step >= 100
    assert remedy in message


def test_a_failure_that_lasts_is_named_again_after_the_interval() -> None:
    _, sick, _ = FAILURES["slow data"]
    assert [step for step, *_ in watch(sick, health=TrainingHealth(repeat_every=200))] == [100, 300, 500]


def test_a_parent_s_loss_may_stay_where_it_is() -> None:
    health = TrainingHealth()
    health._from_scratch = False
    assert watch(FAILURES["no learning"][1], health=health) == []


def test_a_critic_is_judged_only_while_a_student_follows_it() -> None:
    falling = FAILURES["critic falls"][1]
    assert watch(lambda step, noise: {**falling(step, noise), "train/student_updates": 0}) == []


def test_rare_curves_get_a_point_when_they_are_measured() -> None:
    health = TrainingHealth()
    watch(lambda step, noise: {}, health=health)
    assert health.curves["val/motion"].count == STEPS // 100 + 1
    assert health.curves["train/loss"].count == STEPS // EVERY


def test_smoothing_begins_as_the_mean() -> None:
    curve = Curve()
    for value in (1.0, 2.0, 6.0):
        curve.add(value)
    assert curve.recent == curve.past == curve.start == 3.0
    assert curve.trend == 0.0
    curve.add(math.nan)
    assert curve.count == 3
    assert curve.recent == 3.0


@pytest.mark.parametrize("options", [{"motion": 0.0}, {"saturation": (2.0, 1.0)}, {"min_points": 0}])
def test_limits_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} of TrainingHealth"):
        TrainingHealth(**options)


# --- in a run


class Lost(TinyStage):
    """Its loss is logged as one that does not move."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log_dict({"train/loss": 2.0, "train/grad_norm": 1.0})
        return loss


def fit(callbacks: list[L.Callback], folder: Path, *, max_steps: int = 8, logger: Any = False, ckpt_path: str | None = None) -> TinyStage:
    L.seed_everything(5, verbose=False)
    stage = Lost()
    checkpoints = any(isinstance(callback, CheckpointFolder) for callback in callbacks)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=max_steps, max_epochs=-1, logger=logger, callbacks=callbacks, log_every_n_steps=1,
        enable_checkpointing=checkpoints, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Data(), ckpt_path=ckpt_path)
    return stage


def test_a_warning_stands_in_the_log_and_in_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = TensorBoardLogger(tmp_path)
    with caplog.at_level(logging.WARNING, logger="flowact.callbacks.health"):
        fit([TrainingHealth(start_step=4)], tmp_path, logger=logger)
    lines = [record.message for record in caplog.records if record.name == "flowact.callbacks.health"]
    assert len(lines) == 1
    assert lines[0].startswith("step 4, nothing is learnt: train/loss is 2 and began at 2.")
    logged = b"".join(path.read_bytes() for path in Path(logger.log_dir).glob("events*"))
    assert b"health/nothing is learnt" in logged
    assert b"optimizer.lr" in logged


def test_watching_changes_no_bit(tmp_path: Path) -> None:
    plain, watched = fit([], tmp_path), fit([ExponentialMovingAverage(), Throughput(), TrainingHealth(start_step=1)], tmp_path)
    assert plain.losses == watched.losses
    for name, value in plain.denoiser.state_dict().items():
        assert torch.equal(value, watched.denoiser.state_dict()[name])


def test_a_resumed_run_goes_on_smoothing_where_it_was(tmp_path: Path) -> None:
    def run(name: str, steps: int, ckpt_path: str | None = None) -> TrainingHealth:
        health = TrainingHealth(start_step=3, repeat_every=100)
        fit([ExponentialMovingAverage(decay=0.9), health, CheckpointFolder(str(tmp_path / name))], tmp_path, max_steps=steps, ckpt_path=ckpt_path)
        return health

    whole = run("whole", 8)
    run("parts", 5)
    resumed = run("parts", 8, str(open_checkpoint(tmp_path / "parts").engine))
    assert whole.state_dict() == resumed.state_dict()
    assert whole.curves["train/loss"].count == 8
    assert whole.state_dict()["warned"] == {"nothing is learnt": 3}

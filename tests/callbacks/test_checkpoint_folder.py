from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from tiny import BATCHES_PER_EPOCH, Data, TinyStage

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import latest_checkpoint, open_checkpoint
from flowact.errors import UserError
from flowact.strategies.deepspeed import DeepSpeed

SCRIPT = Path(__file__).with_name("fit_tiny.py")
TOTAL = 2 * BATCHES_PER_EPOCH + 2


def fit(
    folder: Path, max_steps: int, *, resume: bool = False, deepspeed: bool = True, workers: int = 0, seen: list[float] | None = None, **options: Any
) -> TinyStage:
    L.seed_everything(7, workers=True, verbose=False)
    stage = TinyStage(fail_at=options.pop("fail_at", None), nan_at=options.pop("nan_at", None))
    stage.inputs = [] if seen is None else seen
    callbacks = [CheckpointFolder(str(folder), every_n_steps=options.pop("every", None)), ExponentialMovingAverage(decay=0.9)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=DeepSpeed(stage=2) if deepspeed else "auto",
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks + options.pop("callbacks", []),
        **options,
    )
    if resume:
        torch.randn(5)  # another history of the generators
    trainer.fit(stage, datamodule=Data(workers), ckpt_path=str(open_checkpoint(folder).engine) if resume else None)
    return stage


def assert_same(first: Path, second: Path) -> None:
    one, two = open_checkpoint(first), open_checkpoint(second)
    assert one.step == two.step
    for ema in (False, True):
        for name, value in one.weights(ema).items():
            assert torch.equal(value, two.weights(ema)[name]), name


@pytest.mark.parametrize("deepspeed", [True, False])
@pytest.mark.parametrize("stop", [3, BATCHES_PER_EPOCH, BATCHES_PER_EPOCH + 2])
def test_stop_and_resume_equals_never_stopping(tmp_path: Path, stop: int, deepspeed: bool) -> None:
    whole = fit(tmp_path / "whole", TOTAL, deepspeed=deepspeed)
    first = fit(tmp_path / "parts", stop, deepspeed=deepspeed)
    assert open_checkpoint(tmp_path / "parts").step == stop
    second = fit(tmp_path / "parts", TOTAL, resume=True, deepspeed=deepspeed)

    assert first.inputs + second.inputs == whole.inputs
    assert first.losses + second.losses == whole.losses
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert not torch.equal(
        open_checkpoint(tmp_path / "whole").weights(True)["0.weight"], open_checkpoint(tmp_path / "whole").weights(False)["0.weight"]
    )


def test_resume_with_loader_workers_and_accumulation(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 4, workers=1, accumulate_grad_batches=2)
    first = fit(tmp_path / "parts", 2, workers=1, accumulate_grad_batches=2)
    second = fit(tmp_path / "parts", 4, workers=1, accumulate_grad_batches=2, resume=True)
    assert first.inputs + second.inputs == whole.inputs
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_checkpoints_appear_at_the_interval(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if (tmp_path / "a").exists():
                seen.append(open_checkpoint(tmp_path / "a").step)

    fit(tmp_path / "a", 7, every=3, callbacks=[Watch()])
    assert seen == [3, 3, 3, 6]
    assert open_checkpoint(tmp_path / "a").step == 7
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_holds_recipe_lineage_and_only_trained_weights(tmp_path: Path) -> None:
    fit(tmp_path / "a", 1)
    checkpoint = open_checkpoint(tmp_path / "a")
    assert checkpoint.recipe == TinyStage().recipe
    assert checkpoint.lineage["stage"] == "tiny"
    assert checkpoint.lineage["versions"].keys() >= {"python", "flowact", "torch", "lightning", "deepspeed"}
    assert checkpoint.lineage["git"].keys() <= {"working_folder", "flowact"}
    assert isinstance(checkpoint.lineage["command"], list)
    assert (checkpoint.path / "notes.txt").read_text() == "tiny"
    assert checkpoint.lineage["step"] == 1
    assert set(checkpoint.weights()) == set(TinyStage().denoiser.state_dict())
    assert all(value.dtype == torch.float32 for value in checkpoint.weights().values())


@pytest.mark.parametrize("deepspeed", [True, False])
def test_an_exception_keeps_the_last_finished_step(tmp_path: Path, deepspeed: bool) -> None:
    whole = fit(tmp_path / "whole", TOTAL, deepspeed=deepspeed)
    seen: list[float] = []
    with pytest.raises(RuntimeError, match="the experiment's own failure"):
        fit(tmp_path / "parts", TOTAL, seen=seen, fail_at=6, deepspeed=deepspeed)
    assert open_checkpoint(tmp_path / "parts").step == 6
    resumed = fit(tmp_path / "parts", TOTAL, resume=True, deepspeed=deepspeed)
    assert seen + resumed.inputs == whole.inputs
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_sigterm_leaves_a_checkpoint_from_which_training_goes_on_exactly(tmp_path: Path) -> None:
    class Terminate(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    whole = fit(tmp_path / "whole", TOTAL)
    seen: list[float] = []
    with pytest.raises(SystemExit):
        fit(tmp_path / "parts", TOTAL, seen=seen, callbacks=[Terminate()])
    assert open_checkpoint(tmp_path / "parts").step == 4
    resumed = fit(tmp_path / "parts", TOTAL, resume=True)
    assert seen + resumed.inputs == whole.inputs
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_nothing_is_written_in_the_middle_of_an_optimizer_step(tmp_path: Path) -> None:
    class FailAfterUpdate(L.Callback):
        def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
            def fail(*args: Any) -> None:
                if trainer.global_step == 4:
                    raise KeyboardInterrupt

            trainer.optimizers[0].register_step_post_hook(fail)

    with pytest.raises(SystemExit):
        fit(tmp_path / "a", TOTAL, every=3, callbacks=[FailAfterUpdate()], deepspeed=False)
    assert open_checkpoint(tmp_path / "a").step == 3


def test_a_full_disk_at_an_interval_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    replace, calls = os.rename, []

    def full_once(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        replace(*args, **kwargs)

    monkeypatch.setattr(os, "rename", full_once)
    fit(tmp_path / "a", 4, every=2)
    assert "No space left" in caplog.text
    assert open_checkpoint(tmp_path / "a").step == 4


def test_diverged_weights_are_refused_and_the_good_ones_stay(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        fit(tmp_path / "a", 6, every=2, nan_at=4)
    assert open_checkpoint(tmp_path / "a").step == 4


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    fit(tmp_path / "a", 3)
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    stage = fit(tmp_path / "a", 3, resume=True)
    assert stage.losses == []
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before


def test_wrong_settings_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every_n_steps"):
        CheckpointFolder(str(tmp_path), every_n_steps=0)
    with pytest.raises(UserError, match="keep_last"):
        CheckpointFolder(str(tmp_path), keep_last=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match="not a checkpoint"):
        fit(tmp_path / "a", 1)


def check_two_processes(run_script: Callable[..., None], tmp_path: Path, zero_stage: int, precision: str) -> None:
    """Fit whole, fit in parts, compare; the two processes are started by Lightning's launcher."""
    run_script(SCRIPT, tmp_path, zero_stage, precision, timeout=240)
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    for whole, first, second in seen:
        assert first["inputs"] + second["inputs"] == whole["inputs"]
        assert first["losses"] + second["losses"] == whole["losses"]
        assert len(second["losses"]) == 4
    assert seen[0][0]["inputs"] != seen[1][0]["inputs"]
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert latest_checkpoint(tmp_path / "parts").step == 7


def test_two_processes_stop_and_resume_equals_never_stopping(tmp_path: Path, run_script: Callable[..., None]) -> None:
    check_two_processes(run_script, tmp_path, 2, "32-true")


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "32-true"), (1, "bf16-true"), (2, "bf16-mixed"), (3, "32-true"), (3, "bf16-true")])
def test_two_processes_at_every_stage_and_precision(tmp_path: Path, zero_stage: int, precision: str, run_script: Callable[..., None]) -> None:
    check_two_processes(run_script, tmp_path, zero_stage, precision)

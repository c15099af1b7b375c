from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from tiny import Data, TinyStage
from torch import Tensor

from flowact.callbacks import ExponentialMovingAverage
from flowact.errors import UserError
from flowact.strategies.deepspeed import DeepSpeed


class Record(L.Callback):
    """Weights after every batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TinyStage, *args: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in pl_module.denoiser.named_parameters()})


def fit(ema: ExponentialMovingAverage, steps: int, *, strategy: Any = "auto", **options: Any) -> tuple[TinyStage, Record]:
    L.seed_everything(3, verbose=False)
    stage, record = TinyStage(), Record()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ema, record, *options.pop("callbacks", [])],
        **options,
    )
    trainer.fit(stage, datamodule=Data())
    return stage, record


@pytest.mark.parametrize("strategy", ["auto", "deepspeed"])
def test_the_average_is_the_recursion(strategy: str) -> None:
    ema = ExponentialMovingAverage(decay=0.5, start_step=2)
    _, record = fit(ema, 6, strategy=DeepSpeed(stage=2) if strategy == "deepspeed" else "auto")
    expected = dict(record.weights[1])
    for t, weights in enumerate(record.weights[2:]):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    averages = ema.averages()
    assert averages.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(averages[name], value)


def test_the_average_of_constant_weights_is_the_weights() -> None:
    class Still(TinyStage):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.denoiser.parameters(), lr=0.0)

    ema, stage = ExponentialMovingAverage(decay=0.9), Still()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ema],
    )
    trainer.fit(stage, datamodule=Data())
    for name, parameter in stage.denoiser.named_parameters():
        torch.testing.assert_close(ema.averages()[name], parameter.detach())


def test_accumulated_batches_count_as_one_update() -> None:
    ema = ExponentialMovingAverage()
    fit(ema, 2, accumulate_grad_batches=2)
    assert ema.state_dict() == {"num_updates": 2}


def test_swapping_in_the_average_is_undone_even_after_an_error() -> None:
    ema = ExponentialMovingAverage(decay=0.9)
    stage, _ = fit(ema, 5)
    before = {name: p.detach().clone() for name, p in stage.denoiser.named_parameters()}

    def look_and_fail() -> None:
        with ema.applied():
            for name, parameter in stage.denoiser.named_parameters():
                assert torch.equal(parameter, ema.averages()[name])
                assert not torch.equal(parameter, before[name])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    for name, parameter in stage.denoiser.named_parameters():
        assert torch.equal(parameter, before[name])


def test_without_an_average_nothing_is_swapped() -> None:
    ema = ExponentialMovingAverage()
    assert not ema.is_ready
    with ema.applied():
        pass


def test_validation_sees_the_average_and_training_does_not_notice() -> None:
    class Validated(TinyStage):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.validated = self.denoiser[0].weight.detach().clone()

    class WithValidation(Data):
        def val_dataloader(self) -> Any:
            return self.train_dataloader()

    def run(validate: bool) -> tuple[Validated, ExponentialMovingAverage]:
        L.seed_everything(3, verbose=False)
        stage, ema = Validated(), ExponentialMovingAverage(decay=0.9)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=5,
            limit_val_batches=1 if validate else 0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ema],
        )
        trainer.fit(stage, datamodule=WithValidation())
        return stage, ema

    with_validation, ema = run(True)
    without, _ = run(False)
    assert torch.equal(with_validation.validated, ema.averages()["0.weight"])
    assert torch.equal(with_validation.denoiser[0].weight, without.denoiser[0].weight)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": -1}])
def test_wrong_settings_are_user_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ExponentialMovingAverage(**wrong)

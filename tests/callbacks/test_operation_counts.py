"""What a training step computes, and how much of its device that uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny import Data, TinyStage
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowact.callbacks import Throughput
from flowact.callbacks.operations import OperationCounter, can_be_counted
from flowact.devices import DEVICES, named_device
from flowact.errors import UserError

ROWS = 16
#: of the tiny stage's batch: two layers of its denoiser forward, for their weights, and for the second one's input; its teacher forward
TINY = 2 * 4 * (2 * (8 * 16 + 16 * 8) + 16 * 8 + 8 * 8)


def counted(step: Any) -> OperationCounter:
    with OperationCounter() as counter:
        step()
    return counter


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_what_a_checkpoint_computes_again_is_counted_apart(reentrant: bool | None) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    inputs = torch.randn(ROWS, 8, requires_grad=True)

    def step() -> None:
        (net(inputs) if reentrant is None else checkpoint(net, inputs, use_reentrant=reentrant)).sum().backward()

    counter, forward = counted(step), 2 * ROWS * 8 * 8 * 2
    assert counter.model == 3 * forward
    # the newer kind stops as soon as it has the last input that is missing, so it leaves out the last product
    assert counter.repeated == {None: 0, True: forward, False: forward / 2}[reentrant]


def test_attention_and_convolution_are_counted() -> None:
    query, product = torch.randn(1, 2, 5, 4, requires_grad=True), 2 * 2 * 5 * 5 * 4
    attend = nn.functional.scaled_dot_product_attention
    assert counted(lambda: attend(query, query, query)).model == 2 * product
    assert counted(lambda: attend(query, query, query).sum().backward()).model == (2 + 5) * product
    assert counted(lambda: nn.Conv2d(3, 4, 3, padding=1)(torch.randn(2, 3, 6, 6))).model == 2 * 2 * 36 * 4 * 3 * 9


def test_counting_changes_nothing_and_ends(tmp_path: Path) -> None:
    def train(count_steps: int) -> tuple[TinyStage, Throughput, str]:
        L.seed_everything(1, verbose=False)
        stage, speed, logger = TinyStage(), Throughput(count_steps=count_steps), CSVLogger(tmp_path, version=count_steps)
        L.Trainer(
            accelerator="cpu", max_steps=6, logger=logger, log_every_n_steps=3, callbacks=[speed], enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        ).fit(stage, datamodule=Data())  # fmt: skip
        logger.save()
        return stage, speed, Path(logger.log_dir, "metrics.csv").read_text()

    (plain, _, without), (stage, speed, log) = train(0), train(2)
    assert stage.losses == plain.losses
    assert speed.operations == TINY
    rates = speed.rates()
    assert rates["throughput/model_tflops"] == pytest.approx(TINY * rates["throughput/steps_per_second"] / 1e12)
    assert 0 < rates["throughput/mfu"] < 1
    assert "throughput/mfu" in log
    assert "throughput/mfu" not in without
    with pytest.raises(UserError, match="count_steps"):
        Throughput(count_steps=-1)


def test_a_failing_step_ends_the_count(tmp_path: Path) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    trainer = L.Trainer(
        accelerator="cpu", max_steps=6, logger=False, callbacks=[Throughput()], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="own failure"):
        trainer.fit(TinyStage(fail_at=2), datamodule=Data())
    assert _get_current_dispatch_mode() is None


def test_compiled_networks_are_not_counted(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert can_be_counted(net)
    net[1].compile()
    assert not can_be_counted(net)
    assert not can_be_counted(nn.Sequential(torch.compile(nn.Linear(2, 2))))
    flex = nn.Linear(2, 2)
    flex.attention = "flex"  # type: ignore[assignment]
    assert not can_be_counted(nn.Sequential(flex))


@pytest.mark.parametrize(
    ("torch_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"), ("NVIDIA B200", "b200"), ("NVIDIA H100 PCIe", None), ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA H200 NVL", None),
    ],
)  # fmt: skip
def test_devices_are_known_by_torch_s_names(torch_name: str, name: str | None) -> None:
    assert named_device(torch_name) is (DEVICES[name] if name else None)

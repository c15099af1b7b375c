"""What needs one process or a GPU; the rest stands in tests/stages/test_strategies_agree.py, whose stages train under it with two processes."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowact.errors import UserError
from flowact.strategies import check_strategy, full_fp32_weights, gather_values, local_values, scatter_values
from flowact.strategies.fully_sharded import FullySharded


class Blocks(L.LightningModule):
    """A network with a list of blocks, and a method beside `forward` that computes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def trained_module(self) -> nn.Module:
        return self.network

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.network(batch) - self.network.decode(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=1e-2)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])])
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.blocks
        for block in [first, *rest]:
            x = block(x).relu()
        return self.out(x)

    def decode(self, x: Tensor) -> Tensor:
        return x[:, :3] @ self.out.weight[:, :3]


class Whole(L.Callback):
    """Whole weights at the end; and shares that are put together and cut again are the same shares."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = full_fp32_weights(pl_module)
        for name, parameter in pl_module.named_parameters():
            full = gather_values(local_values(parameter), parameter)
            assert torch.equal(full.cpu(), self.weights[name])
            assert torch.equal(scatter_values(full, parameter), local_values(parameter))


def fit(strategy: object, folder: Path, accelerator: str = "cpu", precision: str = "32-true") -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = Whole()
    trainer = L.Trainer(
        accelerator=accelerator, devices=1, strategy=strategy, precision=precision, max_steps=3, gradient_clip_val=0.1, logger=False,
        callbacks=[whole], use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Blocks(), DataLoader(list(torch.randn(12, 6)), batch_size=4))
    return whole.weights


def test_one_process_trains_as_without_a_strategy(tmp_path: Path) -> None:
    plain, sharded = fit("auto", tmp_path), fit(FullySharded(), tmp_path)
    assert plain.keys() == sharded.keys()
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value)


def test_fsdp_of_lightning_is_refused() -> None:
    check_strategy(SingleDeviceStrategy())
    with pytest.raises(UserError, match="set it to FullySharded"):
        check_strategy(FSDPStrategy())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_gpu_trains(precision: str, tmp_path: Path) -> None:
    plain, sharded = (fit(strategy, tmp_path, "gpu", precision) for strategy in ("auto", FullySharded()))
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, atol=1e-5, rtol=1e-4)

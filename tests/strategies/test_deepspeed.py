from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowact.errors import UserError
from flowact.strategies import full_fp32_weights, gather_values, local_values, scatter_values
from flowact.strategies.deepspeed import DeepSpeed


class Probe(L.LightningModule):
    """A regression that notes which types its forward pass meets."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.types: dict[str, torch.dtype] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        output = self.net(batch)
        self.types = {"input": batch.dtype, "weight": self.net[0].weight.dtype, "output": output.dtype}
        return (output - self.frozen(batch)).float().pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Collect(L.Callback):
    """Full weights at the end of training."""

    def __init__(self, engine: Path | None = None) -> None:
        self.weights: dict[str, Tensor] = {}
        self.engine = engine

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = full_fp32_weights(pl_module)
        for parameter in pl_module.parameters():
            full = gather_values(local_values(parameter), parameter)
            assert full.numel() == self.weights_of(pl_module, parameter).numel()
            assert torch.equal(scatter_values(full, parameter)[: local_values(parameter).numel()], local_values(parameter))
        if self.engine is not None:
            trainer.save_checkpoint(self.engine)

    def weights_of(self, module: nn.Module, parameter: nn.Parameter) -> Tensor:
        return next(self.weights[name] for name, other in module.named_parameters() if other is parameter)


def fit(
    strategy: Any = "auto",
    *,
    steps: int = 6,
    ckpt_path: Path | None = None,
    engine: Path | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    **options: Any,
) -> tuple[Probe, dict[str, Tensor]]:
    torch.manual_seed(0)
    module, collect = Probe(), Collect(engine)
    data = DataLoader(list(torch.randn(48, 8)), batch_size=4)
    options = {"gradient_clip_val": 0.5, "use_distributed_sampler": False} | options
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[collect, *callbacks],
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, collect.weights


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, **tolerance)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": None}])
def test_every_zero_stage_equals_plain_training(stage: Any, options: dict[str, Any]) -> None:
    _, plain = fit(**options)
    module, weights = fit(DeepSpeed(stage=stage), **options)
    assert_close(plain, weights)
    assert module.types == dict.fromkeys(("input", "weight", "output"), torch.float32)


def test_clipping_takes_effect() -> None:
    clipped, unclipped = fit(DeepSpeed(), gradient_clip_val=1e-4)[1], fit(DeepSpeed(), gradient_clip_val=None)[1]
    assert not torch.equal(clipped["net.0.weight"], unclipped["net.0.weight"])


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_mixed_keeps_fp32_weights_and_computes_in_bf16(stage: Any) -> None:
    module, weights = fit(DeepSpeed(stage=stage), precision="bf16-mixed")
    assert module.types == {"input": torch.float32, "weight": torch.float32, "output": torch.bfloat16}
    assert module.net[0].weight.dtype == torch.float32
    assert_close(fit(precision="bf16-mixed")[1], weights)
    assert not torch.equal(weights["net.0.weight"], weights["net.0.weight"].bfloat16().float())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_true_keeps_fp32_master_weights(stage: Any) -> None:
    module, weights = fit(DeepSpeed(stage=stage), precision="bf16-true")
    assert module.types == dict.fromkeys(("input", "weight", "output"), torch.bfloat16)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert not torch.equal(weights["net.0.weight"], weights["net.0.weight"].bfloat16().float())
    assert_close(fit()[1], weights, atol=2e-2, rtol=2e-2)


def test_a_forward_without_gradients_does_not_cut_off_a_later_one_under_autocast() -> None:
    """A rollout before the loss, as in self-forcing: autocast must not reuse weights cast without gradients."""

    class Rollout(Probe):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            with torch.no_grad():
                batch = self.net(batch)
            return self.net(batch).float().pow(2).mean()

    torch.manual_seed(0)
    module = Rollout()
    before = module.net[0].weight.detach().clone()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=DeepSpeed(), precision="bf16-mixed", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(torch.randn(8, 8)), batch_size=4))
    assert not torch.equal(module.net[0].weight, before)


def test_the_same_module_can_be_fitted_twice_and_leaves_no_trace_in_the_environment() -> None:
    before = dict(os.environ)
    module, first = fit(DeepSpeed())
    collect = Collect()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=DeepSpeed(), max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[collect],
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(torch.randn(8, 8)), batch_size=4))
    assert not torch.equal(first["net.0.weight"], collect.weights["net.0.weight"])
    after = {name: value for name, value in os.environ.items() if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert after == {name: before[name] for name in after if name in before}


def test_frozen_parameters_are_not_in_the_engine_and_survive_resuming(tmp_path: Path) -> None:
    module, weights = fit(DeepSpeed(), steps=3, engine=tmp_path / "engine")
    saved = b"".join(path.read_bytes() for path in (tmp_path / "engine" / "checkpoint").iterdir())
    assert b"net.0.weight" in saved
    assert b"frozen.weight" not in saved
    resumed, after = fit(DeepSpeed(), steps=4, ckpt_path=tmp_path / "engine")
    assert not torch.equal(weights["net.0.weight"], after["net.0.weight"])
    assert torch.equal(after["frozen.weight"], weights["frozen.weight"])
    assert torch.equal(resumed.frozen.weight, module.frozen.weight)


@pytest.mark.parametrize(("strategy", "options"), [({"stage": 3}, {}), ({}, {"precision": "bf16-true"})])
def test_another_layout_is_refused(tmp_path: Path, strategy: dict[str, Any], options: dict[str, Any]) -> None:
    fit(DeepSpeed(), steps=1, engine=tmp_path / "engine")
    with pytest.raises(UserError, match="init_from"):
        fit(DeepSpeed(**strategy), ckpt_path=tmp_path / "engine", **options)
    with pytest.raises(UserError, match="engine"):
        fit(DeepSpeed(), ckpt_path=tmp_path)


def test_partitioned_training_leaves_the_functions_of_torch_as_they_were() -> None:
    before = torch.nn.functional.linear
    _, weights = fit(DeepSpeed(stage=3))
    assert weights
    assert torch.nn.functional.linear is before


def test_code_in_an_engine_file_is_never_run(tmp_path: Path) -> None:
    class Gadget:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "canary"),))

    fit(DeepSpeed(), steps=1, engine=tmp_path / "engine")
    file = tmp_path / "engine" / "checkpoint" / "mp_rank_00_model_states.pt"
    torch.save({"module": Gadget()}, file)
    with pytest.raises(Exception, match="mkdir"):
        fit(DeepSpeed(), ckpt_path=tmp_path / "engine")
    assert not (tmp_path / "canary").exists()


def test_training_needs_no_compiler(tmp_path: Path) -> None:
    script = (
        "import os, torch, deepspeed\n"
        "from flowact.strategies.deepspeed import DeepSpeed\n"
        "DeepSpeed()\n"
        "os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='29641')\n"
        "deepspeed.init_distributed('gloo')\n"
        "assert torch.distributed.is_initialized()\n"
    )
    environment = os.environ | {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "DS_ACCELERATOR": "cpu"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "extensions").exists()
    assert "built" not in result.stdout + result.stderr


def test_deepspeed_is_imported_only_when_it_is_used() -> None:
    script = (
        "import sys, flowact.strategies, flowact.callbacks, flowact.checkpoints, flowact.strategies.deepspeed; assert 'deepspeed' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stage": 4}, "stage"),
        ({"stage": 2, "offload_parameters": True}, "offload_parameters"),
        ({"stage": 0, "offload_optimizer": True}, "offload_optimizer"),
        ({"stage": 3, "offload_parameters": True, "offload_device": "nvme"}, "nvme_path"),
        ({"stage": 2, "partition_frozen": True}, "partition_frozen"),
    ],
)
def test_contradictions_are_user_errors(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DeepSpeed(**arguments)


def test_offloading_reaches_deepspeed(tmp_path: Path) -> None:
    strategy = DeepSpeed(stage=3, offload_optimizer=True, offload_parameters=True, offload_device="nvme", nvme_path=str(tmp_path))
    assert isinstance(strategy.config, dict)
    zero = strategy.config["zero_optimization"]
    pinned = {"device": "nvme", "pin_memory": torch.cuda.is_available(), "nvme_path": str(tmp_path)}
    assert (zero["offload_optimizer"], zero["offload_param"]) == (pinned, pinned)
    seen: list[tuple[bool, str]] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            engine = trainer.model
            seen.append((engine.optimizer.cpu_offload, engine.zero_offload_optimizer().device))

    fit(DeepSpeed(stage=2, offload_optimizer=True), steps=1, callbacks=(Look(),))
    assert seen == [(True, "cpu")]


def test_precisions_that_lose_master_weights_are_refused() -> None:
    with pytest.raises(UserError, match="stage 1, 2 or 3"):
        fit(DeepSpeed(stage=0), precision="bf16-true")
    with pytest.raises(UserError, match="bf16-mixed"):
        fit(DeepSpeed(), precision="16-true")


def test_a_recipe_can_type_the_strategy() -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Strategy, "strategy")
    spec = {
        "class_path": "flowact.strategies.deepspeed.DeepSpeed",
        "init_args": {"stage": 1, "extra": {"zero_optimization": {"reduce_bucket_size": 7}}},
    }
    strategy = parser.instantiate_classes(parser.parse_object({"strategy": spec})).strategy
    assert strategy.config["zero_optimization"]["stage"] == 1
    assert strategy.config["zero_optimization"]["reduce_bucket_size"] == 7
    assert "allgather_bucket_size" in strategy.config["zero_optimization"]
    with pytest.raises(Exception, match="stag"):
        parser.parse_object({"strategy": {**spec, "init_args": {"stag": 1}}})


@pytest.mark.gpu
@pytest.mark.parametrize(("stage", "precision"), [(2, "32-true"), (2, "bf16-mixed"), (3, "bf16-true")])
def test_a_gpu_trains_and_resumes(tmp_path: Path, stage: Any, precision: Any) -> None:
    def train(steps: int, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        collect = Collect(options.pop("engine", None))
        trainer = L.Trainer(
            accelerator="gpu", devices=1, strategy=DeepSpeed(stage=stage), precision=precision, max_steps=steps, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[collect],
        )  # fmt: skip
        trainer.fit(Probe(), DataLoader(list(torch.randn(48, 8)), batch_size=4), **options)
        return collect.weights

    first = train(3, engine=tmp_path / "engine")
    again = train(4, ckpt_path=tmp_path / "engine")
    assert all(torch.isfinite(value).all() for value in again.values())
    assert (first["net.0.weight"] - again["net.0.weight"]).abs().max() < 0.02

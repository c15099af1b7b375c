"""What stays on a device: against real optimizers and engines, and against the table of the ZeRO paper."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from networks import network
from torch.utils.data import DataLoader

from flowact.budget.costs import Precision
from flowact.budget.states import GATHERED_PARAMETERS, RoleSize, Strategy, states
from flowact.stages.base import AdamW
from flowact.strategies.deepspeed import DeepSpeed

FLOAT32, MIXED, TRUE = Precision("32-true"), Precision("bf16-mixed"), Precision("bf16-true")
ROLE = RoleSize("denoiser", 1000, 1000)
SHARED = Strategy(processes=4, zero=1, bucket_size=100, overlaps=False)


def test_adamw_holds_what_is_predicted():
    model = network("cpu")
    optimizer = AdamW().build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step")
    count = sum(parameter.numel() for parameter in model.parameters())
    found = states([RoleSize("denoiser", count, count)], MIXED, Strategy(zero=None))
    assert found.optimizer == held
    assert found.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert found.gradients == sum(parameter.grad.nbytes for parameter in model.parameters())
    assert found.total == found.weights + found.gradients + found.optimizer


class Linear(pl.LightningModule):
    """A layer whose size ZeRO's alignment leaves as it is."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64, bias=False)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.mark.parametrize(("stage", "precision"), [(2, TRUE), (3, TRUE), (3, FLOAT32)], ids=str)
def test_a_zero_engine_holds_what_is_predicted(stage, precision, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # put back after: stage 3 wraps it for the whole process
    held = {}

    class Look(pl.Callback):
        def on_train_end(self, trainer, module):
            optimizer = trainer.strategy.deepspeed_engine.optimizer
            masters = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
            moments = [value for state in optimizer.optimizer.state.values() for value in state.values() if value.numel() > 1]
            weight = module.layer.weight.ds_tensor if stage == 3 else module.layer.weight
            held.update(optimizer=sum(tensor.nbytes for tensor in (*masters, *moments)), weights=weight.nbytes)
            places = {tensor.untyped_storage().data_ptr() for tensor in (weight, *masters)}
            assert len(places) == 2  # a copy even where both are float32

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    strategy = DeepSpeed(stage=stage, overlap_communication=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, precision=precision.name, max_steps=2, callbacks=[Look()], **quiet
    )  # fmt: skip
    trainer.fit(Linear(), DataLoader(torch.randn(4, 64), batch_size=2))
    found = states([RoleSize("layer", 64 * 64, 64 * 64)], precision, Strategy(processes=1, zero=stage))
    assert held == {"optimizer": found.optimizer, "weights": found.weights}


def test_stages_share_what_the_paper_says():
    """Rajbhandari et al. 2020, table 1, with K = 12 of bfloat16 weights, gradients and float32 master weights and moments."""
    count, processes = 1_000_000, 8
    role = [RoleSize("denoiser", count, count)]
    found = {stage: states(role, TRUE, Strategy(processes, stage, bucket_size=0)) for stage in (1, 2, 3)}
    assert found[1].total == 2 * count + 2 * count + 12 * count // processes
    assert found[2].total == 2 * count + (2 + 12) * count // processes
    assert found[3].total - found[3].buffers == (2 + 2 + 12) * count // processes


def test_one_process_has_nobody_to_share_with():
    alone = [states([ROLE], MIXED, Strategy(1, stage)) for stage in (0, 1, 2)]
    assert len({found.total for found in alone}) == 1
    assert states([ROLE], TRUE, Strategy(1, 1)).optimizer == 12_000  # its master weights live in ZeRO's optimizer


def test_from_stage_one_on_the_optimizer_owns_a_copy_of_its_share():
    assert states([ROLE], MIXED, Strategy(4, 0)).optimizer == 8000
    assert states([ROLE], MIXED, SHARED).optimizer == 12_000 // 4


def test_buckets_hold_what_is_on_its_way():
    assert states([ROLE], MIXED, SHARED).buffers == 400
    assert states([ROLE], MIXED, Strategy(4, 1, bucket_size=100, overlaps=True)).buffers == 800
    assert states([ROLE], MIXED, Strategy(4, 1)).buffers == 8000  # no more than there are gradients
    assert states([ROLE], MIXED, Strategy(4, None)).buffers == 4000  # DDP's buckets
    assert states([ROLE], MIXED, Strategy(1, 1)).buffers == 0


def test_stage_three_gathers_up_to_a_billion():
    big = RoleSize("denoiser", 5_000_000_000, 5_000_000_000)
    assert states([big], TRUE, Strategy(8, 3, bucket_size=0)).buffers == 2 * GATHERED_PARAMETERS
    assert states([ROLE], TRUE, Strategy(8, 3, bucket_size=0)).buffers == 2000


def test_an_adapter_trains_little_beside_whole_weights():
    found = states([RoleSize("denoiser", 1000, 10, averaged=True)], MIXED, Strategy(zero=None))
    assert (found.weights, found.gradients, found.optimizer, found.average) == (4000, 40, 80, 40)


def test_frozen_networks_are_whole_everywhere_and_offloading_empties_the_device():
    found = states([ROLE, RoleSize("teacher", 500, 0)], MIXED, Strategy(4, 3, offload_optimizer=True, offload_parameters=True))
    assert (found.frozen, found.optimizer, found.weights) == (2000, 0, 0)


def test_frozen_networks_are_shared_out_where_the_strategy_says_so_and_stage_three_can():
    roles = [ROLE, RoleSize("teacher", 500, 0)]
    whole, shared = (states(roles, MIXED, Strategy(4, 3, partition_frozen=partitioned)) for partitioned in (False, True))
    assert (shared.frozen, shared.buffers - whole.buffers) == (whole.frozen // 4, 2000)
    assert states(roles, MIXED, Strategy(4, 2, partition_frozen=True)).frozen == whole.frozen == 2000


def test_a_network_that_follows_another_by_an_average_keeps_that_average_whole():
    found = states([ROLE, RoleSize("target", 500, 0, followed=10)], TRUE, Strategy(4, 3))
    assert found.average - states([ROLE], TRUE, Strategy(4, 3)).average == 40

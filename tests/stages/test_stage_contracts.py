"""What stages promise to the command line: schedules, errors before long work starts, where weights come from."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from stage_data import LINEAGE, WindowData, denoiser, write_parent
from torch import nn

from flowact.errors import UserError
from flowact.memory import StructuredMemory
from flowact.stages import AdamW, ChunkwiseDiffusionForcing, FlowMatchingPretraining, SelfForcing, StepDistillation
from flowact.stages.autoencoder import psnr
from flowact.stages.frozen import Frozen


@dataclass
class Run:
    """As much of a trainer as `setup` looks at."""

    datamodule: WindowData


def stage_of(cls=ChunkwiseDiffusionForcing, **options):
    memory = {} if cls is FlowMatchingPretraining else {"memory": StructuredMemory(long=1, short=1, chunk_frames=2)}
    return cls(denoiser(), **({"chunk_frames": 2, "num_chunks": 2} | memory | options))


def attach(stage, **changes):
    """Give the stage data that fit it, but for the changes; keep what is returned alive."""
    data = WindowData.of(stage)
    for name, value in changes.items():
        if name in data.conditions:
            data.conditions[name] = value
        elif name != "lineage":
            setattr(data, name, value)
    data.lineage |= changes.get("lineage", {})
    run = Run(data)
    stage.trainer = run
    return run


# --- optimizer


@pytest.mark.parametrize(("warmup_steps", "total"), [(0, 10), (1, 10), (100, 1000), (10, 5)])
def test_the_rate_rises_to_the_peak_and_ends_at_its_share(warmup_steps, total):
    optimizer = AdamW(warmup_steps=warmup_steps, final_lr=0.1)
    rates = [optimizer.rate(step, total) for step in range(total + 1)]
    if warmup_steps < total:
        assert rates[warmup_steps] == 1.0
        assert rates[total] == pytest.approx(0.1)
        assert optimizer.rate(10 * total, total) == pytest.approx(0.1)
        after = rates[warmup_steps:]
        assert after == sorted(after, reverse=True)
    if warmup_steps:
        assert rates[0] == 1 / warmup_steps
    assert all(0 < rate <= 1 for rate in rates)
    assert AdamW(final_lr=1.0, warmup_steps=0).rate(7, 10) == 1.0


def test_vectors_have_no_weight_decay_and_frozen_weights_are_left_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    built = AdamW(lr=3e-4, weight_decay=0.5, betas=(0.8, 0.9)).build(module)
    groups = {group["weight_decay"]: group["params"] for group in built.param_groups}
    assert [p.shape for p in groups[0.5]] == [(4, 3)]
    assert [p.shape for p in groups[0.0]] == [(4,), (4,), (4,)]
    assert all(group["lr"] == 3e-4 and group["betas"] == (0.8, 0.9) for group in built.param_groups)


# --- agreement with the data


@pytest.mark.parametrize("cls", [FlowMatchingPretraining, ChunkwiseDiffusionForcing])
def test_data_that_fit_are_accepted(cls):
    stage = stage_of(cls)
    run = attach(stage)
    stage.setup("fit")
    assert run.datamodule.history_frames == (0 if cls is FlowMatchingPretraining else 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_shape": [7, 2, 2]}, "latent channels: the data has 7, the stage wants 2"),
        ({"text_shape": [3, 9]}, "text width: the data has 9, the stage wants 5"),
        ({"audio_shape": [4, 8]}, "audio width: the data has 8, the stage wants 6"),
        ({"audio_shape": [8, 6]}, "audio features per latent frame: the data has 8, the stage wants 4"),
        ({"window_frames": 6}, "stream frames: the data has 6, the stage wants 4"),
        ({"history_frames": 2}, "history frames: the data has 2, the stage wants 4"),
    ],
)
def test_data_that_do_not_fit_are_named_with_both_values(change, words):
    stage = stage_of()
    run = attach(stage, **change)
    with pytest.raises(UserError, match=words):
        stage.setup("fit")
    assert run


def test_every_disagreement_is_listed_at_once():
    stage = stage_of()
    run = attach(stage, window_frames=6, history_frames=2)
    with pytest.raises(UserError, match=r"stream frames.*data\.window_frames = num_chunks \* chunk_frames.*; history frames"):
        stage.setup("fit")
    assert run


def test_a_memory_bank_for_other_chunks_is_refused():
    stage = stage_of(memory=StructuredMemory(long=1, short=1, chunk_frames=3))
    run = attach(stage)
    with pytest.raises(UserError, match="chunk_frames"):
        stage.setup("fit")
    assert run


# --- where weights come from


def test_weights_come_from_the_moving_average_and_the_ancestry_is_kept(tmp_path):
    parent = denoiser(seed=1)
    ema = {name: tensor + 1 for name, tensor in parent.named_parameters()}
    grandparent = {"stage": "pretraining", "step": 3, "weights_sha256": "0" * 64}
    folder = write_parent(tmp_path / "parent", parent, ema, stage="diffusion_forcing", ancestors=[grandparent])
    stage = stage_of(SelfForcing)
    stage.initialise_from(folder)
    assert all(torch.equal(value, ema[name]) for name, value in stage.denoiser.named_parameters())
    assert all(torch.equal(value, ema[name]) for name, value in stage.intermediate.network.named_parameters())
    assert [(a["stage"], a["step"]) for a in stage.ancestors] == [("pretraining", 3), ("diffusion_forcing", 7)]
    assert len(stage.ancestors[1]["weights_sha256"]) == 64
    run = attach(stage)
    lineage = stage.lineage()
    assert lineage["ancestors"] == stage.ancestors
    assert lineage["memory"] == "StructuredMemory"
    assert (lineage["stage"], lineage["chunk_frames"], lineage["latent_space"]) == ("self_forcing", 2, LINEAGE["latent_space"])
    stage.setup("fit")
    assert run


def test_weights_without_a_moving_average_are_taken_as_they_are(tmp_path):
    parent, stage = denoiser(seed=1), stage_of()
    stage.initialise_from(write_parent(tmp_path / "parent", parent))
    assert all(torch.equal(a, b) for a, b in zip(stage.denoiser.parameters(), parent.parameters(), strict=True))


def test_weights_of_another_shape_are_refused_whole(tmp_path):
    stage = stage_of()
    before = {name: value.clone() for name, value in stage.denoiser.state_dict().items()}
    folder = write_parent(tmp_path / "parent", denoiser(width=24))
    with pytest.raises(UserError, match="nothing was loaded"):
        stage.initialise_from(folder)
    assert all(torch.equal(value, before[name]) for name, value in stage.denoiser.state_dict().items())


@pytest.mark.parametrize("name", ["latent_space", "fps", "chunk_frames"])
def test_weights_that_mean_something_else_are_refused_unless_allowed(name, tmp_path):
    folder = write_parent(tmp_path / "parent", denoiser(seed=1), **{name: "ffffffff" if name == "latent_space" else 50})
    stage = stage_of()
    stage.initialise_from(folder)
    run = attach(stage)
    with pytest.raises(UserError, match=name):
        stage.setup("fit")
    allowing = stage_of(allow_lineage=[name])
    allowing.initialise_from(folder)
    run = attach(allowing)
    allowing.setup("fit")
    assert run


@pytest.mark.parametrize("cls", [SelfForcing, StepDistillation])
def test_stages_that_need_a_parent_say_so(cls):
    stage = stage_of(cls)
    run = attach(stage)
    with pytest.raises(UserError, match=f"{cls.__name__} needs the checkpoint of an earlier stage: set init_from"):
        stage.setup("fit")
    assert run


def test_a_resumed_stage_gets_its_teacher_back_and_keeps_its_own_weights(tmp_path):
    parent = denoiser(seed=1)
    folder = write_parent(tmp_path / "parent", parent)
    stage = stage_of(StepDistillation)
    own = {name: value.clone() for name, value in stage.denoiser.state_dict().items()}
    stage.recipe = {"init_from": str(folder)}
    run = attach(stage)
    stage.setup("fit")
    assert run
    assert all(torch.equal(value, own[name]) for name, value in stage.denoiser.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(stage.intermediate.network.parameters(), parent.parameters(), strict=True))
    assert [ancestor["step"] for ancestor in stage.ancestors] == [7]


def test_a_frozen_copy_does_not_follow_its_origin():
    frozen, network = Frozen(), denoiser()
    with pytest.raises(RuntimeError, match="not made yet"):
        _ = frozen.network
    frozen.copy_from(network)
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.network.parameters(), strict=True))
    frozen.to(network.double())
    assert next(frozen.network.parameters()).dtype == torch.float64
    frozen.load(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), frozen.network.parameters(), strict=True))


def test_decibels():
    assert float(psnr(torch.tensor(4.0))) == pytest.approx(0.0)
    assert float(psnr(torch.tensor(0.04))) == pytest.approx(20.0)

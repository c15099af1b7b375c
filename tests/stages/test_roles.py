"""Distribution matching, which trains two networks, from `init_from` to a checkpoint, under every strategy."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from fit_roles import LONG, STEPS, STOP, fit, fit_in_parts, new_stage
from lora_run import ResumableWindows, lora
from safetensors.torch import load_file
from stage_data import denoiser, trainer, write_parent
from torch import nn

from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.checkpoints import open_checkpoint
from flowact.errors import UserError
from flowact.models.adapters import stored_names
from flowact.stages import AdamW, ChunkwiseDiffusionForcing, Role
from flowact.stages.roles import SeveralRoles
from flowact.strategies.deepspeed import DeepSpeed

pytestmark = pytest.mark.timeout(900)  # two processes may share their cores with others


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_script) -> Path:
    """With the results of two processes."""
    folder = tmp_path_factory.mktemp("roles")
    write_parent(folder / "parent", denoiser(seed=1))
    script = Path(__file__).with_name("fit_roles.py")
    run_script(script, folder, timeout=600)
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict:
    return json.loads((folder / "figures.json").read_text())


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, float]]:
    return fit(folder / "parent", steps=LONG).values


# --- two processes


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        for name in own.keys() & other.keys():  # without clipping at stage 0 an engine knows no norm
            assert own[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), f"{name} at step {step}"


@pytest.mark.parametrize("strategy", ["zero-0", "zero-1", "zero-2", "zero-3", "ddp"])
def test_every_strategy_trains_both_roles_as_one_process_does(strategy, figures, alone):
    assert_alike(figures[strategy], alone)
    assert len(alone) == LONG
    for step, found in enumerate(figures[strategy]):
        assert ("train/student_loss" in found) == (step > 0)
        assert "train/fake_score_loss" in found
    assert alone[1]["train/student_loss"] != alone[-1]["train/student_loss"], "it has learnt"


@pytest.fixture(scope="module")
def large(folder: Path) -> list[dict[str, float]]:
    """Of the same rows in one batch a step."""
    return fit(folder / "parent").values


@pytest.mark.parametrize("strategy", ["zero-0", "zero-2", "zero-3", "ddp"])
def test_accumulated_batches_are_one_large_batch(strategy, figures, large):
    assert_alike(figures[f"{strategy} accumulates"], large)
    assert len(large) == STEPS


def test_one_process_accumulates_too(folder, large):
    assert_alike(fit(folder / "parent", accumulate=2).values, large)


def test_a_resumed_run_of_two_roles_is_the_whole_run(folder, figures):
    assert figures["resumed"] == figures["whole"][STOP:]
    assert figures["same weights"]
    for file in ("denoiser.safetensors", "ema.safetensors"):
        whole, parts = (load_file(folder / run / file) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    lineage = open_checkpoint(folder / "parts").lineage
    assert (lineage["stage"], lineage["step"]) == ("distribution_matching", STEPS)
    engine = folder / "parts" / "engine"
    assert {path.name for path in engine.iterdir() if path.is_dir()} == {"student", "fake_score"}
    assert not (folder / "parts" / "fake_score.safetensors").exists()


# --- one process


@pytest.mark.parametrize(
    ("strategy", "of_stage"),
    [(None, {}), (None, {"adapter": lora(), "accumulate": 2}), pytest.param(3, {}, marks=pytest.mark.slow)],
    ids=["plain", "adapters, accumulates", "zero-3"],
)
def test_one_process_resumes_too(strategy, of_stage, tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    options = [{"of_stage": of_stage} | ({} if strategy is None else {"strategy": DeepSpeed(stage=strategy)}) for _ in range(3)]
    whole = fit_in_parts(tmp_path, "whole", STEPS, **options[0])
    fit_in_parts(tmp_path, "parts", STOP, **options[1])
    resumed = fit_in_parts(tmp_path, "parts", STEPS, resume=True, **options[2])
    assert resumed.values == whole.values[STOP:]
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())


def test_an_engine_for_each_role_is_not_one_for_the_whole_stage(tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    fit_in_parts(tmp_path, "run", 2, strategy=DeepSpeed(stage=2))
    other = ChunkwiseDiffusionForcing(denoiser(), new_stage().memory, chunk_frames=2, num_chunks=2)
    with pytest.raises(UserError, match=r"roles \['student', 'fake_score'\] \(now None\)"):
        trainer(strategy=DeepSpeed(stage=2)).fit(
            other, datamodule=ResumableWindows.of(other), ckpt_path=str(open_checkpoint(tmp_path / "run").engine)
        )


def test_the_average_follows_the_updates_of_the_student(tmp_path):
    """Two updates in four steps, so the decays are those of the first two updates: 1/10 and 2/11.."""
    write_parent(tmp_path / "parent", denoiser(seed=1))
    stage, average, seen = new_stage(), ExponentialMovingAverage(decay=0.5), []
    stage.initialise_from(tmp_path / "parent")

    class Watch(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(pl_module.denoiser.out.weight.detach().clone())

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.denoiser.out.weight.detach().clone())

    run = trainer(max_steps=4, callbacks=[average, Watch()], limit_val_batches=0)
    run.fit(stage, datamodule=ResumableWindows.of(stage, folder=tmp_path / "ae"))
    start, first, second = seen[0], seen[2], seen[4]
    assert torch.equal(seen[1], start)
    assert torch.equal(seen[3], first)
    once = start.lerp(first, 0.9)
    torch.testing.assert_close(average.averages()["out.weight"], once.lerp(second, 1 - 2 / 11))


def test_schedules_run_over_the_updates_of_their_role():
    role = Role(nn.Linear(2, 2), AdamW(), every=5)
    assert [step for step in range(12) if role.is_due(step)] == [4, 9]
    assert role.total_updates(12) == 2


@pytest.mark.parametrize(("options", "words"), [({"every": 0}, "got 0"), ({"clip": 0.0}, "got 0.0"), ({"clip": float("nan")}, "got nan")])
def test_impossible_roles_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Role(nn.Linear(2, 2), AdamW(), **options)


@pytest.mark.parametrize("zero", [None, 2])
def test_each_role_trains_adapters_of_its_own(zero, tmp_path):
    stage = new_stage(student_every=1, adapter=lora())
    stage.initialise_from(write_parent(tmp_path / "parent", denoiser(seed=1)))
    run = trainer(strategy="auto" if zero is None else DeepSpeed(stage=zero), limit_val_batches=0)
    run.fit(stage, datamodule=ResumableWindows.of(stage, folder=tmp_path / "ae"))
    parent, moved = denoiser(seed=1).state_dict(), []
    for role in stage.roles().values():
        trained = {name: parameter for name, parameter in role.network.named_parameters() if parameter.requires_grad}
        frozen = {stored_names(role.network)[name]: parameter for name, parameter in role.network.named_parameters() if name not in trained}
        assert 0 < sum(map(torch.numel, trained.values())) < sum(map(torch.numel, frozen.values()))
        assert all(torch.equal(parameter, parent[name]) for name, parameter in frozen.items())
        assert not torch.equal(role.network.out.weight, parent["out.weight"])
        moved.append(trained)
    assert not set(map(id, moved[0].values())) & set(map(id, moved[1].values()))
    assert role.num_updates == run.global_step == 2
    assert len(stage.checkpoint_weights()) >= len(moved[0])


@pytest.mark.parametrize(
    ("option", "words"), [({"accumulate_grad_batches": 2}, "model.init_args.accumulate"), ({"gradient_clip_val": 1.0}, "model.init_args.clip")]
)
def test_what_lightning_refuses_has_a_place_of_its_own(option, words):
    stage = new_stage()
    with pytest.raises(UserError, match=words):
        trainer(**option).fit(stage, datamodule=ResumableWindows.of(stage))


def test_a_step_takes_at_least_one_batch():
    class Nobody(SeveralRoles):
        name = "nobody"

    with pytest.raises(ValueError, match="accumulate is 0"):
        Nobody(accumulate=0)


# --- where the networks start


def test_scores_start_from_their_own_checkpoint_and_the_student_from_init_from(tmp_path):
    write_parent(tmp_path / "student", denoiser(seed=1))
    write_parent(tmp_path / "scores", denoiser(seed=2))
    stage = new_stage(scores=str(tmp_path / "scores"))
    stage.initialise_from(tmp_path / "student")
    for network, seed in ((stage.denoiser, 1), (stage.fake_score, 2), (stage.real_score.network, 2)):
        assert all(torch.equal(value, denoiser(seed=seed).state_dict()[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in stage.real_score.network.parameters())
    both = new_stage()
    both.initialise_from(tmp_path / "student")
    assert all(torch.equal(value, both.denoiser.state_dict()[name]) for name, value in both.fake_score.state_dict().items())


def test_scores_of_another_latent_space_are_refused(tmp_path):
    write_parent(tmp_path / "student", denoiser(seed=1))
    write_parent(tmp_path / "scores", denoiser(seed=2), latent_space="ffffffff")
    stage = new_stage(scores=str(tmp_path / "scores"))
    stage.initialise_from(tmp_path / "student")
    with pytest.raises(UserError, match="latent_space"):
        trainer(max_steps=4).fit(stage, datamodule=ResumableWindows.of(stage))


def test_a_stage_without_a_parent_says_so():
    stage = new_stage()
    with pytest.raises(UserError, match="DistributionMatching needs the checkpoint of an earlier stage: set init_from"):
        trainer(max_steps=4).fit(stage, datamodule=ResumableWindows.of(stage))


@pytest.mark.parametrize("strategy", ["auto", "deepspeed"])
def test_validation_gives_the_same_number_every_time(strategy, tmp_path):
    write_parent(tmp_path / "parent", denoiser(seed=1))
    stage = new_stage(rollout=1)
    stage.initialise_from(tmp_path / "parent")
    data = ResumableWindows.of(stage, folder=tmp_path / "ae")
    run = trainer(max_steps=4, strategy=DeepSpeed(stage=2) if strategy == "deepspeed" else strategy)
    run.fit(stage, datamodule=data)
    assert {"val/loss", "val/fake_score_loss", "val/saturation", "val/motion", "val/beyond_range", "train/saturation"} <= run.callback_metrics.keys()
    losses = [trainer().validate(stage, datamodule=data, verbose=False)[0]["val/loss"] for _ in range(2)]
    assert losses[0] == losses[1]

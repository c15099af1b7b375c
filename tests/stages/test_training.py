"""Every stage trains: two steps of plain Lightning on a CPU, in each precision, and together with DeepSpeed on two processes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from stage_data import CHANNELS, FrameData, WindowData, denoiser, trainer, write_parent

from flowact.autoencoders import SPEC, WEIGHTS, CausalVideoAutoencoder, load_autoencoder
from flowact.checkpoints import write_checkpoint
from flowact.errors import UserError
from flowact.memory import GaussianMemory, GeneratedMemory, SlidingWindowMemory, StructuredMemory
from flowact.stages import (
    AdamW,
    AutoencoderTraining,
    ChunkwiseDiffusionForcing,
    FlowMatchingPretraining,
    SelfForcing,
    StepDistillation,
)
from flowact.strategies.deepspeed import DeepSpeed

FAST = AdamW(lr=1e-2, warmup_steps=1)
SIZES = {"chunk_frames": 2, "num_chunks": 2, "optimizer": FAST}


def bank():
    return StructuredMemory(long=1, short=1, chunk_frames=2)


STAGES = {
    "pretraining": lambda: FlowMatchingPretraining(denoiser(), **SIZES),
    "diffusion_forcing": lambda: ChunkwiseDiffusionForcing(denoiser(), bank(), **SIZES),
    "diffusion_forcing, sliding": lambda: ChunkwiseDiffusionForcing(denoiser(), SlidingWindowMemory(1, 2), **SIZES),
    "self_forcing": lambda: SelfForcing(denoiser(), bank(), corruptor=GeneratedMemory(1.0), **SIZES),
    "self_forcing, gaussian": lambda: SelfForcing(denoiser(), bank(), corruptor=GaussianMemory(), **SIZES),
    "distillation": lambda: StepDistillation(denoiser(), bank(), teacher_steps=2, guidance=2.0, **SIZES),
}


def fit(stage, tmp_path, **options):
    if isinstance(stage, SelfForcing):
        stage.initialise_from(write_parent(tmp_path / "parent", denoiser(seed=1)))
    run = trainer(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(stage, datamodule=WindowData.of(stage, folder=tmp_path / "ae"))
    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", STAGES)
def test_two_steps_and_a_validation_before_them(name, precision, tmp_path):
    stage = STAGES[name]()
    before = {key: value.clone() for key, value in stage.denoiser.state_dict().items()}
    run = fit(stage, tmp_path, precision=precision)
    assert run.global_step == 2
    assert {"train/loss", "val/loss"} <= run.callback_metrics.keys()
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())
    assert any(key.startswith("val/loss_sigma_") for key in run.callback_metrics)
    after = stage.denoiser.state_dict()
    assert any(not torch.equal(before[key].to(after[key]), after[key]) for key in after)
    assert stage.name == name.split(",")[0]


@pytest.mark.parametrize("name", ["diffusion_forcing", "self_forcing", "distillation"])
def test_validation_gives_the_same_number_every_time(name, tmp_path):
    stage = STAGES[name]()
    fit(stage, tmp_path)
    data = WindowData.of(stage)
    losses = [trainer().validate(stage, datamodule=data, verbose=False)[0]["val/loss"] for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["self_forcing", "distillation"])
def test_the_frozen_copy_is_neither_trained_nor_kept(name, tmp_path):
    stage = STAGES[name]()
    fit(stage, tmp_path)
    teacher = stage.intermediate.network
    parent = denoiser(seed=1).state_dict()
    assert all(torch.equal(value, parent[key]) for key, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not teacher.training
    assert len(list(stage.parameters())) == len(list(stage.denoiser.parameters()))
    assert {key.split(".")[0] for key in stage.state_dict()} == {"denoiser"}


def test_a_run_without_a_number_of_steps_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"max_steps is -1.*optimizer steps"):
        fit(STAGES["pretraining"](), tmp_path, max_steps=-1, max_epochs=1)


# --- the autoencoder


class Fine(CausalVideoAutoencoder):
    """Patches of 8 x 8 pixels have 768 components, which are found in a moment."""

    spatial_stride, patch = 8, 2


def autoencoder_stage(cls=CausalVideoAutoencoder, **options):
    torch.manual_seed(0)
    return AutoencoderTraining(cls(latent_channels=CHANNELS, width=8), **({"principal_clips": 0, "optimizer": FAST} | options))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_autoencoder_trains_and_follows_the_statistics_of_its_latents(precision):
    stage, run = autoencoder_stage(), trainer(precision=precision)
    run.fit(stage, datamodule=FrameData())
    assert run.global_step == 2
    assert {"train/loss", "train/psnr", "train/kl", "val/psnr"} <= run.callback_metrics.keys()
    assert bool(stage.autoencoder.latent_mean.any())
    assert not torch.equal(stage.autoencoder.latent_std, torch.ones(CHANNELS))


def test_an_autoencoder_starts_from_principal_components():
    stage = autoencoder_stage(Fine, principal_clips=64, optimizer=AdamW(lr=0.0))
    trainer().fit(stage, datamodule=FrameData(batch=16))
    expected = autoencoder_stage(Fine).autoencoder
    clips = torch.cat([batch.frames_BCTHW for batch in FrameData(batch=16).loader("train")])
    assert stage.variance_kept == pytest.approx(expected.start_from_principal_components(clips))
    torch.testing.assert_close(stage.autoencoder.encoder_linear.weight, expected.encoder_linear.weight)


def test_a_checkpoint_of_an_autoencoder_is_a_folder_of_one(tmp_path):
    stage = autoencoder_stage()
    weights = stage.trained_module().state_dict()
    folder = write_checkpoint(
        tmp_path / "run", weights=weights, ema=None, recipe={}, lineage=stage.lineage() | {"step": 1}, autoencoder_folder=None, engine_saver=None,
        weights_name=stage.weights_name, documents=stage.documents(),
    )  # fmt: skip
    assert (folder / SPEC).is_file()
    assert (folder / WEIGHTS).is_file()
    frames = torch.rand(1, 3, 5, 16, 16)
    torch.testing.assert_close(load_autoencoder(folder).encode(frames), stage.autoencoder.encode(frames))


# --- engines


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["diffusion_forcing", "self_forcing", "distillation"])
def test_stages_run_under_deepspeed(name, precision, tmp_path):
    stage = STAGES[name]()
    run = fit(stage, tmp_path, strategy=DeepSpeed(stage=2), precision=precision)
    assert torch.isfinite(run.callback_metrics["train/loss"])


def test_two_processes_of_self_forcing_hold_the_same_weights(tmp_path, run_script):
    """Under ZeRO 2, with memory that a model generates on every process."""
    write_parent(tmp_path / "parent", denoiser(seed=1))
    script = Path(__file__).with_name("fit_two.py")
    run_script(script, tmp_path, timeout=240)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["losses"] != second["losses"], "each process has windows of its own"
    assert first["weights"] != pytest.approx(first["start"])
    assert len(first["losses"]) == 3

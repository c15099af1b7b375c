"""Held-out curves: every bin of noise levels holds samples, a perfect denoiser is at zero in each, and the data is like itself."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from oracle import PerfectDenoiser, knowing_batch

from flowact.memory import StructuredMemory
from flowact.schedulers import IndependentLevels, LogitNormalLevel, MixedLevels, StaircaseLevels, UniformLevel
from flowact.stages import ChunkwiseDiffusionForcing, FlowMatchingPretraining, SelfForcing, StepDistillation
from flowact.stages.curves import LEVEL_BINS, HeldOutCurves, bin_name, latent_sums, level_sums, statistics

N, W = 2, 3
SIZES = {"chunk_frames": N, "num_chunks": W}
ALONE = SimpleNamespace(reduce=lambda sums, reduce_op: sums, root_device=torch.device("cpu"))
TRAINER = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
STAGES = {
    "pretraining": lambda: FlowMatchingPretraining(PerfectDenoiser(), **SIZES),
    "diffusion_forcing": lambda: ChunkwiseDiffusionForcing(PerfectDenoiser(), StructuredMemory(long=1, short=1, chunk_frames=N), **SIZES),
    "self_forcing": lambda: SelfForcing(PerfectDenoiser(), StructuredMemory(long=1, short=1, chunk_frames=N), **SIZES),
    "distillation": lambda: StepDistillation(PerfectDenoiser(), StructuredMemory(long=1, short=1, chunk_frames=N), **SIZES),
}


def bins_of(sigma: torch.Tensor) -> set[str]:
    return {bin_name(low) for low, high in LEVEL_BINS if ((sigma >= low) & (sigma < high)).any()}


LAWS = [LogitNormalLevel(), LogitNormalLevel(shift=5.0), UniformLevel(), IndependentLevels(), MixedLevels()]


@pytest.mark.parametrize("law", LAWS, ids=["logit normal", "shifted logit normal", "uniform", "independent", "mixed"])
def test_as_many_samples_as_bins_fill_every_bin(law):
    curves = HeldOutCurves(law, W)
    for first in (0, 4, 20):
        assert bins_of(curves.levels(first, 4)) == bins_of(torch.linspace(0, 1, 100))
    assert torch.equal(HeldOutCurves(law, W).levels(0, 12), curves.levels(0, 12)), "the same at each validation"
    assert torch.equal(torch.cat([curves.levels(0, 5), curves.levels(5, 7)]), curves.levels(0, 12)), "however they are batched"


def test_levels_come_from_the_stages_law():
    sigma_BK = HeldOutCurves(StaircaseLevels(first_step=1.0), W).levels(0, 8)
    torch.testing.assert_close(sigma_BK, torch.tensor([1.0, 2.0, 3.0]).expand(8, -1) / 3)
    shared = HeldOutCurves(LogitNormalLevel(), W).levels(0, 8)
    assert (shared == shared[:, :1]).all()
    assert len(HeldOutCurves(LogitNormalLevel(), W).levels(0, 40).unique(dim=0)) == 40, "a bin's samples differ"


def test_the_run_s_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    HeldOutCurves(MixedLevels(), W).levels(0, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", STAGES)
def test_a_perfect_denoiser_is_at_zero_in_every_bin_and_like_the_data(name):
    stage = STAGES[name]().eval()
    stage.trainer = TRAINER
    stage.on_validation_epoch_start()
    for index in range(2):
        stage.measure_held_out(knowing_batch(stage.history_frames + W * N, seed=index), index)
    means = stage._held_out.means(ALONE)
    reached = bins_of(stage._held_out.pool_PK)
    assert len(reached) == (3 if name == "distillation" else 4)
    assert {key for key in means if key.startswith("loss")} == reached
    assert all(float(means[key]) < 1e-6 for key in reached)
    assert float(means["saturation"]) == pytest.approx(1, abs=1e-4)
    assert float(means["motion"]) == pytest.approx(1, abs=1e-4)


def test_a_wrong_denoiser_is_seen_in_its_bins():
    stage = STAGES["pretraining"]().eval()
    stage.denoiser.bias.data.fill_(3.0)  # velocities are off by 3 everywhere
    stage.trainer = TRAINER
    stage.on_validation_epoch_start()
    stage.measure_held_out(knowing_batch(W * N, batch=4), 0)
    means = stage._held_out.means(ALONE)
    assert [float(means[bin_name(low)]) for low, _ in LEVEL_BINS] == pytest.approx([9.0] * 4, rel=1e-4)


def test_bins_without_samples_are_left_out():
    curves = HeldOutCurves(UniformLevel(), W)
    assert curves.means(ALONE) == {}
    latents = torch.randn(1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    curves.add_errors(torch.ones(1, 3), torch.tensor([[0.1, 0.1, 0.9]]))
    assert curves.means(ALONE).keys() == {"loss_sigma_0.00", "loss_sigma_0.75"}
    curves.add_latents(latents, latents)
    assert curves.means(ALONE).keys() == {"loss_sigma_0.00", "loss_sigma_0.75", "saturation", "beyond_range", "motion"}


def test_sums_by_level_count_frames():
    sums = level_sums(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 0.2, 1.0]]))
    assert sums.tolist() == [[3, 2], [0, 0], [0, 0], [4, 1]]


# --- statistics of latents


def test_the_data_is_like_itself():
    data = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = statistics(latent_sums(data, data))
    assert float(found["saturation"]) == float(found["motion"]) == 1.0
    assert 0 < float(found["beyond_range"]) <= 0.001


def test_exaggeration_and_stillness_are_seen():
    data = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    loud, still = (statistics(latent_sums(made, data)) for made in (2 * data, data[:, :1].expand_as(data)))
    assert float(loud["saturation"]) == float(loud["motion"]) == pytest.approx(2.0)
    assert float(loud["beyond_range"]) > 0.05
    assert float(still["motion"]) == 0.0
    assert float(still["saturation"]) == pytest.approx(1.0, abs=0.1)


def test_statistics_do_not_depend_on_how_samples_are_batched():
    made, data = torch.randn(2, 4, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = latent_sums(made[:1], data[:1]) + latent_sums(made[1:], data[1:])
    torch.testing.assert_close(parts, latent_sums(made, data))

"""What distribution matching promises: a gradient with a known value between Gaussians, and roles that leave each other alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from matching import ENGINES, HISTORY, Watching, batch_for, fit, stage_of
from oracle import KnowingDenoiser, PerfectDenoiser, learning_denoiser
from torch import nn

from flowact.errors import UserError
from flowact.memory import NoMemory
from flowact.schedulers import UniformLevel
from flowact.stages import AdamW, DistributionMatching

MEAN, STD = (1.5, -1.0), 0.5


class GaussianScore(KnowingDenoiser):
    """The exact velocity of data ~ N(mean, std^2), in each channel: v = (x - E[x0 | x]) / sigma. With `told`, the mean is what the sound says."""

    def __init__(self, mean, told=False):
        super().__init__()
        self.bias.requires_grad_(False)
        self.mean, self.told = nn.Parameter(torch.tensor(mean)[:, None, None]), told

    def velocity(self, latents, sigma, known):
        mean = known if self.told else self.mean
        gain = STD**2 * (1 - sigma) / ((1 - sigma) ** 2 * STD**2 + sigma**2)
        return (latents - mean - gain * (latents - (1 - sigma) * mean)) / sigma


class GaussianStudent(GaussianScore):
    """From pure noise, mean + std * noise."""

    def velocity(self, latents, sigma, known):
        assert (sigma == 1).all()
        return latents - (self.mean + STD * latents)


def gaussian_stage(student_mean, fake_mean, real, **options):
    one_chunk = {"memory": NoMemory(), "num_chunks": 1, "score_levels": UniformLevel(0.02, 0.98)}
    return stage_of(GaussianStudent(student_mean), real, GaussianScore(fake_mean), **(one_chunk | options))


# --- the gradient


@pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
def test_the_gradient_between_two_gaussians_is_the_closed_form(guidance):
    """x0_fake - x0_real = (m_fake - m_real) t^2 / ((1 - t)^2 std^2 + t^2). Guidance w moves a told mean to w times it."""
    fake_mean = (0.5, 0.25)
    stage = gaussian_stage(fake_mean, fake_mean, GaussianScore(MEAN, told=guidance is not None), guidance=guidance or 1.0)
    batch = batch_for(stage, batch=5)
    memory, samples = stage.sample(batch)
    torch.manual_seed(3)
    gradient = stage.distribution_gradient(memory, samples)
    torch.manual_seed(3)
    sigma_B1 = 0.02 + 0.96 * torch.rand(5, 1)
    noise = torch.randn(gradient.shape)
    t = sigma_B1[..., None, None, None].double()
    clean = samples[0].latents_BFCHW.double()
    noisy = (1 - t) * clean + t * noise
    fake = torch.tensor(fake_mean, dtype=torch.float64)[:, None, None]
    real = torch.tensor(MEAN, dtype=torch.float64)[:, None, None] if guidance is None else guidance * batch.latents_BFCHW.double()
    total = (1 - t) ** 2 * STD**2 + t**2
    believed = real + STD**2 * (1 - t) / total * (noisy - (1 - t) * real)
    scale = (clean - believed).abs().flatten(1).mean(dim=1)[:, None, None, None, None]
    torch.testing.assert_close(gradient, ((fake - real) * t**2 / total / scale).expand_as(gradient), atol=1e-5, rtol=1e-4)
    assert gradient.dtype == torch.float64


def test_the_loss_hands_the_samples_this_gradient():
    stage = gaussian_stage((0.0, 0.0), (0.5, 0.25), GaussianScore(MEAN))
    memory, samples = stage.sample(batch_for(stage))
    leaf = samples[0].latents_BFCHW.detach().requires_grad_()
    chunks = [replace(samples[0], latents_BFCHW=leaf)]
    torch.manual_seed(3)
    stage.student_loss(memory, chunks).backward()
    torch.manual_seed(3)
    torch.testing.assert_close(leaf.grad.double(), stage.distribution_gradient(memory, chunks) / leaf.numel(), atol=1e-8, rtol=1e-5)


def test_a_student_that_matches_gets_no_gradient():
    stage = stage_of(PerfectDenoiser())
    memory, samples = stage.sample(batch_for(stage))
    assert not stage.distribution_gradient(memory, samples).any(), "and no division by zero where the sample is the real score's own"


class Means(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        self.student, self.fake = (network.mean.detach().flatten().clone() for network in (pl_module.denoiser, pl_module.fake_score))


@pytest.mark.parametrize("fake_mean", [MEAN, (0.0, 0.0)])
def test_training_moves_the_mean_of_the_student_to_that_of_the_teacher(fake_mean):
    """The fake score starts elsewhere than the student, so this needs both roles."""
    torch.manual_seed(0)
    quick = AdamW(lr=5e-2, betas=(0.0, 0.9), weight_decay=0.0, warmup_steps=0, final_lr=0.05)
    student = AdamW(lr=4e-2, betas=(0.0, 0.99), weight_decay=0.0, warmup_steps=0, final_lr=0.02)
    stage, means = (
        gaussian_stage((-0.5, 0.5), fake_mean, GaussianScore(MEAN), student_every=2, optimizer=student, fake_score_optimizer=quick),
        Means(),
    )
    fit(stage, 400, callbacks=[means])
    torch.testing.assert_close(means.student, torch.tensor(MEAN), atol=0.1, rtol=0)
    torch.testing.assert_close(means.fake, means.student, atol=0.1, rtol=0)


# --- roles


@pytest.mark.parametrize("name", ENGINES)
def test_an_update_of_one_role_leaves_the_other_bit_identical_and_a_step_counts_once(name):
    options = ENGINES[name]()
    stage = stage_of(learning_denoiser(), learning_denoiser(width=24), cls=Watching, student_every=3, rollout=1)
    run = fit(stage, 6, **options)
    fake_updates = [("fake_score", step) for step in range(1, 7)]
    assert [name for name, _ in stage.seen] == ["fake_score", "fake_score", "student", "fake_score"] * 2
    assert [entry for entry in stage.seen if entry[0] == "fake_score"] == fake_updates
    assert run.global_step == 6
    assert stage.num_updates == stage.roles()["student"].num_updates == 2
    assert run.callback_metrics["train/student_updates"] == 2
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())


def test_gradients_reach_their_own_role_only():
    stage = stage_of(learning_denoiser(), learning_denoiser(width=24)).train()
    batch = batch_for(stage)
    batch.latents_BFCHW.requires_grad_()
    batch.reference_BFCHW.requires_grad_()
    memory, samples = stage.sample(batch)
    stage.student_loss(memory, samples).backward()
    assert all(parameter.grad is not None for parameter in stage.denoiser.parameters())
    assert all(parameter.grad is None for parameter in (*stage.fake_score.parameters(), *stage.real_score.network.parameters()))
    stage.denoiser.zero_grad()
    stage.fake_score_loss(memory, samples).backward()
    assert all(parameter.grad is not None for parameter in stage.fake_score.parameters())
    assert all(parameter.grad is None for parameter in (*stage.denoiser.parameters(), *stage.real_score.network.parameters()))
    assert batch.latents_BFCHW.grad is None
    assert batch.reference_BFCHW.grad is None


@pytest.mark.parametrize(("change", "words"), [({"max_steps": 4}, "every 5-th step"), ({"strategy": "ddp"}, "ddp_find_unused_parameters_true")])
def test_runs_that_could_not_train_both_roles_are_refused(change, words):
    stage = stage_of(learning_denoiser(), student_every=5)
    with pytest.raises(UserError, match=words):
        fit(stage, change.get("max_steps", 10), **{key: value for key, value in change.items() if key == "strategy"})


# --- windows


@pytest.mark.parametrize("depth", [0, 1, HISTORY])
def test_a_rollout_of_a_perfect_student_arrives_at_the_stream_of_the_data(depth):
    stage = stage_of(PerfectDenoiser()).eval()
    batch = batch_for(stage)
    state, (last,) = stage.begin(batch, depth)
    memory, window = stage.memory.read(state.memory), [*state.stream, last]
    expected = stage.remember(batch, stage.chunks(batch, 0, HISTORY))
    torch.testing.assert_close(memory.latents_BFCHW, expected.latents_BFCHW, atol=1e-5, rtol=1e-4)
    for chunk, clean in zip(window, stage.stream(batch), strict=True):
        assert torch.equal(chunk.audio_BFAD, clean.audio_BFAD)
        assert torch.equal(chunk.text_BLD, clean.text_BLD)
    stage.rollout = depth
    for sample, clean in zip(stage.sample(batch)[1], stage.stream(batch), strict=True):
        torch.testing.assert_close(sample.latents_BFCHW, clean.latents_BFCHW, atol=1e-5, rtol=1e-4)


def test_only_the_last_evaluation_of_a_rollout_carries_a_gradient():
    class Watched(PerfectDenoiser):
        def forward(self, *arguments):
            self.enabled = [*getattr(self, "enabled", []), torch.is_grad_enabled()]
            return super().forward(*arguments)

    stage = stage_of(Watched(), rollout=3).eval()
    stage.sample(batch_for(stage))
    assert stage.denoiser.enabled == [False, False, False, True]


def test_the_depth_of_a_rollout_depends_on_the_step_alone():
    stage = stage_of(PerfectDenoiser(), rollout=HISTORY).train()
    depths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        depths.append([])
        for step in range(40):
            stage.trainer = SimpleNamespace(global_step=step)
            depths[-1].append(stage.depth())
    assert depths[0] == depths[1]
    assert set(depths[0]) == set(range(HISTORY + 1))


def test_a_stream_that_has_just_begun_is_trained_too():
    """With the reference alone in memory, however deep the rollout."""
    torch.manual_seed(0)
    stage = stage_of(PerfectDenoiser(), start=1.0).train()
    batch = batch_for(stage)
    memories = [stage.memory.read(stage.begin(batch, 0)[0].memory).latents_BFCHW for _ in range(20)]
    assert any(torch.equal(memory, batch.reference_BFCHW.expand_as(memory)) for memory in memories)


@pytest.mark.parametrize("rollout", [-1, HISTORY + 1])
def test_a_rollout_longer_than_the_history_is_refused(rollout):
    with pytest.raises(UserError, match=rf"rollout is {rollout}.*between 0 and {HISTORY}"):
        DistributionMatching.setup(stage_of(PerfectDenoiser(), rollout=rollout), "fit")

"""What the adversarial loss promises: it tells clips apart, moves the student only where it can, and leaves each role to its own loss."""

from __future__ import annotations

import math

import pytest
import torch
from matching import ENGINES, Watching, batch_for, fit, stage_of
from oracle import PerfectDenoiser, learning_denoiser

from flowact.sampling.window import split_frames
from flowact.schedulers import UniformLevel
from flowact.stages import distribution_matching as module
from flowact.stages.adversarial import Adversarial, ScoreWithHead, critic_loss, generator_loss

ON = Adversarial(student=0.1, critic=0.1)


def adversarial_stage(knows=True, **options):
    """With a head that has an opinion, unless it knows nothing."""
    stage = stage_of(learning_denoiser(), learning_denoiser(width=24), **({"adversarial": ON} | options))
    if knows:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in stage.fake_score.heads.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return stage.train()


def test_the_losses_are_least_where_the_paper_says():
    """At equal distributions no opinion beats none: D = 0, where the critic loss is 2 log 2."""
    opinion = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert float(critic_loss(torch.zeros(4), torch.zeros(4))) == pytest.approx(2 * math.log(2))
    assert float(critic_loss(opinion, opinion)) > 2 * math.log(2)
    assert critic_loss(-torch.ones(4), torch.ones(4)) < 2 * math.log(2) < critic_loss(torch.ones(4), -torch.ones(4))
    assert generator_loss(torch.ones(4)) < generator_loss(torch.zeros(4)) < generator_loss(-torch.ones(4))


def test_a_head_that_cannot_tell_gives_the_student_no_direction():
    """As it is made."""
    stage = adversarial_stage(knows=False)
    memory, samples = stage.sample(batch_for(stage))
    stage.adversarial_loss(memory, samples).backward()
    assert not any(parameter.grad.any() for parameter in stage.denoiser.parameters())
    knowing = adversarial_stage()
    knowing.adversarial_loss(*knowing.sample(batch_for(knowing))).backward()
    assert all(parameter.grad.any() for parameter in knowing.denoiser.parameters())


def test_gradients_reach_their_own_role_only():
    stage = adversarial_stage()
    batch = batch_for(stage)
    memory, samples = stage.sample(batch)
    (stage.student_loss(memory, samples) + stage.adversarial_loss(memory, samples)).backward()
    assert all(parameter.grad is not None for parameter in stage.denoiser.parameters())
    assert all(parameter.grad is None for parameter in (*stage.fake_score.parameters(), *stage.real_score.network.parameters()))
    stage.denoiser.zero_grad()
    stage.fake_score_loss(memory, samples, stage.stream(batch)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in stage.fake_score.heads.parameters())
    assert all(parameter.grad is not None for parameter in stage.fake_score.parameters())
    assert all(parameter.grad is None for parameter in (*stage.denoiser.parameters(), *stage.real_score.network.parameters()))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_students_gradient_is_that_of_the_loss_of_the_logits(checkpointing):
    """Found through the samples alone, it is what a backward pass through everything gives; whatever activations are kept."""
    stage = adversarial_stage()
    stage.score.checkpointing = checkpointing
    memory, samples = stage.sample(batch_for(stage))
    leaf = torch.cat([chunk.latents_BFCHW for chunk in samples], dim=1).detach().requires_grad_()
    torch.manual_seed(3)
    loss = stage.adversarial_loss(memory, split_frames(leaf, samples))
    loss.backward()
    torch.manual_seed(3)
    plain = leaf.detach().clone().requires_grad_()
    noisy, sigma_BK, _ = stage.noised(split_frames(plain, samples))
    stage.score.checkpointing = "none"
    stage.believe(stage.fake_score, memory, noisy, sigma_BK)
    direct = generator_loss(stage.fake_score.take_logits())
    direct.backward()
    torch.testing.assert_close(loss.detach(), direct.detach())
    torch.testing.assert_close(leaf.grad, plain.grad, atol=1e-7, rtol=1e-4)


def test_real_and_made_clips_are_judged_at_the_same_level_by_the_same_noise(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "critic_loss", lambda made, real: seen.append((made, real)) or critic_loss(made, real))
    stage = adversarial_stage()
    batch = batch_for(stage)
    real = stage.stream(batch)
    memory, samples = stage.sample(batch)
    stage.fake_score_loss(memory, real, real)
    stage.fake_score_loss(memory, samples, real)
    (made, true), (other, _) = seen
    assert made.shape == (2, stage.window_frames)
    assert torch.equal(made, true), "a clip that is real gets the same verdict"
    assert not torch.equal(other, made)


def test_the_head_judges_each_frame_of_the_clip_and_none_of_memory():
    """Memory sees no clip, so a verdict on memory would not move with the clip."""
    stage = adversarial_stage()
    memory, samples = stage.sample(batch_for(stage))
    leaf = torch.cat([chunk.latents_BFCHW for chunk in samples], dim=1).detach().requires_grad_()
    noisy, sigma_BK, _ = stage.noised(split_frames(leaf, samples))
    logits_BF = stage._logits(memory, noisy, sigma_BK)
    for frame in range(stage.window_frames):
        (gradient,) = torch.autograd.grad(logits_BF[:, frame].sum(), leaf, retain_graph=True)
        assert gradient[:, frame].abs().sum() > 0


def test_a_trained_head_tells_clips_apart_and_leads_the_student_to_the_data():
    """Clips around -1 are made, those around 1 real: the direction from one to the other lowers the student's loss."""
    stage = adversarial_stage(knows=False, adversarial=Adversarial(1.0, 1.0), score_levels=UniformLevel(0.02, 0.3))
    batch = batch_for(stage, batch=4)
    like = stage.stream(batch)
    memory = stage.remember(batch, stage.history(batch))
    stage.score.requires_grad_(False)
    optimizer = torch.optim.Adam(stage.fake_score.heads.parameters(), lr=3e-2)
    torch.manual_seed(0)

    def clips(mean):
        return split_frames(mean + 0.3 * torch.randn(4, stage.window_frames, *batch.latents_BFCHW.shape[2:]), like)

    losses = []
    for _ in range(30):
        noisy, sigma_BK, _ = stage.noised(clips(-1.0))
        noisy_real, _, _ = stage.noised(clips(1.0))
        loss = critic_loss(stage._logits(memory, noisy, sigma_BK), stage._logits(memory, noisy_real, sigma_BK))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(2 * math.log(2))
    assert losses[-1] < 0.7
    leaf = torch.cat([chunk.latents_BFCHW for chunk in clips(-1.0)], dim=1).requires_grad_()
    stage.adversarial_loss(memory, split_frames(leaf, like)).backward()
    assert float(leaf.grad.mean()) < 0, "a step against the gradient goes towards 1"


@pytest.mark.parametrize("name", ["auto", "ZeRO 2", "ZeRO 3"])
def test_the_head_is_part_of_the_fake_score_and_an_update_of_one_role_leaves_the_other_bit_identical(name):
    stage = adversarial_stage(cls=Watching, student_every=2, num_chunks=1, windows=2)
    run = fit(stage, 4, batch=8, **ENGINES[name]())
    assert [role for role, _ in stage.seen] == ["fake_score", "student", "fake_score"] * 2
    assert run.callback_metrics["train/critic_loss"] > 0
    assert run.callback_metrics["train/generator_loss"] > 0
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())


# --- what cannot be


@pytest.mark.parametrize("weights", [(0.1, 0.0), (0.0, 0.1), (-0.1, 0.1)])
def test_weights_that_train_nobody_are_refused(weights):
    with pytest.raises(ValueError, match="set both above 0"):
        Adversarial(*weights)


@pytest.mark.parametrize(
    ("score", "blocks", "words"),
    [(PerfectDenoiser(), (), "PerfectDenoiser has no blocks"), (learning_denoiser(), (1, 2), r"blocks names \[2\]; MMDiT has the blocks 0 to 1")],
)
def test_scores_without_such_blocks_are_refused(score, blocks, words):
    with pytest.raises(ValueError, match=words):
        ScoreWithHead(score, blocks)


def test_logits_are_of_the_last_evaluation():
    stage = adversarial_stage()
    with pytest.raises(RuntimeError, match="no evaluation"):
        stage.fake_score.take_logits()

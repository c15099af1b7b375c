"""What consistency distillation promises: the closed form of a linear path, no loss for who knows it, and gradients in the student alone."""

from __future__ import annotations

import pytest
import torch
from oracle import KnowingDenoiser, PerfectDenoiser, knowing_batch, learning_denoiser
from torch import nn

from flowact.memory import NoMemory, StructuredMemory
from flowact.sampling.window import split_frames
from flowact.stages import ConsistencyDistillation
from flowact.stages.moving_target import MovingTarget

N, W = 2, 2
MEAN, STD = 0.8, 0.5


class LinearTeacher(KnowingDenoiser):
    """The exact velocity of data ~ N(MEAN, STD^2): linear in x at each level."""

    def velocity(self, latents, sigma, known):
        total = (1 - sigma) ** 2 * STD**2 + sigma**2
        away = latents - (1 - sigma) * MEAN
        return sigma * away / total - MEAN - (1 - sigma) * STD**2 * away / total


class TabulatedStudent(KnowingDenoiser):
    """f(x, t_i) = gain_i x + offset_i, free at each grid point."""

    def __init__(self, grid):
        super().__init__()
        self.bias.requires_grad_(False)
        self.register_buffer("grid", grid)
        self.gain, self.offset = nn.Parameter(torch.ones(len(grid))), nn.Parameter(torch.zeros(len(grid)))

    def velocity(self, latents, sigma, known):
        at = (self.grid - sigma).abs().argmin(-1, keepdim=True)
        return (latents - self.gain[at] * latents - self.offset[at]) / sigma.clamp_min(1e-6)


def euler_path(grid):
    """Gain and offset of each grid point's map to the end of the teacher's Euler path."""
    gains, offsets = [torch.ones(())], [torch.zeros(())]
    for now, after in zip(grid[:-1].flip(0), grid[1:].flip(0), strict=True):
        at = LinearTeacher().velocity(torch.tensor([0.0, 1.0]), now, None)
        gain, offset = 1 + (after - now) * (at[1] - at[0]), (after - now) * at[0]
        gains.append(gains[-1] * gain)
        offsets.append(gains[-2] * offset + offsets[-1])
    return torch.stack(gains).flip(0), torch.stack(offsets).flip(0)


def stage_of(student=None, teacher=None, **options):
    memory = StructuredMemory(long=1, short=1, chunk_frames=N)
    sizes = {"memory": memory, "chunk_frames": N, "num_chunks": W, "target_start": 0}
    stage = ConsistencyDistillation(student or KnowingDenoiser(), **(sizes | options))
    if student is None:
        stage.denoiser = TabulatedStudent(stage.grid)
    stage.intermediate.copy_from(teacher or LinearTeacher())
    stage.target.copy_from(stage.denoiser)
    return stage


def batch_for(stage, **options):
    return knowing_batch(stage.history_frames + N * W, **options)


@pytest.mark.parametrize("options", [{}, {"shift": 5.0}, {"chunks_share_level": True}])
def test_a_perfect_student_has_no_loss(options):
    torch.manual_seed(0)
    stage = stage_of(grid_points=6, **options).train()
    gain, offset = euler_path(stage.grid)
    stage.denoiser.gain.data, stage.denoiser.offset.data = gain, offset
    assert float(stage.flow_matching(batch_for(stage))[2].detach()) > 1e-3, "the target does not know it yet"
    stage.target.copy_from(stage.denoiser)
    for seed in range(5):
        error_BF, sigma_BF, loss = stage.flow_matching(batch_for(stage, seed=seed))
        assert float(loss.detach()) < 1e-10
        assert error_BF.shape == sigma_BF.shape == (2, N * W)


def test_where_the_path_is_straight_any_solver_of_it_has_no_loss():
    stage = stage_of(PerfectDenoiser(), PerfectDenoiser(), grid_points=4).train()
    assert float(stage.flow_matching(batch_for(stage))[2].detach()) < 1e-9


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_student_trained_to_convergence_is_the_closed_form_of_the_path(decay):
    """Knowledge of the path's end travels up the grid; then f(x, t) is the teacher's Euler path, which nears that of the differential equation."""
    torch.manual_seed(0)
    stage = stage_of(grid_points=6, target_decay=decay, memory=NoMemory()).train()
    optimizer = torch.optim.Adam(stage.denoiser.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=400)
    for step in range(400):
        stage.target.follow(stage.denoiser, step)
        optimizer.zero_grad()
        stage.flow_matching(batch_for(stage, batch=8, seed=step % 20))[2].backward()
        optimizer.step()
        schedule.step()
    gain, offset = euler_path(stage.grid)
    torch.testing.assert_close(stage.denoiser.gain.detach()[:-1], gain[:-1], atol=2e-2, rtol=0.0)
    torch.testing.assert_close(stage.denoiser.offset.detach()[:-1], offset[:-1], atol=2e-2, rtol=0.0)


def test_the_euler_path_nears_the_solution_of_the_differential_equation():
    """x(t) = (1 - t) m + sqrt(var(t)) z, so from pure noise f(x, 1) = m + s x."""
    errors = []
    for points in (16, 64, 256):
        gain, offset = euler_path(torch.linspace(1.0, 0.0, points + 1))
        errors.append(max(abs(float(gain[0]) - STD), abs(float(offset[0]) - MEAN)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_the_teacher_steps_from_one_grid_point_to_the_next():
    stage = stage_of(grid_points=4)
    batch = batch_for(stage)
    stream = stage.stream(batch)
    now, after = torch.tensor([[1.0, 0.5], [0.75, 0.25]]), torch.tensor([[0.75, 0.25], [0.5, 0.0]])
    moved = stage.teacher_step(stage.remember(batch, []), stream, now, after)
    for k in range(W):
        sigma, step = now[:, k, None, None, None, None], (after - now)[:, k, None, None, None, None]
        latents = stream[k].latents_BFCHW
        torch.testing.assert_close(moved[k].latents_BFCHW, latents + step * LinearTeacher().velocity(latents, sigma, None))


def test_guidance_moves_the_teachers_step():
    stage = stage_of(PerfectDenoiser(), PerfectDenoiser(), guidance=3.0)
    batch = batch_for(stage)
    stream, sigma = stage.stream(batch), torch.full((2, W), 0.5)
    moved = stage.teacher_step(stage.remember(batch, []), stream, sigma, 0.5 * sigma)
    clean = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
    expected = clean - 0.25 * (clean - 3.0 * clean) / 0.5
    torch.testing.assert_close(torch.cat([chunk.latents_BFCHW for chunk in moved], dim=1), expected)


def test_levels_are_grid_points_of_the_sample_or_of_each_chunk():
    torch.manual_seed(0)
    for shared in (True, False):
        stage = stage_of(grid_points=5, shift=3.0, chunks_share_level=shared)
        points = stage.draw_points(500)
        assert set(points.flatten().tolist()) == {0, 1, 2, 3, 4}
        assert bool((points[:, 0] == points[:, 1]).all()) == shared
        assert stage.grid[0] == 1.0
        assert stage.grid[-1] == 0.0
        assert float(stage.grid[1]) == pytest.approx(3 * 0.8 / (1 + 2 * 0.8))


def test_at_the_end_of_the_path_the_estimate_is_the_input():
    stage = stage_of(PerfectDenoiser(), PerfectDenoiser())
    batch = batch_for(stage)
    stream = split_frames(torch.randn(2, N * W, 2, 2, 2), stage.stream(batch))
    estimate = stage.clean_estimate(stage.denoiser, stage.remember(batch, []), stream, torch.zeros(2, W))
    assert torch.equal(estimate, torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1))


def test_no_gradient_flows_into_teacher_target_or_memory():
    torch.manual_seed(0)
    stage = stage_of(learning_denoiser(), learning_denoiser(), guidance=2.0).train()
    batch = batch_for(stage)
    latents = batch.latents_BFCHW.requires_grad_()
    stage.flow_matching(batch)[2].backward()
    assert not latents.grad[:, : stage.history_frames].any()
    assert latents.grad[:, stage.history_frames :].any()
    assert all(parameter.grad is not None for parameter in stage.denoiser.parameters())
    for frozen in (stage.intermediate.network, stage.target.network):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert {name.split(".")[0] for name in stage.state_dict()} == {"denoiser"}


# --- the target


def moved(network, amount=1.0):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount)
    return network


def test_the_target_is_the_average_of_the_weights_after_each_update():
    network, target = PerfectDenoiser(), MovingTarget(0.75, start_step=1)
    target.copy_from(network)
    seen = []
    for update in (0, 1, 1, 2, 3):
        if update and update != target.last_update:
            moved(network)
        target.follow(network, update)
        seen.append(float(target.network.bias.detach()))
    assert seen == [0.0, 1.0, 1.0, 1.25, 1.6875], "follows without delay, not twice, then averages"


def test_a_restored_target_goes_on_as_it_would_have():
    network, whole, parts = PerfectDenoiser(), MovingTarget(0.9), MovingTarget(0.9)
    whole.copy_from(network)
    whole.follow(moved(network), 1)
    parts.copy_from(network)
    parts.restore(whole.state())
    for target in (whole, parts):
        target.follow(network, 2)
    assert torch.equal(whole.network.bias, parts.network.bias)


def test_the_average_stays_fp32_where_the_copy_computes_in_bfloat16():
    network, target = PerfectDenoiser(), MovingTarget(0.999)
    target.copy_from(network)
    target.to(network.bfloat16())
    for update in range(1, 4):
        target.follow(moved(network, 1.0 if update == 1 else 0.0), update)
    assert target.network.bias.dtype == torch.bfloat16
    assert float(target.state()["averages"]["bias"]) == pytest.approx(1 - 0.999**3, rel=1e-4)


@pytest.mark.parametrize(("options", "words"), [({"target_decay": 1.0}, "1.0"), ({"target_start": -1}, "-1"), ({"grid_points": 0}, "0")])
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=f"is {words}"):
        stage_of(PerfectDenoiser(), **options)

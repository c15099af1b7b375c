"""Each chunk's way is what diffusers' own scheduler computes for one clip; the laws of solvers; memory travels with the chunk."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from flowact_diffusers_solvers import DPMSolverPlusPlus, MultistepTrail, UniPC, scheduler_of

from flowact.errors import UserError
from flowact.schedulers import Euler, Staircase
from flowact.testing import check_constructor, check_solver
from flowact.testing.laws import tensors_of
from flowact.testing.solvers import follow

diffusers = pytest.importorskip("diffusers", reason="parity is with diffusers: pip install 'diffusers>=0.36'")

FAMILY = [
    *(UniPC(order) for order in (1, 2, 3)),
    *(DPMSolverPlusPlus(order) for order in (1, 2, 3)),
    DPMSolverPlusPlus(2, "heun"),
]


def named(solver):
    return f"{type(solver).__name__}-{solver.order}-{solver.solver_type}"


def noise(seed=0):
    return torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def field(latents, sigma):
    """A velocity that bends."""
    return torch.sin(2 * latents) + math.cos(3 * sigma) * latents


def by_diffusers(solver, num_steps, shift):
    """The levels and the end of a whole schedule of diffusers' own, as a pipeline runs it."""
    cls = diffusers.UniPCMultistepScheduler if isinstance(solver, UniPC) else diffusers.DPMSolverMultistepScheduler
    scheduler = cls(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=solver.order, solver_type=solver.solver_type
    )
    scheduler.set_timesteps(num_steps)
    levels, latents = scheduler.sigmas.tolist(), noise()
    for sigma, timestep in zip(levels, scheduler.timesteps, strict=False):
        latents = scheduler.step(field(latents, sigma), timestep, latents, return_dict=False)[0]
    return levels, latents


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 3, 6, 16])
@pytest.mark.parametrize("solver", FAMILY, ids=named)
def test_a_chunk_goes_as_a_clip_of_diffusers_goes(solver, num_steps, shift):
    levels, expected = by_diffusers(solver, num_steps, shift)
    made = follow(solver, field, noise(), levels)
    torch.testing.assert_close(made, expected, atol=0.0, rtol=0.0)
    if num_steps > 2 and not (isinstance(solver, DPMSolverPlusPlus) and solver.order == 1):
        assert not torch.allclose(made, follow(Euler(), field, noise(), levels), atol=1e-3)


@pytest.mark.parametrize("solver", FAMILY, ids=named)
def test_it_keeps_the_laws_of_solvers(solver):
    """Along a whole way, with its first-order ends, also the third order is of second order; the form called heun gets there only in more steps."""
    check_solver(solver, order=1 if solver.solver_type == "heun" else min(solver.order, 2))


@pytest.mark.parametrize("cls", [UniPC, DPMSolverPlusPlus])
def test_its_constructor_can_be_written_in_a_recipe(cls):
    check_constructor(cls)
    with pytest.raises(ValueError, match="it is 1, 2 or 3"):
        cls(order=4)


def test_first_order_is_eulers_method():
    levels = Staircase(3, 2, 3.0).descent(2)
    torch.testing.assert_close(follow(DPMSolverPlusPlus(1), field, noise(), levels), follow(Euler(), field, noise(), levels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", [UniPC(3), DPMSolverPlusPlus(3)], ids=named)
def test_no_more_is_remembered_than_the_order_needs_and_nothing_at_the_end(solver):
    latents, trail, levels = noise(), None, Staircase(3, 4).descent(2)
    for passed in range(len(levels) - 1):
        latents, trail = solver.step(latents, field(latents, levels[passed]), levels[passed:], trail)
        if passed < len(levels) - 2:
            assert isinstance(trail, MultistepTrail)
            assert len(trail.estimates) == min(passed + 1, 3)
            assert trail.levels == levels[: passed + 1]
            assert (trail.corrected_BFCHW is not None) == isinstance(solver, UniPC)
            assert all(tensor.shape == latents.shape for tensor in tensors_of(trail))
    assert trail is None


def test_bfloat16_around_it_changes_nothing():
    levels = Staircase(3, 2).descent(2)
    plain = follow(UniPC(3), field, noise(), levels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(follow(UniPC(3), field, noise(), levels), plain)


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    scheduler_of.cache_clear()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install 'diffusers"):
        UniPC().step(noise(), noise(), (1.0, 0.0))
    scheduler_of.cache_clear()

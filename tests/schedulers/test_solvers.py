"""Solvers: the laws of the family, and that breaking one of them is noticed."""

from __future__ import annotations

import pytest
import torch

from flowact import registry
from flowact.errors import UserError
from flowact.schedulers import AdamsBashforth, Euler, Renoise, Solver, Staircase, gaussian, solver_of
from flowact.schedulers.adams_bashforth import LastVelocity
from flowact.testing import check_constructor, check_solver

ORDERS = {Euler: 1, AdamsBashforth: 2, Renoise: 1}


@pytest.mark.parametrize("cls", ORDERS)
def test_every_solver_keeps_the_laws(cls):
    check_solver(cls(), order=ORDERS[cls])
    check_constructor(cls)


def test_every_registered_solver_of_our_own_is_tried_here():
    assert {c.name for c in registry.components("solvers") if c.distribution == "flowact"} == {cls.__name__ for cls in ORDERS}


class Impure(Euler):
    def step(self, latents_BFCHW, velocity_BFCHW, levels, trail=None, generator=None):
        latents_BFCHW += (levels[1] - levels[0]) * velocity_BFCHW
        return latents_BFCHW, None


class Forgetful(AdamsBashforth):
    """Remembers in itself instead of in the trail."""

    def step(self, latents_BFCHW, velocity_BFCHW, levels, trail=None, generator=None):
        made, trail = super().step(latents_BFCHW, velocity_BFCHW, levels, getattr(self, "last", None), generator)
        object.__setattr__(self, "last", trail if levels[1] else None)
        return made, None


class Overshooting(Euler):
    def step(self, latents_BFCHW, velocity_BFCHW, levels, trail=None, generator=None):
        return latents_BFCHW + (levels[1] - levels[0]) * 1.01 * velocity_BFCHW, None


class SecretlyRandom(Renoise):
    draws_noise = False


class Mixing(Euler):
    def step(self, latents_BFCHW, velocity_BFCHW, levels, trail=None, generator=None):
        return super().step(latents_BFCHW, velocity_BFCHW + latents_BFCHW.std(), levels)


class PlainTrail(Euler):
    def step(self, latents_BFCHW, velocity_BFCHW, levels, trail=None, generator=None):
        return super().step(latents_BFCHW, velocity_BFCHW, levels)[0], {"velocity": velocity_BFCHW}


class ChangesItsTrail(AdamsBashforth):
    def step(self, latents_BFCHW, velocity_BFCHW, levels, trail=None, generator=None):
        made, new = super().step(latents_BFCHW, velocity_BFCHW, levels, trail, generator)
        if trail is not None:
            trail.velocity_BFCHW.copy_(velocity_BFCHW)
        return made, LastVelocity(new.velocity_BFCHW.clone(), new.level)


@pytest.mark.parametrize(
    ("solver", "order", "law"),
    [
        (Impure(), 1, "changes nothing that it is given"),
        (Forgetful(), 2, "the same step gives the same latents"),
        (Overshooting(), 1, "arrives at them"),
        (SecretlyRandom(), 1, "draws_noise says"),
        (Mixing(), 1, "do not depend on each other"),
        (PlainTrail(), 1, "a trail is a TensorRecord"),
        (ChangesItsTrail(), 2, "changes no trail"),
        (Euler(), 2, "by order 2"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else None,
)
def test_a_broken_law_is_named(solver, order, law):
    with pytest.raises(AssertionError, match=law):
        check_solver(solver, order=order)


@pytest.mark.parametrize(("num_chunks", "micro_steps", "shift"), [(1, 1, 1.0), (3, 1, 1.0), (3, 4, 5.0), (2, 7, 3.0), (5, 3, 0.5)])
def test_a_way_down_is_the_stairs_that_the_window_meets_to_the_last_bit(num_chunks, micro_steps, shift):
    staircase = Staircase(num_chunks, micro_steps, shift)
    for place in range(num_chunks):
        for micro_step in range(micro_steps):
            way = staircase.descent(place, micro_step)
            assert len(way) == (place + 1) * micro_steps - micro_step + 1
            assert way[-1] == 0.0
            assert way[:2] == (staircase.stairs(micro_step)[place].item(), staircase.stairs(micro_step + 1)[place].item())
            assert way[1:] == staircase.descent(place, micro_step + 1)
    entered = staircase.descent(num_chunks - 1)
    assert entered[0] == 1.0
    assert entered[micro_steps:] == pytest.approx(staircase.descent(num_chunks - 2) if num_chunks > 1 else (0.0,))


def test_euler_and_renoise_are_what_the_engine_computed_before_there_were_solvers():
    latents, velocity = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2)
    for levels in ((1.0, 2 / 3, 1 / 3, 0.0), (1 / 3, 0.0)):
        now, after = levels[:2]
        euler, _ = Euler().step(latents, velocity, levels)
        assert torch.equal(euler, latents + (after - now) * velocity)
        fresh, _ = Renoise().step(latents, velocity, levels, None, torch.Generator().manual_seed(4))
        clean = latents - now * velocity
        expected = (1 - after) * clean + after * gaussian(clean, torch.Generator().manual_seed(4))
        assert torch.equal(fresh, expected if after else latents + (after - now) * velocity)


@pytest.mark.parametrize("given", ["euler", "Euler", {"class_path": "Euler"}, {"class_path": "flowact.schedulers.euler.Euler"}, Euler()])
def test_words_names_and_specs_are_understood(given):
    assert solver_of(given) == Euler()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Eulr", "Did you mean Euler?"),
        ("MixedLevels", "is not a Solver"),
        ({"class_path": "Euler", "init_args": {"order": 2}}, "takes no argument 'order'"),
        (3, "class_path"),
    ],
)
def test_what_is_no_solver_is_refused(given, says):
    with pytest.raises(UserError, match=says):
        solver_of(given)

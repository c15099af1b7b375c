"""Laws of solvers. Legend: flowact/types.py."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowact.schedulers.solver import Solver
from flowact.schedulers.staircase import Staircase
from flowact.testing.laws import ensure, same, seeded, tensors_of
from flowact.types import TensorRecord

Field = Callable[[Tensor, float], Tensor]
#: ways down: one evaluation, the paper's three, several a stair with a shift, and from lower stairs on
WAYS = ((1.0, 0.0), Staircase().descent(2), Staircase(3, 4, 5.0).descent(2), Staircase(3, 2).descent(0), Staircase(1, 20).descent(0))
MEAN, DEVIATION = 0.7, 0.5


def check_solver(solver: Solver, *, order: int = 1, tolerance: float = 1e-4) -> None:
    """The laws of `Solver`.

    Args:
        solver: of any kind; one that draws noise is held to fewer laws.
        order: of convergence along a whole way from noise to clean, its first and last step included: 1 or 2.
        tolerance: of comparisons.
    """
    noise, clean = (torch.randn(2, 3, 2, 2, 2, generator=seeded(seed)) for seed in (0, 1))
    _check_step(solver, noise, clean)
    _check_trail(solver, noise, clean)
    for levels in WAYS:
        start = (1 - levels[0]) * clean + levels[0] * noise
        known = follow(solver, lambda x, sigma: (x - clean) / sigma, start, levels)
        ensure(same(known, clean, tolerance), solver, "a denoiser that knows the clean latents arrives at them", f"levels {_shown(levels)}")
        if not solver.draws_noise:
            end = follow(solver, lambda x, sigma: clean, start, levels)
            ensure(same(end, start - levels[0] * clean, tolerance), solver, "exact on a constant velocity", f"levels {_shown(levels)}")
    if not solver.draws_noise:
        _check_order(solver, noise, order)


def follow(solver: Solver, field: Field, latents: Tensor, levels: Sequence[float], generator: torch.Generator | None = None) -> Tensor:
    """Where a velocity field v(x, sigma) leads a chunk along some levels, the last of which is 0."""
    trail: TensorRecord | None = None
    for passed in range(len(levels) - 1):
        latents, trail = solver.step(latents, field(latents, levels[passed]), levels[passed:], trail, generator)
    return latents


def _check_step(solver: Solver, noise: Tensor, clean: Tensor) -> None:
    levels = Staircase().descent(2)
    for dtype in (torch.float32, torch.float64):
        latents, velocity = noise.to(dtype), (noise - clean).to(dtype)
        before, random = (latents.clone(), velocity.clone()), torch.get_rng_state()
        first, trail = solver.step(latents, velocity, levels, None, seeded(2))
        law = "a step returns latents of the shape and number type that it is given"
        ensure(first.shape == latents.shape and first.dtype == dtype, solver, law, f"{tuple(first.shape)} {first.dtype}")
        ensure(torch.isfinite(first).all(), solver, "latents are finite")
        ensure(torch.equal(latents, before[0]) and torch.equal(velocity, before[1]), solver, "a step changes nothing that it is given")
        ensure(torch.equal(random, torch.get_rng_state()), solver, "given a generator, the global one is left alone")
        generator = seeded(2)
        again, _ = solver.step(latents, velocity, levels, None, generator)
        ensure(torch.equal(first, again), solver, "the same step gives the same latents")
        drawn = not torch.equal(generator.get_state(), seeded(2).get_state())
        ensure(drawn == solver.draws_noise, solver, "draws_noise says whether a step draws noise", f"it {'draws some' if drawn else 'draws none'}")
        other, _ = solver.step(torch.cat([latents[:1], -latents[1:]]), torch.cat([velocity[:1], -velocity[1:]]), levels, None, seeded(2))
        ensure(same(other[:1], first[:1], 1e-6), solver, "samples of a batch do not depend on each other")
        law = "a trail is a TensorRecord, or None"
        ensure(trail is None or isinstance(trail, TensorRecord), solver, law, type(trail).__name__)
        if trail is not None:
            moved = tensors_of(trail.to(torch.float64))
            ensure(all(t.dtype == torch.float64 for t in moved if t.is_floating_point()), solver, "tensors of a trail move together")


def _check_trail(solver: Solver, noise: Tensor, clean: Tensor) -> None:
    """All that is remembered is the trail: two chunks whose steps take turns go as each goes alone, and a copy of the solver goes on from there."""
    levels, far = Staircase(3, 2).descent(2), 3.0 * clean
    fields = [lambda x, sigma: (x - clean) / sigma, lambda x, sigma: 0.3 * x - sigma * far]
    alone = [follow(solver, field, noise, levels, seeded(3)) for field in fields]
    chunks: list[tuple[Tensor, TensorRecord | None]] = [(noise, None)] * 2
    generators = [seeded(3), seeded(3)]
    for passed in range(len(levels) - 1):
        for i, field in enumerate(fields):
            latents, trail = chunks[i]
            remembered = copy.deepcopy(trail)
            chunks[i] = copy.deepcopy(solver).step(latents, field(latents, levels[passed]), levels[passed:], trail, generators[i])
            kept = all(torch.equal(a, b) for a, b in zip(tensors_of(trail), tensors_of(remembered), strict=True))
            ensure(kept, solver, "a step changes no trail that it is given")
    for (latents, _), goal in zip(chunks, alone, strict=True):
        ensure(torch.equal(latents, goal), solver, "all that a solver remembers is the chunk's trail")


def _check_order(solver: Solver, noise: Tensor, order: int) -> None:
    """On the flow of a normal distribution, which is a linear ODE with a known solution: x = (1 - sigma) mean + deviation(sigma) z."""

    def deviation(sigma: float) -> float:
        return math.hypot((1 - sigma) * DEVIATION, sigma)

    def field(x: Tensor, sigma: float) -> Tensor:
        slope = (sigma - (1 - sigma) * DEVIATION**2) / deviation(sigma) ** 2
        return slope * (x - (1 - sigma) * MEAN) - MEAN

    few, many, start = 6, 96, noise.double()
    exact = MEAN + deviation(0.0) * start
    errors = [float((follow(solver, field, start, Staircase(1, count).descent(0)) - exact).abs().max()) for count in (few, many)]
    found = math.log(errors[0] / max(errors[1], 1e-12)) / math.log(many / few)
    detail = f"found {found:.2f}: errors {errors[0]:.1e} in {few} steps and {errors[1]:.1e} in {many}"
    ensure(found > order - 0.5, solver, f"the error falls with the number of steps by order {order}", detail)


def _shown(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:.2f}" for level in levels[:4]) + (", .." if len(levels) > 4 else "")

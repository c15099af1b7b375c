"""Laws of noise schedulers."""

from __future__ import annotations

import torch

from flowact.schedulers.base import NoiseScheduler
from flowact.testing.laws import ensure, same, seeded


def check_noise_scheduler(scheduler: NoiseScheduler) -> None:
    """The laws of `NoiseScheduler`."""
    for batch, num_chunks in ((1, 1), (64, 3), (3, 5)):
        sigma = scheduler.sample(batch, num_chunks, seeded(1))
        ensure(
            tuple(sigma.shape) == (batch, num_chunks), scheduler, "levels are [batch, num_chunks]", f"{tuple(sigma.shape)} for {(batch, num_chunks)}"
        )
        ensure(sigma.is_floating_point() and torch.isfinite(sigma).all(), scheduler, "levels are finite numbers", str(sigma.dtype))
        inside = ((sigma >= 0) & (sigma <= 1)).all()
        ensure(inside, scheduler, "levels lie in [0, 1]", f"{float(sigma.min())} to {float(sigma.max())}")
    before = torch.get_rng_state()
    draws = [scheduler.sample(64, 3, seeded(seed)) for seed in (1, 1)]
    ensure(same(draws[0], draws[1]), scheduler, "the generator alone decides")
    ensure(torch.equal(before, torch.get_rng_state()), scheduler, "given a generator, the global one is left alone")

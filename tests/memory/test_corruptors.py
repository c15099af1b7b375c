"""Corruptors: how often, how much, and always aligned with the target."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowact.memory import GaussianMemory, GeneratedMemory, GroundTruthMemory
from flowact.memory.corruptors import noised
from flowact.testing import check_corruptor
from flowact.types import Chunk


def history(batch=2, chunks=3):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(batch, *shape, generator=generator)

    return [Chunk(noise(2, 3, 4, 4), noise(2, 4, 5), noise(6, 7)) for _ in range(chunks)]


def plus_one(chunks, sigma_B):
    return [replace(chunk, latents_BFCHW=chunk.latents_BFCHW + 1) for chunk in chunks]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("corruptor", [GroundTruthMemory(), GaussianMemory(), GaussianMemory(0.0), GeneratedMemory(), GeneratedMemory(1.0, 1.0, 1.0)])
def test_corruptors_keep_their_laws(corruptor):
    check_corruptor(corruptor)


def test_ground_truth_is_the_identity():
    chunks = history()
    assert all(made is clean for made, clean in zip(GroundTruthMemory().corrupt(chunks, None), chunks, strict=True))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_sample_is_generated_with_the_given_probability_in_all_chunks_or_none(probability):
    chunks = history(batch=600)
    made = GeneratedMemory(probability).corrupt(chunks, plus_one, seeded())
    changes = torch.stack([a.latents_BFCHW - b.latents_BFCHW for a, b in zip(made, chunks, strict=True)], dim=1).flatten(1)
    chosen = changes.mean(1) > 0.5
    torch.testing.assert_close(changes, chosen[:, None].float().expand_as(changes), atol=1e-5, rtol=0)
    assert abs(float(chosen.float().mean()) - probability) < 0.06


def test_levels_of_generated_memory_lie_in_their_range():
    seen = []
    GeneratedMemory(1.0, 0.4, 0.6).corrupt(history(batch=500), lambda chunks, sigma_B: seen.append(sigma_B) or list(chunks), seeded())
    assert 0.4 <= float(seen[0].min()) < 0.42 < 0.58 < float(seen[0].max()) <= 0.6


def test_the_model_runs_whatever_was_drawn():
    """A rank that skipped the evaluation would leave the others waiting in a collective."""
    calls = []
    GeneratedMemory(0.0).corrupt(history(), lambda chunks, sigma_B: calls.append(1) or list(chunks), seeded())
    assert calls == [1]


def test_generated_memory_takes_no_gradient_along():
    weight = torch.ones((), requires_grad=True)
    made = GeneratedMemory(1.0).corrupt(history(), lambda chunks, _: [replace(c, latents_BFCHW=weight * c.latents_BFCHW) for c in chunks], seeded())
    assert not any(chunk.latents_BFCHW.requires_grad for chunk in made)


def test_generated_memory_without_a_model_says_where_it_belongs():
    assert GeneratedMemory.needs_model
    with pytest.raises(ValueError, match="SelfForcing"):
        GeneratedMemory().corrupt(history(), None)


def test_gaussian_noise_is_of_one_level_per_sample_and_never_above_its_limit():
    clean = history(batch=400, chunks=2)
    made = GaussianMemory(0.3).corrupt(clean, None, seeded())
    zeros = [replace(chunk, latents_BFCHW=torch.zeros_like(chunk.latents_BFCHW)) for chunk in clean]
    noise = GaussianMemory(0.3).corrupt(zeros, None, seeded())
    levels = torch.stack([chunk.latents_BFCHW.flatten(1).std(1) for chunk in noise])
    assert float(levels.max()) < 0.3 * 1.25
    torch.testing.assert_close(levels[0], levels[1], atol=0.08, rtol=0)
    assert abs(float(levels.mean()) - 0.15) < 0.02
    assert not torch.equal(made[0].latents_BFCHW, clean[0].latents_BFCHW)


def test_noise_of_level_zero_and_one():
    chunk = history()[0]
    assert torch.equal(noised(chunk, torch.zeros(2), seeded()).latents_BFCHW, chunk.latents_BFCHW)
    pure = noised(chunk, torch.ones(2), seeded()).latents_BFCHW
    assert torch.equal(pure, noised(replace(chunk, latents_BFCHW=chunk.latents_BFCHW + 5), torch.ones(2), seeded()).latents_BFCHW)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianMemory(1.5), "got 1.5"),
        (lambda: GeneratedMemory(probability=-0.1), "got -0.1"),
        (lambda: GeneratedMemory(min_sigma=0.0), "got 0.0 and 0.9"),
        (lambda: GeneratedMemory(min_sigma=0.8, max_sigma=0.5), "got 0.8 and 0.5"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()

"""Noise levels: ranges and laws of the training levels, and the staircase of the stream."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowact.schedulers import IndependentLevels, LogitNormalLevel, MixedLevels, Staircase, StaircaseLevels, UniformLevel, shift_levels
from flowact.testing import check_noise_scheduler

shifts = st.floats(0.2, 8.0)
staircases = st.builds(Staircase, st.integers(1, 5), st.integers(1, 5), shifts)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


SCHEDULERS = [
    LogitNormalLevel(),
    LogitNormalLevel(1.0, 0.5, 5.0),
    UniformLevel(0.02, 0.98, 5.0),
    IndependentLevels(-1.0, 2.0, 3.0),
    StaircaseLevels(),
    StaircaseLevels(5.0, first_step=0.5),
    MixedLevels(),
    MixedLevels(staircase=0.9, shift=3.0, first_step=1.0),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_schedulers_keep_their_laws(scheduler):
    check_noise_scheduler(scheduler)


@given(shifts, st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_shift_has_an_inverse_keeps_the_ends_and_the_order(shift, levels):
    sigma = torch.tensor(sorted(levels), dtype=torch.float64)
    moved = shift_levels(sigma, shift)
    torch.testing.assert_close(shift_levels(moved, 1 / shift), sigma)
    assert ((moved >= 0) & (moved <= 1)).all()
    assert (moved.diff() >= 0).all()
    assert (moved >= sigma - 1e-12).all() if shift >= 1 else (moved <= sigma + 1e-12).all()
    torch.testing.assert_close(shift_levels(torch.tensor([0.0, 1.0]), shift), torch.tensor([0.0, 1.0]))


@given(shifts, shifts)
def test_shifts_compose_by_multiplication(first, second):
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_levels(shift_levels(sigma, first), second), shift_levels(sigma, first * second))


@given(staircases)
def test_the_staircase_rises_from_nearly_clean_to_pure_noise(staircase):
    sigma_K = staircase.stairs(0)
    assert sigma_K.shape == (staircase.num_chunks,)
    assert (sigma_K.diff() > 0).all()
    assert float(sigma_K[-1]) == 1.0
    assert float(sigma_K[0]) > 0
    assert float(staircase.stairs(staircase.micro_steps)[0]) == 0.0


@given(staircases)
def test_after_all_micro_steps_a_chunk_stands_exactly_where_the_chunk_before_it_stood(staircase):
    assert torch.equal(staircase.stairs(staircase.micro_steps)[1:], staircase.stairs(0)[:-1])


@given(staircases)
def test_every_micro_step_descends(staircase):
    heights = torch.stack([staircase.stairs(m) for m in range(staircase.micro_steps + 1)])
    assert (heights.diff(dim=0) < 0).all()


@given(staircases)
def test_a_chunk_sees_w_times_m_levels_on_its_way_down(staircase):
    """Follow one chunk from the right end to the left: as many levels as evaluations, all different."""
    met = [float(staircase.stairs(m)[k]) for k in reversed(range(staircase.num_chunks)) for m in range(staircase.micro_steps)]
    assert len(met) == staircase.evaluations_per_chunk == staircase.num_chunks * staircase.micro_steps
    assert met == sorted(set(met), reverse=True)


def test_the_papers_stream_is_three_evaluations():
    assert Staircase().evaluations_per_chunk == 3
    torch.testing.assert_close(Staircase().stairs(0), torch.tensor([1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(Staircase(shift=5.0).stairs(0), torch.tensor([5 / 7, 10 / 11, 1.0]))


@pytest.mark.parametrize("arguments", [{"num_chunks": 0}, {"micro_steps": 0}, {"shift": 0.0}])
def test_stairs_that_lead_nowhere_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Staircase(**arguments)


def test_one_level_for_the_window_and_a_level_for_each_chunk():
    whole = LogitNormalLevel().sample(64, 3, seeded())
    assert torch.equal(whole, whole[:, :1].expand(-1, 3))
    each = IndependentLevels().sample(4000, 3, seeded())
    correlation = torch.corrcoef(each.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.06


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (1.0, 0.5, 1.0), (0.0, 1.0, 5.0)])
def test_levels_are_logit_normal_before_the_shift(mean, std, shift):
    sigma = LogitNormalLevel(mean, std, shift).draw((20000,), seeded())
    logit = torch.logit(shift_levels(sigma.double(), 1 / shift))
    assert abs(float(logit.mean()) - mean) < 0.03
    assert abs(float(logit.std()) - std) < 0.03


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_uniform_levels_are_uniform_before_the_shift(shift):
    sigma_BK = UniformLevel(0.2, 0.6, shift).sample(8000, 3, seeded())
    assert torch.equal(sigma_BK, sigma_BK[:, :1].expand(-1, 3))
    before = shift_levels(sigma_BK[:, 0].double(), 1 / shift)
    counts = torch.histc(before, 4, 0.2, 0.6)
    assert counts.sum() == 8000
    assert (counts / 8000 - 0.25).abs().max() < 0.02


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.5, 0.5), (0.2, 1.1)])
def test_uniform_levels_lie_inside_the_unit_interval(low, high):
    with pytest.raises(ValueError, match=f"got low {low} and high {high}"):
        UniformLevel(low, high)


def test_staircase_levels_are_the_staircase_moved_by_one_offset_per_sample():
    sigma_BK = StaircaseLevels(shift=3.0).sample(4000, 4, seeded())
    height = 4 * shift_levels(sigma_BK, 1 / 3.0)
    torch.testing.assert_close(height.diff(dim=1), torch.ones(4000, 3), atol=1e-4, rtol=0)
    offset = 4 - height[:, -1]
    assert -1e-4 < float(offset.min()) < float(offset.max()) < 1
    assert abs(float(offset.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("first_step", [0.0, 0.4, 1.0])
def test_the_share_of_first_steps(first_step):
    sigma_BK = StaircaseLevels(first_step=first_step).sample(4000, 3, seeded())
    on_the_stairs = (sigma_BK == Staircase(3).stairs(0)).all(1).float().mean()
    assert abs(float(on_the_stairs) - first_step) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_levels_are_stairs_with_the_given_probability(share):
    sigma_BK = MixedLevels(staircase=share).sample(4000, 3, seeded())
    stairs = (sigma_BK.diff(dim=1) - 1 / 3).abs().amax(1) < 1e-5
    assert abs(float(stairs.float().mean()) - share) < 0.03


@pytest.mark.parametrize("arguments", [{"staircase": 1.5}, {"first_step": -0.1}])
def test_a_probability_is_a_probability(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=rf"{name} is a probability, got {value}"):
        MixedLevels(**arguments)

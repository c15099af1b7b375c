"""Laws of single metrics on signals whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.evaluation import metrics

SPEAKING = np.ones(400, bool)


def speech(seed: int, length: int = 400) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(length + 4)
    return np.convolve(noise, np.ones(5) / 5, "valid")


def test_lips_ignore_scale_and_offset():
    true = speech(0)
    assert metrics.lip_correlation(3 * true + 7, true, SPEAKING) == pytest.approx(1)
    assert metrics.lip_correlation(-true, true, SPEAKING) == pytest.approx(-1)


def test_lips_are_judged_while_speaking_only():
    true, speaking = speech(0), SPEAKING.copy()
    speaking[200:] = False
    measured = np.concatenate([true[:200], speech(1)[200:]])
    assert metrics.lip_correlation(measured, true, speaking) == pytest.approx(1)
    assert metrics.lip_correlation(measured, true, SPEAKING) < 0.9


def test_a_frozen_or_unreadable_mouth_is_a_failure():
    true = speech(0)
    assert np.isnan(metrics.lip_correlation(np.full(400, 0.3), true, SPEAKING))
    assert np.isnan(metrics.lip_correlation(0.3 + 1e-9 * speech(1), true, SPEAKING))
    hidden = true.copy()
    hidden[:250] = np.nan
    assert np.isnan(metrics.lip_correlation(hidden, true, SPEAKING))
    hidden = true.copy()
    hidden[:100] = np.nan
    assert metrics.lip_correlation(hidden, true, SPEAKING) == pytest.approx(1)


@pytest.mark.parametrize("late", range(-8, 9))
def test_lag_is_found_exactly(late):
    true = speech(0, 420)
    measured = np.roll(true, late)
    curve = metrics.lag_curve(measured[10:-10], true[10:-10], SPEAKING)
    assert metrics.best_lag(curve) == late
    assert curve.max() == pytest.approx(1)


def test_no_lag_without_a_moving_mouth():
    curve = metrics.lag_curve(np.zeros(400), speech(0), SPEAKING)
    assert not curve.any()
    assert np.isnan(metrics.best_lag(curve))


def test_shuffled_lips_are_at_chance_and_would_notice_a_mouth_that_follows_the_wrong_speech():
    others = [(speech(seed), SPEAKING) for seed in range(1, 13)]
    assert abs(metrics.shuffled_lip_correlation(speech(0), SPEAKING, others)) < 0.1
    assert metrics.shuffled_lip_correlation(speech(5), SPEAKING, others[4:5]) == pytest.approx(1)
    assert abs(metrics.self_shuffled_lip_correlation(speech(0), speech(0), SPEAKING)) < 0.3


def test_amplitude_and_leak():
    states = np.repeat(np.array([0, 1, 2, 3]), 100)
    true = np.where(states == 0, 0.5 + 0.2 * np.sin(np.arange(400)), 0.0)
    assert metrics.amplitude_ratio(0.5 * true, true, states == 0) == pytest.approx(0.5)
    assert metrics.closed_mouth_leak(true, true, states) == pytest.approx(0)
    covered = np.where(states == 2, np.nan, true)
    assert metrics.closed_mouth_leak(covered, true, states) == pytest.approx(0)
    agape = np.where(states == 0, true, true[states == 0].mean())
    assert metrics.closed_mouth_leak(agape, true, states) == pytest.approx(1)
    assert np.isnan(metrics.closed_mouth_leak(true[:100], true[:100], states[:100]))


def test_rank_counts_ties_half_and_unreadable_last():
    assert metrics.identity_rank([0.1, 0.2, 0.3], own=0) == 1
    assert metrics.identity_rank([0.1, 0.2, 0.3], own=2) == 3
    assert metrics.identity_rank([0.2, 0.2, 0.2], own=1) == 2
    assert metrics.identity_rank([0.2, float("nan"), 0.2], own=1) == 3


def test_drift_is_zero_for_a_stationary_series_and_the_difference_of_the_ends_otherwise():
    assert metrics.drift(np.full(100, 0.4)) == 0
    assert metrics.drift(np.tile([0.1, 0.3], 100)) == pytest.approx(0)
    assert metrics.drift(np.concatenate([np.zeros(15), np.linspace(0, 5, 70), np.full(15, 0.25)])) == pytest.approx(0.25)
    lost = np.zeros(100)
    lost[-15:] = np.nan
    assert metrics.drift(lost) == 1


def test_switch_latency_and_recall():
    states = np.repeat(np.array([0, 1, 3]), 50)
    read = states.copy()
    read[50:57] = 0
    read[100:] = 1
    assert metrics.switch_latencies(states, states) == [(1, 0.0), (3, 0.0)]
    assert metrics.switch_latencies(read, states) == [(1, 7.0), (3, float("inf"))]
    assert metrics.state_recall(read, states) == {"speaking": 1, "listening": pytest.approx(43 / 50), "idle": 0}


def test_a_flicker_is_not_a_switch():
    states = np.repeat(np.array([0, 1]), 50)
    read = states.copy()
    read[50:70] = 0
    read[55] = 1
    assert metrics.switch_latencies(read, states) == [(1, 20.0)]


def test_frechet_distance_of_gaussians_is_the_closed_form():
    x = np.random.default_rng(0).standard_normal((4000, 3))
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(x, x + 2) == pytest.approx(12)
    scaled = (x - x.mean(0)) * 3 + x.mean(0)
    assert metrics.frechet_distance(x, scaled) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)))


def test_blur_lowers_sharpness_and_a_still_has_no_motion():
    frames = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3)).astype(np.uint8)
    blurred = ((frames[:, :-1].astype(int) + frames[:, 1:]) // 2).astype(np.uint8)
    assert metrics.sharpness(blurred) < 0.8 * metrics.sharpness(frames)
    assert not metrics.motion(np.repeat(frames[:1], 4, 0))[1:].any()
    alternating = np.stack([np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)] * 2)
    assert np.isnan(metrics.motion(alternating)[0])
    assert (metrics.motion(alternating)[1:] == 1).all()


def test_per_second_and_mean_curve_keep_time():
    assert metrics.per_second(np.arange(60.0)).tolist() == [12, 37]
    assert metrics.per_second(np.arange(70.0)).tolist() == [12, 37, 59.5]
    assert metrics.mean_curve([np.array([1.0, 3.0]), np.array([3.0])]).tolist() == [2, 3]


def test_bootstrap_interval_holds_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(0.7, 0.1, 30)
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.15)
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval([0.5]) == (0.5, 0.5)

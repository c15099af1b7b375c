from __future__ import annotations

import numpy as np
import pytest
from flowact_llm_planner.sound import loudness, speaking_rate


def swelling(rate: float, seconds: float = 4.0, level: float = 0.2) -> np.ndarray:
    """Noise that swells `rate` times a second."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    swell = 0.05 + np.sin(np.pi * rate * time) ** 2
    return (level * swell * np.random.default_rng(0).standard_normal(time.size)).astype(np.float32)


@pytest.mark.parametrize(("rate", "words"), [(1.5, "slow"), (4.0, "at normal speed"), (7.0, "fast")])
def test_speaking_rate(rate, words):
    assert speaking_rate(swelling(rate)) == words
    assert speaking_rate(0.3 * swelling(rate)) == words


@pytest.mark.parametrize(("gain", "words"), [(0.0, "silent"), (0.01, "silent"), (0.1, "quiet"), (1.0, "of normal loudness"), (4.0, "loud")])
def test_loudness(gain, words):
    assert loudness(swelling(4.0, level=0.1 * gain)) == words


def test_too_little_to_say():
    assert speaking_rate(np.zeros(0, np.float32)) == ""
    assert speaking_rate(swelling(4.0, 0.3)) == ""
    assert speaking_rate(np.zeros(64_000, np.float32)) == ""
    assert loudness(np.zeros(10, np.float32)) == "silent"

from __future__ import annotations

import numpy as np
import pytest

from flowact.planning import EnergyDetector
from flowact.planning.voice import LONGEST_SOUND, Ear, listen
from flowact.testing.sounds import syllables

RATE = 16_000


def noise(seconds: float, decibels: float, seed: int = 0) -> np.ndarray:
    return (10 ** (decibels / 20) * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def active(detector: EnergyDetector, samples: np.ndarray) -> np.ndarray:
    state, heard = detector.reset(), []
    for start in range(0, len(samples), RATE):  # a step hears the end of a backlog, not all of it
        state, part = detector.step(state, samples[start : start + RATE])
        heard.append(part)
    return np.concatenate(heard)


def test_voice_above_a_background_and_nothing_else():
    voice = noise(6.0, -50.0)
    voice[2 * RATE : 4 * RATE] += syllables(2.0, 1)
    heard = active(EnergyDetector(floor_db=-60.0), voice)
    assert not heard[:50].any()
    assert heard[50:100].mean() > 0.5
    assert not heard[102:].any()


def test_a_steady_sound_becomes_background():
    loud = np.concatenate([noise(1.0, -70.0), noise(8.0, -30.0)])
    heard = active(EnergyDetector(noise_seconds=2.0), loud)
    assert heard[26:70].all()
    assert not heard[80:].any()
    assert active(EnergyDetector(noise_seconds=0.0), loud)[26:].all()  # a clean track has no background


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_volume_does_not_matter(gain):
    voice = noise(8.0, -70.0)
    for start in (1, 4):
        voice[start * RATE : (start + 2) * RATE] += 0.4 * syllables(2.0, start)
    detector = EnergyDetector(floor_db=-60.0)
    assert active(detector, voice).any()
    np.testing.assert_array_equal(active(detector, voice), active(detector, voice * np.float32(gain)))


@pytest.mark.parametrize("size", [7, 100, 640, 641, 5000])
def test_pieces_equal_the_whole(size):
    voice = np.concatenate([noise(1.0, -60.0), syllables(2.0, 0)])
    detector = EnergyDetector()
    state, heard = detector.reset(), []
    for start in range(0, len(voice), size):
        state, part = detector.step(state, voice[start : start + size])
        heard.append(part)
        assert state.rest_S.size < detector.hop
    np.testing.assert_array_equal(np.concatenate(heard), active(detector, voice))


def test_a_click_does_not_deafen():
    voice = np.concatenate([noise(1.0, -70.0), syllables(2.0, 0) * 0.05])
    clicked = voice.copy()
    clicked[8000:8040] = 1.0
    np.testing.assert_array_equal(active(EnergyDetector(), clicked)[25:], active(EnergyDetector(), voice)[25:])
    assert active(EnergyDetector(), voice).any()


def test_a_step_leaves_its_state_alone():
    detector = EnergyDetector()
    state, _ = detector.step(detector.reset(), syllables(1.0, 0)[:-100])
    first = detector.step(state, syllables(1.0, 1))[1]
    np.testing.assert_array_equal(detector.step(state, syllables(1.0, 1))[1], first)


def test_of_a_backlog_the_end_is_heard():
    detector = EnergyDetector()
    backlog = np.concatenate([syllables(60.0, 0), noise(1.0, -80.0)])
    ear = listen(detector, Ear(detector.reset()), backlog, 0.48)
    assert ear.fresh_seconds <= LONGEST_SOUND / RATE
    assert ear.silence_seconds == pytest.approx(1.0, abs=0.1)


def test_an_ear_counts_runs_of_voice():
    detector = EnergyDetector(noise_seconds=0.0)
    ear = Ear(detector.reset())
    for voice, silence, sound in [
        (0.0, np.inf, noise(0.4, -80.0)),
        (0.4, 0.0, noise(0.4, -20.0)),
        (0.4, 0.2, noise(0.2, -80.0)),  # a gap within the run
        (0.8, 0.0, noise(0.4, -20.0)),
        (0.8, 0.5, np.zeros(0, np.float32)),  # nothing at all is silence
        (0.2, 0.0, noise(0.2, -20.0)),
    ]:
        ear = listen(detector, ear, sound, 0.5)
        assert (ear.voice_seconds, ear.silence_seconds) == (pytest.approx(voice), pytest.approx(silence))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1.0, 0.0])
def test_no_sound_breaks_it(value):
    detector = EnergyDetector()
    state, _ = detector.step(detector.reset(), np.full(3000, value, np.float32))
    state, heard = detector.step(state, np.zeros(0, np.float32))
    assert heard.shape == (0,)
    assert np.isfinite(state.loud)


@pytest.mark.parametrize("wrong", [{"range_db": -1.0}, {"noise_seconds": -1.0}, {"margin_db": float("nan")}])
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="not negative"):
        EnergyDetector(**wrong)

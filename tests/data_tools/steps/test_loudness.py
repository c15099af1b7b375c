from __future__ import annotations

import numpy as np
import pytest
from heard_clips import act, clip_of, judged

from data_tools.steps.loudness import Loudness

pytest.importorskip("pyloudnorm", reason="loudness needs pyloudnorm: pip install 'flowact[data]'")

SECONDS = np.arange(75 * 640) / 16_000
TONE = np.sin(2 * np.pi * 997 * SECONDS).astype(np.float32)


def test_a_tone_has_the_loudness_that_the_standard_says(tmp_path):
    # BS.1770: a 997 Hz sine of full scale in one channel reads -3.01 LKFS
    scores, plan, _ = judged(Loudness(), clip_of(tmp_path, TONE * 0.1))
    assert scores["lufs"] == pytest.approx(-23.0, abs=0.2)
    assert scores["peak_db"] == pytest.approx(-20.0, abs=0.1)
    assert scores["clipped"] == 0
    assert plan.lufs == scores["lufs"]


def test_ten_decibels_more_are_ten_loudness_units_more(tmp_path):
    samples_S = act(0).samples * 0.2 + np.random.default_rng(0).normal(0, 0.002, act(0).samples.shape)  # a room, well above the steps of 16 bits
    quiet, loud = (Loudness().score(clip_of(tmp_path, samples_S * gain)) for gain in (1, 10**0.5))
    for name in ("lufs", "peak_db", "noise_db"):
        assert loud[name] - quiet[name] == pytest.approx(10, abs=0.3), name


def test_clipped_samples_are_counted(tmp_path):
    scores, _, broken = judged(Loudness(max_clipped=0.001), clip_of(tmp_path, np.clip(TONE * 2, -1, 1)))
    assert scores["clipped"] == pytest.approx(2 / 3, abs=0.02)  # |sin| is above a half for two thirds of the time
    assert "clipped" in broken[0]


def test_noise_is_what_is_left_between_words(tmp_path):
    noise_S = np.random.default_rng(0).normal(0, 0.001, TONE.shape).astype(np.float32)
    words_S = np.where(SECONDS % 1 < 0.5, 0.3 * TONE, 0) + noise_S
    scores, _, broken = judged(Loudness(max_noise_db=-70), clip_of(tmp_path, words_S))
    assert scores["noise_db"] == pytest.approx(-60, abs=0.5)
    assert broken == [f"the noise is {scores['noise_db']:g} dBFS, must be at most -70"]


@pytest.mark.parametrize("samples", [np.zeros(75 * 640, np.float32), TONE[: 9 * 640] * 0.1], ids=["silent", "short"])
def test_what_has_no_loudness_is_unknown_and_out_only_if_asked(tmp_path, samples):
    clip = clip_of(tmp_path, samples)
    scores, plan, broken = judged(Loudness(max_lufs=-10), clip)
    assert scores["lufs"] is None
    assert plan.lufs is None
    assert not broken
    assert "silent or too short" in judged(Loudness(min_lufs=-40), clip)[2][0]


BOUNDS = [({"min_lufs": -20}, True), ({"min_lufs": -26}, False), ({"max_lufs": -26}, True), ({"max_peak_db": -21}, True)]


@pytest.mark.parametrize(("bounds", "out"), BOUNDS)
def test_bounds_reject(tmp_path, bounds, out):
    assert bool(judged(Loudness(**bounds), clip_of(tmp_path, TONE * 0.1))[2]) is out


def test_the_sound_is_not_changed(tmp_path):
    clip = clip_of(tmp_path, TONE * 0.1)
    before = clip.recording.sound.path.read_bytes()
    judged(Loudness(min_lufs=-10), clip)
    assert clip.recording.sound.path.read_bytes() == before

"""The mouth hears the past only; tracks and springs keep their laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flowact.characters.behaviour import (
    IDLE,
    SPEAKING,
    follow,
    lay_out,
    sample_blinks,
    sample_segments,
    sample_track,
    state_runs,
    voiced,
)
from flowact.characters.mouth import CLOSED_DB, OPEN_DB, REST_WIDTH, listen
from flowact.characters.speech import SpeechPiece, load_speech
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME


def tone(level_db: float, hz: float, num_frames: int) -> np.ndarray:
    time = np.arange(num_frames * SAMPLES_PER_FRAME) / SAMPLE_RATE
    return (np.sqrt(2) * 10 ** (level_db / 20) * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def test_the_future_does_not_move_the_mouth():
    speech = next(piece for piece in load_speech() if piece.seconds > 2).samples[: 50 * SAMPLES_PER_FRAME]
    changed = speech.copy()
    changed[30 * SAMPLES_PER_FRAME :] = tone(-10, 3000, 20)
    before, after = listen(speech), listen(changed)
    np.testing.assert_array_equal(before.opening_T[:30], after.opening_T[:30])
    np.testing.assert_array_equal(before.width_T[:30], after.width_T[:30])
    assert not np.array_equal(before.opening_T[30:], after.opening_T[30:])


def test_opening_is_linear_in_decibels_between_fixed_levels():
    levels = [CLOSED_DB - 5, CLOSED_DB, (CLOSED_DB + OPEN_DB) / 2, OPEN_DB, OPEN_DB + 5]
    openings = [listen(tone(level, 440, 25)).opening_T[-1] for level in levels]
    np.testing.assert_allclose(openings, [0, 0, 0.5, 1, 1], atol=0.01)


def test_width_follows_brightness_and_rests_in_silence():
    dark, bright = listen(tone(-20, 300, 25)).width_T[-1], listen(tone(-20, 3000, 25)).width_T[-1]
    assert dark < 0.1
    assert bright > 0.9
    silence = listen(np.zeros(25 * SAMPLES_PER_FRAME, np.float32))
    assert silence.opening_T.max() == 0
    np.testing.assert_allclose(silence.width_T, REST_WIDTH)


def test_opens_faster_than_it_closes():
    samples = np.concatenate([np.zeros(10 * SAMPLES_PER_FRAME, np.float32), tone(-15, 400, 10), np.zeros(10 * SAMPLES_PER_FRAME, np.float32)])
    opening = listen(samples).opening_T
    assert opening[10] > 0.65
    assert 0.5 < opening[20] < 0.6


def test_tracks_fill_their_frames_and_speak_about_half_of_the_time():
    pieces = load_speech()
    spoken = []
    for seed in range(12):
        samples, states = sample_track(np.random.default_rng(seed), pieces, 501)
        assert samples.shape == (501 * SAMPLES_PER_FRAME,)
        assert samples.dtype == np.float32
        assert states.shape == (501,)
        assert states.dtype == np.uint8
        np.testing.assert_array_equal(voiced(samples, states), samples)  # silence wherever nobody speaks
        spoken.append((states == SPEAKING).mean())
    assert 0.4 < np.mean(spoken) < 0.65


def test_segments_without_speech_last_one_to_three_seconds_and_never_repeat():
    pieces = load_speech()
    segments = [s for seed in range(8) for s in sample_segments(np.random.default_rng(seed), pieces, 501)[:-1]]  # the last is cut by the end
    quiet = [segment for segment in segments if segment.speech is None]
    assert all(25 <= segment.num_frames <= 75 for segment in quiet)
    for seed in range(8):
        states = [segment.state for segment in sample_segments(np.random.default_rng(seed), pieces, 501)]
        assert all(a != b or a == SPEAKING for a, b in itertools.pairwise(states))


def test_speech_starts_with_its_segment_and_is_cut_by_the_end():
    piece = SpeechPiece("long", np.ones(100 * SAMPLES_PER_FRAME + 1, np.float32), "train")
    segments = next(s for s in (sample_segments(np.random.default_rng(seed), [piece], 60) for seed in range(99)) if s[0].state == SPEAKING)
    samples, states = lay_out(segments)
    assert segments[0].num_frames == 60
    assert samples.all()
    assert (states == SPEAKING).all()


def test_runs_cover_every_frame():
    states = np.array([3, 3, 0, 0, 0, 3, 1], np.uint8)
    assert state_runs(states) == [(0, 2, 3), (2, 5, 0), (5, 6, 3), (6, 7, 1)]


def test_springs_settle_without_overshoot_and_rest_on_their_target():
    targets = np.concatenate([np.zeros((5, 1)), np.ones((40, 1))])
    position = follow(targets)[:, 0]
    assert (position[:5] == 0).all()
    assert (np.diff(position[4:]) >= 0).all()
    assert position[-1] == pytest.approx(1, abs=1e-6)
    assert position[7] == pytest.approx(0.5, abs=0.05)  # half way in three frames


def test_blinks_are_rare_and_start_with_open_eyes():
    closed = np.stack([sample_blinks(np.random.default_rng(seed), 2000) for seed in range(5)])
    assert closed[:, :8].max() == 0
    assert 0.02 < (closed > 0).mean() < 0.1
    assert closed.max() == 1


def test_idle_is_the_last_state():
    assert IDLE == 3

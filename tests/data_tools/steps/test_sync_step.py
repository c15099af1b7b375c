from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from heard_clips import act, clip_of, judged

from data_tools.steps.base import Clip, Span
from data_tools.steps.sync import Sync
from flowact.errors import UserError

MARGIN = 30
SPAN = Span(MARGIN, 301 - MARGIN)


def spoken(folder, offset: int = 0, *, seed: int = 0, mouth_T=None) -> Clip:
    """The actor, whose sound comes `offset` frames too early."""
    take = act(seed)
    early_S = np.roll(take.samples, -offset * 640)
    return clip_of(folder, early_S, mouth_T=take.mouth_T if mouth_T is None else mouth_T, span=SPAN)


@pytest.mark.parametrize("offset", range(-8, 9))
def test_known_offsets_of_the_actor_are_found_within_a_frame_and_corrected(tmp_path, offset):
    for seed in range(3):
        clip = spoken(tmp_path, offset, seed=seed)
        scores, plan, _ = judged(Sync(max_offset=None), clip)
        assert abs(scores["offset_frames"] - offset) <= 1, seed
        assert scores["frames_off"] == abs(scores["offset_frames"])
        assert scores["confidence"] > 0.7
        assert plan.shift == scores["offset_frames"]
        assert Sync().score(replace(clip, plan=plan))["offset_frames"] == 0


def test_the_shift_moves_the_sound_to_where_it_was(tmp_path):
    clip = spoken(tmp_path, 5)
    corrected = replace(clip, plan=Sync().apply(clip, Sync().score(clip)))
    truth_S = act(0).samples[SPAN.first * 640 : SPAN.end * 640]
    assert np.abs(clip.samples() - truth_S).max() > 0.1
    np.testing.assert_allclose(corrected.samples(), truth_S, atol=1e-4)


def test_noise_on_the_mouth_and_lost_frames_change_little(tmp_path):
    take = act(1)
    mouth_T = take.mouth_T + np.random.default_rng(0).normal(0, 0.03, len(take.mouth_T)).astype(np.float32)
    mouth_T[60:75] = np.nan
    mouth_T += np.linspace(0, 0.5, len(mouth_T), dtype=np.float32)  # a slow change is no syllable
    scores, _, broken = judged(Sync(), spoken(tmp_path, 3, seed=1, mouth_T=mouth_T))
    assert abs(scores["offset_frames"] - 3) <= 1
    assert not broken


def test_a_loud_recording_and_a_quiet_one_say_the_same(tmp_path):
    clip = spoken(tmp_path, 4)
    quiet = clip_of(tmp_path, np.roll(act(0).samples, -4 * 640) * 0.05, mouth_T=act(0).mouth_T, span=SPAN)
    first, second = (Sync().score(entry) for entry in (clip, quiet))
    assert first["offset_frames"] == second["offset_frames"]
    assert first["confidence"] == pytest.approx(second["confidence"], abs=0.05)


def test_another_persons_speech_has_less_confidence_and_moves_nothing(tmp_path):
    for seed in range(6):
        clip = clip_of(tmp_path, act(seed).samples, mouth_T=act(seed + 1).mouth_T, span=SPAN)
        scores, plan, broken = judged(Sync(), clip)
        assert scores["confidence"] < 0.6
        assert plan == clip.plan
        assert not broken
        assert "confidence" in judged(Sync(min_confidence=0.7), clip)[2][0]


@pytest.mark.parametrize("case", ["no mouth", "unseen", "still", "silent", "little"])
def test_what_can_not_be_told_is_unknown(tmp_path, case):
    take = act(0)
    samples, mouth_T = take.samples, take.mouth_T
    if case == "silent":
        samples = np.zeros_like(samples)
    elif case == "little":
        frames = np.arange(len(samples)) // 640 - SPAN.first
        samples = np.where((frames >= 0) & (frames < 20), 0.3 * np.sin(np.arange(len(samples))), 0).astype(np.float32)
    elif case == "unseen":
        mouth_T = np.full_like(mouth_T, np.nan)
    elif case == "still":
        mouth_T = np.full_like(mouth_T, 0.02)
    clip = clip_of(tmp_path, samples, mouth_T=None if case == "no mouth" else mouth_T, span=SPAN)
    scores, plan, broken = judged(Sync(), clip)
    assert scores["offset_frames"] is None
    assert scores["confidence"] is None
    assert plan == clip.plan
    assert not broken
    assert judged(Sync(min_confidence=0.1), clip)[2] == []
    (reason,) = judged(Sync(unknown="reject"), clip)[2]
    assert "can not be told" in reason


def test_even_sounds_and_faint_ones_are_no_speech(tmp_path):
    take = act(0)
    noise = np.random.default_rng(0).normal(0, 0.1, take.samples.shape).astype(np.float32)
    for samples in (noise, noise * 0.01, take.samples * 0.01):
        assert Sync().score(clip_of(tmp_path, samples, mouth_T=take.mouth_T, span=SPAN))["offset_frames"] is None


def test_a_clip_with_little_speech_has_the_offset_of_its_recording(tmp_path):
    take = act(2)
    rests = np.flatnonzero(np.convolve(take.states_T == 0, np.ones(25), "valid") == 0)[0]  # a second without speech
    clip = clip_of(tmp_path, np.roll(take.samples, -4 * 640), mouth_T=take.mouth_T, span=Span(int(rests), int(rests) + 25))
    scores, plan, _ = judged(Sync(), clip)
    assert (scores["offset_frames"], scores["method"], plan.shift) == (4, "surroundings", 4)
    whole = judged(Sync(), replace(clip, plan=replace(clip.plan, span=SPAN)))[0]
    assert (whole["offset_frames"], whole["method"]) == (4, "opening")


def test_a_clip_too_far_off_is_out(tmp_path):
    assert judged(Sync(max_offset=6), spoken(tmp_path, -8))[2] == ["lips and sound are 8 frames apart, at most 6 are allowed"]
    assert judged(Sync(max_offset=6), spoken(tmp_path, -5))[2] == []


def test_without_correction_the_offset_is_only_told(tmp_path):
    scores, plan, _ = judged(Sync(correct=False), spoken(tmp_path, 3))
    assert scores["offset_frames"] == 3
    assert plan.shift == 0


def test_speech_that_was_found_before_moves_along(tmp_path):
    clip = spoken(tmp_path, 5)
    clip = replace(clip, plan=clip.with_plan(speech=((0.0, 1.0, "self"), (9.0, 9.64, "other"))))
    plan = Sync().apply(clip, {"offset_frames": 5, "confidence": 1.0})
    assert plan.speech == ((0.2, 1.2, "self"), (9.2, 9.64, "other"))
    assert Sync().apply(clip, {"offset_frames": -5, "confidence": 1.0}).speech == ((0.0, 0.8, "self"), (8.8, 9.44, "other"))


def test_thresholds_measure_nothing_again(tmp_path):
    clip = spoken(tmp_path, 2)
    assert Sync(max_offset=1, min_confidence=0.9, trusted=0.1, unknown="reject", correct=False).score(clip) == Sync().score(clip)


@pytest.mark.parametrize("arguments", [{"max_offset": 16}, {"unknown": "drop"}, {"trusted": -1.0}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        Sync(**arguments)

from __future__ import annotations

import importlib.util
import tracemalloc

import numpy as np
import pytest
from heard_clips import act, clip_of, judged, mask_of, with_signals, write_sound_file

from data_tools.steps import voice
from data_tools.steps.base import Span
from data_tools.steps.voice import Voice, hysteresis, still_mouth, without_short
from flowact.errors import UserError
from flowact.types import STATES

if importlib.util.find_spec("silero_vad") is None:  # to import it would change torch's threads
    pytest.skip("voice activity needs silero-vad: pip install 'flowact[data]'", allow_module_level=True)

SPEAKING = STATES.index("speaking")
HUM = (0.1 * np.sin(2 * np.pi * 120 * np.arange(75 * 640) / 16_000)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_the_actors_speech_is_found(tmp_path, seed):
    take = act(seed)
    clip = with_signals(clip_of(tmp_path, take.samples, mouth_T=take.mouth_T), Voice())
    scores, plan, broken = judged(Voice(min_share=0.1, max_off_screen=0.5), clip)
    truth_T = take.states_T == SPEAKING
    assert not broken
    assert abs(scores["share"] - truth_T.mean()) < 0.1
    assert scores["off_screen"] == 0
    assert (mask_of(plan.speech, "self", clip.frames) == truth_T).mean() > 0.95
    assert not mask_of(plan.speech, "other", clip.frames).any()


def test_noise_and_silence_are_no_speech(tmp_path):
    for samples in (HUM, np.zeros_like(HUM)):
        clip = with_signals(clip_of(tmp_path, samples), Voice())
        scores, plan, broken = judged(Voice(min_share=0.1), clip)
        assert scores["share"] == 0
        assert plan.speech == ()
        assert broken == ["there is speech in 0% of the frames, must be at least 10%"]


def test_pieces_hear_what_the_whole_hears(tmp_path, monkeypatch):
    take = act(0)
    samples = take.samples[: 203 * 640]  # no multiple of a cycle
    sound = write_sound_file(tmp_path / "sound.wav", samples)
    whole = Voice().listen(sound, None)
    monkeypatch.setattr(voice, "PIECE_CYCLES", 3)
    pieces = Voice().listen(sound, None)
    assert len(whole["speech"]) == len(whole["level"]) == 203
    assert whole["speech"].max() > 0.9
    np.testing.assert_allclose(pieces["speech"], whole["speech"], atol=1e-5)
    np.testing.assert_array_equal(pieces["level"], whole["level"])


def test_a_long_recording_costs_no_more_memory(tmp_path):
    def peak(repeats: int) -> int:
        sound = write_sound_file(tmp_path / f"{repeats}.wav", np.zeros(1000 * repeats * 640, np.float32))
        tracemalloc.start()
        Voice().listen(sound, None)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # loads the network
    assert peak(4) < 1.3 * peak(1)


def test_a_voice_over_is_somebody_elses(tmp_path):
    take = act(0)
    resting_T = np.full(len(take.mouth_T), 0.03, np.float32)
    clip = with_signals(clip_of(tmp_path, take.samples, mouth_T=resting_T), Voice())
    scores, plan, broken = judged(Voice(max_off_screen=0.5), clip)
    assert scores["off_screen"] == 1
    assert len(broken) == 1
    assert "somebody else speaks" in broken[0]
    assert {who for _, _, who in plan.speech} == {"other"}


def test_a_mouth_that_is_not_seen_says_nothing(tmp_path):
    take = act(0)
    clip = with_signals(clip_of(tmp_path, take.samples, mouth_T=np.full(len(take.mouth_T), np.nan, np.float32)), Voice())
    scores, plan, broken = judged(Voice(max_off_screen=0.0), clip)
    assert scores["off_screen"] is None
    assert not broken
    assert {who for _, _, who in plan.speech} == {"self"}


def test_two_tracks_tell_who_speaks_even_if_one_bleeds(tmp_path):
    take = act(0)
    own_S = take.samples.copy()
    first, last = (edge(np.flatnonzero(take.states_T == SPEAKING)) for edge in (np.min, np.max))
    half = (first + last) // 2
    own_S[half * 640 :] = 0
    other_S = take.samples.copy()
    other_S[: half * 640] = 0
    clip = with_signals(clip_of(tmp_path, own_S + 0.1 * other_S, other=other_S + 0.1 * own_S), Voice())
    scores, plan, _ = judged(Voice(), clip)
    assert scores["other_share"] > 0.1
    self_T, other_T = mask_of(plan.speech, "self", clip.frames), mask_of(plan.speech, "other", clip.frames)
    truth_T, early_T = take.states_T == SPEAKING, np.arange(clip.frames) < half
    assert (self_T == (truth_T & early_T)).mean() > 0.93
    assert (other_T == (truth_T & ~early_T)).mean() > 0.93


def test_a_shift_moves_the_speech(tmp_path):
    take = act(0)
    clip = with_signals(clip_of(tmp_path, take.samples, span=Span(50, 250)), Voice())
    later = type(clip)(clip.recording, clip.with_plan(shift=5))
    plain_T, moved_T = (mask_of(Voice().apply(entry, {}).speech, "self", 200) for entry in (clip, later))
    assert plain_T.any()
    assert not plain_T.all()
    np.testing.assert_array_equal(moved_T[5:], plain_T[:-5])


def test_thresholds_measure_nothing_again(tmp_path):
    clip = with_signals(clip_of(tmp_path, act(0).samples), Voice())
    assert Voice(threshold=0.9, min_speech=30, min_pause=1).score(clip) == Voice().score(clip)


def test_two_thresholds_keep_a_stretch_together():
    values_T = np.array([0.1, 0.4, 0.6, 0.4, 0.4, 0.2, 0.4])
    assert hysteresis(values_T, 0.5, 0.35).tolist() == [False, False, True, True, True, False, False]


def test_short_stretches_go_but_those_at_the_ends_may_be_longer():
    mask_T = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1], bool)
    assert without_short(mask_T, 3).tolist() == [True, True, *[False] * 5, True, True, True, False, True]


def test_a_mouth_stands_still_where_nothing_near_moves():
    mouth_T = np.zeros(100, np.float32)
    mouth_T[50] = 0.3
    mouth_T[90:] = np.nan
    still_T, known_T = still_mouth(mouth_T, 0.04, 100)
    assert still_T[:38].all()
    assert not still_T[38:63].any()
    assert still_T[63:90].all()
    assert not still_T[90:].any()
    assert known_T.sum() == 90


@pytest.mark.parametrize("arguments", [{"threshold": 0.1}, {"threshold": 1.0}, {"min_speech": 0}, {"bleed_db": -1.0}])
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        Voice(**arguments)

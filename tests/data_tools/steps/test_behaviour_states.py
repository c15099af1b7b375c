from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
from heard_clips import BOXES, POSE, act, clip_of, with_signals

from data_tools.steps.states import States, absorb_short, named_runs, speech_mask
from flowact.errors import UserError
from flowact.types import STATES

SILENCE = np.zeros(200 * 640, np.float32)


def conversation(folder, speech, *, pose_T3=None, mouth_T=None, frames=200, other=True):
    """A clip in which the plan says who speaks; the voice's probabilities agree."""
    signals = {f"Voice/{name}": np.full(frames, 0.02, np.float32) for name in ("speech", *(("other",) if other else ()))}
    for start, end, who in speech:
        signals["Voice/speech" if who == "self" or not other else "Voice/other"][round(start * 25) : round(end * 25)] = 0.98
    if pose_T3 is not None:
        signals[POSE] = pose_T3.astype(np.float32)
    return clip_of(folder, SILENCE[: frames * 640], signals=signals, mouth_T=mouth_T, boxes=BOXES, speech=tuple(speech))


def runs_of(clip, **arguments):
    step = States(**arguments)
    return [list(run) for run in step.apply(clip, step.score(clip)).states]


def turned(first, end, axis=0, degrees=25.0, frames=200):
    pose_T3 = np.full((frames, 3), 5.0)
    pose_T3[first:end, axis] += degrees
    return pose_T3


def test_speaking_listening_and_idling(tmp_path):
    clip = conversation(tmp_path, [(1.0, 3.0, "self"), (4.0, 7.0, "other")])
    assert runs_of(clip) == [[0, 25, "idle"], [25, 75, "speaking"], [75, 100, "idle"], [100, 175, "listening"], [175, 200, "idle"]]
    scores = States().score(clip)
    assert [scores[name] for name in STATES] == [0.25, 0.375, 0.0, 0.375]
    assert scores["confidence"] == pytest.approx(0.98)


def test_who_speaks_himself_does_not_listen(tmp_path):
    clip = conversation(tmp_path, [(0.0, 8.0, "other"), (2.0, 4.0, "self")])
    assert runs_of(clip) == [[0, 50, "listening"], [50, 100, "speaking"], [100, 200, "listening"]]


@pytest.mark.parametrize("axis", [0, 1], ids=["to the side", "up"])
def test_thinking_is_looking_away_before_own_speech(tmp_path, axis):
    clip = conversation(tmp_path, [(0.0, 2.0, "other"), (4.0, 8.0, "self")], pose_T3=turned(70, 95, axis))
    assert runs_of(clip) == [[0, 50, "listening"], [50, 70, "idle"], [70, 100, "thinking"], [100, 200, "speaking"]]


def test_looking_away_while_no_own_speech_follows_is_idle(tmp_path):
    clip = conversation(tmp_path, [(0.0, 2.0, "self"), (4.0, 8.0, "other")], pose_T3=turned(70, 95))
    assert "thinking" not in {state for _, _, state in runs_of(clip)}


def test_thinking_lasts_no_longer_than_allowed(tmp_path):
    clip = conversation(tmp_path, [(6.0, 8.0, "self")], pose_T3=turned(20, 60))  # away from 0.8 to 2.4 s, speech at 6 s
    assert runs_of(clip, think_seconds=3.0) == [[0, 150, "idle"], [150, 200, "speaking"]]
    assert runs_of(clip, think_seconds=6.0) == [[0, 20, "idle"], [20, 150, "thinking"], [150, 200, "speaking"]]
    assert runs_of(clip, think_seconds=0.0) == [[0, 150, "idle"], [150, 200, "speaking"]]


def test_an_unknown_pose_is_no_looking_away(tmp_path):
    for pose_T3 in (None, np.full((200, 3), np.nan)):
        clip = conversation(tmp_path, [(4.0, 8.0, "self")], pose_T3=pose_T3)
        assert runs_of(clip) == [[0, 100, "idle"], [100, 200, "speaking"]]


def test_a_voice_over_a_still_mouth_is_not_speaking(tmp_path):
    clip = conversation(tmp_path, [(2.0, 6.0, "self")], mouth_T=np.full(200, 0.05, np.float32))
    assert {state for _, _, state in runs_of(clip)} == {"idle"}


def test_short_pauses_belong_to_what_is_around_them(tmp_path):
    clip = conversation(tmp_path, [(0.0, 2.0, "self"), (2.4, 4.0, "self"), (4.0, 6.0, "other"), (6.8, 8.0, "other")])
    assert runs_of(clip) == [[0, 100, "speaking"], [100, 200, "listening"]]
    assert len(runs_of(clip, speech_pause=5, listen_pause=5)) == 6


@pytest.mark.parametrize("seed", range(2))
def test_runs_cover_the_clip_and_none_is_too_short(tmp_path, seed):
    generator = np.random.default_rng(seed)
    edges = np.sort(generator.choice(np.arange(1, 200), 30, replace=False)) / 25
    speech = [(start, end, str(who)) for start, end, who in zip(edges[::2], edges[1::2], generator.choice(["self", "other"], 15))]
    clip = conversation(tmp_path, speech)
    found = runs_of(clip, speech_pause=0, listen_pause=0)
    assert len(found) > 2
    assert [0, *(end for _, end, _ in found)] == [*(first for first, _, _ in found), 200]
    assert all(end - first >= 8 for first, end, _ in found)
    assert all(one[2] != two[2] for one, two in itertools.pairwise(found))


def test_the_shortest_runs_go_first_to_the_longer_neighbour():
    assert absorb_short(np.array([0] * 5 + [1] * 2 + [2] * 3 + [3] * 9), 4).tolist() == [0] * 5 + [0] * 2 + [3] * 12
    assert absorb_short(np.array([1, 1, 1]), 8).tolist() == [1, 1, 1]
    assert absorb_short(np.array([], int), 8).tolist() == []


def test_the_actors_speech_is_speaking(tmp_path):
    if importlib.util.find_spec("silero_vad") is None:  # to import it would change torch's threads
        pytest.skip("voice activity needs silero-vad: pip install 'flowact[data]'")
    from data_tools.steps.voice import Voice

    take = act(0)
    clip = with_signals(clip_of(tmp_path, take.samples, mouth_T=take.mouth_T), Voice())
    clip = type(clip)(clip.recording, Voice().apply(clip, {}))
    states_T = States().states(clip)
    truth_T = take.states_T == STATES.index("speaking")
    assert ((states_T == STATES.index("speaking")) == truth_T).mean() > 0.95
    assert named_runs(states_T) == States().apply(clip, {}).states
    assert speech_mask(clip, "other").sum() == 0
    assert States().score(clip)["confidence"] > 0.9


def test_too_little_confidence_is_out(tmp_path):
    clip = conversation(tmp_path, [(1.0, 3.0, "self")])
    step = States(min_confidence=0.99)
    (rule,) = step.judge(step.score(clip))
    assert rule is not None
    assert not rule.kept
    assert step.explain(rule) == "what the person does is known with a confidence of 0.98, must be at least 0.99"


@pytest.mark.parametrize("arguments", [{"min_frames": 0}, {"speech_pause": -1}, {"gaze_degrees": 0.0}, {"think_seconds": -1.0}])
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        States(**arguments)

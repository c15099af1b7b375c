from __future__ import annotations

import pytest
from heard_clips import clip_of, judged
from hypothesis import given
from hypothesis import strategies as st
from numpy import float32, zeros

from data_tools.steps.base import Clip, Span
from data_tools.steps.captions import Captions, caption_runs
from flowact.errors import UserError
from flowact.planning.captions import DEFAULT_CAPTIONS
from flowact.types import STATES

STATES_RUNS = ((0, 40, "speaking"), (40, 75, "listening"))


def clip(folder, *, span: Span | None = None, source=None, **plan) -> Clip:
    return clip_of(folder, zeros(75 * 640, float32), span=span, source=source, **{"states": STATES_RUNS, **plan})


def texts(step: Captions, clip: Clip) -> list[str]:
    return [text for _, _, _, text in step.apply(clip, step.score(clip)).captions]


def test_each_state_has_words_of_the_planner(tmp_path):
    runs = Captions().apply(clip(tmp_path), {}).captions
    assert [run[:3] for run in runs] == list(STATES_RUNS)
    assert all(text in DEFAULT_CAPTIONS[state] for _, _, state, text in runs)


def test_the_appearance_takes_the_place_of_the_person(tmp_path):
    step = Captions(appearance="a woman in a red coat")
    assert all(text.startswith("a woman in a red coat ") and "the person" not in text for text in texts(step, clip(tmp_path)))
    row = clip(tmp_path, source={"metadata": {"appearance": "a man"}})
    assert all(text.startswith("a man ") for text in texts(step, row))


def test_words_follow_from_the_place_alone(tmp_path):
    step = Captions(templates={state: [f"{state} {number}" for number in range(50)] for state in STATES})
    assert texts(step, clip(tmp_path)) == texts(step, clip(tmp_path))
    chosen = {texts(step, clip(tmp_path, source={"id": f"take-{number}"}))[0] for number in range(20)}
    assert len(chosen) > 10
    # the same frame of a recording has the same words in a clip that begins elsewhere
    later = clip(tmp_path, span=Span(40, 75), states=((0, 35, "listening"),))
    assert texts(step, later)[0] == texts(step, clip(tmp_path))[1]


def test_the_recordings_own_caption_comes_before_alone_or_not_at_all(tmp_path):
    given_ = clip(tmp_path, source={"caption": "A red coat.\nA desk."})
    plain = texts(Captions(), clip(tmp_path))
    assert texts(Captions(), given_) == [f"A red coat. A desk. {text}" for text in plain]
    assert texts(Captions(source="alone"), given_) == ["A red coat. A desk."] * 2
    assert texts(Captions(source="ignore"), given_) == plain


def test_imported_captions_stay_and_gaps_are_filled(tmp_path):
    given_ = ((0, 20, "speaking", ""), (20, 40, "speaking", "she waves"), (40, 75, "listening", "she nods"))
    step = Captions()
    scores, plan, _ = judged(step, clip(tmp_path, captions=given_))
    assert [run[:3] for run in plan.captions] == [(0, 20, "speaking"), (20, 40, "speaking"), (40, 75, "listening")]
    assert [text for *_, text in plan.captions][1:] == ["she waves", "she nods"]
    assert plan.captions[0][3] in DEFAULT_CAPTIONS["speaking"]
    assert scores["given"] == pytest.approx(55 / 75, abs=1e-4)


def test_unknown_behaviour_is_idle(tmp_path):
    runs = Captions().apply(clip(tmp_path, states=()), {}).captions
    assert [run[:3] for run in runs] == [(0, 75, "idle")]


def test_captions_that_are_too_long_reject(tmp_path):
    assert judged(Captions(max_characters=5), clip(tmp_path))[2]
    assert not judged(Captions(max_characters=500), clip(tmp_path))[2]


@st.composite
def stretches(draw, words):
    edges = sorted(draw(st.sets(st.integers(0, 60), max_size=8)))
    return [(first, end, draw(st.sampled_from(words))) for first, end in zip(edges[::2], edges[1::2])]


@given(stretches(STATES), stretches(("a", "b", "c")))
def test_runs_cover_the_clip_and_say_of_each_frame_what_was_said(states, said):
    runs = caption_runs(states, said, 50)
    assert [0, *(end for _, end, *_ in runs)] == [*(first for first, *_ in runs), 50]
    for first, end, state, text in runs:
        for frame in range(first, end):
            assert state == next((name for a, b, name in states if a <= frame < b), "idle")
            assert text == next((name for a, b, name in said if a <= frame < b), "")


@pytest.mark.parametrize(
    ("arguments", "words"), [({"templates": {"talking": ["x"]}}, "talking"), ({"templates": {"idle": []}}, "idle"), ({"source": "first"}, "source")]
)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        Captions(**arguments)

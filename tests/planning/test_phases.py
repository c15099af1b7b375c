from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowact.planning import Timing
from flowact.planning.phases import JITTER, Cues, Moment, step

CHUNK = 0.48
QUIET = Cues()
SPEAKS = Cues(own_voice=True, own_silence=0.0)
TIMING = Timing()
TALKS = Cues(user_voice=CHUNK, user_silence=0.0, user_talks=True)
CUT = Cues(own_silence=0.1, interrupted=True)


def any_cues() -> st.SearchStrategy[Cues]:
    """What can be going on; a voice and its silence agree."""

    def cues(own: bool, own_pause: float, queued: bool, interrupted: bool, user: bool, user_pause: float) -> Cues:
        return Cues(own, 0.0 if own else own_pause, queued, interrupted, CHUNK if user else 0.0, 0.0 if user else user_pause, user)

    pauses = st.sampled_from([0.1, 0.35, 0.5, 1.0, 2.0, math.inf])
    return st.builds(cues, st.booleans(), pauses, st.booleans(), st.booleans(), st.booleans(), pauses)


def play(cues: list[Cues], timing: Timing = TIMING, seed: int = 0, chunk: float = CHUNK) -> list[Moment]:
    moments = [Moment()]
    for cue in cues:
        moments.append(step(moments[-1], cue, chunk, timing, seed))
    return moments[1:]


def phases(cues: list[Cues], **options) -> list[str]:
    return [phase for phase, _ in groupby(moment.phase for moment in play(cues, **options))]


def pausing(seconds: float, chunk: float = CHUNK) -> list[Cues]:
    """Silence of the user after a voice."""
    return [Cues(user_silence=(i + 1) * chunk) for i in range(round(seconds / chunk))]


@given(st.lists(any_cues(), max_size=60), st.integers(0, 3), st.sampled_from([0.16, 0.48]))
def test_no_phase_is_shorter_than_the_shortest_except_where_speech_forces_it(cues, seed, chunk):
    moments = play(cues, TIMING, seed, chunk)
    for before, after, cue in zip(moments, moments[1:], cues[1:], strict=False):
        if after.number != before.number and not (after.phase == "speaking" or cue.interrupted):
            assert before.seconds >= TIMING.shortest_phase


@given(st.lists(any_cues(), max_size=40))
def test_own_speech_wins_at_once(cues):
    for moment, cue in zip(play(cues), cues, strict=True):
        if cue.own_voice:
            assert moment.phase == "speaking"


@given(st.lists(any_cues(), max_size=40))
def test_a_user_who_talks_into_own_speech_changes_nothing(cues):
    cues = [replace(cue, own_voice=True, own_silence=0.0) for cue in cues]
    alone = [replace(cue, user_voice=0.0, user_silence=math.inf, user_talks=False) for cue in cues]
    assert [moment.phase for moment in play(cues)] == [moment.phase for moment in play(alone)]
    after = pausing(4.8)
    assert phases(cues + after) == phases(alone + after)  # nor does it wait for an answer


@given(st.lists(any_cues(), max_size=40))
def test_an_interruption_is_reacted_to(cues):
    for i, (moment, cue) in enumerate(zip(play(cues), cues, strict=True)):
        if cue.interrupted and not cue.own_voice:
            assert moment.phase == "reacting"
            goes_on = [then.phase for then in play([*cues[: i + 1], *[TALKS] * 6])][i:]
            assert [phase for phase, _ in groupby(goes_on)] == ["reacting", "listening"]
            stops = [then.phase for then in play([*cues[: i + 1], *pausing(20.0)])][i:]
            assert "speaking" not in stops
            assert stops[-1] == "idle"


@given(st.lists(any_cues(), max_size=40))
def test_silence_ends_in_idle_and_stays_there(cues):
    moments = play(cues + pausing(20.0))
    longest = TIMING.turn_end + (1 + JITTER) * (TIMING.longest_thinking + TIMING.idle_after + TIMING.reaction) + 4 * CHUNK
    assert {moment.phase for moment in moments[len(cues) + math.ceil(longest / CHUNK) :]} == {"idle"}


def test_a_question_and_its_answer():
    talk = [QUIET] * 3 + [TALKS] * 4 + pausing(2.4)
    assert phases(talk) == ["idle", "listening", "reacting", "thinking"]
    answered = [*talk, replace(QUIET, queued=True), *[SPEAKS] * 6, *[replace(QUIET, own_silence=(i + 1) * CHUNK) for i in range(12)]]
    assert phases(answered) == ["idle", "listening", "reacting", "thinking", "speaking", "listening", "idle"]


def test_thinking_without_an_answer_is_given_up():
    moments = play([TALKS] * 4 + pausing(20.0))
    seconds = CHUNK * sum(moment.phase == "thinking" for moment in moments)
    assert 0.8 * 6.0 <= seconds <= 1.2 * 6.0 + CHUNK
    assert phases([TALKS] * 4 + pausing(20.0), timing=Timing(longest_thinking=0.5, idle_after=6.0))[-3:] == ["thinking", "listening", "idle"]


def test_a_cough_is_no_question_and_two_are_none():
    cough = [Cues(user_voice=0.2, user_silence=0.1, user_talks=True), *pausing(2.4)]
    assert "thinking" not in phases(cough * 4)


def test_pauses_between_words_are_nodded_at_but_not_all():
    talk = ([TALKS] * 3 + [replace(QUIET, user_silence=0.4)]) * 12
    moments = play([TALKS] * 3 + talk)
    assert {moment.phase for moment in moments} == {"listening", "reacting"}
    starts = [i for i, (a, b) in enumerate(pairwise(moments)) if b.phase == "reacting" != a.phase]
    assert 2 <= len(starts) < 12
    assert all((after - before) * CHUNK >= 0.8 * 4.0 for before, after in pairwise(starts))


@pytest.mark.parametrize(
    ("pause", "queued", "phase"), [(0.3, False, "speaking"), (0.5, False, "listening"), (0.9, True, "speaking"), (1.3, True, "thinking")]
)
def test_pauses_of_own_speech(pause, queued, phase):
    assert play([SPEAKS] * 4 + [Cues(own_silence=pause, queued=queued)])[-1].phase == phase


def test_queued_speech_is_thought_of_first():
    assert phases([QUIET] * 3 + [replace(QUIET, queued=True)] * 2 + [SPEAKS]) == ["idle", "thinking", "speaking"]


def test_the_seed_varies_durations_and_nothing_else():
    talk = ([TALKS] * 4 + pausing(16.0)) * 3
    lengths = {tuple(moment.phase for moment in play(talk, seed=seed)) for seed in range(6)}
    assert len(lengths) > 1
    assert len({tuple(phases(talk, seed=seed)) for seed in range(6)}) == 1
    assert play(talk, seed=3) == play(talk, seed=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"turn_end": -1.0}, "timing.turn_end is in seconds"), ({"reaction": math.nan}, "timing.reaction"), ({"nod_pause": 1.0}, "shorter than")],
)
def test_durations_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Timing(**wrong)

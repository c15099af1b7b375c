"""A live session gives what the offline loop gives, says every word once, and survives what callers do."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import SAMPLES_PER_CHUNK, picture, small_pipeline, sound

from flowact.errors import UserError
from flowact.planning.base import Behaviour, Conversation, LivePlanner
from flowact.sampling import StreamSession
from flowact.sampling.refinement import PeriodicRefinement
from flowact.schedulers import Staircase

LEAD = 2


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def chunks(session, count):
    return [session.next_chunk() for _ in range(count)]


def spoken(found):
    return np.concatenate([chunk.samples for chunk in found])


@pytest.mark.parametrize("block", [SAMPLES_PER_CHUNK, 7 * SAMPLES_PER_CHUNK, 333])
def test_it_streams_what_the_offline_loop_makes_of_the_same_sound_and_noise(pipeline, block):
    speech = sound(5 * SAMPLES_PER_CHUNK)
    offline = pipeline.generate([picture()], [speech], [[(0, "a person speaks")]], seed=4).frames[0]
    with StreamSession(pipeline, picture(), seed=4) as session:
        session.set_prompt("a person speaks", "speaking")
        for first in range(0, len(speech), block):
            session.push_audio(speech[first : first + block])
        found = chunks(session, LEAD + 5)
    streamed = np.concatenate([chunk.frames_THWC for chunk in found[LEAD:]])
    assert streamed.shape == offline.shape
    assert np.abs(streamed.astype(int) - offline).max() <= 1  # the last bit of a rounding
    assert np.array_equal(spoken(found[LEAD:]), speech)
    assert len(np.unique(streamed)) > 50


@pytest.mark.parametrize("reaction", ["window", "at_once"])
def test_every_word_is_said_once_in_order_beside_as_many_frames(pipeline, reaction):
    """Whatever the rhythm of pushing: the sound that leaves, silences taken out, is the sound that went in."""
    generator = np.random.default_rng(3)
    speech = sound(9 * SAMPLES_PER_CHUNK + 100) + 1.0  # nothing in it is silent
    speech = np.clip(speech, 0.1, 0.9).astype(np.float32)
    found, first = [], 0
    with StreamSession(pipeline, picture(), reaction=reaction) as session:
        while len(found) < 24:
            count = int(generator.integers(0, 2 * SAMPLES_PER_CHUNK))
            session.push_audio(speech[first : first + count], end=first + count >= len(speech))
            first += count
            found.append(session.next_chunk())
    out = spoken(found)
    assert np.array_equal(out[out != 0], speech)
    for index, chunk in enumerate(found):
        assert chunk.index == index
        assert chunk.start_seconds == pytest.approx(index * 8 / 25)
        assert len(chunk.samples) == 640 * len(chunk.frames_THWC)
    kinds = [event.type for chunk in found for event in chunk.events if event.type.startswith("speech")]
    assert kinds[0] == "speech.started"
    assert kinds[-1] == "speech.finished"
    assert all(chunk.index == event.chunk for chunk in found for event in chunk.events)


def test_at_once_the_first_chunk_needs_its_own_sound_only(pipeline):
    with StreamSession(pipeline, picture(), reaction="at_once") as session:
        speech = sound(3 * SAMPLES_PER_CHUNK)
        heard = []
        for first in range(0, len(speech), SAMPLES_PER_CHUNK):
            session.push_audio(speech[first : first + SAMPLES_PER_CHUNK])
            heard.append(session.next_chunk())
        assert np.array_equal(spoken(heard), speech)
        assert session.budget.audio_lookahead_seconds == pytest.approx(8 / 25)
        assert session.stream.evaluations == 3 * 3, "later sound came into the stream, so each window began anew"
        assert session.metrics["evaluations_per_chunk"] == 3
    with StreamSession(pipeline, picture(), reaction="at_once") as other:
        assert not np.array_equal(other.next_chunk().frames_THWC, heard[0].frames_THWC), "the first chunk hears its sound"


def test_at_once_a_window_begins_anew_only_where_something_changed_in_it(pipeline):
    """With the sound there ahead, a stream that reacts at once does the work of any other."""
    with StreamSession(pipeline, picture(), reaction="at_once") as session:
        session.push_audio(sound(9 * SAMPLES_PER_CHUNK))
        spent = []
        for step in range(6):
            if step == 4:
                assert session.set_prompt("a person waves") == 4
            before = session.stream.evaluations
            found = session.next_chunk()
            spent.append(session.stream.evaluations - before)
    assert spent == [3, 1, 1, 1, 3, 1]
    assert found.prompt == "a person waves"


def test_at_once_sound_moves_the_next_chunk_and_else_the_one_that_enters(pipeline):
    speech, where = sound(SAMPLES_PER_CHUNK), {}
    for reaction in ("window", "at_once"):
        with StreamSession(pipeline, picture(), reaction=reaction) as session:
            chunks(session, 4)
            session.push_audio(speech, end=True)
            where[reaction] = next(i for i, chunk in enumerate(chunks(session, 4)) if chunk.samples.any())
    assert where == {"window": LEAD, "at_once": 0}
    with pytest.raises(UserError, match="window or at_once"):
        StreamSession(pipeline, picture(), reaction="soon")


def test_a_prompt_takes_effect_on_the_chunk_that_was_named(pipeline):
    with StreamSession(pipeline, picture()) as session:
        chunks(session, 2)
        number = session.set_prompt("a person waves", "thinking")
        found = chunks(session, 5)
    assert [chunk.prompt for chunk in found] == ["a person waits"] * (number - 2) + ["a person waves"] * (7 - number)
    assert number == 2 + LEAD
    applied = [event for chunk in found for event in chunk.events if event.type == "prompt.applied"]
    assert [(event.chunk, dict(event.data)) for event in applied] == [(number, {"text": "a person waves", "state": "thinking"})]
    assert session.metrics["prompt_to_motion_seconds"] > 0


def test_an_interruption_silences_what_is_in_the_stream_and_drops_what_waits(pipeline):
    with StreamSession(pipeline, picture()) as session:
        session.push_audio(np.full(20 * SAMPLES_PER_CHUNK, 0.5, np.float32))
        found = chunks(session, 5)
        played = session.interrupt()
        after = chunks(session, 4)
        assert played == pytest.approx(3 * 8 / 25)
        assert np.abs(spoken(after)[80:]).max() == 0, "5 ms fade"
        assert np.abs(np.diff(spoken(found[-1:] + after))).max() < 0.02, "no click"
        finished = [event for chunk in after for event in chunk.events if event.type == "speech.finished"]
        assert [dict(event.data) for event in finished] == [{"position": played, "interrupted": True}]
        session.push_audio(np.full(SAMPLES_PER_CHUNK, 0.5, np.float32))
        assert np.count_nonzero(spoken(chunks(session, 3))) == SAMPLES_PER_CHUNK
        assert session.turn == 1
        assert session.interrupt() == 0, "nothing is being said"


def test_speech_right_after_an_interruption_is_another_speech(pipeline):
    with StreamSession(pipeline, picture(), reaction="at_once") as session:
        session.push_audio(np.full(9 * SAMPLES_PER_CHUNK, 0.5, np.float32))
        found = chunks(session, 2)
        assert session.interrupt() == pytest.approx(2 * 8 / 25)
        session.push_audio(np.full(2 * SAMPLES_PER_CHUNK, 0.25, np.float32), end=True)
        found += chunks(session, 3)
    speech = [(event.chunk, event.type, event.data.get("position")) for chunk in found for event in chunk.events if "speech" in event.type]
    assert speech == [
        (0, "speech.started", None),
        (2, "speech.finished", pytest.approx(0.64)),
        (2, "speech.started", None),
        (3, "speech.finished", pytest.approx(0.64)),
    ]
    assert [chunk.spoken for chunk in found] == [SAMPLES_PER_CHUNK] * 4 + [0]


def test_another_reference_is_seen_from_the_chunk_that_was_named(pipeline):
    def run(change):
        with StreamSession(pipeline, picture()) as session:
            found = chunks(session, 4)
            number = session.set_reference(picture(9)) if change else 0
            return found + chunks(session, 6), number

    (plain, _), (changed, number) = run(False), run(True)
    for before, after in zip(plain[:4], changed[:4], strict=True):
        assert np.array_equal(before.frames_THWC, after.frames_THWC)
    assert not np.array_equal(plain[-1].frames_THWC, changed[-1].frames_THWC)
    assert [event.chunk for chunk in changed for event in chunk.events if event.type == "reference.applied"] == [number]


class Parrot(LivePlanner):
    """Does what it hears, and remembers that."""

    def __init__(self):
        self.heard = []
        self.closed = False

    def begin(self, chunk_frames):
        planner = self

        class Talk(Conversation):
            def hear(self, heard):
                planner.heard.append(heard)
                return Behaviour("speaking", "it speaks", "speaking") if heard.speech.any() else Behaviour("listening", "it listens", "listening")

            def close(self):
                planner.closed = True

        return Talk()


def test_a_planner_hears_both_sides_and_a_prompt_of_the_caller_stands_above_it(pipeline):
    planner = Parrot()
    with StreamSession(pipeline, picture(), planner=planner) as session:
        session.push_user_audio(sound(1_000))
        session.push_audio(sound(2 * SAMPLES_PER_CHUNK), end=True)
        found = chunks(session, LEAD + 3)
        assert [chunk.prompt for chunk in found[LEAD:]] == ["it speaks", "it speaks", "it listens"]
        assert [len(heard.user) for heard in planner.heard] == [1_000, 0, 0, 0, 0]
        assert [heard.queued_seconds > 0 for heard in planner.heard] == [True, False, False, False, False]
        session.set_prompt("it jumps")
        assert chunks(session, LEAD + 2)[-1].prompt == "it jumps"
        session.set_prompt(None)
        session.push_audio(np.full(5 * SAMPLES_PER_CHUNK, 0.5, np.float32))
        chunks(session, LEAD + 1)
        session.interrupt()
        assert chunks(session, LEAD + 1)[-1].prompt == "it listens"
        assert [heard.interrupted for heard in planner.heard].count(True) == 1
        session.push_user_audio(sound(100 * SAMPLES_PER_CHUNK))
        chunks(session, 1)
        assert len(planner.heard[-1].user) == 4 * SAMPLES_PER_CHUNK, "only the latest moments"
    assert planner.closed


def test_evaluations_are_those_of_the_recipe_and_another_number_is_refused(pipeline):
    with StreamSession(pipeline, picture()) as session:
        chunks(session, 6)
        assert session.metrics["evaluations_per_chunk"] == session.budget.evaluations_per_chunk == 3
    session = StreamSession(replace(pipeline, staircase=Staircase(3, 4)), picture())
    chunks(session, 4)
    assert session.metrics["evaluations_per_chunk"] == 12
    session.use_micro_steps(2)
    before = session.stream.evaluations
    chunks(session, 3)
    assert session.stream.evaluations - before == 6


def test_a_window_of_numbers_that_are_none_begins_anew_and_memory_never_sees_them(pipeline):
    broken = small_pipeline()
    with StreamSession(broken, picture()) as session:
        chunks(session, 4)
        poisoned = replace(session.stream._state.stream[1], latents_BFCHW=torch.full_like(session.stream._state.stream[1].latents_BFCHW, torch.nan))
        session.stream._state = replace(session.stream._state, stream=(session.stream._state.stream[0], poisoned))
        found = chunks(session, 5)
        assert [event.type for chunk in found for event in chunk.events] == ["recovered"]
        assert all(np.isfinite(chunk.frames_THWC).all() for chunk in found)
        with torch.no_grad():
            broken.denoiser.out.weight.fill_(torch.nan)
        with pytest.raises(UserError, match="not finite"):
            chunks(session, 1)


def test_sessions_of_several_threads_share_a_pipeline_and_do_not_mix(pipeline):
    expected = {seed: np.concatenate([c.frames_THWC for c in chunks(StreamSession(pipeline, picture(seed), seed=seed), 5)]) for seed in range(3)}
    found = {}

    def run(seed):
        with StreamSession(pipeline, picture(seed), seed=seed) as session:
            found[seed] = np.concatenate([chunk.frames_THWC for chunk in chunks(session, 5)])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], frames) for seed, frames in expected.items())


def test_what_cannot_be_done_is_refused_with_the_reason(pipeline):
    with pytest.raises(UserError, match=r"\(3, 16, 32\)"):
        StreamSession(pipeline, torch.zeros(3, 8, 8))
    session = StreamSession(pipeline, picture(), max_queued_seconds=1)
    for text in ("", "  ", "x" * 3_000):
        with pytest.raises(UserError, match="1 to 2000 characters"):
            session.set_prompt(text)
    with pytest.raises(UserError, match="speaking"):
        session.set_state("speeking")
    with pytest.raises(UserError, match="at most 1 s fit"):
        session.push_audio(sound(17_000))
    assert session.metrics["queued_seconds"] == 0
    assert session.set_state("thinking") == LEAD
    session.close()
    session.close()
    for call in (lambda: session.push_audio(sound(1)), session.next_chunk, session.interrupt, lambda: session.set_prompt("a")):
        with pytest.raises(UserError, match="closed"):
            call()
    assert list(session) == []


def test_a_coroutine_may_iterate_over_a_session(pipeline):
    async def watch():
        with StreamSession(pipeline, picture()) as session:
            found = []
            async for chunk in session:
                found.append(chunk.index)
                if len(found) == 3:
                    session.close()
            return found

    assert asyncio.run(watch()) == [0, 1, 2]


def test_memory_is_refined_while_a_session_runs(pipeline):
    plain, refined = pipeline, replace(pipeline, refinement=PeriodicRefinement(every=2))
    with StreamSession(plain, picture()) as session:
        expected = chunks(session, 8)
    with StreamSession(refined, picture()) as session:
        found = chunks(session, 8)
        assert (session.metrics["refinements"], session.metrics["refinement_evaluations"]) == (3, 3)
        assert session.metrics["evaluations_per_chunk"] == 3, "those of the chunks alone"
    assert [chunk.index - LEAD + 1 for chunk in found if any(event.type == "refined" for event in chunk.events)] == [2, 4, 6]
    same = [np.array_equal(one.frames_THWC, other.frames_THWC) for one, other in zip(expected, found, strict=True)]
    assert same == [True] * (LEAD + 2) + [False] * 4

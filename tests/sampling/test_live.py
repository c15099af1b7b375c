"""A stream against the clock: chunks come when they are due, a late one never costs a word, and nothing grows or hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from small import SAMPLES_PER_CHUNK, picture, small_pipeline, sound

from flowact.errors import UserError
from flowact.sampling import LiveStream, StreamSession
from flowact.schedulers import Staircase

DEADLINE = 30.0


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


class Slow(StreamSession):
    """Stands still at chosen chunks until told to go on, or is quick."""

    def __init__(self, *args, stops=(), **options):
        super().__init__(*args, **options)
        self.stops, self.go = set(stops), threading.Event()

    def finish(self, denoised):
        if denoised.number in self.stops:
            assert self.go.wait(DEADLINE)
        return super().finish(denoised)


def test_chunks_are_handed_out_in_order_no_sooner_than_they_are_due(pipeline):
    with LiveStream(StreamSession(pipeline, picture())) as live:
        begin, found, times = time.monotonic(), [], []
        for _ in range(4):
            found.append(next(live))
            times.append(time.monotonic() - begin)
    assert [chunk.index for chunk in found] == [0, 1, 2, 3]
    period = live.session.chunk_seconds
    assert all(moment >= times[0] + k * period - 0.02 for k, moment in enumerate(times))
    with pytest.raises(StopIteration):
        next(live)


def test_a_late_chunk_is_replaced_by_a_still_picture_and_no_word_is_lost_or_said_twice(pipeline):
    speech = np.clip(sound(6 * SAMPLES_PER_CHUNK) + 1.0, 0.1, 0.9).astype(np.float32)
    session = Slow(pipeline, picture(), stops=[4])
    session.push_audio(speech, end=True)
    with LiveStream(session) as live:
        found = []
        while sum(np.count_nonzero(chunk.samples) for chunk in found) < len(speech):
            found.append(next(live))
            if found[-1].held:
                session.go.set()
            assert len(found) < 40
    out = np.concatenate([chunk.samples for chunk in found])
    assert np.array_equal(out[out != 0], speech)
    assert [chunk.index for chunk in found] == list(range(len(found)))
    held = [chunk for chunk in found if chunk.held]
    assert len(held) == live.deadline_misses == live.metrics["deadline_misses"] >= 1
    before = found[held[0].index - 1]
    assert all(np.array_equal(frame, before.frames_THWC[-1]) for frame in held[0].frames_THWC)
    assert not held[0].samples.any()
    assert [event.type for event in held[0].events] == ["deadline.missed"]


def test_a_stream_that_is_late_does_with_fewer_micro_steps_down_to_one(pipeline):
    session = Slow(replace(pipeline, staircase=Staircase(3, 3)), picture(), stops=range(1, 4))
    with LiveStream(session, late="micro_steps") as live:
        degraded = []
        while len(degraded) < 2:
            degraded += [event.data["micro_steps"] for event in next(live).events if event.type == "degraded"]
        session.go.set()
        next(live)
        next(live)
    assert degraded == [2, 1]
    assert session.budget.evaluations_per_chunk == 3


def test_a_consumer_that_sleeps_stops_the_producers_and_loses_nothing(pipeline):
    with LiveStream(StreamSession(pipeline, picture()), buffer_chunks=2) as live:
        next(live)
        deadline = time.monotonic() + DEADLINE
        while live.metrics["waiting_chunks"] < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(4 * live.session.chunk_seconds)  # much more than two chunks could have been made
        assert live.session.metrics["num_chunks"] <= 1 + 2 + 1 + 1 + 1  # handed out, waiting, in either hand, between them
        assert [next(live).index for _ in range(4)] == [1, 2, 3, 4]
        assert live.deadline_misses == 0


def test_a_coroutine_gets_the_same_chunks_and_says_things_meanwhile(pipeline):
    async def talk():
        found = []
        with LiveStream(StreamSession(pipeline, picture())) as live:
            async for chunk in live:
                found.append(chunk)
                if len(found) == 1:
                    live.session.push_audio(sound(2 * SAMPLES_PER_CHUNK), end=True)
                    live.session.set_prompt("a person waves")
                if len(found) == 8:
                    live.close()
        return found

    found = asyncio.run(asyncio.wait_for(talk(), DEADLINE))
    assert [chunk.index for chunk in found] == list(range(8))
    assert found[-1].prompt == "a person waves"
    assert any(chunk.samples.any() for chunk in found)


def test_an_interruption_silences_chunks_that_wait_already(pipeline):
    with LiveStream(StreamSession(pipeline, picture()), buffer_chunks=3) as live:
        live.session.push_audio(np.full(30 * SAMPLES_PER_CHUNK, 0.5, np.float32))
        while not next(live).samples.any():
            pass
        live.session.interrupt()
        after = [next(live) for _ in range(6)]
    assert np.abs(np.concatenate([chunk.samples for chunk in after])[80:]).max() == 0


def test_a_session_that_is_closed_elsewhere_ends_the_stream(pipeline):
    session = StreamSession(pipeline, picture())
    with LiveStream(session) as live:
        found = []
        for chunk in live:
            found.append(chunk)
            if len(found) == 2:
                session.close()
    assert 2 <= len(found) <= 6


def test_an_error_of_the_producer_reaches_the_consumer_and_closing_never_hangs(pipeline):
    class Broken(StreamSession):
        def denoise(self):
            raise UserError("the network is gone")

    live = LiveStream(Broken(pipeline, picture()))
    with pytest.raises(UserError, match="the network is gone"):
        next(live)
    live.close()
    live.close()
    assert not any(thread.is_alive() for thread in live._threads)
    with pytest.raises(ValueError, match="at least one chunk"):
        LiveStream(StreamSession(pipeline, picture()), buffer_chunks=0)

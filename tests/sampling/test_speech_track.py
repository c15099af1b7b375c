"""What was pushed comes out once, in order, each word with its frame; marks stand between the words."""

from __future__ import annotations

import numpy as np
import pytest
from small import picture, small_pipeline

from flowact.sampling import StreamSession
from flowact.sampling.speech_track import SpeechTrack
from flowact.schedulers import Staircase

CHUNK_FRAMES = 8


def small_session(num_chunks=3):
    return StreamSession(small_pipeline(staircase=Staircase(num_chunks)), picture())


def words(num_samples, seed=0):
    """Sound in which no sample is silent, so that each can be found again; int16."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1_000, 9_000, num_samples) * rng.choice([-1, 1], num_samples)).astype(np.int16)


def play(track, num_chunks):
    """(sound or None, marks) of each frame of the next chunks."""
    found = []
    for _ in range(num_chunks):
        chunk = track.session.next_chunk()
        assert len(chunk.frames_THWC) == CHUNK_FRAMES
        found += [(track.samples_of(chunk, frame), track.due()) for frame in range(CHUNK_FRAMES)]
    return found


def heard(frames):
    sounds = [sound for sound, _ in frames if sound is not None]
    assert all(len(sound) == 640 and sound.dtype == np.int16 for sound in sounds)
    return np.concatenate([*sounds, np.zeros(0, np.int16)])


def test_every_word_comes_out_once_in_order_and_a_mark_follows_its_last_word():
    with small_session() as session:
        track = SpeechTrack(session)
        one, two = words(7_000, 1), words(3_000, 2)
        for utterance, mark in ((one, "one"), (two, "two")):
            for begin in range(0, len(utterance), 480):
                track.push(track.convert(utterance[begin:][:480], 16_000))
            assert track.end()
            track.mark(mark)
        frames = play(track, 7)
        sound = heard(frames)
        np.testing.assert_array_equal(sound[sound != 0], np.concatenate([one, two]))
        marked = {mark: number for number, (_, marks) in enumerate(frames) for mark in marks}
        first = next(number for number, (sound, _) in enumerate(frames) if sound is not None)
        assert marked == {"one": first + (7_000 - 1) // 640, "two": first + (10_000 - 1) // 640}
        assert track.played_seconds == 0.0


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_another_rate_in_is_played_in_the_same_time_also_in_the_second_utterance(rate):
    with small_session(num_chunks=1) as session:
        track = SpeechTrack(session)
        for number in (1, 2):
            track.push(track.convert(words(rate // 2, number), rate))
            assert track.end()
            track.mark(number)
            frames = play(track, 3)
            assert [mark for _, marks in frames for mark in marks] == [number]
            assert sum(sound is not None for sound, _ in frames) == 13  # half a second, and a frame begun


def test_an_interruption_drops_what_waits_and_says_what_was_played():
    with small_session() as session:
        track = SpeechTrack(session)
        track.push(words(30_000))
        track.end()
        track.mark("end")
        before = play(track, 4)  # two chunks of the window come first
        assert track.played_seconds == 2 * CHUNK_FRAMES / 25
        assert track.interrupt() == ["end"]
        assert track.played_seconds == 0.0
        after = play(track, 4)
        assert all(sound is None and not marks for sound, marks in after)
        np.testing.assert_array_equal(heard(before), words(30_000)[: 2 * CHUNK_FRAMES * 640])
        again = words(2_000, 5)
        track.push(again)
        track.end()
        sound = heard(play(track, 4))
        np.testing.assert_array_equal(sound[: len(again)], again)


def test_an_interruption_within_a_chunk_ends_its_sound_there():
    with small_session(num_chunks=1) as session:
        track = SpeechTrack(session)
        track.push(words(10_000))
        chunk = session.next_chunk()
        assert track.samples_of(chunk, 0) is not None
        track.interrupt()
        assert track.samples_of(chunk, 1) is None


def test_an_end_without_words_is_none():
    with small_session() as session:
        track = SpeechTrack(session)
        assert not track.end()
        track.push(words(100))
        assert track.end()
        assert not track.end()
        track.interrupt()
        assert not track.end()

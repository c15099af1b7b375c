"""The generator under LiveKit's own AvatarRunner, in a room that is not there."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from livekit_small import CHUNK_FRAMES, Room, small_session, words

pytest.importorskip("livekit.agents", reason="livekit-agents is not installed: pip install 'livekit-agents>=1.8' to run these tests")

from flowact_livekit.avatar import FlowActVideoGenerator, avatar_options
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput

from flowact.errors import UserError

README = Path(__file__).parents[1] / "README.md"
DEADLINE = 30.0
SILENCE = 640  # samples before speech that follows a pause


def audio_frame(samples, rate=16_000, channels=1):
    return rtc.AudioFrame(samples.tobytes(), rate, channels, len(samples) // channels)


class Stage:
    """A runner with what it captured and what the agent was told."""

    def __init__(self, generator, sample_rate=16_000):
        self.speech = QueueAudioOutput(sample_rate=sample_rate, wait_playback_start=True)
        self.runner = AvatarRunner(Room(), audio_recv=self.speech, video_gen=generator, options=avatar_options(generator.session))
        self.told, self.sounds, self.pictures = [], [], 0
        self.speech.on("playback_started", lambda event: self.told.append("started"))
        self.speech.on("playback_finished", lambda event: self.told.append((round(event.playback_position, 6), event.interrupted)))
        capture_sound, capture_picture = self.runner._audio_source.capture_frame, self.runner._video_source.capture_frame

        async def sound(frame):
            self.sounds.append(np.frombuffer(bytes(frame.data), np.int16))
            await capture_sound(frame)

        def picture(frame):
            self.pictures += 1
            capture_picture(frame)

        self.runner._audio_source.capture_frame, self.runner._video_source.capture_frame = sound, picture

    async def say(self, samples, rate=16_000):
        for begin in range(0, len(samples), rate // 50):
            await self.speech.capture_frame(audio_frame(samples[begin:][: rate // 50], rate))
        self.speech.flush()

    @property
    def heard(self):
        return np.concatenate([*self.sounds, np.zeros(0, np.int16)])


async def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "this never happened"
        await asyncio.sleep(0.01)


def staged(play, **options):
    """Run `play(stage, generator)` with a small character on stage."""

    async def run():
        async with FlowActVideoGenerator(small_session(**options)) as generator:
            stage = Stage(generator)
            await stage.runner.start()
            try:
                await play(stage, generator)
            finally:
                await stage.runner.aclose()

    asyncio.run(run())


def test_pictures_flow_without_speech_and_no_sound_with_them():
    async def play(stage, generator):
        await until(lambda: stage.pictures > 2 * CHUNK_FRAMES)
        assert not stage.sounds
        assert not stage.told

    staged(play)


def test_speech_is_played_once_and_the_agent_hears_when_it_began_and_how_long_it_was():
    async def play(stage, generator):
        for number in (1, 2):
            await stage.say(words(8_000, number))
            await until(lambda: len(stage.told) == 2 * number)  # noqa: B023
        np.testing.assert_array_equal(stage.heard[stage.heard != 0], np.concatenate([words(8_000, 1), words(8_000, 2)]))
        length = SILENCE / 16_000 + 13 * 0.04
        assert stage.told == ["started", (length, False)] * 2

    staged(play, num_chunks=1)


def test_an_interruption_is_told_with_what_was_played_and_nothing_of_it_is_heard_later():
    async def play(stage, generator):
        await stage.say(words(16_000 * 8))
        await until(lambda: len(stage.sounds) > 3)
        stage.speech.clear_buffer()
        await until(lambda: len(stage.told) >= 2)
        given = len(stage.heard)
        played = round(generator.played_seconds * 16_000)
        np.testing.assert_array_equal(stage.heard, np.concatenate([np.zeros(SILENCE), words(16_000 * 8)[:played]]))
        started, (position, interrupted) = stage.told[:2]
        assert (started, interrupted) == ("started", True)
        assert round(given - position * 16_000) in (0, 640)  # the runner counts a frame once its source has taken it
        await stage.say(words(4_000, 7))
        await until(lambda: (stage.told[-1][-1]) is False)
        rest = stage.heard[given:]
        np.testing.assert_array_equal(rest[rest != 0], words(4_000, 7))

    staged(play, num_chunks=1)


def test_each_sound_follows_the_picture_that_was_made_for_it():
    async def run():
        session = small_session(num_chunks=1)
        async with FlowActVideoGenerator(session) as generator:
            await generator.push_audio(audio_frame(words(9_000)))
            await generator.push_audio(AudioSegmentEnd())
            pictures, sounds = [], []
            async for frame in generator:
                if isinstance(frame, AudioSegmentEnd):
                    break
                if isinstance(frame, rtc.VideoFrame):
                    pictures.append(bytes(frame.data))
                    assert (frame.width, frame.height) == (32, 16)
                else:
                    sounds.append((len(pictures) - 1, np.frombuffer(bytes(frame.data), np.int16)))
        made = [(picture, chunk.samples[640 * k :][:640]) for chunk in session.handed_out for k, picture in enumerate(chunk.frames_THWC)]
        assert pictures == [picture.tobytes() for picture, _ in made][: len(pictures)]
        assert [number for number, _ in sounds] == list(range(sounds[0][0], sounds[0][0] + 15))
        for (number, sound), size in zip(sounds, [640 + SILENCE, *[640] * 14], strict=True):
            assert len(sound) == size
            np.testing.assert_array_equal(sound[-640:], np.rint(made[number][1] * 32_768))

    asyncio.run(run())


def test_an_end_left_over_from_what_was_interrupted_does_not_end_the_next_utterance():
    async def run():
        async with FlowActVideoGenerator(small_session(num_chunks=1)) as generator:
            await generator.push_audio(audio_frame(words(9_000)))
            generator.clear_buffer()
            await generator.push_audio(AudioSegmentEnd())
            await generator.push_audio(audio_frame(words(2_000)))
            await generator.push_audio(AudioSegmentEnd())
            samples = 0
            async for frame in generator:
                samples += frame.samples_per_channel if isinstance(frame, rtc.AudioFrame) else 0
                if isinstance(frame, AudioSegmentEnd):
                    assert samples == SILENCE + 4 * 640
                    break

    asyncio.run(run())


def test_stereo_of_another_rate_is_taken():
    async def run():
        async with FlowActVideoGenerator(small_session(num_chunks=1)) as generator:
            await generator.push_audio(audio_frame(words(24_000), 24_000, channels=2))
            await generator.push_audio(AudioSegmentEnd())
            samples = 0
            async for frame in generator:
                if isinstance(frame, AudioSegmentEnd):
                    break
                if isinstance(frame, rtc.AudioFrame):
                    assert (frame.sample_rate, frame.num_channels) == (16_000, 1)
                    samples += frame.samples_per_channel
            assert samples == SILENCE + 13 * 640

    asyncio.run(run())


def test_a_consumer_that_stops_stops_the_producer():
    async def run():
        session = small_session()
        async with FlowActVideoGenerator(session) as generator:
            frames = aiter(generator)
            await anext(frames)
            held = -1
            while held != session.metrics["num_chunks"]:  # until it no longer moves
                held = session.metrics["num_chunks"]
                await asyncio.sleep(0.5)
            assert held <= 5  # one handed out, one ready, one between denoising and decoding, one in the hand of each
            await frames.aclose()

    asyncio.run(run())


def test_speech_waits_for_room_and_is_dropped_by_an_interruption():
    async def run():
        session = small_session()
        async with FlowActVideoGenerator(session, max_waiting_seconds=1.0) as generator:
            for _ in range(20):
                pushing = asyncio.create_task(generator.push_audio(audio_frame(words(16_000))))
                done, _ = await asyncio.wait([pushing], timeout=0.3)
                if not done:
                    break
            assert not done, "nothing ever held it up"
            assert session.metrics["queued_seconds"] < 2.0
            generator.clear_buffer()
            await asyncio.wait_for(pushing, DEADLINE)
            assert session.metrics["queued_seconds"] == 0.0

    asyncio.run(run())


def test_closing_in_the_middle_leaves_no_thread():
    before = set(threading.enumerate())

    async def run():
        async with FlowActVideoGenerator(small_session()) as generator:
            await generator.push_audio(audio_frame(words(64_000)))
            async for frame in generator:
                if isinstance(frame, rtc.AudioFrame):
                    break
        await generator.aclose()

    asyncio.run(run())
    deadline = time.monotonic() + DEADLINE
    while left := [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("flowact", "asyncio"))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_no_room_for_speech_is_refused():
    session = small_session()
    with pytest.raises(UserError, match="more than 0"):
        FlowActVideoGenerator(session, max_waiting_seconds=0)


def test_the_example_of_the_readme_puts_the_shipped_character_into_a_room():
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(first, "README", "exec"), names)
    exec(compile(second, "README", "exec"), names)  # imports, and the entry point of an agent, which needs a server

    async def run():
        room, speech = Room(), QueueAudioOutput(sample_rate=16_000, wait_playback_start=True)
        told = []
        speech.on("playback_finished", lambda event: told.append(event.interrupted))
        avatar, runner = await names["give_a_face"](room, speech)
        await speech.capture_frame(audio_frame(words(8_000)))
        speech.flush()
        await until(lambda: told)
        await runner.aclose()
        await avatar.aclose()
        assert told == [False]
        assert room.local_participant.tracks == ["avatar_audio", "avatar_video"]

    asyncio.run(run())

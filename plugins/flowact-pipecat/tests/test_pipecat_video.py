"""The service in pipelines of Pipecat, with its test utilities and its output transport."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pipecat_small import CHUNK_FRAMES, small_session, words

pytest.importorskip("pipecat", reason="pipecat-ai is not installed: pip install 'pipecat-ai>=1.11' to run these tests")

from flowact_pipecat.video import FlowActVideoService
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    TextFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.tests.utils import run_test
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from flowact.errors import UserError
from flowact.planning import Behaviour, Conversation, LivePlanner

README = Path(__file__).parents[1] / "README.md"
DEADLINE = 30.0
MEDIA = (OutputImageRawFrame, OutputAudioRawFrame)


def speech(samples, rate=16_000, channels=1):
    return TTSAudioRawFrame(samples.tobytes(), rate, channels)


def service(num_chunks=1, await_transport=False, session=(), **options):
    return FlowActVideoService(small_session(num_chunks, **dict(session)), await_transport=await_transport, **options)


class Sink(FrameProcessor):
    """Notes what arrives, and can refuse to take more."""

    def __init__(self):
        super().__init__(enable_direct_mode=True)
        self.frames, self.open = [], asyncio.Event()
        self.open.set()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        if isinstance(frame, OutputImageRawFrame):
            await self.open.wait()
        await self.push_frame(frame, direction)

    def of(self, *kinds):
        return [frame for frame in self.frames if type(frame) in kinds]

    @property
    def heard(self):
        return heard(self.frames)


def heard(frames):
    sounds = [frame.audio for frame in frames if isinstance(frame, TTSAudioRawFrame)]
    return np.frombuffer(b"".join(sounds), np.int16)


async def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "this never happened"
        await asyncio.sleep(0.01)


def perform(avatar, script, *later, last=EndFrame, params=None):
    """Run `script(worker, sink)` beside a pipeline of the service, what follows it, and a sink; then end it. The sink."""

    async def run():
        sink = Sink()
        worker = PipelineWorker(Pipeline([avatar, *later, sink]), cancel_on_idle_timeout=False, enable_rtvi=False, params=params or PipelineParams())
        started = asyncio.Event()
        worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        running = asyncio.create_task(runner.run())
        try:
            await asyncio.wait_for(started.wait(), DEADLINE)
            await script(worker, sink)
        finally:
            await (worker.cancel() if last is CancelFrame else worker.queue_frame(last()))
            sink.open.set()
            await asyncio.wait_for(running, DEADLINE)
        return sink

    return asyncio.run(run())


def test_every_word_comes_out_once_beside_its_picture_and_frames_between_words_keep_their_place():
    avatar = service(num_chunks=3)
    between = [TextFrame("one"), TTSStoppedFrame(), TextFrame("two"), TTSStoppedFrame()]
    one, two, three = words(4_000, 1), words(5_000, 2), words(3_000, 3)
    sent = [TTSStartedFrame(), speech(one), between[0], speech(two), between[1], between[2], speech(three), between[3]]
    found, _ = asyncio.run(run_test(avatar, frames_to_send=sent))

    sound = heard(found)
    np.testing.assert_array_equal(sound[sound != 0], np.concatenate([one, two, three]))
    assert [frame for frame in found if not isinstance(frame, MEDIA)] == [sent[0], *between]
    played = {frame.id: len(heard(found[:number])) for number, frame in enumerate(found)}
    assert [played[frame.id] for frame in between] == [7 * 640, 15 * 640, 15 * 640, 19 * 640]

    media = [frame for frame in found if isinstance(frame, MEDIA)]
    pictures, sounds = media[::2], media[1::2]
    assert all(isinstance(frame, OutputImageRawFrame) for frame in pictures)
    assert all(frame.num_frames == 640 and frame.sample_rate == 16_000 for frame in sounds)
    assert [frame.pts for frame in pictures] == [frame.pts for frame in sounds]
    assert set(np.diff([frame.pts for frame in pictures])) == {40_000_000}
    made = [(picture, chunk.samples[640 * k :][:640]) for chunk in avatar.session.handed_out for k, picture in enumerate(chunk.frames_THWC)]
    for picture, sound, (frame_HWC, samples) in zip(pictures, sounds, made, strict=False):
        assert (picture.size, picture.format, picture.image) == ((32, 16), "RGB", frame_HWC.tobytes())
        np.testing.assert_array_equal(np.frombuffer(sound.audio, np.int16), np.rint(samples * 32_768))


def test_stereo_of_another_rate_is_taken():
    sent = [speech(words(24_000), 24_000, channels=2), TTSStoppedFrame()] * 2
    found, _ = asyncio.run(run_test(service(), frames_to_send=sent))
    assert sum(type(frame) is TTSAudioRawFrame for frame in found) == 25  # half a second twice; the second goes on in the chunk of the first


def test_times_of_words_move_with_their_utterance():
    async def script(worker, sink):
        now = avatar.get_clock().get_time()
        await worker.queue_frame(speech(words(16_000)))
        for number in range(3):
            word = TTSTextFrame(str(number), "word")
            word.pts = now + number * 300_000_000
            await worker.queue_frame(word)
        await worker.queue_frame(TTSStoppedFrame())
        await until(lambda: sink.of(TTSStoppedFrame))
        sounds, found = sink.of(TTSAudioRawFrame), sink.of(TTSTextFrame)
        assert [word.text for word in found] == ["0", "1", "2"]
        assert sink.frames.index(found[-1]) < sink.frames.index(sounds[2])
        assert np.diff([word.pts for word in found]).tolist() == [300_000_000] * 2
        assert found[0].pts > now + 500_000_000  # two chunks of the window, which leave first

    avatar = service(num_chunks=3)
    perform(avatar, script)


def test_an_interruption_drops_what_waits_and_says_what_was_played():
    told = []

    async def script(worker, sink):
        avatar.add_event_handler("on_speech_interrupted", lambda _, seconds: told.append(seconds))
        kept, lost = TextFrame("kept"), TextFrame("lost")
        kept.interruptible = False
        await worker.queue_frames([speech(words(80_000)), lost, kept, TTSStoppedFrame()])
        await until(lambda: len(sink.of(TTSAudioRawFrame)) > 3)
        await worker.queue_frame(InterruptionFrame())
        await until(lambda: told)
        before = len(sink.heard)
        np.testing.assert_array_equal(sink.heard, words(80_000)[:before])
        assert told == [before / 16_000]
        await until(lambda: len(sink.of(OutputAudioRawFrame)) > 2 * CHUNK_FRAMES)
        assert len(sink.heard) == before
        assert [frame for frame in sink.frames if isinstance(frame, (TextFrame, TTSStoppedFrame, InterruptionFrame))][1:] == [kept]
        await worker.queue_frames([speech(words(3_000, 4)), TTSStoppedFrame()])
        await until(lambda: sink.of(TTSStoppedFrame))
        rest = sink.heard[before:]
        np.testing.assert_array_equal(rest[rest != 0], words(3_000, 4))

    avatar = service()
    perform(avatar, script)


@pytest.mark.parametrize("last", [EndFrame, CancelFrame])
def test_an_end_waits_for_the_last_word_and_a_cancel_does_not_and_neither_leaves_a_thread(last):
    before = set(threading.enumerate())

    async def script(worker, sink):
        await worker.queue_frame(speech(words(20_000)))
        await until(lambda: sink.of(TTSAudioRawFrame))

    sink = perform(service(), script, last=last)
    sound = sink.heard[sink.heard != 0]
    np.testing.assert_array_equal(sound, words(20_000)[: len(sound)])
    assert (len(sound) == 20_000) == (last is EndFrame)
    deadline = time.monotonic() + DEADLINE
    while left := [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("flowact", "asyncio"))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_a_consumer_that_takes_no_more_stops_the_producer():
    async def script(worker, sink):
        await until(lambda: len(sink.of(OutputImageRawFrame)) > 2)
        sink.open.clear()
        held, pictures = -1, -1
        while (held, pictures) != (avatar.session.metrics["num_chunks"], len(sink.of(OutputImageRawFrame))):  # until nothing moves
            held, pictures = avatar.session.metrics["num_chunks"], len(sink.of(OutputImageRawFrame))
            await asyncio.sleep(0.5)
        assert held * CHUNK_FRAMES - pictures <= 5 * CHUNK_FRAMES

    avatar = service()
    perform(avatar, script)


def test_speech_waits_for_room():
    async def script(worker, sink):
        for _ in range(6):
            await worker.queue_frame(speech(words(16_000)))
        await until(lambda: len(sink.of(TTSAudioRawFrame)) > 3)
        assert avatar.session.metrics["queued_seconds"] <= 2.0
        await worker.queue_frame(InterruptionFrame())

    avatar = service(max_waiting_seconds=1.0)
    perform(avatar, script)


def test_nothing_comes_before_a_transport_is_ready():
    async def script(worker, sink):
        await worker.queue_frame(TextFrame("first"))
        await until(lambda: sink.of(TextFrame))
        await asyncio.sleep(0.3)
        assert not sink.of(*MEDIA)
        await sink.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)
        await until(lambda: sink.of(OutputImageRawFrame))

    perform(service(await_transport=True), script)


class Transport(BaseOutputTransport):
    """Plays in real time to nobody."""

    def __init__(self, **options):
        super().__init__(TransportParams(audio_out_enabled=True, video_out_enabled=True, video_out_width=32, video_out_height=16, **options))
        self.sound, self.pictures = b"", []

    async def start(self, frame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame):
        await asyncio.sleep(frame.num_frames / frame.sample_rate)
        self.sound += frame.audio
        return True

    async def write_video_frame(self, frame):
        self.pictures.append(frame.image)
        return True


@pytest.mark.parametrize(("live", "sync"), [(True, False), (False, True)])
def test_pipecats_own_transport_plays_every_word_shows_pictures_and_knows_who_speaks(live, sync):
    async def script(worker, sink):
        await until(lambda: len(transport.pictures) > 3)
        assert not np.frombuffer(transport.sound, np.int16).any()
        await worker.queue_frames([TTSStartedFrame(), speech(words(8_000)), TTSStoppedFrame()])
        await until(lambda: sink.of(BotStoppedSpeakingFrame))
        sound = np.frombuffer(transport.sound, np.int16)
        np.testing.assert_array_equal(sound[sound != 0], words(8_000))
        turns = [type(frame) for frame in sink.of(BotStartedSpeakingFrame, BotStoppedSpeakingFrame)]
        assert turns == [BotStartedSpeakingFrame, BotStoppedSpeakingFrame]
        made = {frame_HWC.tobytes() for chunk in avatar.session.handed_out for frame_HWC in chunk.frames_THWC}
        assert set(transport.pictures) <= made

    avatar = service(await_transport=True, sync_with_audio=sync)
    transport = Transport(video_out_is_live=live, video_out_framerate=25)
    perform(avatar, script, transport, params=PipelineParams(audio_out_sample_rate=16_000))


class Ears(LivePlanner):
    """Notes what it hears and does nothing."""

    def begin(self, chunk_frames):
        ears = self
        ears.heard = []

        class Listens(Conversation):
            def hear(self, heard):
                ears.heard.append(heard.user)
                return Behaviour("idle", "a person waits", "idle")

        return Listens()


def test_the_character_hears_the_user_and_listens_while_the_user_speaks():
    ears = Ears()

    async def script(worker, sink):
        for begin in range(0, 6_400, 320):
            await worker.queue_frame(InputAudioRawFrame(words(6_400)[begin:][:320].tobytes(), 16_000, 1))
        await worker.queue_frame(UserStartedSpeakingFrame())
        await until(lambda: avatar.session.handed_out and avatar.session.handed_out[-1].state == "listening")
        await worker.queue_frame(UserStoppedSpeakingFrame())
        await until(lambda: avatar.session.handed_out[-1].state == "idle")
        np.testing.assert_allclose(np.concatenate(ears.heard) * 32_768, words(6_400))
        assert len(sink.of(InputAudioRawFrame)) == 20

    avatar = service(session={"planner": ears})
    perform(avatar, script)


def test_the_time_to_the_first_picture_of_speech_is_measured():
    async def script(worker, sink):
        await worker.queue_frames([speech(words(3_000)), TTSStoppedFrame()])
        await until(lambda: sink.of(TTSStoppedFrame))
        measured = [data for frame in sink.of(MetricsFrame) for data in frame.data if isinstance(data, TTFBMetricsData) and data.value]
        assert [data.processor for data in measured] == [avatar.name]

    avatar = service()
    perform(avatar, script, params=PipelineParams(enable_metrics=True))


def test_no_room_for_speech_is_refused():
    session = small_session()
    with pytest.raises(UserError, match="more than 0"):
        FlowActVideoService(session, max_waiting_seconds=0)


class Ends:
    """A transport as a pipeline sees it."""

    def input(self):
        return FrameProcessor()

    def output(self):
        return Transport()


def test_the_example_of_the_readme_fits_the_shipped_character_and_builds_a_pipeline():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

    async def run():
        names: dict = {}
        exec(compile(example, "README", "exec"), names)
        with names["avatar"].live:
            assert (names["params"].video_out_height, names["params"].video_out_width) == names["avatar"].session.picture_size
            assert names["avatar"] in names["with_a_face"](Ends()).processors

    asyncio.run(run())

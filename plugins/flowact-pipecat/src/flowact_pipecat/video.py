"""A FlowAct character as a frame processor of Pipecat."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    StartFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from flowact.errors import UserError
from flowact.planning import Planner
from flowact.sampling import LiveStream, MediaChunk, StreamSession
from flowact.sampling.opening import open_session
from flowact.sampling.speech_track import SpeechTrack
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME

FRAME_NANOSECONDS = 1_000_000_000 // FRAMES_PER_SECOND
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class _Begun:
    """Stands where an utterance begins.

    Attributes:
        said_at: the pipeline's clock when its first sound came in, nanoseconds.
    """

    said_at: int


class FlowActVideoService(FrameProcessor):
    """Speech goes in, pictures and the same speech come out in step; put it between the speech synthesiser and the output transport.

    Out come an `OutputImageRawFrame` every 40 ms and the sound of the same 40 ms: a `TTSAudioRawFrame` where there is speech, else a silent
    `OutputAudioRawFrame`. Both carry the same `pts`, in nanoseconds of the pipeline's clock. What comes in between or after speech leaves at its
    place in it; times of words are moved by what the speech took. System frames and those that go upstream pass at once.

    Event handlers: `on_speech_interrupted(service, seconds)` with the seconds of the utterance that were played.

    Args:
        session: that speaks; closed together with this.
        buffer_chunks: finished chunks that may wait; each adds its length to the reaction time.
        late: what happens when a chunk is not ready in time; see `flowact.sampling.LiveStream`.
        max_waiting_seconds: speech that the session takes ahead; frames wait in the pipeline when there is more.
        await_transport: give nothing out before an output transport says that it is ready; False for a pipeline without one.
        sync_with_audio: let the transport show a picture when the sound before it was sent, instead of as it comes. Not with `video_out_is_live`,
            where Pipecat shows no such pictures.
        options: of `FrameProcessor`, as `name`.

    Raises:
        UserError: no room for speech.
    """

    def __init__(
        self,
        session: StreamSession,
        *,
        buffer_chunks: int = 1,
        late: Literal["hold", "micro_steps"] = "hold",
        max_waiting_seconds: float = 10.0,
        await_transport: bool = True,
        sync_with_audio: bool = False,
        **options: Any,
    ) -> None:
        if max_waiting_seconds <= 0:
            raise UserError(f"max_waiting_seconds is {max_waiting_seconds:g}; speech needs room, give more than 0")
        super().__init__(**options)
        self.session = session
        self.max_waiting_seconds = max_waiting_seconds
        self.sync_with_audio = sync_with_audio
        self.live = LiveStream(session, buffer_chunks=buffer_chunks, late=late)
        self._speech: SpeechTrack[Frame | _Begun] = SpeechTrack(session)
        self._order = asyncio.Lock()  # between what the stream gives out and what passes by
        self._ready = asyncio.Event()
        if not await_transport:
            self._ready.set()
        self._stream_task: asyncio.Task[None] | None = None
        self._first_pts = 0
        self._speech_delay = 0
        self._listening = False
        self._register_event_handler("on_speech_interrupted")

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path | None = None,
        picture: str | Path | None = None,
        *,
        device: str = "cpu",
        seed: int = 0,
        planner: Planner | None = None,
        reaction: Literal["window", "at_once"] = "window",
        **options: Any,
    ) -> Self:
        """A service from files; see `flowact.sampling.opening.open_session` for the arguments, and the constructor for `options`."""
        return cls(open_session(checkpoint, picture, device=device, seed=seed, planner=planner, reaction=reaction), **options)

    def can_generate_metrics(self) -> bool:
        """Time to first byte: from the first sound of an utterance that came in to the first that left, with its picture."""
        return True

    # ---- what comes in ----

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See `FrameProcessor.process_frame`."""
        await super().process_frame(frame, direction)
        if isinstance(frame, OutputTransportReadyFrame):
            self._ready.set()
        if direction == FrameDirection.UPSTREAM or self.session.closed:
            await self.push_frame(frame, direction)
        elif isinstance(frame, InterruptionFrame):
            await self._interrupt(frame)
        elif isinstance(frame, SystemFrame):
            await self._pass_system_frame(frame)
        elif isinstance(frame, TTSAudioRawFrame):
            await self._speak(frame)
        elif isinstance(frame, EndFrame):
            self._speech.end()
            await self._drain()
            await self._close()
            await self.push_frame(frame)
        else:
            if isinstance(frame, TTSStoppedFrame):
                self._speech.end()
            await self._pass_in_order(frame)

    async def _pass_system_frame(self, frame: Frame) -> None:
        if isinstance(frame, CancelFrame):
            await self._close()
        elif isinstance(frame, InputAudioRawFrame):
            self.session.push_user_audio(samples_of(frame), frame.sample_rate)
        elif isinstance(frame, UserStartedSpeakingFrame) and not self._speech.waiting:
            self._listening = True
            self.session.set_state("listening")
        elif isinstance(frame, UserStoppedSpeakingFrame):
            self._stop_listening()
        await self.push_frame(frame)
        if isinstance(frame, StartFrame):
            self._stream_task = self.create_task(self._stream())

    async def _interrupt(self, frame: InterruptionFrame) -> None:
        seconds = self._speech.played_seconds
        dropped = self._speech.interrupt()
        await self.push_frame(frame)
        for held in dropped:
            if isinstance(held, Frame) and not held.interruptible:
                await self.push_frame(held)
        await self._call_event_handler("on_speech_interrupted", seconds)

    async def _speak(self, frame: TTSAudioRawFrame) -> None:
        samples = self._speech.convert(samples_of(frame), frame.sample_rate)
        # An interruption cancels this wait together with the frame.
        while self.session.metrics["queued_seconds"] >= self.max_waiting_seconds:
            await asyncio.sleep(POLL_SECONDS)
        if not self._speech.open and len(samples):
            self._stop_listening()
            self._speech.mark(_Begun(self.get_clock().get_time()), at_beginning=True)
            await self.start_ttfb_metrics()
        self._speech.push(samples)

    async def _pass_in_order(self, frame: Frame) -> None:
        if self._speech.waiting:
            self._speech.mark(frame, at_beginning=bool(frame.pts) and self._speech.open)  # words have their own times, counted from the beginning
        else:
            async with self._order:
                await self.push_frame(frame)

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self.session.set_prompt(None)

    # ---- what goes out ----

    async def _stream(self) -> None:
        await self._ready.wait()
        try:
            async for chunk in self.live:
                if not chunk.index:
                    self._first_pts = self.get_clock().get_time()
                await self._show(chunk)
        except Exception as error:
            await self.push_error("the character's stream ended", exception=error, force_treat_as_permanent=True)

    async def _show(self, chunk: MediaChunk) -> None:
        loop = asyncio.get_running_loop()
        begin, height_width = loop.time(), self.session.picture_size
        for number, frame_HWC in enumerate(chunk.frames_THWC):
            await asyncio.sleep(max(begin + number / FRAMES_PER_SECOND - loop.time(), 0))
            image = OutputImageRawFrame(np.ascontiguousarray(frame_HWC).tobytes(), height_width[::-1], "RGB")
            image.sync_with_audio = self.sync_with_audio
            async with self._order:
                samples = self._speech.samples_of(chunk, number)
                kind = OutputAudioRawFrame if samples is None else TTSAudioRawFrame
                sound = kind(np.zeros(SAMPLES_PER_FRAME, np.int16).tobytes() if samples is None else samples.tobytes(), SAMPLE_RATE, 1)
                image.pts = sound.pts = self._first_pts + (chunk.index * len(chunk.frames_THWC) + number) * FRAME_NANOSECONDS
                await self.push_frame(image)
                await self.push_frame(sound)
                await self._release()

    async def _release(self) -> None:
        for due in self._speech.due():
            if isinstance(due, _Begun):
                self._speech_delay = self.get_clock().get_time() - due.said_at
                await self.stop_ttfb_metrics()
            else:
                if due.pts is not None:
                    due.pts += self._speech_delay
                await self.push_frame(due)

    # ---- the end ----

    async def _drain(self) -> None:
        """Wait until everything was said, or as long as somebody takes it; then the rest of what passes by goes without it."""
        while self._speech.waiting and self._ready.is_set() and self._stream_task is not None and not self._stream_task.done():
            await asyncio.sleep(POLL_SECONDS)
        for held in self._speech.interrupt():
            if isinstance(held, Frame):
                await self.push_frame(held)

    async def _close(self) -> None:
        if self._stream_task is not None:
            task, self._stream_task = self._stream_task, None
            await self.cancel_task(task)
        await asyncio.to_thread(self.live.close)

    async def cleanup(self) -> None:
        """Stop, and wait until the threads are done."""
        await super().cleanup()
        await self._close()


def samples_of(frame: TTSAudioRawFrame | InputAudioRawFrame) -> np.ndarray:
    """int16, [num_samples, channels]."""
    return np.frombuffer(frame.audio, np.int16).reshape(-1, frame.num_channels)

"""A FlowAct character as the video generator of LiveKit's `AvatarRunner`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from flowact.errors import UserError
from flowact.planning import Planner
from flowact.sampling import LiveStream, StreamSession
from flowact.sampling.opening import open_session
from flowact.sampling.speech_track import SpeechTrack
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME

POLL_SECONDS = 0.02


def avatar_options(session: StreamSession) -> AvatarOptions:
    """What `AvatarRunner` must know of the pictures and the sound that a session gives."""
    height, width = session.picture_size
    return AvatarOptions(width, height, FRAMES_PER_SECOND, SAMPLE_RATE, 1)


class FlowActVideoGenerator(VideoGenerator):
    """Pictures without end, and beside the pictures of speech its sound. An async context manager; iterate over it once.

    Pictures flow from the start at 25 a second, whether there is speech or not. Sound is given with the picture made for it, 40 ms each, and only
    where there is speech: the runner takes any sound for the beginning of playback and counts it as played. Speech that follows a pause begins with
    40 ms of silence, so that sound is left to play between two chunks.

    Args:
        session: that speaks; closed together with this.
        buffer_chunks: finished chunks that may wait; each adds its length to the reaction time.
        late: what happens when a chunk is not ready in time; see `flowact.sampling.LiveStream`.
        max_waiting_seconds: speech that the session takes ahead; `push_audio` waits when there is more.

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
    ) -> None:
        if max_waiting_seconds <= 0:
            raise UserError(f"max_waiting_seconds is {max_waiting_seconds:g}; speech needs room, give more than 0")
        self.session = session
        self.max_waiting_seconds = max_waiting_seconds
        self.played_seconds = 0.0
        self._speech: SpeechTrack[AudioSegmentEnd] = SpeechTrack(session)
        self.live = LiveStream(session, buffer_chunks=buffer_chunks, late=late)

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
    ) -> Self:
        """A generator from files; see `flowact.sampling.opening.open_session` for the arguments."""
        return cls(open_session(checkpoint, picture, device=device, seed=seed, planner=planner, reaction=reaction))

    # ---- what the runner calls ----

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Speech of any rate, or its end. Waits while `max_waiting_seconds` are ahead; what is interrupted meanwhile is dropped."""
        if isinstance(frame, AudioSegmentEnd):
            if self._speech.end():  # else a rest of what was interrupted, which the agent does not wait for
                self._speech.mark(frame)
            return
        samples = self._speech.convert(samples_of(frame), frame.sample_rate)
        turn = self.session.turn
        while self.session.metrics["queued_seconds"] >= self.max_waiting_seconds and self.session.turn == turn:
            await asyncio.sleep(POLL_SECONDS)
        if self.session.turn == turn:
            self._speech.push(samples)

    def clear_buffer(self) -> None:
        """Stop speaking: what waits is dropped, and what is on its way is not heard."""
        self.played_seconds = self._speech.played_seconds
        self._speech.interrupt()

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        return self._frames()

    async def _frames(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        height, width = self.session.picture_size
        sounding = False
        async for chunk in self.live:
            for number, frame_HWC in enumerate(chunk.frames_THWC):
                yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, np.ascontiguousarray(frame_HWC).tobytes())
                samples = self._speech.samples_of(chunk, number)  # asked for only now: the runner may have cleared the buffer since
                if samples is not None:
                    samples = samples if sounding else np.concatenate([np.zeros(SAMPLES_PER_FRAME, np.int16), samples])
                    yield rtc.AudioFrame(samples.tobytes(), SAMPLE_RATE, 1, len(samples))
                sounding = samples is not None
                for end in self._speech.due():
                    yield end

    # ---- beyond the runner ----

    def push_user_audio(self, frame: rtc.AudioFrame) -> None:
        """What the character hears, for the planner: frames of an `rtc.AudioStream` of the user's track."""
        self.session.push_user_audio(samples_of(frame), frame.sample_rate)

    async def aclose(self) -> None:
        """Stop, and wait until the threads are done. Closing again does nothing."""
        await asyncio.to_thread(self.live.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


def samples_of(frame: rtc.AudioFrame) -> np.ndarray:
    """int16, [num_samples, channels]."""
    return np.frombuffer(bytes(frame.data), np.int16).reshape(-1, frame.num_channels)

"""A live stream of one character: sound and prompts go in as they come, pictures and sound come out together. Legend: flowact/types.py."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from flowact.errors import UserError, did_you_mean
from flowact.planning.base import Behaviour, Conversation, Heard, Planner
from flowact.sampling.latency import LatencyBudget
from flowact.sampling.sound import SoundInput, SoundQueue
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, STATES, Chunk

if TYPE_CHECKING:
    from flowact.sampling.pipeline import Pipeline

MAX_PROMPT = 2_000
KEPT_PROMPTS = 64
FADE_SAMPLES = 80
"""5 ms: an interrupted voice fades so fast that it is not heard on, and slowly enough not to click."""


def percentiles(values: np.ndarray) -> dict[str, float]:
    """p50, p95 and p99; NaN of no values."""
    found = np.percentile(values, [50, 95, 99]).tolist() if values.size else [float("nan")] * 3
    return dict(zip(("p50", "p95", "p99"), found, strict=True))


@dataclass(frozen=True)
class SessionEvent:
    """Something that took effect on a chunk.

    Attributes:
        type: "prompt.applied" {text, state}, "reference.applied", "speech.started", "speech.finished" {position, interrupted}, "refined",
            "recovered", "deadline.missed" {late_seconds}, "degraded" {micro_steps}.
        chunk: its number on the stream's clock.
        data: as said under `type`; position in seconds.
    """

    type: str
    chunk: int
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class MediaChunk:
    """Pictures and the sound of the same moments.

    Attributes:
        index: number on the stream's clock, from 0 without gaps.
        frames_THWC: uint8 RGB.
        samples: mono float32 at 16 kHz, 640 for each frame.
        state: of `flowact.types.STATES`, in force when the chunk entered the stream.
        prompt: likewise.
        start_seconds: when its first frame and its first sample are due.
        held: a still picture in the place of a chunk that was late.
        events: what took effect on this chunk.
        turn: interruptions before it was made.
        spoken: of its samples, from the first on, those that were pushed; silence follows them.
    """

    index: int
    frames_THWC: np.ndarray
    samples: np.ndarray
    state: str
    prompt: str
    start_seconds: float
    held: bool = False
    events: tuple[SessionEvent, ...] = ()
    turn: int = 0
    spoken: int = 0


@dataclass(frozen=True)
class _Prompt:
    text: str
    state: str
    features_LD: Tensor
    since: float = 0.0


@dataclass
class _Slot:
    """A chunk on its way through the stream, with the sound that will leave with it."""

    samples: np.ndarray
    prompt: _Prompt
    spoken: int = 0  # samples that were pushed; silence follows them
    said_at: float = 0.0  # clock when they were
    evaluations: int = 0  # that the chunk has seen since it was noise
    features_FAD: Tensor | None = None  # of its sound; None until they are asked for, and again when the sound around it changes
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Denoised:
    """A chunk that left the denoising stream and waits for the decoder; without latents one of the time before the first chunk."""

    chunk: Chunk | None
    slot: _Slot
    number: int
    turn: int
    seconds: float


class StreamSession:
    """One character and one memory. Every method may be called from any thread; `next_chunk` is for one of them.

    The stream never waits for sound: where there is none the character is silent. Sound that was pushed is spoken once, without gaps, and leaves
    together with the frames that were made for it. A prompt takes effect on the chunk that enters next.

    Args:
        pipeline: network, autoencoder and encoders; shared by any number of sessions.
        picture: of the character, [3, H, W] in [-1, 1], of the pipeline's `picture_size`.
        seed: of the noise.
        planner: writes prompts from what is spoken and heard, wherever none was set; None keeps the last prompt.
        reaction: "window" is the paper's staircase: sound and prompts take effect on the chunk that enters, and are seen W chunks later; the stream
            starts with the picture standing still while the window fills. "at_once" takes sound and prompts into chunks that are in the stream
            already, and lets the window begin anew from noise when that changes them, also at the start: the sound of one chunk is enough, and what
            is said or set is seen on the next chunk, for up to W times the work in such a step. (The paper does not say how a stream starts.)
        max_queued_seconds: sound that may wait.

    Raises:
        UserError: a picture of another size.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        picture: Tensor,
        *,
        seed: int = 0,
        planner: Planner | None = None,
        reaction: Literal["window", "at_once"] = "window",
        max_queued_seconds: float = 300.0,
    ) -> None:
        self.pipeline = pipeline
        if reaction not in ("window", "at_once"):
            raise UserError(f"reaction is {reaction!r}; it is window or at_once")
        self.at_once = reaction == "at_once"
        self.stream = pipeline.chunk_stream([self._checked(picture)], seed)
        self.num_chunk_frames = pipeline.chunk_frames * pipeline.autoencoder.temporal_stride
        self.num_chunk_samples = self.num_chunk_frames * SAMPLES_PER_FRAME
        self.lead_chunks = 0 if self.at_once else pipeline.staircase.num_chunks - 1
        self._lock = threading.RLock()  # guards what callers change
        self._sound, self._heard_sound = SoundInput(), SoundInput()
        self._queue = SoundQueue(max_queued_seconds)
        self._user = SoundQueue(self.chunk_seconds * 4)
        self._speech_ended, self._waited = True, False
        self._pushed_at = 0.0
        self._speech_position, self._speaking, self._interrupted = 0, False, False
        self._waiting_events: list[tuple[str, dict[str, Any]]] = []
        self._played, self._playing, self.turn, self._heard_turn, self._last_sample = 0, False, 0, 0, 0.0
        self._reference: Tensor | None = None
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._prompt = self._encoded(pipeline.rest_caption, "idle")
        self._pinned, self._changed = False, False
        self._applied: _Prompt | None = None if self.at_once else self._prompt
        self._conversation: Conversation | None = None if planner is None else planner.begin(self.num_chunk_frames)
        self._past = np.zeros(pipeline.audio.context_frames * SAMPLES_PER_FRAME, np.float32)
        silent = np.zeros(self.num_chunk_samples, np.float32)
        self._slots: deque[_Slot] = deque(_Slot(silent, self._prompt) for _ in range(self.lead_chunks))
        self._entered = self._finished = 0
        self._micro_steps = pipeline.staircase.micro_steps
        self._evaluations: deque[int] = deque(maxlen=1_000)
        self._prompt_delays: deque[float] = deque(maxlen=1_000)
        self._speech_delays: deque[float] = deque(maxlen=1_000)
        self._closed = False
        with pipeline.precision():
            from flowact.sampling.pipeline import to_pixels

            self._last_frame_HWC = to_pixels(self.stream.reference_frames_BCTHW)[0, -1]

    # ---- what callers say ----

    def push_audio(self, samples: np.ndarray, sample_rate: int = SAMPLE_RATE, *, end: bool = False) -> float:
        """Append the character's own speech; seconds of it that wait now.

        Args:
            samples: float in [-1, 1] or int16, [num_samples] or [num_samples, channels]; resampled and averaged to mono.
            sample_rate: of `samples`.
            end: nothing follows for now. Else an incomplete chunk waits up to a chunk's time for the rest, so that no word is cut in two.

        Raises:
            UserError: another type or shape, or more than fits.
        """
        self._check_open()
        with self._lock:
            sound = self._sound.convert(samples, sample_rate)
            if end:
                sound = np.concatenate([sound, self._sound.flush()])
            if not len(self._queue):
                self._pushed_at = time.perf_counter()
            self._queue.push(sound)
            self._speech_ended = end
            return self._queue.seconds

    def push_user_audio(self, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
        """What the character hears, for the planner. Only the latest moments are kept."""
        self._check_open()
        with self._lock:
            sound = self._heard_sound.convert(samples, sample_rate)[-self._user.max_samples :]
            overflow = len(self._user) + len(sound) - self._user.max_samples
            if overflow > 0:
                self._user.take(overflow)
            self._user.push(sound)

    def set_prompt(self, text: str | None, state: str | None = None) -> int:
        """Describe what should be seen from the next entering chunk on; its number on the stream's clock.

        Args:
            text: a description in the words of the training captions; None gives the choice back to the planner.
            state: what to report as state; None keeps the one in force.

        Raises:
            UserError: an empty or overlong text, or an unknown state.
        """
        self._check_open()
        if text is not None and not 0 < len(text.strip()) <= MAX_PROMPT:
            raise UserError(f"a prompt has 1 to {MAX_PROMPT} characters, got {len(text.strip())}")
        if state is not None and state not in STATES:
            raise UserError(f"unknown state {state!r}.{did_you_mean(state, STATES)}")
        with self._lock:
            self._pinned = text is not None
            if text is not None:
                self._prompt = self._encoded(text, state or self._prompt.state)
            return self._next_number

    def set_state(self, state: str) -> int:
        """Ask for a behaviour by name, in the character's own words; the number of the chunk on which it takes effect.

        Raises:
            UserError: an unknown state.
        """
        if state not in STATES:
            raise UserError(f"unknown state {state!r}.{did_you_mean(state, STATES)}")
        from flowact.planning.speech_activity import DEFAULT_CAPTIONS

        captions = self.pipeline.state_captions.get(state) or list(DEFAULT_CAPTIONS[state])
        return self.set_prompt(captions[0], state)

    def set_reference(self, picture: Tensor) -> int:
        """Show another picture to the stream from the next entering chunk on; what the character did before stays in memory and fades out of it.

        Raises:
            UserError: a picture of another size.
        """
        self._check_open()
        latents_B1CHW = self.pipeline.encode_pictures([self._checked(picture)])
        with self._lock:
            self._reference = latents_B1CHW
            return self._next_number

    def interrupt(self) -> float:
        """Stop speaking: what waits is dropped, and chunks in the stream become silent. Seconds of the speech that were played."""
        self._check_open()
        with self._lock:
            self._queue.clear()
            self._sound.flush()
            self._speech_ended, self._waited = True, False
            self.turn += 1
            self._interrupted = self._speaking or any(slot.spoken for slot in self._slots)
            played = self._played / SAMPLE_RATE if self._playing else 0.0
            if self._speaking:
                self._waiting_events.append(("speech.finished", {"position": played, "interrupted": True}))
            self._speaking = self._playing = False
            for slot in self._slots:
                slot.samples, slot.spoken, slot.features_FAD = np.zeros_like(slot.samples), 0, None
            return played

    # ---- what comes out ----

    def next_chunk(self) -> MediaChunk:
        """One step of the stream: a chunk enters with the sound and prompt of this moment, one leaves.

        Raises:
            UserError: the session is closed, or the network's output is not finite even after a fresh start of the window.
        """
        return self.hand_out(self.finish(self.denoise()))

    @torch.no_grad()
    def denoise(self) -> Denoised:
        """The first half of `next_chunk`. Chunks are denoised in order, by one thread."""
        self._check_open()
        begin = time.perf_counter()
        with self._lock:
            entering = [self._open_slot() for _ in range(self.pipeline.staircase.num_chunks - len(self._slots))]
            open_slots = [*self._slots, *entering] if self.at_once else entering
            flush = self._speech_ended or self._waited
            for slot in open_slots:
                self._fill(slot, flush)
            self._waited = 0 < len(self._queue) < self.num_chunk_samples
            self._slots.extend(entering)
            self._apply_behaviour(open_slots)
            reference, self._reference = self._reference, None
            anew = self.at_once and (reference is not None or any(slot.features_FAD is None for slot in list(self._slots)[: -len(entering)]))
            anew = anew or len(entering) > 1 or self._changed
            self._changed = False
            conditions = self._conditions()
            if self._micro_steps != self.stream.engine.staircase.micro_steps:
                self.stream.use_micro_steps(self._micro_steps)
        with self.pipeline.precision():
            if reference is not None:
                self.stream.swap_reference(reference)
                open_slots[0].events.append(("reference.applied", {}))
            if anew:
                done: Chunk | None = self.stream.begin_anew(conditions)
            else:
                self.stream.rewrite(conditions[:-1])
                done = self.stream.enter(*conditions[-1])
        with self._lock:
            self._entered += len(entering)
            engine = self.stream.engine
            spent = (engine.staircase.evaluations_per_chunk if anew else engine.staircase.micro_steps) * engine.guidance.evaluations
            for slot in self._slots:
                slot.evaluations = spent + (0 if anew else slot.evaluations)
            slot = self._slots.popleft()
            self._past = np.concatenate([self._past, slot.samples])[len(slot.samples) :] if len(self._past) else self._past
            number, turn, self._finished = self._finished, self.turn, self._finished + 1
            for name in self.stream.take_notes():
                slot.events.append((name, {}))
            self._note_speech(slot)
        return Denoised(done, slot, number, turn, time.perf_counter() - begin)

    @torch.no_grad()
    def finish(self, denoised: Denoised) -> MediaChunk:
        """The second half of `next_chunk`: decode. Chunks are finished in order, by one thread."""
        from flowact.sampling.pipeline import to_pixels

        begin = time.perf_counter()
        slot = denoised.slot
        if denoised.chunk is None:
            frames_THWC = np.broadcast_to(self._last_frame_HWC, (self.num_chunk_frames, *self._last_frame_HWC.shape))
        else:
            with self.pipeline.precision():
                frames_THWC = to_pixels(self.stream.decode(denoised.chunk))[0]
            self._last_frame_HWC = frames_THWC[-1]
            now = time.perf_counter()
            self.stream.timing.note(denoised.seconds + now - begin)
            self._evaluations.append(slot.evaluations)
            if any(name == "prompt.applied" for name, _ in slot.events):
                self._prompt_delays.append(now - slot.prompt.since)
            if any(name == "speech.started" for name, _ in slot.events):
                self._speech_delays.append(now - slot.said_at)
        number = denoised.number
        events = tuple(SessionEvent(name, number, MappingProxyType(data)) for name, data in slot.events)
        prompt, start = slot.prompt, number * self.chunk_seconds
        return MediaChunk(number, frames_THWC, slot.samples, prompt.state, prompt.text, start, events=events, turn=denoised.turn, spoken=slot.spoken)

    def hand_out(self, chunk: MediaChunk) -> MediaChunk:
        """The chunk as it is played: silent if it was interrupted after it was made, and without a click where speech was cut."""
        with self._lock:
            stale = chunk.turn != self.turn
            samples = np.zeros_like(chunk.samples) if stale else chunk.samples
            if self._heard_turn != self.turn:
                samples = samples.copy()
                samples[:FADE_SAMPLES] += self._last_sample * np.linspace(1.0, 0.0, FADE_SAMPLES, dtype=np.float32)
            self._heard_turn, self._last_sample = self.turn, float(samples[-1])
            if not stale:
                types = [event.type for event in chunk.events]
                self._played = chunk.spoken + (0 if "speech.started" in types else self._played)
                self._playing = (self._playing or "speech.started" in types) and types[-1:] != ["speech.finished"]
        return replace(chunk, samples=samples, spoken=0 if stale else chunk.spoken)

    def held_chunk(self, index: int, events: tuple[SessionEvent, ...] = ()) -> MediaChunk:
        """The last picture standing still in silence, for a moment whose chunk is late."""
        frames_THWC = np.broadcast_to(self._last_frame_HWC, (self.num_chunk_frames, *self._last_frame_HWC.shape))
        silent, prompt = np.zeros(self.num_chunk_samples, np.float32), self._prompt
        return MediaChunk(index, frames_THWC, silent, prompt.state, prompt.text, index * self.chunk_seconds, True, events, self.turn)

    def use_micro_steps(self, micro_steps: int) -> None:
        """Evaluate M times per stair from the next chunk on."""
        with self._lock:
            self._micro_steps = micro_steps

    @property
    def micro_steps(self) -> int:
        """M, from the next chunk on."""
        return self._micro_steps

    def close(self) -> None:
        """End the session. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            if self._conversation is not None:
                self._conversation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[MediaChunk]:
        while not self._closed:
            yield self.next_chunk()

    async def __aiter__(self) -> AsyncIterator[MediaChunk]:
        """As fast as they can be made, without holding up other coroutines; `LiveStream` keeps to the clock."""
        while not self._closed:
            yield await asyncio.to_thread(self.next_chunk)

    # ---- what is known about it ----

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def chunk_seconds(self) -> float:
        """Playing time of a chunk."""
        return self.num_chunk_frames / FRAMES_PER_SECOND

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.pipeline.picture_size

    @property
    def budget(self) -> LatencyBudget:
        """What this session's geometry costs in time."""
        return replace(self.pipeline.latency_budget, at_once=self.at_once, micro_steps=self.micro_steps)

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures so far. Times are wall time; NaN where nothing was measured yet."""
        timing = self.stream.timing
        return {
            "ttff_seconds": timing.first_frame_seconds,
            "chunk_ms": percentiles(np.array(timing.chunk_seconds) * 1e3),
            "frames_per_second": self.stream.frames_per_second,
            "evaluations_per_chunk": float(np.mean(self._evaluations)) if self._evaluations else float("nan"),
            "evaluations_per_step": self.stream.evaluations / max(self.stream.steps, 1),
            "refinements": self.stream.watch.refinements,
            "refinement_evaluations": self.stream.watch.evaluations,
            "num_chunks": self._finished,
            "queued_seconds": self._queue.seconds,
            "prompt_to_motion_seconds": float(np.mean(self._prompt_delays)) if self._prompt_delays else float("nan"),
            "speech_to_frames_seconds": float(np.mean(self._speech_delays)) if self._speech_delays else float("nan"),
        }

    # ---- within a step ----

    @property
    def _next_number(self) -> int:
        """Of the first chunk on which something that is set now takes effect."""
        return self._finished if self.at_once else self._entered + self.lead_chunks

    def _open_slot(self) -> _Slot:
        return _Slot(np.zeros(0, np.float32), self._prompt)

    def _fill(self, slot: _Slot, flush: bool) -> None:
        """Give a chunk its sound: what was pushed, then silence. Less than it needs is taken only if it has waited (`flush`)."""
        room = self.num_chunk_samples - slot.spoken
        taken = self._queue.take(room) if flush or len(self._queue) >= room else np.zeros(0, np.float32)
        if len(taken):
            slot.said_at = slot.said_at or self._pushed_at
            slot.features_FAD = None
        slot.samples = np.concatenate([slot.samples[: slot.spoken], taken, np.zeros(room - len(taken), np.float32)])
        slot.spoken += len(taken)

    def _apply_behaviour(self, open_slots: list[_Slot]) -> None:
        """Ask the planner, and note a prompt that is new."""
        if self._conversation is not None:
            user = self._user.take(len(self._user))
            heard = Heard(open_slots[-1].samples, self._queue.seconds, user, self._next_number * self.chunk_seconds, self._interrupted)
            behaviour: Behaviour = self._conversation.hear(heard)
            self._interrupted = False
            if not self._pinned and (behaviour.text, behaviour.state) != (self._prompt.text, self._prompt.state):
                self._prompt = self._encoded(behaviour.text, behaviour.state)
        if open_slots[0].prompt is not self._prompt or self._prompt is not self._applied:
            self._changed = self.at_once and self._applied is not None
            self._applied = self._prompt
            open_slots[0].events.append(("prompt.applied", {"text": self._prompt.text, "state": self._prompt.state}))
        for slot in open_slots:
            slot.prompt = self._prompt

    def _conditions(self) -> list[tuple[Tensor, Tensor]]:
        """(audio_BFAD, text_BLD) of every chunk in the stream, from the sound around it."""
        audio, device = self.pipeline.audio, self.pipeline.device
        ahead = self._queue.peek(audio.lookahead_frames * SAMPLES_PER_FRAME)
        ahead = np.pad(ahead, (0, audio.lookahead_frames * SAMPLES_PER_FRAME - len(ahead)))
        line = np.concatenate([self._past, *(slot.samples for slot in self._slots), ahead])
        changed, pairs = False, []
        for k, slot in enumerate(self._slots):
            changed = changed or slot.features_FAD is None  # the past of all that follow
            if changed:
                window = line[k * self.num_chunk_samples :][: len(self._past) + self.num_chunk_samples + len(ahead)]
                features_TD = audio.encode(torch.from_numpy(np.ascontiguousarray(window)))
                run = features_TD[audio.context_frames :][: self.num_chunk_frames]
                slot.features_FAD = run.view(self.pipeline.chunk_frames, self.pipeline.autoencoder.temporal_stride, -1)
            assert slot.features_FAD is not None
            pairs.append((slot.features_FAD[None].to(device), slot.prompt.features_LD[None].to(device)))
        return pairs

    def _note_speech(self, slot: _Slot) -> None:
        """Where speech begins and ends among the chunks that leave."""
        slot.events, self._waiting_events = [*self._waiting_events, *slot.events], []
        if slot.spoken and not self._speaking:
            self._speaking, self._speech_position = True, 0
            slot.events.append(("speech.started", {}))
        if self._speaking:
            self._speech_position += slot.spoken
            more = len(self._queue) or any(later.spoken for later in self._slots)
            if not more:
                slot.events.append(("speech.finished", {"position": self._speech_position / SAMPLE_RATE, "interrupted": False}))
                self._speaking = False

    def _encoded(self, text: str, state: str) -> _Prompt:
        if text not in self._known:
            self._known[text] = self.pipeline.text.encode([text])[0]
            if len(self._known) > KEPT_PROMPTS:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return _Prompt(text, state, self._known[text], time.perf_counter())

    def _checked(self, picture: Tensor) -> Tensor:
        if tuple(picture.shape) != (3, *self.pipeline.picture_size):
            height, width = self.pipeline.picture_size
            raise UserError(f"the picture is {tuple(picture.shape)}, this model takes (3, {height}, {width}); load it with load_picture(path, size)")
        return picture

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("the session is closed; open another one")

"""A conversation whose motion prompts a language model writes, on a thread of its own, over a state machine that never waits for it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, final

import numpy as np

from flowact.planning import Behaviour, Conversation, Heard
from flowact.planning.base import Speaker, chunk_samples, finite, fitted, state_phase
from flowact.types import SAMPLE_RATE
from flowact_llm_planner.answer import Advice, RefusedAnswer, read_answer
from flowact_llm_planner.endpoint import ChatEndpoint, QuestionFailed
from flowact_llm_planner.question import Direction, Notes

log = logging.getLogger(__name__)

SOUND_SAMPLES = 4 * SAMPLE_RATE
NUM_UTTERANCES = 12
LONGEST_UTTERANCE = 300
NUM_PROMPTS = 6
INTERRUPTED_SECONDS = 3.0
LONGEST_PAUSE = 60.0
WHO: Mapping[Speaker, str] = {"character": "person", "user": "partner"}


@dataclass(frozen=True)
class Schedule:
    """When a language model is asked.

    Attributes:
        every_seconds: of the stream, while nothing changes; a change of state is asked about at once.
        keep_seconds: of the stream, for which an answer counts.
        interval_seconds: real time between two requests, retries among them.
        retries: of a question whose failure may pass.
        backoff_seconds: before the first retry, doubled for each one; and after each failed question, doubled up to `LONGEST_PAUSE`.
    """

    every_seconds: float
    keep_seconds: float
    interval_seconds: float
    retries: int
    backoff_seconds: float


@dataclass(frozen=True)
class Counts:
    """What became of the questions of a conversation.

    Attributes:
        asked: questions.
        answered: with advice that could be used.
        refused: with an answer that broke a rule.
        failed: without an answer.
        retried: requests that were sent again.
    """

    asked: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    retried: int = 0


@dataclass(frozen=True)
class _Given:
    """Advice, when it was asked for and in which run of a state."""

    advice: Advice
    seconds: float
    run: int


@final
class LanguageModelConversation(Conversation):
    """Does what the fallback does, in the words of the language model where these fit.

    The fallback decides who speaks: advice to speak waits until own speech is there, and own speech drops all other advice. Other states of
    the advice hold while the fallback's own does not change; reactions are always the fallback's, for they are over before an answer comes.

    Args:
        fallback: conversation of the planner that is wrapped.
        endpoint: the language model.
        direction: what it is told each time.
        request: fields of each request beside the messages.
        schedule: when to ask.
        chunk_frames: video frames of a chunk.
    """

    def __init__(
        self, fallback: Conversation, endpoint: ChatEndpoint, direction: Direction, request: Mapping[str, Any], schedule: Schedule, chunk_frames: int
    ) -> None:
        self._fallback = fallback
        self._endpoint = endpoint
        self._direction = direction
        self._request = request
        self._schedule = schedule
        self._length = chunk_samples(chunk_frames)
        # of the thread that hears
        self._seconds = 0.0
        self._state = ""
        self._run = 0
        self._run_seconds = 0.0
        self._interrupted_at = -np.inf
        self._own_S = self._user_S = np.zeros(0, np.float32)
        self._prompts: deque[str] = deque(maxlen=NUM_PROMPTS)
        self._asked_state, self._asked_at = "", -np.inf
        # shared, under the condition
        self._condition = threading.Condition()
        self._transcript: deque[tuple[str, str]] = deque(maxlen=NUM_UTTERANCES)
        self._question: tuple[Notes, float, int] | None = None
        self._given: _Given | None = None
        self._counts = Counts()
        self._not_before = -np.inf
        self._closed = threading.Event()
        # of the thread that asks
        self._failures = 0
        self._thread = threading.Thread(target=self._work, name="flowact-llm-planner", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """What became of the questions so far."""
        with self._condition:
            return self._counts

    def hear(self, heard: Heard) -> Behaviour:
        """See `Conversation.hear`. Waits for no answer: one that has come is used, and where none has, the fallback's own behaviour."""
        own = self._fallback.hear(heard)
        self._note(heard, own)
        with self._condition:
            done = self._advised(own)
            if self._question is None and not self._closed.is_set() and self._is_due(own.state):
                self._question = (self._notes(heard, own), self._seconds, self._run)
                self._asked_state, self._asked_at = own.state, self._seconds
                self._counts = replace(self._counts, asked=self._counts.asked + 1)
                self._condition.notify_all()
        if not self._prompts or self._prompts[-1] != done.text:
            self._prompts.append(done.text)
        return done

    def tell(self, speaker: Speaker, text: str) -> None:
        """See `Conversation.tell`. The last utterances are told to the language model; may be called from any thread."""
        if speaker not in WHO:
            raise ValueError(f"a speaker is {' or '.join(WHO)}, got {speaker!r}")
        words = " ".join("".join(character if character.isprintable() else " " for character in text).split())
        with self._condition:
            if words:
                self._transcript.append((WHO[speaker], words[-LONGEST_UTTERANCE:]))
        self._fallback.tell(speaker, text)

    def settle(self, seconds: float) -> bool:
        """Wait until no question is under way, for at most so long; whether none is. For tests and demonstrations, never in a stream."""
        with self._condition:
            return self._condition.wait_for(lambda: self._question is None, seconds)

    def close(self) -> None:
        """See `Conversation.close`. An answer that is under way is not waited for."""
        if self._closed.is_set():
            return
        with self._condition:
            self._closed.set()
            self._condition.notify_all()
            counts = self._counts
        log.info(
            "language model planner: %d questions, %d answered, %d refused, %d failed, %d requests sent again",
            *(counts.asked, counts.answered, counts.refused, counts.failed, counts.retried),
        )
        self._fallback.close()

    # --- the thread that hears

    def _note(self, heard: Heard, own: Behaviour) -> None:
        chunk_seconds = self._length / SAMPLE_RATE
        self._seconds += chunk_seconds
        self._run_seconds += chunk_seconds
        if own.state != self._state:
            self._state, self._run, self._run_seconds = own.state, self._run + 1, chunk_seconds
        if heard.interrupted:
            self._interrupted_at = self._seconds
        user = finite(np.asarray(heard.user).ravel()[-SOUND_SAMPLES:])
        self._own_S = np.concatenate([self._own_S, fitted(heard.speech, self._length)])[-SOUND_SAMPLES:]
        self._user_S = np.concatenate([self._user_S, user if user.size else np.zeros(self._length, np.float32)])[-SOUND_SAMPLES:]

    def _is_due(self, state: str) -> bool:
        changed = state != self._asked_state
        return (changed or self._seconds - self._asked_at >= self._schedule.every_seconds) and monotonic() >= self._not_before

    def _notes(self, heard: Heard, own: Behaviour) -> Notes:
        return Notes(
            phase=own.phase,
            phase_seconds=self._run_seconds,
            queued_seconds=heard.queued_seconds if np.isfinite(heard.queued_seconds) else 0.0,
            interrupted=self._seconds - self._interrupted_at < INTERRUPTED_SECONDS,
            own_S=self._own_S,
            user_S=self._user_S,
            transcript=tuple(self._transcript),
            prompts=tuple(self._prompts),
        )

    def _advised(self, own: Behaviour) -> Behaviour:
        """The fallback's behaviour, or the advice where it fits."""
        given = self._given
        if given is None or own.phase == "reacting" or self._seconds - given.seconds > self._schedule.keep_seconds:
            return own
        advice = given.advice
        if advice.state == own.state:
            return Behaviour(own.state, advice.text, own.phase)
        if "speaking" not in (advice.state, own.state) and given.run == self._run:
            return Behaviour(advice.state, advice.text, state_phase(advice.state))
        return own

    # --- the thread that asks

    def _work(self) -> None:
        while not self._closed.is_set():
            with self._condition:
                self._condition.wait_for(lambda: self._closed.is_set() or self._question is not None)
                if self._question is None or self._closed.is_set():
                    break
                notes, seconds, run = self._question
            advice = self._ask(notes)
            with self._condition:
                if advice is not None:
                    self._given = _Given(advice, seconds, run)
                self._question = None
                self._condition.notify_all()
        self._endpoint.close()

    def _ask(self, notes: Notes) -> Advice | None:
        """Advice, or none if there is none to be had. A failure pauses the questions, longer each time."""
        try:
            request = {**self._request, "messages": self._direction.messages(notes)}
            advice = self._answer(request)
        except RefusedAnswer as error:
            self._failed(f"its answer is refused: {error}", refused=1)
            return None
        except QuestionFailed as error:
            self._failed(str(error), failed=1, wait_seconds=error.wait_seconds)
            return None
        except Exception as error:  # whatever it is, the stream goes on; its text may hold what was asked
            self._failed(type(error).__name__, failed=1)
            return None
        if advice is not None:
            self._count(answered=1)
            if self._failures:
                log.info("the language model answers again, after %d questions without", self._failures)
            self._failures = 0
        return advice

    def _answer(self, request: Mapping[str, Any]) -> Advice | None:
        """Ask, and ask again where that may help. None if the conversation is closed meanwhile.

        Raises:
            RefusedAnswer: an answer broke a rule.
            QuestionFailed: no answer.
        """
        for attempt in range(self._schedule.retries + 1):
            if self._closed.wait(max(self._not_before - monotonic(), 0.0)):
                return None
            self._pause(self._schedule.interval_seconds)
            try:
                return read_answer(self._endpoint.ask(request), self._direction.longest_prompt)
            except QuestionFailed as error:
                wait = max(self._schedule.backoff_seconds * 2**attempt, error.wait_seconds)
                if not error.transient or attempt == self._schedule.retries or wait > self._schedule.keep_seconds:
                    raise
                self._pause(wait)
                self._count(retried=1)
        return None

    def _failed(self, reason: str, wait_seconds: float = 0.0, **counted: int) -> None:
        self._failures += 1
        pause = max(min(self._schedule.backoff_seconds * 2 ** min(self._failures, 20), LONGEST_PAUSE), wait_seconds)
        self._pause(pause)
        self._count(**counted)
        if self._failures == 1 and not self._closed.is_set():
            log.warning("the language model gives no advice (%s); its fallback plans alone, asked again in %.1f s", reason, pause)

    def _pause(self, seconds: float) -> None:
        """No request before so long."""
        with self._condition:
            self._not_before = max(self._not_before, monotonic() + seconds)

    def _count(self, **more: int) -> None:
        with self._condition:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + value for name, value in more.items()})

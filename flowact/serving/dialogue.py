"""Talking to the character: what a person says becomes turns, turns become answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from flowact.errors import UserError
from flowact.serving.announcements import ResponseCreated, ResponseDone, ServerEvent, SpeechStarted, SpeechStopped
from flowact.serving.events import TurnDetection
from flowact.serving.limits import Limits
from flowact.serving.listening import TurnDetector, TurnEnded, TurnStarted
from flowact.serving.responders import Responder
from flowact.types import SAMPLE_RATE

log = logging.getLogger(__name__)
Result = TypeVar("Result")
SHORTEST_TURN_SECONDS = 0.2


class Dialogue:
    """One conversation. For one event loop; the responder runs on threads.

    Args:
        responder: answers.
        speak: takes the answer, mono float32 at 16 kHz; called on a thread.
        interrupt: stops what is being spoken, returns seconds of it; called on a thread.
        announce: tells the clients.
        limits: of turns and answers.
        thinking_seconds: the character thinks at least so long.
        patience_seconds: an answer that takes longer is given up.
    """

    def __init__(
        self,
        responder: Responder,
        speak: Callable[[np.ndarray], Any],
        interrupt: Callable[[], float],
        announce: Callable[[ServerEvent], None],
        limits: Limits,
        thinking_seconds: float = 1.5,
        patience_seconds: float = 60.0,
    ) -> None:
        self.speaking = False  # whether the character is heard; the session keeps it
        self._responder, self._speak, self._interrupt, self._announce = responder, speak, interrupt, announce
        self._limits = limits
        self._thinking_seconds, self._patience_seconds = thinking_seconds, patience_seconds
        self._answering: asyncio.Task[None] | None = None
        self._detection = TurnDetection()
        self._turns = self._new_turns()

    @property
    def detection(self) -> TurnDetection:
        """How turns are found."""
        return self._detection

    @detection.setter
    def detection(self, detection: TurnDetection) -> None:
        self._detection = detection
        self._turns.silence_seconds = detection.silence_duration_ms / 1000

    def _new_turns(self) -> TurnDetector:
        return TurnDetector(self._detection.silence_duration_ms / 1000, longest_seconds=self._limits.turn_seconds)

    async def hear(self, samples: np.ndarray) -> None:
        """More of what the person says."""
        for found in self._turns.hear(samples, find_end=self._detection.type == "server_vad"):
            if isinstance(found, TurnStarted):
                self._announce(SpeechStarted(audio_start_ms=round(found.seconds * 1000)))
                if self._detection.interrupt_response:
                    await self.cancel()
            else:
                self._finish(found)

    def commit(self) -> float:
        """The turn ends now; seconds that were heard."""
        if self._detection.type == "server_vad" and not self._turns.speaking:
            self._turns.clear()  # nobody said anything
            return 0.0
        turn = self._turns.end()
        self._finish(turn)
        return len(turn.samples) / SAMPLE_RATE

    def forget(self) -> None:
        """What was heard of this turn is not answered."""
        self._turns.clear()

    async def cancel(self) -> float:
        """No answer is awaited any more, and what is spoken ends; seconds of it that were heard."""
        waiting = self._answering is not None and not self._answering.done()
        if waiting and self._answering is not None:
            self._answering.cancel()
        return await asyncio.to_thread(self._interrupt) if waiting or self.speaking else 0.0

    def _finish(self, turn: TurnEnded) -> None:
        self._announce(SpeechStopped(audio_end_ms=round(turn.seconds * 1000)))
        if len(turn.samples) < SHORTEST_TURN_SECONDS * SAMPLE_RATE:
            return
        if self._answering is not None:
            self._answering.cancel()
        self._answering = asyncio.create_task(self._answer(turn.samples))

    async def _answer(self, heard: np.ndarray) -> None:
        name = f"resp_{secrets.token_hex(6)}"
        self._announce(ResponseCreated(response_id=name))
        try:
            thought = asyncio.create_task(asyncio.sleep(self._thinking_seconds))
            answer = await asyncio.wait_for(on_daemon_thread(self._responder.respond, heard), self._patience_seconds)
            await thought
            speech = np.asarray(answer, np.float32).reshape(-1)[: round(self._limits.answer_seconds * SAMPLE_RATE)]
            if speech.size:
                self.speaking = True  # from now on it can be interrupted, although it is heard later
                await asyncio.to_thread(self._speak, speech)
            status = "completed" if speech.size else "silent"
            self._announce(ResponseDone(response_id=name, status=status, seconds=len(speech) / SAMPLE_RATE))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            self._announce(ResponseDone(response_id=name, status="cancelled"))
            raise
        except TimeoutError:
            log.warning("the responder gave no answer within %g s", self._patience_seconds)
            self._announce(ResponseDone(response_id=name, status="failed"))
        except UserError as error:  # the session has ended, or has too much to say already
            log.info("an answer was not spoken: %s", error)
            self._announce(ResponseDone(response_id=name, status="failed"))
        except Exception:
            log.exception("the responder failed")
            self._announce(ResponseDone(response_id=name, status="failed"))

    def close(self) -> None:
        """Stop answering."""
        if self._answering is not None:
            self._answering.cancel()


async def on_daemon_thread(call: Callable[..., Result], *args: Any) -> Result:
    """The result of a call that may block for ever: nothing waits for its thread, not even the end of the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call(*args)
        except Exception as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="flowact-responder", daemon=True).start()
    return await future

"""How much a client may send, and how long it may stay. Everything that comes from outside is counted here before anything else looks at it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowact.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. All are per session or per connection unless said otherwise.

    Args:
        max_sessions: characters that move at the same time, of all clients together.
        max_waiting: sessions in the queue, of all clients together; more are refused.
        message_bytes: one WebSocket message or HTTP body.
        text_bytes: one JSON event.
        json_depth: nesting of a JSON event.
        json_values: objects, arrays and members in a JSON event.
        messages_per_second: in the long run.
        message_burst: messages at once.
        audio_rate: seconds of sound per second, in the long run.
        audio_burst_seconds: seconds of sound at once.
        queued_seconds: speech that waits to be spoken; more is refused.
        turn_seconds: of what a person says in one turn; the rest is not kept for the answer.
        answer_seconds: of an answer; the rest is cut.
        prompt_characters: of a prompt.
        prompts_per_second: prompts and states, in the long run; five at once.
        picture_bytes: of a reference picture as a file.
        picture_pixels: of a reference picture.
        pictures_per_second: in the long run; three at once.
        created_per_second: new sessions from one address, in the long run; ten at once.
        violations: broken rules in a row before a connection is closed; one is forgiven every two seconds.
        outbox_chunks: chunks kept for a client that reads too slowly; older ones are dropped.
        send_seconds: a client that takes no byte for so long is dropped.
        unclaimed_seconds: a new session that nobody connects to is closed.
        absent_seconds: a session whose last client has left is closed; time to reload a page.
        idle_seconds: a session of which nobody has sent anything is closed.
        heartbeat_seconds: between pings; a client that does not answer one within this time is gone.

    Raises:
        UserError: a bound that is not above 0.
    """

    max_sessions: int = 1
    max_waiting: int = 16
    message_bytes: int = 4 * 2**20 + 1024
    text_bytes: int = 2**20
    json_depth: int = 8
    json_values: int = 512
    messages_per_second: float = 100.0
    message_burst: int = 300
    audio_rate: float = 2.0
    audio_burst_seconds: float = 30.0
    queued_seconds: float = 120.0
    turn_seconds: float = 30.0
    answer_seconds: float = 60.0
    prompt_characters: int = 500
    prompts_per_second: float = 2.0
    picture_bytes: int = 4 * 2**20
    picture_pixels: int = 25_000_000
    pictures_per_second: float = 0.5
    created_per_second: float = 1.0
    violations: int = 20
    outbox_chunks: int = 6
    send_seconds: float = 20.0
    unclaimed_seconds: float = 20.0
    absent_seconds: float = 6.0
    idle_seconds: float = 900.0
    heartbeat_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"{name} {value}: a limit is above 0")


class Refusal(Exception):
    """What a client sent is not taken. It is told why and may go on.

    Args:
        code: for programs, in lower case with underscores.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Bucket:
    """Token bucket: `rate` per second in the long run, `burst` at once.

    Args:
        rate: tokens per second.
        burst: most tokens that are kept.
        clock: seconds that never go back.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._tokens = burst
        self._then = clock()

    def take(self, amount: float = 1.0) -> bool:
        """Take tokens; False, and nothing is taken, where there are too few."""
        now = self._clock()
        self._tokens = min(self.burst, self._tokens + (now - self._then) * self.rate)
        self._then = now
        if amount > self._tokens:
            return False
        self._tokens -= amount
        return True

    @property
    def full(self) -> bool:
        """Whether the bucket says nothing about the past any more."""
        return self._tokens + (self._clock() - self._then) * self.rate >= self.burst


def parse_json(text: str | bytes, limits: Limits) -> dict[str, Any]:
    """A JSON object of bounded size, depth and number of values; without NaN, infinities and repeated keys.

    Brackets and commas are counted before anything is parsed, so that a message of a million brackets costs no memory.

    Raises:
        Refusal: it is none of this.
    """
    size = len(text.encode(errors="replace")) if isinstance(text, str) else len(text)
    if size > limits.text_bytes:
        raise Refusal("event_too_large", f"an event of {size} bytes; at most {limits.text_bytes} are taken, send pictures and sound as binary frames")
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    if raw.count(b"{") + raw.count(b"[") + raw.count(b",") > limits.json_values:
        raise Refusal("event_too_complex", f"an event with more than {limits.json_values} values")
    try:
        value = json.loads(raw, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal("invalid_json", f"not JSON as it is taken here: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise Refusal("invalid_json", f"an event is a JSON object, got {type(value).__name__}")
    if _depth(value) > limits.json_depth:
        raise Refusal("event_too_complex", f"an event nested deeper than {limits.json_depth}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max((_depth(child) for child in children), default=0)

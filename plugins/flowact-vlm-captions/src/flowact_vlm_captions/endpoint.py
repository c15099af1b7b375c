"""A chat-completions endpoint that may be slow, busy or gone: limits on time and size, and patience. Keys and answers never reach a message."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from flowact.errors import UserError

PATH = "/chat/completions"
LARGEST_ANSWER = 1 << 16  # bytes
LONGEST_WAIT = 60.0  # seconds between two tries
THOUGHT_ENDS = "</think>"


class AskingFailed(Exception):
    """There is no answer, or none that can be used.

    Args:
        reason: safe to show.
        passing: whether asking again may help.
        wait_seconds: that the server asks for.
    """

    def __init__(self, reason: str, passing: bool, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.passing = passing
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often to try.

    Attributes:
        timeout_seconds: of one whole answer.
        retries: after a failure that may pass: no connection, no answer in time, status 408, 429 or 5xx.
        backoff_seconds: before the first of them, doubled for each; a server's Retry-After goes first. A minute at most.
    """

    timeout_seconds: float = 60.0
    retries: int = 4
    backoff_seconds: float = 1.0


def chat_url(endpoint: str) -> str:
    """The address of the chat completions of an endpoint such as http://127.0.0.1:8000/v1.

    Raises:
        UserError: not http or https, no host, or a part that may hold a secret.
    """
    rule = "give an address such as http://127.0.0.1:8000/v1"
    if re.search(r"[\s\x00-\x1f\x7f\\]", endpoint):
        raise UserError(f"VlmCaptions: the endpoint holds spaces or control characters; {rule}")
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"VlmCaptions: the endpoint is no address ({error}); {rule}") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # what stands there may be a key, so it is not repeated
        raise UserError(f"VlmCaptions: the endpoint holds a user, a password, a query or a fragment; {rule}, and the key's variable as key_variable")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"VlmCaptions: endpoint {endpoint!r} is no http or https address with a host; {rule}")
    base = endpoint.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


class ChatEndpoint:
    """Asks one question at a time. Follows no redirects.

    Args:
        url: see `chat_url`.
        key: sent as bearer token; none if empty.
        patience: see `Patience`.
    """

    def __init__(self, url: str, key: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        # an answer that is not compressed can not grow while it is read
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.client = httpx.Client(headers=headers, timeout=patience.timeout_seconds, follow_redirects=False)

    def ask(self, request: Mapping[str, Any]) -> str:
        """The words of the answer, thoughts left out, on one line.

        Raises:
            AskingFailed: after the last try.
        """
        pause = self.patience.backoff_seconds
        for attempt in range(self.patience.retries + 1):
            try:
                return read_answer(self._post(request))
            except AskingFailed as failure:
                if not failure.passing or attempt == self.patience.retries:
                    raise
                time.sleep(min(max(failure.wait_seconds, pause), LONGEST_WAIT))
                pause *= 2
        raise AssertionError("the loop returns or raises")

    def _post(self, request: Mapping[str, Any]) -> bytes:
        deadline, body = time.monotonic() + self.patience.timeout_seconds, bytearray()
        late = AskingFailed(f"no whole answer in {self.patience.timeout_seconds:g} s", passing=True)
        try:
            with self.client.stream("POST", self.url, json=dict(request)) as response:
                status = response.status_code
                if status != httpx.codes.OK:
                    passing = status in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS) or status >= 500
                    wait = response.headers.get("Retry-After", "")
                    raise AskingFailed(f"the server answers with status {status}", passing, float(wait) if re.fullmatch(r"\d{1,4}", wait) else 0.0)
                for part in response.iter_raw():
                    body += part
                    if len(body) > LARGEST_ANSWER:
                        raise AskingFailed(f"the answer is longer than {LARGEST_ANSWER} bytes", passing=False)
                    if time.monotonic() > deadline:  # the client's own limit is for each read
                        raise late
        except httpx.TimeoutException as error:
            raise late from error
        except httpx.TransportError as error:
            raise AskingFailed(f"no connection ({type(error).__name__})", passing=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise AskingFailed(type(error).__name__, passing=False) from error
        return bytes(body)


def read_answer(body: bytes) -> str:
    """The message in the body of a chat completion, as one line of printable characters.

    Raises:
        AskingFailed: no chat completion, a refusal, or no words.
    """
    try:
        message = json.loads(body)["choices"][0]["message"]
        content = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise AskingFailed("the answer is no chat completion", passing=False) from error
    if isinstance(content, list):  # parts
        content = " ".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    if message.get("refusal") or not isinstance(content, str):
        raise AskingFailed("the model refuses to answer", passing=False)
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in content.rpartition(THOUGHT_ENDS)[2]).split())
    words = words.strip("\"'` ")
    if not words:
        raise AskingFailed("the answer is empty", passing=False)
    return words

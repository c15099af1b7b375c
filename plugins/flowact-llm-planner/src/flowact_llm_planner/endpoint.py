"""One question to a chat-completions endpoint, with limits on time and size. Keys and answers never reach a message."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from flowact.errors import UserError

PATH = "/chat/completions"
LONGEST_ANSWER_BYTES = 1 << 16
LONGEST_RETRY_AFTER = 60.0


class QuestionFailed(Exception):
    """No answer.

    Args:
        reason: why, safe to log.
        transient: whether asking again may help.
        wait_seconds: how long the server asks to wait.
    """

    def __init__(self, reason: str, transient: bool, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.transient = transient
        self.wait_seconds = wait_seconds


def checked_url(endpoint: str) -> str:
    """The address of the chat completions of an endpoint such as http://127.0.0.1:8000/v1.

    Raises:
        UserError: not http or https, no host, or something that may hold a secret: user, password, query or fragment.
    """
    rule = "give an address such as https://host/v1"
    if re.search(r"[\s\x00-\x1f\x7f\\]", endpoint):
        raise UserError(f"endpoint {endpoint!r} holds spaces, control characters or backslashes; {rule}")
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"endpoint is no address ({error}); {rule}") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # not repeated: what stands there may be a key
        raise UserError(f"the endpoint holds a user, a password, a query or a fragment; {rule} and name the variable of the key by key_variable")
    if parts.scheme not in {"http", "https"} or not host:
        raise UserError(f"endpoint {endpoint!r} is no http or https address with a host; {rule}")
    base = endpoint.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


class ChatEndpoint:
    """Asks a language model. Follows no redirects and reads no more than `LONGEST_ANSWER_BYTES`.

    Args:
        endpoint: address, see `checked_url`.
        key: sent as bearer token; none if empty.
        timeout_seconds: for a whole answer.

    Raises:
        UserError: see `checked_url`.
    """

    def __init__(self, endpoint: str, key: str, timeout_seconds: float) -> None:
        self._url = checked_url(endpoint)
        self._timeout = timeout_seconds
        # an answer that is not compressed cannot grow when it is read
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = httpx.Client(headers=headers, timeout=timeout_seconds, follow_redirects=False)

    def ask(self, request: Mapping[str, Any]) -> bytes:
        """The body of the answer to a chat-completions request.

        Raises:
            QuestionFailed: no connection, no answer in time, a status that is no success, or an answer that is too long.
        """
        deadline = time.monotonic() + self._timeout
        body = bytearray()
        try:
            with self._client.stream("POST", self._url, json=dict(request)) as response:
                if response.status_code != httpx.codes.OK:
                    transient = response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.status_code >= 500
                    raise QuestionFailed(f"status {response.status_code}", transient, _retry_after(response.headers.get("Retry-After", "")))
                for part in response.iter_raw():
                    body += part
                    if len(body) > LONGEST_ANSWER_BYTES:
                        raise QuestionFailed(f"the answer is longer than {LONGEST_ANSWER_BYTES} bytes", transient=False)
                    if time.monotonic() > deadline:  # the client's own timeout is for each read
                        raise QuestionFailed(f"no whole answer in {self._timeout:g} s", transient=True)
        except httpx.TimeoutException as error:
            raise QuestionFailed(f"no answer in {self._timeout:g} s", transient=True) from error
        except httpx.TransportError as error:
            raise QuestionFailed(f"no connection: {type(error).__name__}", transient=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise QuestionFailed(type(error).__name__, transient=False) from error
        return bytes(body)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header, no more than `LONGEST_RETRY_AFTER`."""
    try:
        seconds = float(value) if re.fullmatch(r"\d{1,9}", value.strip()) else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)

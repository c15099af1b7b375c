"""The planner: its options, checked before anything is asked."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from flowact.errors import UserError
from flowact.planning import ConversationPlanner, LivePlanner, Planner, SpeechActivityPlanner, TimedPrompt
from flowact.planning.captions import DEFAULT_CAPTIONS
from flowact.types import STATES
from flowact_llm_planner.conversation import LanguageModelConversation, Schedule
from flowact_llm_planner.endpoint import ChatEndpoint, checked_url
from flowact_llm_planner.question import Direction

LONGEST_PROMPT = 400
LARGEST_PICTURE = 4 << 20
PICTURES = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))
#: fields of a request that are not the user's to set
OWN_FIELDS = ("model", "messages", "stream", "n")


@final
class LanguageModelPlanner(LivePlanner):
    """Motion prompts of a live conversation by a language model behind an OpenAI-compatible endpoint.

    FlowAct-R1's action planning: every few seconds, and when the state changes, the model is told who is heard and how, what was said, who is
    seen and what was prompted lately, and answers with a state and a prompt. It is asked in the background. Until an answer comes, and whenever
    none comes or it breaks a rule, the fallback's behaviour is shown; who speaks is always the fallback's word.

    A soundtrack of a file is planned by the fallback alone, so that it has the same plan each time.

    Args:
        endpoint: address up to its version, such as http://127.0.0.1:8000/v1; /chat/completions is added.
        model: name of the model there.
        fallback: planner that is always there; none makes it a ConversationPlanner.
        key_variable: name of the environment variable that holds the API key; empty sends none.
        person: who is seen, in words.
        picture: PNG or JPEG file that is sent with each question, for models that see; empty sends none.
        sends_sound: send the latest 4 s of each voice with each question, for models that hear.
        every_seconds: between two questions while nothing changes.
        keep_seconds: for which an answer counts.
        timeout_seconds: for an answer.
        retries: of a question whose failure may pass.
        backoff_seconds: before the first retry and after the first failure; doubles.
        requests_per_minute: at most.
        longest_prompt: characters of a prompt; longer ones are refused.
        temperature: of the model.
        max_tokens: of an answer.
        extra: further fields of a request, such as {response_format: {type: json_object}}.

    Raises:
        UserError: an endpoint that is no http or https address, or holds a secret; a name, number, field or picture that cannot be; and when a
            conversation begins, a key that is not set.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        fallback: Planner | None = None,
        key_variable: str = "",
        person: str = "",
        picture: str = "",
        sends_sound: bool = False,
        every_seconds: float = 4.0,
        keep_seconds: float = 12.0,
        timeout_seconds: float = 5.0,
        retries: int = 1,
        backoff_seconds: float = 0.5,
        requests_per_minute: float = 30.0,
        longest_prompt: int = 200,
        temperature: float = 0.7,
        max_tokens: int = 300,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint = checked_url(endpoint)
        if not model.strip():
            raise UserError(f"model {model!r} has no name; give one that the endpoint serves")
        if key_variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_variable):
            # not repeated: it may be the key itself
            raise UserError(
                "key_variable is the name of an environment variable, such as OPENAI_API_KEY, and not the key; set the variable to the key"
            )
        for name, value in (("every_seconds", every_seconds), ("keep_seconds", keep_seconds), ("timeout_seconds", timeout_seconds)):
            _check(name, value, value > 0, "more than 0")
        _check("requests_per_minute", requests_per_minute, requests_per_minute > 0, "more than 0")
        for name, value in (("retries", retries), ("backoff_seconds", backoff_seconds), ("temperature", temperature)):
            _check(name, value, value >= 0, "not negative")
        _check("longest_prompt", longest_prompt, 20 <= longest_prompt <= LONGEST_PROMPT, f"20 to {LONGEST_PROMPT}")
        _check("max_tokens", max_tokens, max_tokens >= 1, "at least 1")
        if taken := [field for field in extra or {} if field in OWN_FIELDS]:
            raise UserError(f"extra holds {taken[0]!r}, which the planner sets itself; leave out {', '.join(OWN_FIELDS)}")
        self.fallback = fallback if fallback is not None else ConversationPlanner()
        self.key_variable = key_variable
        self.timeout_seconds = timeout_seconds
        self._direction = Direction(person.strip(), _captions(self.fallback), longest_prompt, _picture_url(picture), sends_sound)
        self._request = {**(extra or {}), "model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._schedule = Schedule(every_seconds, keep_seconds, 60.0 / requests_per_minute, retries, backoff_seconds)

    def begin(self, chunk_frames: int) -> LanguageModelConversation:
        """See `Planner.begin`. Starts the thread that asks.

        Raises:
            UserError: the variable of the key is not set, or holds what no key can be.
        """
        key = self._key()
        fallback = self.fallback.begin(chunk_frames)
        endpoint = ChatEndpoint(self.endpoint, key, self.timeout_seconds)
        return LanguageModelConversation(fallback, endpoint, self._direction, self._request, self._schedule, chunk_frames)

    def plan(self, samples: np.ndarray) -> list[TimedPrompt]:
        """See `Planner.plan`; the fallback's."""
        return list(self.fallback.plan(samples))

    def _key(self) -> str:
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise UserError(f"the environment variable {self.key_variable} is not set; set it to the API key, or leave key_variable empty")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UserError(f"the environment variable {self.key_variable} holds spaces or characters that no API key has; set it again")
        return key


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    if not (math.isfinite(value) and holds):
        raise UserError(f"{name} is {value}; it is {rule}")


def _captions(planner: Planner) -> dict[str, Sequence[str]]:
    """Examples for the language model: the fallback's own captions, which may be a trained character's."""
    captions = planner.captions if isinstance(planner, ConversationPlanner | SpeechActivityPlanner) else DEFAULT_CAPTIONS
    return {state: tuple(captions[state]) for state in STATES}  # type: ignore[index]


def _picture_url(path: str) -> str:
    """A picture as a data URL.

    Raises:
        UserError: no such file, too large, or neither PNG nor JPEG.
    """
    if not path:
        return ""
    try:
        size = Path(path).stat().st_size
        data = Path(path).read_bytes() if size <= LARGEST_PICTURE else b""
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror}") from error
    if size > LARGEST_PICTURE:
        raise UserError(f"the picture {path} has {size} bytes; at most {LARGEST_PICTURE} are sent with each question, make it smaller")
    kind = next((kind for magic, kind in PICTURES if data.startswith(magic)), "")
    if not kind:
        raise UserError(f"the picture {path} is neither PNG nor JPEG; convert it")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

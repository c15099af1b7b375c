"""What a language model may answer. Its words are never quoted in errors or logs: they come from outside, and may repeat what it was told."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from flowact.types import STATES

SHORTEST_PROMPT = 3
FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
THOUGHT_ENDS = "</think>"


class RefusedAnswer(ValueError):
    """An answer that cannot be used; says which rule it breaks."""


@dataclass(frozen=True)
class Advice:
    """A motion prompt and the state that it shows, one of `flowact.types.STATES`."""

    state: str
    text: str


def read_answer(body: bytes, longest_prompt: int) -> Advice:
    """The advice in the body of a chat completion.

    The message is a JSON object with `state` and `prompt`; a fence around it and thoughts before it are allowed, other fields are ignored.

    Raises:
        RefusedAnswer: no chat completion, no such object, an unknown state, a prompt that is too short, too long or holds control characters.
    """
    try:
        message = _json(body)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise RefusedAnswer("it is no chat completion") from error
    if not isinstance(message, str):
        raise RefusedAnswer("its message is no text")
    message = message.rpartition(THOUGHT_ENDS)[2].strip()
    if fenced := FENCED.match(message):
        message = fenced[1]
    answer = _json(message)
    if not isinstance(answer, dict):
        raise RefusedAnswer("its message is no JSON object")
    state, text = answer.get("state"), answer.get("prompt")
    if state not in STATES:
        raise RefusedAnswer(f"its state is none of {', '.join(STATES)}")
    if not isinstance(text, str):
        raise RefusedAnswer("its prompt is no text")
    text = text.strip()
    if not SHORTEST_PROMPT <= len(text) <= longest_prompt:
        raise RefusedAnswer(f"its prompt has {len(text)} characters, {SHORTEST_PROMPT} to {longest_prompt} are allowed")
    if any(unicodedata.category(character).startswith("C") for character in text):
        raise RefusedAnswer("its prompt holds control characters")
    return Advice(state, text)


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedAnswer("it is no JSON") from error

"""Captions by a vision-language model, as a step of `flowact-data build`."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from PIL import Image

from data_tools.footage import FootageError, read_clip
from data_tools.steps import Clip, Plan, Rule, Step
from data_tools.steps.captions import DEFAULT_STATE, caption_runs
from flowact.errors import UserError
from flowact_vlm_captions.endpoint import AskingFailed, ChatEndpoint, Patience, chat_url

PROMPT = (
    "These are frames of one shot of a person, in order. Write a caption for training a video model: one or two plain sentences of at most 40 words "
    "on the person's visible looks, the surroundings, and what the person visibly does. Do not guess a name, an origin or what is said, and do not "
    "mention frames. Answer with the caption alone."
)
DOING = "In these frames the person is {state}."
OWN_FIELDS = ("model", "messages", "stream", "temperature", "max_tokens")
SHORTEST_SIDE = 32  # pixels of a picture


@final
class VlmCaptions(Step):
    """Asks a vision-language model behind an OpenAI-compatible /chat/completions what is seen, with a few frames of the clip's crop.

    Answers lie in the ledger, so that no question is asked twice; put the step behind `States`, and before `Captions`, which fills what is empty.
    Clips whose captions were imported are not asked about. A question that fails for good rejects its recording with the reason, and is asked again
    by the next build.

    Args:
        endpoint: such as http://127.0.0.1:8000/v1. Frames of your recordings are sent there.
        model: name of a model that the endpoint serves.
        key_variable: environment variable that holds the API key; empty sends none.
        prompt: what is asked; with it goes the state where `each` is 'state'.
        each: 'clip' asks once a clip, 'state' once for each stretch of one state.
        frames: pictures of a question, evenly over the stretch.
        height: pixels of their shorter side at most.
        quality: of the JPEG, 1 to 95.
        temperature: of the model.
        max_tokens: of an answer.
        extra: further fields of the request, such as {seed: 0}.
        max_characters: longer captions reject the clip; None takes any.
        timeout_seconds: of a whole answer.
        retries: of a question whose failure may pass.
        backoff_seconds: before the first retry; doubles.
    """

    # the first two and the last three are read by scores, and decide who answers and how long that may take, not what
    thresholds = ("endpoint", "key_variable", "max_characters", "timeout_seconds", "retries", "backoff_seconds")

    def __init__(
        self,
        endpoint: str,
        model: str,
        key_variable: str = "",
        prompt: str = PROMPT,
        each: Literal["clip", "state"] = "clip",
        frames: int = 4,
        height: int = 384,
        quality: int = 85,
        temperature: float = 0.2,
        max_tokens: int = 200,
        extra: dict[str, Any] | None = None,
        max_characters: int | None = 600,
        timeout_seconds: float = 60.0,
        retries: int = 4,
        backoff_seconds: float = 1.0,
    ) -> None:
        self.url = chat_url(endpoint)
        if not model.strip() or not prompt.strip():
            raise UserError(f"VlmCaptions: model {model!r} and prompt {prompt!r} are not empty")
        if key_variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_variable):
            # not repeated: it may be the key itself
            raise UserError("VlmCaptions: key_variable is the name of an environment variable, such as OPENAI_API_KEY, and not the key")
        if each not in ("clip", "state"):
            raise UserError(f"VlmCaptions: each {each!r} must be clip or state")
        if not (1 <= frames <= 64 and height >= SHORTEST_SIDE and 1 <= quality <= 95 and max_tokens >= 1):
            raise UserError(
                f"VlmCaptions: frames {frames} is 1 to 64, height {height} at least {SHORTEST_SIDE}, quality {quality} 1 to 95,"
                f" max_tokens {max_tokens} at least 1"
            )
        if not (timeout_seconds > 0 and math.isfinite(timeout_seconds) and retries >= 0 and backoff_seconds >= 0 and temperature >= 0):
            raise UserError(
                f"VlmCaptions: timeout_seconds {timeout_seconds} is above 0, retries {retries}, backoff_seconds {backoff_seconds} and"
                f" temperature {temperature} are not negative"
            )
        if taken := [field for field in extra or {} if field in OWN_FIELDS]:
            raise UserError(f"VlmCaptions: extra holds {taken[0]!r}, which the step sets itself; leave out {', '.join(OWN_FIELDS)}")
        self.key_variable, self.prompt, self.each = key_variable, prompt.strip(), each
        self.frames, self.height, self.quality, self.max_characters = frames, height, quality, max_characters
        self.request = {**(extra or {}), "model": model, "temperature": temperature, "max_tokens": max_tokens}
        self.patience = Patience(timeout_seconds, retries, backoff_seconds)

    @cached_property
    def _endpoint(self) -> ChatEndpoint:
        return ChatEndpoint(self.url, self._key(), self.patience)

    def _key(self) -> str:
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UserError(f"VlmCaptions: the variable {self.key_variable} is not set to an API key; set it, or leave key_variable empty")
        return key

    def check(self) -> None:
        """Asks one word, so that a wrong address, model or key is told before any work."""
        try:
            self._endpoint.ask({**self.request, "messages": [{"role": "user", "content": "Answer with the word yes."}]})
        except AskingFailed as error:
            raise UserError(f"VlmCaptions: the model {self.request['model']} at {self.url} does not answer: {error}") from error

    # --- scores -------------------------------------------------------------------------------------------------------------------------------------

    def score(self, clip: Clip) -> Mapping[str, Any]:
        stretches = self.stretches(clip)
        texts = [self._caption(clip, first, end, state) for first, end, state in stretches]
        # one line each: a score is a number or words
        return {"text": "\n".join(texts) if texts else None, "characters": max(map(len, texts), default=0)}

    def stretches(self, clip: Clip) -> list[tuple[int, int, str]]:
        """What is asked about: first frame, end frame, state. Nothing where every frame has a caption."""
        given = clip.plan.captions
        if given and all(text for _, _, _, text in given):
            return []
        if self.each == "clip":
            return [(0, clip.frames, "")]
        return list(clip.plan.states) or [(0, clip.frames, DEFAULT_STATE)]

    def _caption(self, clip: Clip, first: int, end: int, state: str) -> str:
        words = f"{self.prompt} {DOING.format(state=state)}" if state else self.prompt
        numbers = dict.fromkeys(first + round((end - first - 1) * (i + 0.5) / self.frames) for i in range(self.frames))
        pictures = [{"type": "image_url", "image_url": {"url": self._picture(clip, number)}} for number in numbers]
        try:
            return self._endpoint.ask({**self.request, "messages": [{"role": "user", "content": [{"type": "text", "text": words}, *pictures]}]})
        except AskingFailed as error:
            place = f"frames {first} to {end - 1} of a clip of {clip.recording.source.id}"
            raise FootageError(f"{place} have no caption: {error} ({self.url}); build again when the model answers", "no-caption") from error

    def _picture(self, clip: Clip, number: int) -> str:
        """A frame of the clip, cropped and scaled down, as a data address."""
        source, crop = clip.recording.source, clip.plan.crop
        width, height = (crop[2] - crop[0], crop[3] - crop[1]) if crop else (clip.recording.width, clip.recording.height)
        scale = min(1.0, self.height / min(width, height))
        size = (max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2))
        (frame,) = read_clip(Path(source.address), clip.plan.span.first + number, 1, start_s=source.start_s or 0.0, crop=crop, size=size)
        buffer = io.BytesIO()
        Image.fromarray(frame.to_ndarray(format="rgb24")).save(buffer, format="jpeg", quality=self.quality)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    # --- what follows -------------------------------------------------------------------------------------------------------------------------------

    def judge(self, scores: Mapping[str, Any]) -> Sequence[Rule | None]:
        return (Rule.at_most("characters", scores["characters"], self.max_characters),)

    def explain(self, rule: Rule) -> str:
        return f"the model's caption has {rule.value} characters, at most {rule.bound} are allowed; ask for less in VlmCaptions.prompt"

    def apply(self, clip: Clip, scores: Mapping[str, Any]) -> Plan:
        if not scores["text"]:
            return clip.plan
        texts = [(first, end, text) for (first, end, _), text in zip(self.stretches(clip), scores["text"].split("\n"), strict=True)]
        return clip.with_plan(captions=caption_runs(clip.plan.states, texts, clip.frames))

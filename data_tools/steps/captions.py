"""What is said about a clip, stretch by stretch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, final

from data_tools.steps.base import Clip, Plain, Plan, Rule, Step
from flowact.characters.captions import choose_caption
from flowact.errors import UserError
from flowact.planning.captions import DEFAULT_CAPTIONS, state_captions

#: where nothing is known about a person's behaviour
DEFAULT_STATE = "idle"
PERSON = "{person}"
_PERSON = "the person"
_DEFAULTS = {state: [text.replace(_PERSON, PERSON, 1) for text in texts] for state, texts in DEFAULT_CAPTIONS.items()}

StateRun = tuple[int, int, str]
CaptionRun = tuple[int, int, str, str]


@final
class Captions(Step):
    """Captions of every frame: those that an earlier step imported or wrote stay; what is empty gets the recording's own, and templates by state.

    The recording's own caption is `KEY.txt` or a table's column. Which paraphrase of a template is taken follows from the recording, the frame and
    the state alone, so a rebuild writes the same words.

    Args:
        templates: state -> its paraphrases; `{person}` in them stands for the appearance. States that are left out keep the planner's own captions,
            which are what a live stream prompts with.
        appearance: of everybody, such as "a woman in a red coat"; a table's column `appearance` goes first. Empty says "the person".
        source: 'before' writes the recording's caption and then the template of the state, so that behaviour can still be prompted; 'alone' writes
            nothing else where there is one; 'ignore' leaves it out.
        max_characters: of the longest caption; clips with a longer one are rejected. None takes any; what a text encoder cuts off is not learnt.
    """

    thresholds = ("max_characters",)

    def __init__(
        self,
        templates: dict[str, list[str]] | None = None,
        appearance: str = "",
        source: Literal["before", "alone", "ignore"] = "before",
        max_characters: int | None = None,
    ) -> None:
        if source not in ("before", "alone", "ignore"):
            raise UserError(f"Captions: source {source!r} must be before, alone or ignore")
        try:
            self.templates = state_captions({**_DEFAULTS, **(templates or {})})
        except UserError as error:
            raise UserError(f"Captions: {error}") from error
        self.appearance, self.source, self.max_characters = appearance.strip(), source, max_characters

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        given, runs = clip.plan.captions, self.captions(clip)
        written = sum(end - first for first, end, _, text in given if text)
        return {
            "given": round(written / max(clip.frames, 1), 4),
            "own": bool(clip.recording.source.caption) and self.source != "ignore",
            "captions": len(runs),
            "characters": max((len(text) for _, _, _, text in runs), default=0),
        }

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (Rule.at_most("characters", scores["characters"], self.max_characters),)

    def explain(self, rule: Rule) -> str:
        return f"a caption has {rule.value} characters, at most {rule.bound} are allowed"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        return clip.with_plan(captions=self.captions(clip))

    def captions(self, clip: Clip) -> tuple[CaptionRun, ...]:
        """Runs first, end, state, text that cover the clip."""
        texts = [(first, end, text) for first, end, _, text in clip.plan.captions if text]
        runs = caption_runs(clip.plan.states, texts, clip.frames)
        return tuple((first, end, state, text or self._text(clip, first, state)) for first, end, state, text in runs)

    def _text(self, clip: Clip, first: int, state: str) -> str:
        recording = clip.recording.source
        own = " ".join((recording.caption or "").split()) if self.source != "ignore" else ""
        if own and self.source == "alone":
            return own
        place = f"{recording.id}/{clip.plan.span.first + first}/{clip.plan.span.track}/{state}"
        variant = int(hashlib.sha256(place.encode()).hexdigest()[:8], 16)
        looks = recording.metadata.get("appearance")
        person = (looks.strip() if isinstance(looks, str) else "") or self.appearance or _PERSON
        return f"{own} {choose_caption(self.templates, state, variant).replace(PERSON, person)}".strip()


def caption_runs(states: Sequence[StateRun], texts: Sequence[tuple[int, int, str]], frames: int) -> tuple[CaptionRun, ...]:
    """Runs first, end, state, text that cover frames 0..frames-1: cut wherever state or text changes; idle and '' where nothing is said.

    Args:
        states: runs first, end, state, without overlap.
        texts: runs first, end, text, without overlap.
        frames: of the clip.
    """
    edges = sorted({0, frames, *(edge for first, end, *_ in (*states, *texts) for edge in (first, end) if 0 < edge < frames)})
    runs: list[CaptionRun] = []
    for first, end in pairwise(edges):
        state = next((state for a, b, state in states if a <= first < b), DEFAULT_STATE)
        text = next((text for a, b, text in texts if a <= first < b), "")
        if runs and runs[-1][2:] == (state, text):
            runs[-1] = (runs[-1][0], end, state, text)
        else:
            runs.append((first, end, state, text))
    return tuple(runs)

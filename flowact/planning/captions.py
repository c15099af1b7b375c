"""Captions by state, and a choice among them that does not repeat itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowact.errors import UserError, did_you_mean
from flowact.planning.base import PHASES, Phase
from flowact.types import STATES

DEFAULT_CAPTIONS: Mapping[str, Sequence[str]] = {
    "speaking": ("the person speaks to the viewer", "the person is talking", "the person explains something"),
    "listening": ("the person listens and nods", "the person listens attentively", "the person looks on and listens"),
    "thinking": ("the person looks away and thinks", "the person is thinking", "the person pauses to think"),
    "idle": ("the person waits quietly", "the person is idle", "the person rests and looks around"),
}
#: what is said of a reaction by default; a character with its own captions of listening reacts in these
DEFAULT_REACTIONS = ("the person nods", "the person gives a short nod", "the person raises the eyebrows and nods")


def state_captions(given: Mapping[str, Sequence[str]] | None, names: Sequence[str] = STATES) -> dict[str, tuple[str, ...]]:
    """Captions of every state, those that are given before the defaults.

    Raises:
        UserError: a name that is none of `names`, or one without captions.
    """
    given = given or {}
    for name, paraphrases in given.items():
        if name not in names:
            raise UserError(f"captions for unknown state {name!r}.{did_you_mean(name, names)}")
        if not paraphrases or isinstance(paraphrases, str):
            raise UserError(f"captions[{name!r}] is a list with at least one caption, got {paraphrases!r}")
        if blank := [text for text in paraphrases if not isinstance(text, str) or not text.strip()]:
            raise UserError(f"captions[{name!r}] holds {blank[0]!r}; a caption has words")
    return {state: tuple(given.get(state, DEFAULT_CAPTIONS[state])) for state in STATES}


def phase_captions(given: Mapping[str, Sequence[str]] | None) -> dict[Phase, tuple[str, ...]]:
    """Captions of every phase. Without captions of its own a reaction has those of listening, if these are given.

    Raises:
        UserError: as `state_captions`.
    """
    states = state_captions(given, PHASES)
    given = given or {}
    reactions = given.get("reacting") or given.get("listening") or DEFAULT_REACTIONS
    return {phase: tuple(reactions) if phase == "reacting" else states[phase] for phase in PHASES}


def another(paraphrases: Sequence[str], avoided: Sequence[str], generator: np.random.Generator) -> str:
    """One of the paraphrases, none of the avoided ones; where all are avoided, the first of these are let in first."""
    for first in range(len(avoided)):
        if choices := [text for text in paraphrases if text not in avoided[first:]]:
            return choices[int(generator.integers(len(choices)))]
    return paraphrases[int(generator.integers(len(paraphrases)))]

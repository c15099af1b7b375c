"""Captions by behaviour state."""

from __future__ import annotations

from collections.abc import Mapping

from flowact.errors import UserError, did_you_mean


def choose_caption(captions: Mapping[str, tuple[str, ...]], state: str, variant: int) -> str:
    """The paraphrase number `variant`, counted round and round.

    Raises:
        UserError: no such state.
    """
    if state not in captions:
        raise UserError(f"no behaviour state {state!r}.{did_you_mean(state, captions)}")
    return captions[state][variant % len(captions[state])]

"""Errors that a user can act on: the value, the rule, the fix, and the names that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. The command line prints its message without a traceback and exits with 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean a, b?' for the names nearest to `name`, or the list of all when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if not near:
        lowered = {candidate.lower(): candidate for candidate in names}
        near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    if near:
        return f" Did you mean {', '.join(near)}?"
    return f" Known: {', '.join(names)}." if names else ""


def differ_by_a_letter(name: str, other: str) -> bool:
    """Whether one letter (no digit) was left out, doubled or added, or two neighbours swapped: what a slip of the finger makes of a name."""
    short, long = sorted((name, other), key=len)
    if len(short) == len(long):
        places = [i for i, (a, b) in enumerate(zip(short, long, strict=True)) if a != b]
        return len(places) == 2 and places[1] == places[0] + 1 and (short[places[0]], short[places[1]]) == (long[places[1]], long[places[0]])
    return len(long) == len(short) + 1 and any(long[:i] + long[i + 1 :] == short and not long[i].isdigit() for i in range(len(long)))

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

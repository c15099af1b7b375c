"""Which reference picture goes with a window.

The paper says that there is one, held fixed (FlowAct-R1, Figure 2), and not where training takes it from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from flowact.errors import UserError, did_you_mean

#: 'first' the clip's own picture, 'random' any stored candidate, 'other' a candidate of another clip of the same person, 'far' the candidate that is
#: farthest in time from the window
ReferencePolicy = Literal["first", "random", "other", "far"]


def check_policy(policy: str) -> ReferencePolicy:
    """The policy, if there is one of that name.

    Raises:
        UserError: none.
    """
    known = get_args(ReferencePolicy)
    if policy not in known:
        raise UserError(f"reference is {policy!r}; it is one of {', '.join(map(repr, known))}.{did_you_mean(str(policy), known)}")
    return policy  # type: ignore[return-value]


def reference_frames(frames: int, count: int) -> list[int]:
    """Frames of a clip that are stored as candidates beside its own picture: the middles of `count` equal parts."""
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def farthest(frames: int, num_candidates: int, first: int, end: int) -> int:
    """The candidate farthest from pixel frames [first, end), by its distance to the nearest of them.

    Candidate 0 is the clip's own picture, whose time is not known: it is chosen only where it is alone.
    """
    if num_candidates < 2:
        return 0
    times = np.asarray(reference_frames(frames, num_candidates - 1))
    return 1 + int(np.argmax(np.maximum(first - times, times - (end - 1))))


@dataclass(frozen=True)
class Companions:
    """Other clips of the same person, in pictures of the same shape.

    Attributes:
        groups: for each clip the numbers of all clips of its group, itself among them, ascending.
    """

    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, identities: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Companions:
        """From each clip's person and shape."""
        of_kind: defaultdict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
        kinds = list(zip(identities, shapes, strict=True))
        for number, kind in enumerate(kinds):
            of_kind[kind].append(number)
        shared = {kind: tuple(numbers) for kind, numbers in of_kind.items()}
        return cls(tuple(shared[kind] for kind in kinds))

    @property
    def num_alone(self) -> int:
        """Clips without a companion."""
        return sum(len(group) == 1 for group in self.groups)

    def draw(self, clip: int, generator: np.random.Generator) -> int:
        """A companion of the clip, every one as likely; the clip itself where it has none."""
        group = self.groups[clip]
        if len(group) == 1:
            return clip
        place = int(generator.integers(len(group) - 1))
        return group[place] if group[place] < clip else group[place + 1]

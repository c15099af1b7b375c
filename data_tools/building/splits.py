"""Who is in which split: people never in two, and never moved by people who come later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from flowact.errors import UserError, did_you_mean

SPLITS = ("train", "val")


def assign_people(
    groups: Sequence[frozenset[str]],
    val_fraction: float,
    named: Sequence[str] | None = None,
    own: Mapping[str, str] | None = None,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """identity -> split.

    Args:
        groups: people that must be together (one person under two names, two people of one recording); disjoint.
        val_fraction: share of groups in val, chosen by hash.
        named: people of val by name; replaces the choice by hash.
        own: splits that recordings name themselves; they win over the hash.
        earlier: how people were assigned by earlier builds; they stay. Where two groups were joined since, train wins.

    Raises:
        UserError: a name that nobody has, a group that is told to be in both, or nobody left to train on.
    """
    own, earlier = own or {}, earlier or {}
    people = sorted(identity for group in groups for identity in group)
    unknown = [name for name in named or () if name not in people]
    if unknown:
        raise UserError(f"output.val_identities: nobody is called {unknown[0]!r}.{did_you_mean(unknown[0], people)}")
    chosen: dict[str, str] = {}
    for group in groups:
        said = {own[identity] for identity in group if identity in own}
        before = {earlier[identity] for identity in group if identity in earlier}
        if named is not None:
            split = "val" if group & set(named) else "train"
        elif len(said) > 1:
            raise UserError(f"{', '.join(sorted(group))} belong together and say both {' and '.join(sorted(said))}; correct the 'split' of one")
        elif said:
            split = said.pop()
        elif before:
            split = "train" if "train" in before else "val"
        else:
            split = "val" if place(group) < val_fraction else "train"
        chosen.update(dict.fromkeys(group, split))
    free = [group for group in groups if not any(identity in own or identity in earlier for identity in group)]
    if named is None and val_fraction > 0 and "val" not in chosen.values() and len(groups) > 1 and free:
        nearest: frozenset[str] = min(free, key=place)
        chosen.update(dict.fromkeys(nearest, "val"))
    if "train" not in chosen.values():
        raise UserError(f"all {len(people)} people are in val, nobody is left to train on; name fewer in output.val_identities")
    return chosen


def place(group: frozenset[str]) -> float:
    """Where a group falls in [0, 1): by the hash of its first name, so that it does not depend on the others."""
    return int.from_bytes(hashlib.sha256(min(group).encode()).digest()[:8], "big") / 2**64


def join(pairs: Sequence[Sequence[str]], people: Sequence[str]) -> list[frozenset[str]]:
    """Groups of people: those that occur in one of `pairs` together are in one group; everyone is in exactly one."""
    parent = {identity: identity for identity in people}

    def root(identity: str) -> str:
        while parent[identity] != identity:
            parent[identity] = parent[parent[identity]]
            identity = parent[identity]
        return identity

    for together in pairs:
        for identity in together[1:]:
            first, second = sorted((root(together[0]), root(identity)))
            parent[second] = first
    groups: dict[str, set[str]] = {}
    for identity in people:
        groups.setdefault(root(identity), set()).add(identity)
    return [frozenset(groups[name]) for name in sorted(groups)]

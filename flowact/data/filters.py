"""Conditions on what a clip's KEY.json says, such as `scores.Sync.confidence >= 0.3`, and what they leave of a split.

Nothing is evaluated: a condition is a name, a comparison and one plain value.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowact.data.split import ClipRef, Split
from flowact.errors import UserError, did_you_mean

_COMPARISONS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(r"\s*(?P<name>[^\s<>=!]+)\s*(?P<comparison>>=|<=|==|!=|>|<)\s*(?P<value>.*?)\s*\Z", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?\Z", re.IGNORECASE)
_WORDS = {"true": True, "false": False, "null": None}
_RULE = "a condition is NAME COMPARISON VALUE, e.g. scores.Sync.confidence >= 0.3, identity != bob, or split == 'my set'"

Plain = float | bool | str | None


@dataclass(frozen=True)
class Condition:
    """One comparison of an entry of KEY.json with a plain value.

    A clip without the entry, or with null in it, fulfils no condition but `NAME == null`.

    Attributes:
        text: as written.
        name: dotted place in KEY.json.
        comparison: one of >= <= == != > <.
        value: number, truth value, text or None. Numbers only for >= <= > <.
    """

    text: str
    name: str
    comparison: str
    value: Plain

    @classmethod
    def parse(cls, text: str) -> Condition:
        """A condition from its words.

        A value is a number, `true`, `false`, `null`, or text; text that reads like one of these, or has spaces at its ends, is quoted.

        Raises:
            UserError: no such form, or an order of what has none.
        """
        match = _CONDITION.match(text)
        if match is None or not match["value"]:
            hint = " Write == for equality." if re.search(r"[^<>=!]=[^=]", text) else ""
            raise UserError(f"where: {text!r} is no condition; {_RULE}.{hint}")
        value = _plain(match["value"], text)
        if match["comparison"] in (">=", "<=", ">", "<") and (isinstance(value, (bool, str)) or value is None):
            raise UserError(f"where: {text!r} orders by {match['value']}, which is no number; {match['comparison']} compares numbers, use == or !=")
        return cls(text.strip(), match["name"], match["comparison"], value)

    def holds(self, found: Any, where: str) -> bool:
        """Whether it is fulfilled by a clip's value.

        Args:
            found: what KEY.json holds under the name, None where it holds nothing.
            where: the clip, for messages.

        Raises:
            UserError: a value that can not be compared with the condition's.
        """
        if found is None or self.value is None:
            return (found is None) == (self.comparison == "==") if self.value is None else False
        if _kind(found) != _kind(self.value):
            raise UserError(f"where: {self.text!r} compares with {_kind(self.value)}, but {where} has {_kind(found)} there: {found!r}")
        return bool(_COMPARISONS[self.comparison](found, self.value))


@dataclass(frozen=True)
class Removed:
    """What one condition did to a split.

    Attributes:
        condition: as written.
        alone: clips that do not fulfil it, whatever the other conditions say.
        unknown: those among them that have no value there.
    """

    condition: str
    alone: int
    unknown: int

    def __str__(self) -> str:
        without = f" ({self.unknown} of them have no value there)" if self.unknown else ""
        return f"{self.condition!r} removes {self.alone}{without}"


def filter_split(split: Split, conditions: Sequence[Condition]) -> tuple[Split, list[Removed]]:
    """The clips that fulfil all conditions, and how many each condition removes.

    Raises:
        UserError: a name that no clip has, values that can not be compared, or nothing left.
    """
    if not conditions:
        return split, []
    entries = [(clip, flat(split.metadata(clip)[0])) for clip in split.clips]
    names = {name for _, entry in entries for name in entry}
    for condition in conditions:
        if condition.name not in names:
            inside = sorted(name for name in names if name.startswith(condition.name + "."))
            hint = f" It holds {', '.join(inside[:8])}." if inside else did_you_mean(condition.name, names)
            raise UserError(f"where: {condition.text!r}: no clip of {split.folder} has a plain value {condition.name!r} in its KEY.json.{hint}")
    verdicts = [[condition.holds(entry.get(condition.name), split.where(clip)) for condition in conditions] for clip, entry in entries]
    removed = [
        Removed(
            condition.text,
            sum(not verdict[number] for verdict in verdicts),
            sum(not verdict[number] and entry.get(condition.name) is None for verdict, (_, entry) in zip(verdicts, entries)),
        )
        for number, condition in enumerate(conditions)
    ]
    kept: list[ClipRef] = [clip for (clip, _), verdict in zip(entries, verdicts) if all(verdict)]
    if not kept:
        raise UserError(
            f"where: none of the {len(split)} clips of {split.folder} fulfils all conditions: {'; '.join(map(str, removed))}. "
            "Each count is of that condition alone; relax the strictest"
        )
    return split.only(kept), removed


def flat(value: Any) -> dict[str, Plain]:
    """Plain values of nested mappings by dotted name; lists are left out."""
    return dict(_leaves(value, ""))


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Plain]]:
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        elif inner is None or isinstance(inner, (bool, int, float, str)):
            yield f"{prefix}{name}", inner


def _plain(word: str, text: str) -> Plain:
    if word[0] in "'\"":
        if len(word) < 2 or word[-1] != word[0] or word[0] in word[1:-1]:
            raise UserError(f"where: {text!r} has a quote that is not closed; {_RULE}")
        return word[1:-1]
    if word in _WORDS:
        return _WORDS[word]
    if _NUMBER.match(word):
        return float(word)
    if re.search(r"[<>=!'\"()\[\]]|\b(and|or)\b|&&|\|\|", word):
        raise UserError(f"where: {text!r} holds more than one comparison; write each as its own entry, and quote text with such characters")
    return word


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return "a number" if isinstance(value, (int, float)) else "text"

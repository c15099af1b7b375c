"""What a build decided, as numbers: the funnel, every score against its thresholds, what it cost. Nothing is drawn here."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.building.accounts import MAKING
from data_tools.building.examine import READING
from data_tools.building.ledger import WORK_FOLDER, ClipRecord, SourceRecord
from data_tools.reporting.wording import is_number, plain_text
from data_tools.steps.base import Plain, Rejection
from flowact.errors import UserError
from flowact.strict_yaml import read_yaml_file

RECIPE_FILE = "recipe.yaml"
_WORD = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Reason:
    """Clips of a step that are out for the same rule.

    Attributes:
        rule: 'yaw at most 30', or what could not be read.
        clips: how many.
        example: the sentence of the first of them.
        key: of the first of them.
    """

    rule: str
    clips: int
    example: str
    key: str


@dataclass(frozen=True)
class FunnelRow:
    """A step of the funnel.

    Attributes:
        step: its name.
        reached: clips that came to it.
        out: clips that it rejected.
        frames_out: their frames; recordings that were never decoded count none.
        reasons: the commonest first.
        seconds: that its scores took; None where unknown.
    """

    step: str
    reached: int
    out: int
    frames_out: int
    reasons: tuple[Reason, ...]
    seconds: float | None = None


@dataclass(frozen=True)
class Near:
    """A clip near a threshold."""

    key: str
    value: float


@dataclass(frozen=True)
class Threshold:
    """A rule, how many clips it keeps, and the clips nearest to its bound on both sides.

    Attributes:
        relation: 'at least', 'at most' or 'is'.
        bound: the threshold.
        kept: clips that keep it, unmeasured ones that count as kept too.
        broken: clips that break it.
        near_kept: clips that the build kept, the nearest first.
        near_broken: clips that break the rule, the nearest first.
    """

    relation: str
    bound: Plain
    kept: int
    broken: int
    near_kept: tuple[Near, ...] = ()
    near_broken: tuple[Near, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.relation} {plain_text(self.bound)}"


@dataclass(frozen=True)
class Score:
    """A score over all clips that it was measured of.

    Attributes:
        step: that measured it.
        name: of the score.
        thresholds: the rules that it is held to; empty for a score that decides nothing.
        kept: numbers of clips that keep all of its rules.
        broken: numbers of clips that break one.
        words: value that is no number -> clips that keep, clips that break the rules. 'not measured' where there is no value.
        out: clips that are out because of it.
    """

    step: str
    name: str
    thresholds: tuple[Threshold, ...]
    kept: np.ndarray
    broken: np.ndarray
    words: Mapping[str, tuple[int, int]]
    out: int

    @property
    def reached(self) -> int:
        """Clips that it was measured of, or tried to be."""
        return len(self.kept) + len(self.broken) + sum(map(sum, self.words.values()))

    @property
    def num_broken(self) -> int:
        return len(self.broken) + sum(broken for _, broken in self.words.values())


@dataclass(frozen=True)
class Pair:
    """A clip that is out because of another one.

    Attributes:
        step: that compared them.
        key: of the clip that is out.
        other: of the clip that it was compared with.
        reason: in one sentence.
    """

    step: str
    key: str
    other: str
    reason: str


@dataclass(frozen=True)
class Decisions:
    """All that a ledger says.

    Attributes:
        recordings: that the build looked at.
        recording_frames: all of their frames that were decoded.
        clips: found in them, kept and rejected.
        kept: of them.
        kept_frames: of the kept ones.
        funnel: step by step.
        scores: in the order of the steps; those with thresholds first within each.
        pairs: clips that are out because of others, those nearest to the bound first.
        unread: recordings that could not be read: id, code, reason.
        examining_seconds: of work in the last build, over all recordings.
        packed: clips that lie in shards.
    """

    recordings: int
    recording_frames: int
    clips: int
    kept: int
    kept_frames: int
    funnel: tuple[FunnelRow, ...]
    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]
    unread: tuple[tuple[str, str, str], ...]
    examining_seconds: float
    packed: int


def decide(
    clips: Sequence[ClipRecord], sources: Sequence[SourceRecord], steps: Sequence[str], spent: Mapping[str, float], near: int = 4
) -> Decisions:
    """Numbers of a build.

    Args:
        clips: of the ledger.
        sources: of the ledger.
        steps: names in the order of the recipe; others that the clips know are put behind them.
        spent: step -> seconds.
        near: clips to name on each side of a threshold.
    """
    frames_of = {source.source.id: source.frames for source in sources}
    kept = [clip for clip in clips if clip.rejection is None]
    unread = [(clip.source, str(clip.rejection.value), clip.rejection.reason) for clip in clips if clip.rejection and clip.rejection.step == READING]
    order = all_steps(steps, clips)
    return Decisions(
        recordings=len(sources),
        recording_frames=sum(frames_of.values()),
        clips=len(clips),
        kept=len(kept),
        kept_frames=sum(clip.plan.span.frames for clip in kept if clip.plan),
        funnel=tuple(funnel(clips, order, frames_of, spent)),
        scores=tuple(scores_of(clips, order, near)),
        pairs=_pairs(clips, 2 * near),
        unread=tuple(unread),
        examining_seconds=sum(source.seconds for source in sources),
        packed=sum(bool(clip.shard) for clip in clips),
    )


def recipe_steps(root: Path) -> list[str]:
    """Names of the recipe's steps in order, as the build wrote it down; empty where there is no readable recipe. Imports no step."""
    for path in (root / WORK_FOLDER / RECIPE_FILE, root / RECIPE_FILE):
        if path.is_file():
            try:
                config, _ = read_yaml_file(path)
            except UserError:
                continue
            steps = config.get("steps") if isinstance(config, dict) else None
            return [str(name).rpartition(".")[2] for name in steps or ()]
    return []


def all_steps(steps: Sequence[str], clips: Iterable[ClipRecord]) -> list[str]:
    """Reading, the steps, then those that only the clips know, then making."""
    names = dict.fromkeys([READING, *steps])
    for clip in clips:
        names |= dict.fromkeys(clip.scores)
        if clip.rejection is not None:
            names.setdefault(clip.rejection.step)
    names.pop(MAKING, None)
    return [*names, MAKING]


def funnel(clips: Sequence[ClipRecord], steps: Sequence[str], frames_of: Mapping[str, int], spent: Mapping[str, float]) -> list[FunnelRow]:
    """How many clips came to each step and how many it took out. Every clip is out once, or left at the end."""
    out: dict[str, list[tuple[ClipRecord, Rejection]]] = {name: [] for name in steps}
    for clip in clips:
        if clip.rejection is not None:
            out[clip.rejection.step].append((clip, clip.rejection))
    rows, left = [], len(clips)
    for name in steps:
        frames = sum(frames_of.get(clip.source, 0) if clip.plan is None else clip.plan.span.frames for clip, _ in out[name])
        rows.append(FunnelRow(name, left, len(out[name]), frames, _reasons(out[name]), spent.get(name)))
        left -= len(out[name])
    return rows


def _reasons(out: Sequence[tuple[ClipRecord, Rejection]]) -> tuple[Reason, ...]:
    counts = Counter[str]()
    first: dict[str, tuple[ClipRecord, Rejection]] = {}
    for clip, rejection in out:
        rule = _rule_text(rejection)
        counts[rule] += 1
        first.setdefault(rule, (clip, rejection))
    return tuple(Reason(rule, count, first[rule][1].reason, first[rule][0].key) for rule, count in counts.most_common())


def _rule_text(rejection: Rejection) -> str:
    if rejection.step == READING and rejection.score == "readable":
        return f"can not be read: {rejection.value}"
    if not rejection.score:
        return {MAKING: "could not be made", "Deleted": "deleted by hand"}.get(rejection.step, "another clip")
    return f"{rejection.score} {rejection.relation} {plain_text(rejection.bound)}"


def _pairs(clips: Sequence[ClipRecord], count: int) -> tuple[Pair, ...]:
    """Clips that no rule of their own took out, and whose reason names another clip."""
    keys = {clip.key for clip in clips}
    found = []
    for clip in clips:
        rejection = clip.rejection
        if rejection is None or rejection.step in (READING, MAKING) or any(not rule.kept for rule in clip.rules.get(rejection.step, ())):
            continue
        other = next((word for word in _WORD.findall(rejection.reason) if word in keys and word != clip.key), None)
        if other is not None:
            measured = is_number(rejection.value) and is_number(rejection.bound)
            distance = abs(rejection.value - rejection.bound) if measured else 0.0
            found.append((distance, Pair(rejection.step, clip.key, other, rejection.reason)))
    return tuple(pair for _, pair in sorted(found, key=lambda entry: entry[0])[:count])


# --- scores -----------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Column:
    """Values of one score, as they come."""

    numbers: array[float] = field(default_factory=lambda: array("d"))
    breaks: bytearray = field(default_factory=bytearray)
    clips: array[int] = field(default_factory=lambda: array("l"))
    words: dict[str, list[int]] = field(default_factory=dict)
    rules: dict[tuple[str, Any], list[int]] = field(default_factory=dict)
    broken_by: dict[tuple[str, Any], array[int]] = field(default_factory=dict)
    out: int = 0


def scores_of(clips: Sequence[ClipRecord], steps: Sequence[str], near: int) -> list[Score]:
    """Every score of every step, against the rules that it was held to."""
    columns: dict[str, dict[str, _Column]] = {name: {} for name in steps}
    for number, clip in enumerate(clips):
        for step, values in clip.scores.items():
            rules: dict[str, list[Any]] = {}
            for rule in clip.rules.get(step, ()):
                rules.setdefault(rule.score, []).append(rule)
            for name, value in values.items():
                if isinstance(value, (list, tuple, dict)):
                    continue
                column = columns[step].setdefault(name, _Column())
                broken = False
                for rule in rules.get(name, ()):
                    bound = (rule.relation, rule.bound)
                    counts = column.rules.setdefault(bound, [0, 0])
                    counts[not rule.kept] += 1
                    broken |= not rule.kept
                    if not rule.kept:
                        column.broken_by.setdefault(bound, array("l")).append(number)
                if is_number(value):
                    column.numbers.append(value)
                    column.breaks.append(broken)
                    column.clips.append(number)
                else:
                    column.words.setdefault(plain_text(value), [0, 0])[broken] += 1
                if clip.rejection is not None and clip.rejection.step == step and clip.rejection.score == name:
                    column.out += 1
    kept_clips = np.array([clip.rejection is None for clip in clips], bool)
    return [
        _score(step, name, column, clips, kept_clips, near)
        for step, found in columns.items()
        for name, column in sorted(found.items(), key=lambda entry: (not entry[1].rules, entry[0]))
    ]


def _score(step: str, name: str, column: _Column, clips: Sequence[ClipRecord], kept_clips: np.ndarray, near: int) -> Score:
    values, breaks = np.array(column.numbers, float), np.frombuffer(bytes(column.breaks), bool)
    numbers = np.array(column.clips, int)
    thresholds = []
    for (relation, bound), (kept, broken) in column.rules.items():
        near_kept: tuple[Near, ...] = ()
        near_broken: tuple[Near, ...] = ()
        if is_number(bound) and len(values):
            by_this = np.isin(numbers, np.array(column.broken_by.get((relation, bound), array("l")), int))
            near_kept = _nearest(values, numbers, kept_clips[numbers] & ~breaks, bound, clips, near)
            near_broken = _nearest(values, numbers, by_this, bound, clips, near)
        thresholds.append(Threshold(relation, bound, kept, broken, near_kept, near_broken))
    words = {word: (counts[0], counts[1]) for word, counts in sorted(column.words.items())}
    return Score(step, name, tuple(thresholds), np.sort(values[~breaks]), np.sort(values[breaks]), words, column.out)


def _nearest(values: np.ndarray, numbers: np.ndarray, chosen: np.ndarray, bound: float, clips: Sequence[ClipRecord], count: int) -> tuple[Near, ...]:
    """Of clips that are equally near, those of different recordings come first."""
    where = np.flatnonzero(chosen)
    distances = np.abs(values[where] - bound)
    if len(where) > count:
        near = distances <= np.partition(distances, count - 1)[count - 1]
        where, distances = where[near], distances[near]
    seen = Counter[tuple[float, str]]()
    ranked = []
    for i, distance in zip(where, distances):
        place = (float(distance), clips[numbers[i]].source)
        ranked.append((float(distance), seen[place], int(i)))
        seen[place] += 1
    return tuple(Near(clips[numbers[i]].key, float(values[i])) for *_, i in sorted(ranked)[:count])

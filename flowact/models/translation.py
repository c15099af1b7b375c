"""A state dict under another naming scheme, by rules: planned on names and shapes alone, then made tensor by tensor, all of it or nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowact.errors import UserError
from flowact.models.rules import Constant, Ignored, Rule

Direction = Literal["ours", "theirs"]


@dataclass(frozen=True)
class _Step:
    """One rule for one set of values of its placeholders."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def apply(self, tensors: Sequence[Tensor], direction: Direction) -> list[Tensor]:
        return [tensor.contiguous() for tensor in (self.rule.to_ours(tensors) if direction == "ours" else self.rule.to_theirs(tensors))]


@dataclass(frozen=True)
class Translation:
    """All tensors of one side, planned and checked, to be made one after the other.

    Attributes:
        direction: the side they become.
        source: tensors of the other side; read when their turn comes.
        outline: names of the result, with shape and number type, on the meta device; in the order in which they are made.
        ignored: names of the source that nothing is made of.
    """

    direction: Direction
    source: Mapping[str, Tensor]
    outline: dict[str, Tensor]
    ignored: tuple[str, ...]
    _steps: tuple[_Step, ...]

    @property
    def constants(self) -> frozenset[str]:
        """Names of the result that no tensor of the source takes part in."""
        return frozenset(target for step in self._steps if not step.sources for target in step.targets)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor. Besides what was handed out, only the sources of one rule are held at a time.

        Raises:
            UserError: a constant has another value.
        """
        for step in self._steps:
            try:
                made = step.apply([self.source[name] for name in step.sources], self.direction)
            except ValueError as error:
                raise UserError(f"{', '.join(step.sources)}: {error}") from None
            for target in step.targets:
                yield target, made.pop(0)


class _Plan:
    """Rules matched to the names of one side. What does not fit is collected, by name of that side."""

    def __init__(self, rules: Sequence[Rule], names: Iterable[str], direction: Direction) -> None:
        self.direction = direction
        self.steps: list[_Step] = []
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.ignored: list[str] = []
        found: dict[tuple[int, tuple[tuple[str, str], ...]], dict[int, str]] = {}
        for index, rule in enumerate(rules):
            if isinstance(rule, Constant) and direction == "theirs":
                found[index, ()] = {}
        for name in names:
            claims = list(self._claims(rules, name))
            ignored = direction == "ours" and any(isinstance(rule, Ignored) and fnmatch.fnmatchcase(name, rule.pattern) for rule in rules)
            if len(claims) + ignored > 1:
                raise ValueError(f"{len(claims) + ignored} rules claim the tensor {name}; exactly one may")
            for index, slot, values in claims:
                found.setdefault((index, tuple(sorted(values.items()))), {})[slot] = name
            if not claims:
                (self.ignored if ignored else self.unexpected).append(name)
        for (index, items), slots in found.items():
            self._add(rules[index], dict(items), slots)
        self._check_targets()

    def _claims(self, rules: Sequence[Rule], name: str) -> Iterator[tuple[int, int, dict[str, str]]]:
        for index, rule in enumerate(rules):
            for slot, template in enumerate(rule.theirs if self.direction == "ours" else rule.ours):
                values = template.match(name)
                if values is not None:
                    yield index, slot, values

    def _add(self, rule: Rule, values: Mapping[str, str], slots: Mapping[int, str]) -> None:
        sources, targets = (rule.theirs, rule.ours) if self.direction == "ours" else (rule.ours, rule.theirs)
        absent = [template.fill(values) for slot, template in enumerate(sources) if slot not in slots]
        if absent:
            self.missing += absent
        else:
            self.steps.append(_Step(rule, tuple(slots[slot] for slot in range(len(sources))), tuple(template.fill(values) for template in targets)))

    def _check_targets(self) -> None:
        made: set[str] = set()
        for target in (target for step in self.steps for target in step.targets):
            if target in made:
                raise ValueError(f"two rules make the tensor {target}; exactly one may")
            made.add(target)

    def shapes(self, source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[tuple[str, ...], str]]:
        """Meta tensors of the result, and what is wrong with the sources of each step that does not fit."""
        outline: dict[str, Tensor] = {}
        problems: dict[tuple[str, ...], str] = {}
        for step in self.steps:
            try:
                outline.update(zip(step.targets, step.apply([source[name] for name in step.sources], self.direction), strict=True))
            except ValueError as error:
                shapes = ", ".join(str(tuple(source[name].shape)) for name in step.sources)
                problems[step.sources] = f"shape of {', '.join(step.sources)}: {shapes}: {error}"
        return {name: tensor.to("meta") for name, tensor in outline.items()}, problems


def outline_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes and number types as meta tensors. Tensors that are read from a file are mapped, not read."""
    return {name: tensors[name].to("meta") for name in tensors}


def translate(rules: Sequence[Rule], source: Mapping[str, Tensor], direction: Direction, like: Mapping[str, Tensor] | None = None) -> Translation:
    """Plan a translation and check all of it, on names and shapes alone.

    Args:
        rules: between the two sides.
        source: tensors of one side by name; may read a tensor when it is asked for.
        direction: the other side.
        like: names and shapes that the result must have, such as a module's state on the meta device; None: whatever the rules make.

    Raises:
        UserError: one that lists every name of the source that is missing, unexpected or of another shape.
        ValueError: the rules contradict each other: two claim or make one tensor, or none makes a tensor of `like`.
    """
    shapes = outline_of(source)
    plan = _Plan(rules, shapes, direction)
    outline, problems = plan.shapes(shapes)
    missing, unexpected = set(plan.missing), set(plan.unexpected)
    if like is not None:
        back = _Plan(rules, like, "theirs" if direction == "ours" else "ours")
        if not_made := [*back.unexpected, *back.missing]:
            raise ValueError(f"no rule makes {', '.join(not_made)}")
        expected, misfits = back.shapes(outline_of(like))
        if misfits:
            raise ValueError(f"rules do not fit what they should make: {'; '.join(misfits.values())}")
        missing = expected.keys() - shapes.keys()
        unexpected = shapes.keys() - expected.keys() - set(plan.ignored)
        misshapen = {name for name in expected.keys() & shapes.keys() if shapes[name].shape != expected[name].shape}
        problems = {names: problem for names, problem in problems.items() if not (misshapen | unexpected).intersection(names)}
        for name in misshapen:
            problems[name,] = f"shape of {name}: {tuple(shapes[name].shape)}, needed is {tuple(expected[name].shape)}"
    if missing or unexpected or problems:
        lines = [f"missing: {name}" for name in sorted(missing)]
        lines += [f"unexpected: {name}" for name in sorted(unexpected)]
        lines += [problems[name] for name in sorted(problems)]
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(problems)} misshapen of {len(shapes)} tensors"
        raise UserError(f"the weights do not fit ({counts}); nothing was converted:" + "".join(f"\n  {line}" for line in lines))
    return Translation(direction, source, outline, tuple(plan.ignored), tuple(plan.steps))


def import_state(rules: Sequence[Rule], theirs: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Our tensors of theirs; see `translate`. Number types stay."""
    return dict(translate(rules, theirs, "ours", like).tensors())


def export_state(rules: Sequence[Rule], ours: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Their tensors of ours; see `translate`. Number types stay."""
    return dict(translate(rules, ours, "theirs", like).tensors())

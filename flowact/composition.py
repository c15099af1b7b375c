"""Plain configs laid over one another, changed from the command line, and their `${...}` resolved; every place keeps the line that set it.

Rules of composition:
    a child is laid over its bases, mapping by mapping; other values replace;
    a component of another class starts from that class's own defaults: what the base said to its own class is dropped. Only `model` and `data`
    themselves keep it, because stages take the same parts;
    a component's bare name stands for that class with its own defaults;
    `_replace_: true` inside a mapping lays it over nothing: what the bases say there is dropped;
    `name+:` appends its list to the base's list;
    `trainer.callbacks` is a mapping name -> component, so that a child can add, change or (with null) leave out one;
    on the command line `a.b=value` replaces and `a.b+=value` appends;
    `${a.b}` and `${oc.env:FLOWACT_NAME,default}` are resolved last, so they follow overrides; write `\\${` for a literal `${`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowact import registry
from flowact.errors import UserError, did_you_mean, differ_by_a_letter
from flowact.signatures import is_inside, join
from flowact.strict_yaml import read_yaml

COMMAND_LINE = "command line"
CALLBACKS = "trainer.callbacks"
#: components whose arguments outlive a change of their class
KEEPING = ("data", "model")


@dataclass
class Layers:
    """What has been laid over one another so far.

    Attributes:
        config: plain values.
        origins: dotted place -> "file:line" (or "command line") that set it.
        read_vars: places under `vars` that any layer refers to, also where a later one replaced the reference.
    """

    config: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    read_vars: set[str] = field(default_factory=set)

    def add(self, config: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """Lay a config over what is there.

        Raises:
            UserError: a rule of composition is broken; the place, and where it was written, come first.
        """
        merge = _Merge()
        try:
            self.config = merge.mapping(self.config, config, "")
        except UserError as error:
            place, _, rest = str(error).partition(": ")
            where = origin_of(place, self.origins if isinstance(error, _MistakeOfBase) else origins)
            raise UserError(f"{place} ({where}): {rest}") from None
        for place in merge.dropped:
            forget(self.origins, place)
        self.origins.update({merge.moved(place): where for place, where in origins.items()})
        self.read_vars |= set(references_to_vars(config))


class _MistakeOfBase(UserError):
    """What is wrong stands in a base."""


class _Merge:
    """One laying over, and what it did to places."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self._appended: dict[str, int] = {}  # "a.b+" -> length of the base's list

    def mapping(self, base: Any, child: Mapping[str, Any], at: str) -> dict[str, Any]:
        base = _as_component(base)
        if isinstance(base, Mapping):
            _check_replaced(base, child, at)
        if child.get("_replace_") is True or not isinstance(base, Mapping) or (at not in KEEPING and _is_another_class(base, child)):
            self.dropped.append(at)
            base = {}
        result = dict(base)
        for key, value in child.items():
            if key == "_replace_":
                if not isinstance(value, bool):
                    raise UserError(f"{join(at, key)}: _replace_ is true or false, not {value!r}")
            elif value is None and at == CALLBACKS and key not in base:
                raise UserError(f"{join(at, key)}: no base has a callback of this name to leave out.{did_you_mean(key, base)}")
            elif key.endswith("+") and key != "+":
                self._appended[join(at, key)] = len(result.get(key[:-1]) or [])
                result[key[:-1]] = appended(result.get(key[:-1]), value, join(at, key[:-1]))
            else:
                result[key] = self._value(result.get(key), value, join(at, key))
        return result

    def _value(self, base: Any, child: Any, at: str) -> Any:
        if isinstance(child, Mapping):
            return self.mapping(base, child, at)
        self.dropped.append(at)
        return {"class_path": child} if _is_component(base) and is_bare_name(child) else child

    def moved(self, place: str) -> str:
        """Where a place of the child ended up: `a+[0]` is the first after the base's elements of `a`."""
        for written, count in self._appended.items():
            if place == written:
                return written[:-1]
            if place.startswith(written + "["):
                index, _, rest = place[len(written) + 1 :].partition("]")
                return f"{written[:-1]}[{count + int(index)}]{rest}"
        return place


def appended(base: Any, more: Any, at: str) -> list[Any]:
    """A list behind a list.

    Raises:
        UserError: one of them is none.
    """
    if not isinstance(more, list) or not isinstance(base, (list, type(None))):
        raise UserError(f"{at}+: appends a list to a list; the base has {base!r} and the child gives {more!r}")
    return [*(base or []), *more]


# --- components -------------------------------------------------------------------------------------------------------------------------------------


def _is_component(node: Any) -> bool:
    return isinstance(node, Mapping) and "class_path" in node


def is_bare_name(value: Any) -> bool:
    """Whether a value can stand for a component by its name alone: a class's name, unlike the words that constructors take, such as `auto`."""
    return isinstance(value, str) and all(part.isidentifier() for part in value.split(".")) and value.rpartition(".")[2][:1].isupper()


def _as_component(value: Any) -> Any:
    """The spec that a registered name stands for; anything else as it is."""
    known = isinstance(value, str) and any(value in (c.name, c.class_path) for c in registry.components())
    return {"class_path": value} if known else value


def _is_another_class(base: Mapping[str, Any], child: Mapping[str, Any]) -> bool:
    names = [node.get("class_path") for node in (base, child)]
    if not all(isinstance(name, str) for name in names):
        return False
    return len({_full(str(name)) for name in names}) == 2


def _check_replaced(base: Mapping[str, Any], child: Mapping[str, Any], at: str) -> None:
    """A base's component whose name is a slip would be taken for another class, and what the base says to it be dropped."""
    before, after = str(base.get("class_path")), str(child.get("class_path"))
    if "." not in before and _full(before) == before and differ_by_a_letter(before, after):
        raise _MistakeOfBase(f"{join(at, 'class_path')}: no component called '{before}' is installed. Did you mean {after}?")


def _full(name: str) -> str:
    try:
        return registry.resolve(name).class_path if "." not in name else name
    except UserError:
        return name  # told later, with its place


# --- command line -----------------------------------------------------------------------------------------------------------------------------------


def override(layers: Layers, text: str) -> None:
    """Apply one `a.b.c=value`.

    Raises:
        UserError: not of that form, or no such place.
    """
    key, equals, raw = text.partition("=")
    append = key.endswith("+")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.removesuffix("+").strip()).split(".")
    if not equals or not all(parts):
        raise UserError(f"override '{text}': write section.key=value, such as trainer.max_steps=100")
    key = key.removesuffix("+").strip()
    value, _ = read_yaml(raw, f"override '{key}'")
    node, at = _walk(layers.config, parts[:-1], text)
    last: Any = _index(node, parts[-1], text) if isinstance(node, list) else parts[-1]
    present = node[last] if isinstance(node, list) else node.get(last)
    place = f"{at}[{last}]" if isinstance(node, list) else join(at, last)
    layers.read_vars |= set(references_to_vars(value))
    if append:
        node[last] = appended(present, value, place)
        layers.origins.update({f"{place}[{i}]": COMMAND_LINE for i in range(len(present or []), len(node[last]))})
        layers.origins.setdefault(place, COMMAND_LINE)
        return
    if value is None and at == CALLBACKS and last not in node:
        raise UserError(f"override '{text}': the recipe has no callback '{last}' to leave out.{did_you_mean(last, node)}")
    if last == "class_path" and isinstance(node, dict) and at not in KEEPING and _is_another_class(node, {"class_path": value}):
        node.pop("init_args", None)
        forget(layers.origins, join(at, "init_args"))
    elif _is_component(present) and is_bare_name(value):
        value = {"class_path": value}
    node[last] = _Merge().mapping({}, value, place) if isinstance(value, dict) else value
    forget(layers.origins, place)
    layers.origins[place] = COMMAND_LINE


def _walk(node: Any, parts: list[str], text: str) -> tuple[dict[str, Any] | list[Any], str]:
    """The mapping or list at a place, made where nothing is, and the place as origins write it."""
    at = ""
    for part in parts:
        holder, key = node, _index(node, part, text) if isinstance(node, list) else part
        at = f"{at}[{part}]" if isinstance(node, list) else join(at, part)
        if isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = {}
        component = {"class_path": holder[key]} if at.startswith(CALLBACKS + ".") and is_bare_name(holder[key]) else _as_component(holder[key])
        node = holder[key] = component
        if not isinstance(node, (dict, list)):
            raise UserError(f"override '{text}': {at} is {node!r}, it has no parts")
    return node, at


def _index(node: list[Any], part: str, text: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override '{text}': '{part}' is not a position in a list of {len(node)}")
    return int(part)


# --- places -----------------------------------------------------------------------------------------------------------------------------------------


def leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted place and value of everything that is not a mapping or list; empty ones count as leaves."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, join(at, key))
    elif isinstance(node, list) and node:
        for i, value in enumerate(node):
            yield from leaves(value, f"{at}[{i}]")
    else:
        yield at, node


def origin_of(place: str, origins: Mapping[str, str]) -> str:
    """Where a place, or the nearest place around it, was written."""
    while place:
        if place in origins:
            return origins[place]
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    return "recipe"


def forget(origins: dict[str, str], place: str) -> None:
    """Drop a place and all inside it."""
    for known in [known for known in origins if is_inside(known, place)]:
        del origins[known]


# --- interpolation ----------------------------------------------------------------------------------------------------------------------------------

_NODE_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\s*\}")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:FLOWACT_[A-Z0-9_]+(?:,[^${}]*)?\}")


def references_to_vars(node: Any) -> Iterator[str]:
    """Places under `vars` that a config refers to."""
    for _, value in leaves(node):
        if isinstance(value, str):
            yield from (reference for reference in _NODE_REFERENCE.findall(value) if reference.startswith("vars."))


def resolve(config: dict[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """Values of all `${...}`. Only places in the recipe and environment variables that start with FLOWACT_ may be asked for.

    Raises:
        UserError: with place, file and line: a reference to nothing, to itself, or to what may not be asked for; a value left to the user.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    places = set(_places(config))
    for at, value in leaves(config):
        if not isinstance(value, str) or "${" not in value:
            continue
        where = f"{at} ({origin_of(at, origins)})"
        if "\\\\${" in value:
            raise UserError(f"{where}: two backslashes before ${{ are ambiguous; write \\${{ for a literal ${{")
        rest = _ENVIRONMENT.sub("", value.replace("\\${", ""))
        for reference in _NODE_REFERENCE.findall(rest):
            if reference not in places:
                raise UserError(f"{where}: ${{{reference}}} refers to nothing in the recipe.{_near_places(reference, places)}")
        if "${" in _NODE_REFERENCE.sub("", rest):
            raise UserError(f"{where}: '{value}': only ${{place.in.recipe}} and ${{oc.env:FLOWACT_NAME,default}} may be interpolated")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        at = str(getattr(error, "full_key", "") or "")
        reason = "its references lead back to itself" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        if "Missing mandatory value" in reason:
            reason = "this recipe leaves it to you (???); give it on the command line"
        raise UserError(f"{f'{at} ({origin_of(at, origins)}): ' if at else ''}{reason}") from None
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def _places(node: Any, at: str = "") -> Iterator[str]:
    if at:
        yield at
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _places(value, join(at, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _places(value, f"{at}[{i}]")
            yield from (place.replace(f"{at}[{i}]", f"{at}.{i}") for place in _places(value, f"{at}[{i}]"))


def _near_places(reference: str, places: set[str]) -> str:
    head = reference.rpartition(".")[0]
    siblings = {place for place in places if place.rpartition(".")[0] == head}
    return did_you_mean(reference, siblings or {place for place in places if "." not in place})


def check_vars_used(layers: Layers, path: str) -> None:
    """A variable that nothing reads is most likely misspelt; one of a base may have lost its reader to the file `path` or the command line.

    Raises:
        UserError: naming the nearest variable that is read.
    """
    now = set(references_to_vars(layers.config))
    for place, _ in leaves(layers.config.get("vars") or {}, "vars"):
        where = origin_of(place, layers.origins)
        is_own = where == COMMAND_LINE or where.rpartition(":")[0] == path
        readers = now if is_own else now | layers.read_vars
        if place != "vars" and not any(is_inside(place, reader) or is_inside(reader, place) for reader in readers):
            name = place.removeprefix("vars.")
            raise UserError(f"{place} ({where}): nothing in the recipe reads it.{did_you_mean(name, [reader[5:] for reader in readers])}")

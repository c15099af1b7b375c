"""`flowact describe NAME`: a class's arguments, defaults, origin and a YAML example to paste."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from flowact import registry
from flowact.errors import UserError
from flowact.recipe import packaged_folder, packaged_recipes
from flowact.signatures import Argument, accepted_classes, argument_mistakes, arguments_of, first_lines, type_hint
from flowact.strict_yaml import read_yaml, to_yaml

#: what stands in an example for a number that nothing says more of
_NUMBERS: dict[type, Any] = {bool: False, int: 64, float: 1.0}
_DEPTH = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name and output format."""
    parser.add_argument("name", help="a component of `flowact list`, or the dotted path of a class of lightning or torch that recipes may name")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def description(name: str) -> dict[str, Any]:
    """All that `describe` prints, as plain values.

    Raises:
        UserError: unknown name, outside the allow-list, or its import fails.
    """
    cls, origin = _found(name)
    arguments = arguments_of(cls)
    return {
        **origin,
        "source": _source(cls),
        "summary": first_lines(cls),
        "arguments": [
            {"name": a.name, "type": a.type, "required": a.required, "default": a.default if a.is_plain else repr(a.default), "doc": a.doc}
            for a in arguments
        ],
        "example": example(str(origin["name"]), cls, arguments),
    }


def _found(name: str) -> tuple[type, dict[str, Any]]:
    """The class, and where it comes from. A class of a library has no kind."""
    if "." in name and not any(name == c.class_path for c in registry.components()):
        cls = registry.load_class(name, at="")
        owners = importlib.metadata.packages_distributions().get(name.partition(".")[0], [])
        version = importlib.metadata.version(owners[0]) if owners else ""
        distribution = owners[0] if owners else ""
        return cls, {"name": name, "kind": None, "base": None, "class_path": name, "distribution": distribution, "version": version}
    component = registry.resolve(name)
    return registry.load(name), {
        "name": component.name,
        "kind": component.kind,
        "base": registry.KINDS[component.kind].base,
        "class_path": component.class_path,
        "distribution": component.distribution,
        "version": component.version,
    }


def _source(cls: type) -> str | None:
    """File and line, from the folder that holds the package."""
    try:
        file, line = Path(inspect.getsourcefile(cls) or ""), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None
    inside = cls.__module__.count(".") + (2 if file.name == "__init__.py" else 1)
    return f"{Path(*file.parts[-inside:]).as_posix()}:{line}"


# --- the example ------------------------------------------------------------------------------------------------------------------------------------


def example(name: str, cls: type, arguments: list[Argument]) -> str:
    """YAML to paste into a recipe: values for what must be given, then every default."""
    own = {a.name: _value(cls, a, _DEPTH) for a in arguments if a.required}
    own |= {a.name: a.default for a in arguments if not a.required and a.is_plain}
    for mistake in argument_mistakes(cls, own, ""):  # a default that the annotation does not allow
        own.pop(str(mistake).partition(":")[0].partition(".")[0], None)
    lines = to_yaml({"class_path": name, **({"init_args": own} if own else {})}).rstrip().splitlines()
    for argument in arguments:
        if argument.required:
            at = next((i for i, line in enumerate(lines) if line.startswith(f"  {argument.name}:")), None)
            if at is not None:
                lines[at] += f"  # yours: {argument.type}"
    return "\n".join(lines)


def _value(cls: type, argument: Argument, depth: int) -> Any:
    """A value that the constructor takes: a component for a component, what shipped recipes say, or what the type says."""
    hint = type_hint(cls, argument.name)
    accepted = accepted_classes(cls, argument.name)
    component = _component(accepted) if depth else None
    if component is not None:
        inner = registry.load_class(component.class_path)
        needed = {a.name: _value(inner, a, depth - 1) for a in arguments_of(inner) if a.required}
        spec = {"class_path": component.name, **({"init_args": needed} if needed else {})}
        return [spec] if get_origin(hint) is list else {"first": spec} if get_origin(hint) is dict else spec
    shipped = _shipped(cls.__name__, argument.name)
    if shipped is not None:
        return shipped
    if str in accepted:
        return f"path/to/{argument.name}" if re.search(r"path|dir|folder|file|train", argument.name) else argument.name
    literal = next((value for value in get_args(hint) if isinstance(value, str)), None)
    return next((value for kind, value in _NUMBERS.items() if kind in accepted), literal)


def _component(accepted: tuple[type, ...]) -> registry.Component | None:
    """The simplest component that a parameter takes, our own before a plugin's; None when it takes none."""
    found = []
    for kind in registry.KINDS.values():
        if not any(map(kind.is_base_of, accepted)):
            continue
        for component in registry.components(kind.name):
            try:
                cls = registry.load(component.name, component.kind)
            except UserError:
                continue  # a broken plugin
            if issubclass(cls, accepted):
                arguments = arguments_of(cls)
                found.append((component.distribution != "flowact", sum(a.required for a in arguments), len(arguments), component.name, component))
    return min(found)[-1] if found else None


def _shipped(class_name: str, argument: str) -> Any:
    """What a shipped recipe that names the class says of an argument, in its text; None if none says a plain value."""
    for name in sorted(packaged_recipes(), key=lambda name: not name.startswith("quickstart/")):
        text = (packaged_folder() / name).read_text(encoding="utf-8")
        found = re.search(rf"class_path: {class_name}\n(?:.*\n)*?\s+{argument}: ([^\n#]+)", text)
        if found:
            value, _ = read_yaml(found[1].strip().replace("${vars.run}", "runs/mine"), name)
            if not (isinstance(value, str) and "${" in value):
                return value
    return None


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    found = description(args.name)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    kind = f"{found['kind']}: a {found['base']}" if found["kind"] else "a class of a library"
    print(f"{found['name']}  ({kind})\n{found['summary']}\n")
    source = f", {found['source']}" if found["source"] else ""
    print(f"{found['class_path']}, from {found['distribution']} {found['version']}".rstrip() + source + "\n")
    for argument in found["arguments"]:
        _print(argument)
    print("\n" + found["example"])
    return 0


def _print(argument: Mapping[str, Any]) -> None:
    default = "required" if argument["required"] else f"default {argument['default']!r}"
    print(f"  {argument['name']}: {argument['type']}  ({default})")
    if argument["doc"]:
        print(f"      {argument['doc']}")

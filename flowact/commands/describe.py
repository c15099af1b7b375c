"""`flowact describe NAME`: a component's arguments, defaults, origin and a YAML example to paste."""

from __future__ import annotations

import argparse
import json
from typing import Any

from flowact import registry
from flowact.signatures import Argument, arguments_of, first_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name and output format."""
    parser.add_argument("name", help="class name of a component (see `flowact list`)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def description(name: str) -> dict[str, Any]:
    """All that `describe` prints, as plain values.

    Raises:
        UserError: unknown name, or its import fails.
    """
    component = registry.resolve(name)
    cls = registry.load(name)
    arguments = arguments_of(cls)
    return {
        "name": component.name,
        "kind": component.kind,
        "base": registry.KINDS[component.kind].base,
        "class_path": component.class_path,
        "distribution": component.distribution,
        "version": component.version,
        "summary": first_lines(cls),
        "arguments": [
            {"name": a.name, "type": a.type, "required": a.required, "default": a.default if a.is_plain else repr(a.default), "doc": a.doc}
            for a in arguments
        ],
        "example": example(component.name, arguments),
    }


def example(name: str, arguments: list[Argument]) -> str:
    """YAML to paste into a recipe: every argument with its default, `???` where a value must be given."""
    lines = [f"class_path: {name}"]
    shown = [a for a in arguments if a.required or a.is_plain]
    if shown:
        lines.append("init_args:")
    for argument in shown:
        value = "???" if argument.required else json.dumps(argument.default)
        comment = f"  # {argument.type}" if argument.required else ""
        lines.append(f"  {argument.name}: {value}{comment}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    found = description(args.name)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['name']}  ({found['kind']}: a {found['base']})\n{found['summary']}\n")
    print(f"{found['class_path']}, from {found['distribution']} {found['version']}".rstrip() + "\n")
    for argument in found["arguments"]:
        default = "required" if argument["required"] else f"default {argument['default']!r}"
        print(f"  {argument['name']}: {argument['type']}  ({default})")
        if argument["doc"]:
            print(f"      {argument['doc']}")
    print("\n" + found["example"])
    return 0

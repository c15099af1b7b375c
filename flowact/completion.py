"""What a shell offers when Tab is pressed: verbs, options, and the names that are installed now, plugins among them.

argcomplete runs the program itself and asks its parser, so nothing that is offered can be out of date; no component and no torch is imported.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.lexers import split_line

from flowact import registry
from flowact.recipe import packaged_recipes

if TYPE_CHECKING:
    from flowact.program import Program

Completer = Callable[..., Iterable[str]]
DEVICES = ("cpu", "cuda", "cuda:0")


def shell_code(*programs: str, shell: str) -> str:
    """A script to evaluate in a shell, after which Tab completes the programs."""
    return argcomplete.shellcode(list(programs), shell=shell)


def complete(program: Program) -> None:
    """Answer the shell that asks through the environment, and end the process."""
    parser = completing_parser(program, os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT") or 0))
    argcomplete.autocomplete(parser, always_complete_options=False)


def completing_parser(program: Program, line: str, point: int) -> argparse.ArgumentParser:
    """The parser of the verb that stands in the line before the cursor, with what each argument can be."""
    _, _, _, words, _ = split_line(line, point)
    verb = next((word for word in words[1:] if word in program.verbs), None)
    parser, parsers = program.parsers(verb)
    for action in parsers[verb]._actions if verb else ():
        completer = None if action.choices else _completer_of(verb or "", action)
        if completer is not None:
            action.completer = completer  # type: ignore[attr-defined]
    return parser


def _completer_of(verb: str, action: argparse.Action) -> Completer | None:
    """By what the argument is called; None for numbers and texts that nobody can know."""
    kinds = [kind for kind in registry.groups() if action.dest in (kind, kind.removesuffix("s"))]
    if kinds:
        return lambda **_: _components(kinds[0])
    if action.dest == "name" and verb == "describe":
        return lambda **_: _components()
    if action.dest == "kind":
        return lambda **_: registry.groups()
    if action.dest == "device":
        return lambda **_: DEVICES
    if action.dest == "plugin":
        return FilesCompleter(("py",))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if "key=value" in metavar and "RECIPE" not in metavar:
        return _override
    if "RECIPE" in metavar or (verb == "diff" and action.dest in ("before", "after")):
        return _recipes
    if metavar in ("DIR", "CHECKPOINT", "FOLDER", "DATASET") or action.dest == "dataset":
        return DirectoriesCompleter()
    return None


def _components(kind: str | None = None) -> list[str]:
    return sorted({component.name for component in registry.components(kind)})


def _recipes(prefix: str, **_: Any) -> list[str]:
    """Packaged recipes and YAML files; folders too, since a checkpoint stands where a recipe may."""
    if "=" in prefix:
        return _override(prefix)
    whole = [name for name in packaged_recipes() if not name.rpartition("/")[2].startswith("_")]
    return [*whole, *FilesCompleter(("yaml", "yml"))(prefix)]


def _override(prefix: str, **_: Any) -> list[str]:
    """`...memory=` goes on with the memory banks; other values are not known."""
    key, equals, _value = prefix.partition("=")
    place = key.rpartition(".")[2]
    kinds = [kind for kind in registry.groups() if place in (kind, kind.removesuffix("s"))] if equals else []
    return [f"{key}={name}" for kind in kinds for name in _components(kind)]

"""The constructor is the schema: check, describe and call classes by their signatures. jsonargparse does the typing, its words become ours."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from flowact.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def join(*parts: str) -> str:
    """A dotted place in a recipe, without empty parts."""
    return ".".join(part for part in parts if part)


def is_inside(place: str, around: str) -> bool:
    """Whether a place is another one, or in it."""
    return place == around or not around or place.startswith((around + ".", around + "["))


_opened: set[str] = set()


def close_imports(allowed: Sequence[str]) -> None:
    """Make jsonargparse import from the allowed prefixes only: a class may be given as a bare string, which no search for `class_path` sees.

    jsonargparse adds to its lists, so what an earlier call allowed and this one does not is denied by name.
    """
    from jsonargparse import set_parsing_settings

    closed = sorted(_opened.difference(allowed))
    _opened.update(allowed)
    set_parsing_settings(
        import_path_denylist=["*", *closed],
        import_path_allowlist=list(allowed),
        instantiate_subclass_spec_in_any=False,
        config_read_mode_fsspec_enabled=False,
    )


@cache
def class_parser(cls: type) -> tuple[ArgumentParser, tuple[str, ...]]:
    """A parser of a class's constructor arguments under the key `it`, and their names; **kwargs are followed to their owner."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    added = parser.add_class_arguments(cls, "it", fail_untyped=False, sub_configs=False)
    names: dict[str, None] = {}
    for key in added:
        names.setdefault(key.removeprefix("it.").partition(".")[0])
    return parser, tuple(names)


class UnknownArgument(UserError):
    """A key that a constructor does not take."""


def check_arguments(cls: type, arguments: Any, at: str) -> None:
    """Check constructor arguments: names, required ones, types.

    Raises:
        UserError: as `check_spec`.
    """
    for mistake in argument_mistakes(cls, arguments, at):
        raise mistake


def argument_mistakes(cls: type, arguments: Any, at: str, names_only: bool = False) -> Iterator[UserError]:
    """What `check_arguments` would refuse: every unknown name, and the first of what else is wrong.

    Args:
        cls: whose constructor.
        arguments: what a recipe gives it.
        at: their place.
        names_only: leave types out, where what is inside is known to be wrong.
    """
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        yield UserError(f"{at}: the arguments of {cls.__name__} are a mapping, not {arguments!r}")
        return
    parser, names = class_parser(cls)
    unknown = [key for key in arguments if key not in names]
    for key in unknown:
        yield UnknownArgument(f"{join(at, str(key))}: {cls.__name__} takes no argument '{key}'.{did_you_mean(str(key), names)}")
    if not names or names_only:  # parse_object knows no group without members
        return
    try:
        parser.parse_object({"it": deepcopy({key: value for key, value in arguments.items() if key not in unknown})})  # it changes lists in place
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, ValueError, KeyError
        explained = _explain(error, cls, parser, at)
        if not (unknown and _tells_missing(error)):  # what is missing is most likely what is misspelt
            explained.__cause__ = error
            yield explained


def type_hint(cls: type, argument: str) -> Any:
    """A constructor's parameter's annotation, resolved; None where it has none."""
    parser, _ = class_parser(cls)
    return next((getattr(action, "_typehint", getattr(action, "type", None)) for action in parser._actions if action.dest == f"it.{argument}"), None)


def accepted_classes(cls: type, argument: str) -> tuple[type, ...]:
    """Classes that a constructor's parameter is annotated with, alone or inside of unions, lists and mappings."""
    return tuple(_classes_in(type_hint(cls, argument)))


def _classes_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from _classes_in(part)


def _tells_missing(error: Exception) -> re.Match[str] | None:
    text = str(error)
    return re.search(r"arguments? (?:is|are) required: (.+)", text) or re.search(r'Key "([^"]+)" is required', text)


def _explain(error: Exception, cls: type, parser: ArgumentParser, at: str) -> UserError:
    """jsonargparse's message as ours: the key's place first, then the rule."""
    text = str(error)
    denied = re.search(r"Importing '([^']+)' is not allowed", text)
    required = _tells_missing(error)
    if required:
        missing = ", ".join(name.strip().strip("'\"").removeprefix("it.") for name in required[1].split(","))
        return UserError(f"{at}: {cls.__name__} needs {missing}")
    group = re.search(r"Group '([^']+)' does not accept option '([^']+)'", text)
    if group:
        parent, _, option = f"{group[1]}.{group[2]}".rpartition(".")
        siblings = parser.get_defaults().get(parent)
        hint = did_you_mean(option, vars(siblings)) if hasattr(siblings, "__dict__") else ""
        return UserError(f"{join(at, parent.removeprefix('it').lstrip('.'), option)}: there is no '{option}' here.{hint}")
    key_match = re.match(r'\s*Parser key "it\.?([^"]*)":?\s*', text)
    place = join(at, key_match[1]) if key_match else at
    body = text[key_match.end() :] if key_match else text
    if denied:
        return UserError(f"{place}: {refusal(denied[1])}")
    # nested specs were checked before, so a class named here is one that a mapping without class_path stands for, such as a dataclass
    nested = re.search(r"""Problem with given class_path '([^']+)':\s+(?:Option '([^']+)' is not accepted|Parser key "([^"]+)":\s+([^\n]+))""", body)
    if nested and nested[2]:
        _, names = class_parser(_imported(nested[1]))
        return UserError(f"{join(place, nested[2])}: there is no '{nested[2]}' here.{did_you_mean(nested[2], names)}")
    if nested:
        return UserError(f"{join(place, nested[3])}: {one_line(nested[4])}")
    return UserError(f"{place}: {one_line(body)}")


def _imported(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules[module], name)


def refusal(class_path: str) -> str:
    """What is said of a class path outside the allow-list."""
    prefix = class_path.rpartition(".")[0] or class_path
    return (
        f"'{class_path}' is outside flowact, its installed plugins, torch and lightning, and naming a class runs its code;"
        f" add --trust {prefix} if you know it"
    )


def one_line(text: str) -> str:
    """One line of what jsonargparse says over many: the expectations of a union side by side, the value once."""
    value = re.search(r"Given value: (?!Namespace\()(.*)\Z", text, re.DOTALL)
    if "Errors:" in text:
        body = re.sub(r"Subclass types expect one of:(?:\n\s*- a .*)*", "", text.partition("Errors:")[2].partition("Given value type:")[0])
        reasons = [" ".join(part.split()) for part in re.split(r"\n\s*- ", "\n" + body) if part.strip()]
    else:
        reasons = [" ".join(re.sub(r"Subclass types expect one of:[\s\S]*", "", text).split())]
    cleaned = []
    for reason in reasons:
        reason = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", reason)
        reason = re.sub(r"^Expected an? ", "expected ", reason)
        reason = re.sub(r"\bcollections\.abc\.|\btyping\.", "", reason).strip().rstrip(".")
        if reason not in cleaned and not (reason.endswith(" NoneType") and len(reasons) > 1):
            cleaned.append(reason)
    message = "; or ".join(cleaned)
    if value and "Got value" not in message:
        message += f". Got value: {' '.join(value[1].split())[:120]}"
    return message[:1].lower() + message[1:]


def build(cls: type, arguments: Mapping[str, Any]) -> Any:
    """Call a constructor with checked arguments; nested specs become objects by the types of its parameters.

    Raises:
        UserError: a constructor refuses its values.
    """
    parser, names = class_parser(cls)
    try:
        return _build(cls, arguments, parser, names)
    except UserError:
        raise
    except (ValueError, argparse.ArgumentError) as error:
        raise UserError(f"{cls.__name__}: {one_line(str(error))}") from error


def _build(cls: type, arguments: Mapping[str, Any], parser: ArgumentParser, names: Sequence[str]) -> Any:
    if not names:
        return cls()
    return parser.instantiate(parser.parse_object({"it": dict(arguments)})).it


@dataclass(frozen=True)
class Argument:
    """One constructor argument, for people.

    Attributes:
        type: the annotation as written.
        default: plain where it can be; dataclasses as mappings, tuples as lists.
        doc: its line in the docstring, or "".
    """

    name: str
    type: str
    required: bool
    default: Any
    doc: str

    @property
    def is_plain(self) -> bool:
        """Whether a recipe can hold the default."""
        try:
            json.dumps(self.default, allow_nan=False)
        except (TypeError, ValueError):
            return False
        return not self.required


def first_lines(cls: type) -> str:
    """A docstring's paragraphs up to its first section."""
    return re.split(r"\n\s*(?:Args|Attributes|Raises|Returns|Example|Examples):", inspect.getdoc(cls) or "")[0].strip()


def arguments_of(cls: type) -> list[Argument]:
    """Constructor arguments in order; those that **kwargs pass on come from the class that takes them."""
    import docstring_parser

    found: dict[str, inspect.Parameter] = {}
    docs: dict[str, str] = {}
    for owner in cls.__mro__:
        constructor = owner.__dict__.get("__init__")
        if constructor is None:
            continue
        for parameter in inspect.signature(constructor).parameters.values():
            found.setdefault(parameter.name, parameter)
        for source in (owner.__doc__, constructor.__doc__):
            for entry in docstring_parser.parse(source or "").params:
                docs.setdefault(entry.arg_name, " ".join((entry.description or "").split()))
    _, names = class_parser(cls)
    return [_argument(found[name], docs.get(name, "")) for name in names if name in found]


def _argument(parameter: inspect.Parameter, doc: str) -> Argument:
    annotation, default = parameter.annotation, parameter.default
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    required = default is inspect.Parameter.empty
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        default = dataclasses.asdict(default)
    if isinstance(default, tuple):
        default = list(default)
    return Argument(parameter.name, "" if annotation is inspect.Parameter.empty else written, required, None if required else default, doc)

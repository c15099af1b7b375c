"""YAML that holds plain values only, read with the line of every place and refused in one line: for recipes and other hand-written files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from flowact.errors import UserError
from flowact.signatures import join

MAX_BYTES = 1_000_000
MAX_DEPTH = 60
MAX_NODES = 50_000


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2: 1e-5 is a number; no, 012 and dates are not surprises."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` or another YAML reader would take for something else than text."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """In double quotes where a line break is not an ordinary one: in single quotes it would be read as a space."""
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)

_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", rf"{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
)
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), [c if c != "\0" else "" for c in _first])


def read_yaml(text: str, name: str) -> tuple[Any, dict[str, str]]:
    """Plain values of a YAML text, and where each dotted place was written ("name:line").

    Raises:
        UserError: one line with file and line: syntax, duplicate key, tag, NaN or infinity, too deep, too large, not text.
    """
    origins: dict[str, str] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return (None if node is None else _construct(node, name, "", origins, [0], 0)), origins
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        tab = " (indent with spaces, not tabs)" if "\\t" in str(error.problem) else ""
        raise UserError(f"{name}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {error.problem or error.context}{tab}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise UserError(f"{name}: nested more than {MAX_DEPTH} levels deep") from None


def _construct(node: yaml.Node, name: str, at: str, origins: dict[str, str], count: list[int], depth: int) -> Any:
    where = f"{name}:{node.start_mark.line + 1}"
    count[0] += 1
    if depth > MAX_DEPTH:
        raise UserError(f"{where}: nested more than {MAX_DEPTH} levels deep")
    if count[0] > MAX_NODES:
        raise UserError(f"{where}: more than {MAX_NODES} values once its aliases are written out")
    if at:
        origins.setdefault(at, where)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise UserError(f"{line}: a key is a plain word; to share values use _base_ or ${{...}}")
            key = key_node.value
            if key in result:
                raise UserError(f"{line}: '{join(at, key)}' is written twice in one mapping; keep one")
            origins[join(at, key)] = line
            result[key] = _construct(value_node, name, join(at, key), origins, count, depth + 1)
        return result
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_construct(item, name, f"{at}[{i}]", origins, count, depth + 1) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in _READ_SCALAR:
        try:
            value = _READ_SCALAR[kind](node.value)
        except (ValueError, OverflowError):
            raise UserError(f"{where}: '{node.value[:40]}' is not a {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {at or 'value'} is {node.value}; numbers must be finite")
        return value
    raise UserError(f"{where}: the tag '{node.tag}' is not allowed; plain values only")


_READ_SCALAR: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 16) if text.startswith("0x") else int(text.replace("_", "")),
    "float": lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.replace("_", "").lower())),
}


def to_yaml(config: Mapping[str, Any]) -> str:
    """A resolved recipe as YAML that `load_recipe` reads back equal: `${` is escaped. For the recipe inside a checkpoint."""
    return yaml.dump(_escape(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _escape(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _escape(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_escape(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node


def read_yaml_file(path: Path) -> tuple[Any, dict[str, str]]:
    """`read_yaml` of a file.

    Raises:
        UserError: unreadable, larger than `MAX_BYTES`, or as `read_yaml`.
    """
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if raw is None:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes; a hand-written YAML file is not")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return read_yaml(text, str(path))

"""Recipes: YAML files that only pick combinations. Compose `_base_`, command-line overrides, then `${...}`; constructors are the schema.

Rules of composition:
    a child is laid over its bases, mapping by mapping; other values replace;
    `_replace_: true` inside a mapping lays it over nothing: what the bases say there is dropped;
    `name+:` appends its list to the base's list;
    `trainer.callbacks` is a mapping name -> component, so that a child can add, change or (with null) leave out one;
    on the command line `a.b=value` replaces, `a.b+=value` appends, and a component's bare name (`model.init_args.memory=NoMemory`)
    or another `class_path` starts with that class's own defaults;
    `${a.b}` and `${oc.env:FLOWACT_NAME,default}` are resolved last, so they follow overrides; write `\\${` for a literal `${`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flowact
from flowact import registry
from flowact.errors import UserError, did_you_mean
from flowact.signatures import check_arguments, join
from flowact.strict_yaml import read_yaml, read_yaml_file

SECTIONS = ("about", "vars", "seed", "init_from", "data", "model", "trainer")
ABOUT = ("title", "command", "hardware", "memory", "time", "expected", "source")
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Recipe:
    """A composed recipe.

    Attributes:
        config: plain resolved values, class paths in full, without `vars`: what is trained, and what a checkpoint stores.
        path: the file that was asked for.
        sources: every file that took part, bases first.
        origins: dotted place -> "file:line" (or "command line") that set it.
        trusted: dotted prefixes it may import besides the allow-list.
    """

    config: dict[str, Any]
    path: Path
    sources: tuple[Path, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    trusted: tuple[str, ...] = ()


# --- finding files ----------------------------------------------------------------------------------------------------------------------------------


def packaged_folder() -> Path:
    """Folder of the recipes that are installed beside the package."""
    return Path(flowact.__file__).resolve().parents[1] / "recipes"


def packaged_recipes() -> list[str]:
    """Names of the installed recipes, such as quickstart/pretraining.yaml."""
    folder = packaged_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_recipe(name: str | Path, beside: Path | None = None, asked_by: str = "") -> Path:
    """A recipe file: relative to the folder `beside` (default: the working folder), else among the packaged recipes.

    Raises:
        UserError: not found, with the nearest names.
    """
    candidates = [(beside or Path()) / name, packaged_folder() / name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    near = [*packaged_recipes(), *(path.as_posix() for path in Path(name).parent.glob("*.yaml"))]
    if beside is not None:
        near += [path.name for path in beside.glob("*.yaml")]
    prefix = f"{asked_by}: " if asked_by else ""
    raise UserError(f"{prefix}no recipe '{name}' in {beside or 'this folder'} or among the packaged recipes.{did_you_mean(str(name), near)}")


# --- composing --------------------------------------------------------------------------------------------------------------------------------------


def _overlay(base: Any, child: Any, at: str) -> Any:
    """`child` laid over `base`; both plain."""
    if not isinstance(child, dict):
        return child
    if child.get("_replace_") is True or not isinstance(base, dict):
        base = {}
    result = dict(base)
    for key, value in child.items():
        if key == "_replace_":
            if not isinstance(value, bool):
                raise UserError(f"{join(at, key)}: _replace_ is true or false, not {value!r}")
        elif value is None and at == "trainer.callbacks" and key not in base:
            raise UserError(f"{join(at, key)}: no base has a callback of this name to leave out.{did_you_mean(key, base)}")
        elif key.endswith("+"):
            result[key[:-1]] = _append(result.get(key[:-1]), value, join(at, key[:-1]))
        else:
            result[key] = _overlay(result.get(key), value, join(at, key))
    return result


def _append(base: Any, more: Any, at: str) -> list[Any]:
    if not isinstance(more, list) or not isinstance(base, (list, type(None))):
        raise UserError(f"{at}+: appends a list to a list; the base has {base!r} and the child gives {more!r}")
    return [*(base or []), *more]


def _compose(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str], list[Path]]:
    if path.resolve() in chain:
        loop = " -> ".join(p.name for p in (*chain, path))
        raise UserError(f"{path}: its _base_ leads back to itself: {loop}")
    own, own_origins = read_yaml_file(path)
    if not isinstance(own, dict):
        raise UserError(f"{path}:1: a recipe is a mapping with the sections {', '.join(SECTIONS)}")
    bases = own.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    asked_by = own_origins.get("_base_", str(path))
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{asked_by}: _base_ is a recipe or a list of recipes, not {bases!r}")
    config: dict[str, Any] = {}
    origins: dict[str, str] = {}
    sources: list[Path] = []
    for base in bases:
        base_config, base_origins, base_sources = _compose(find_recipe(base, path.parent, asked_by), (*chain, path.resolve()))
        config = _overlay(config, base_config, "")
        origins.update(base_origins)
        sources += [source for source in base_sources if source not in sources]
    _check_sections(own, own_origins)
    try:
        config = _overlay(config, own, "")
    except UserError as error:
        place, _, rest = str(error).partition(": ")
        raise UserError(f"{place} ({_origin(place, own_origins)}): {rest}") from None
    origins.update({key.replace("+", ""): where for key, where in own_origins.items()})
    return config, origins, [*sources, path]


def _check_sections(config: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    for known, keys, prefix in ((SECTIONS, config, ""), (ABOUT, config.get("about") or {}, "about")):
        if not isinstance(keys, Mapping):
            raise UserError(f"{origins.get(prefix, prefix)}: {prefix} is a mapping of {', '.join(known)}")
        for key in keys:
            if key not in known and key != "_replace_":
                place = join(prefix, key)
                raise UserError(f"{place} ({origins.get(place, COMMAND_LINE)}): a recipe has no '{place}'.{did_you_mean(key, known)}")
    for section in ("vars", "data", "model", "trainer"):
        if not isinstance(config.get(section), (Mapping, type(None))):
            raise UserError(f"{section} ({origins.get(section, COMMAND_LINE)}): a mapping is expected, not {config[section]!r}")


def _override(config: dict[str, Any], text: str, origins: dict[str, str]) -> None:
    """Apply one `a.b.c=value` in place."""
    key, equals, raw = text.partition("=")
    append = key.endswith("+")
    key = key.removesuffix("+").strip()
    parts = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    if not equals or not all(parts):
        raise UserError(f"override '{text}': write section.key=value, such as trainer.max_steps=100")
    value, _ = read_yaml(raw, f"override '{key}'")
    node: Any = config
    for depth, part in enumerate(parts[:-1]):
        at = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = node[_index(node, part, text)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, (dict, list)):
            raise UserError(f"override '{text}': {at} is {node!r}, it has no parts")
    last: Any = _index(node, parts[-1], text) if isinstance(node, list) else parts[-1]
    present = node[last] if isinstance(node, list) else node.get(last)
    if append:
        value = _append(present, value, key)
    elif isinstance(present, dict) and "class_path" in present and isinstance(value, str) and "${" not in value:
        value = {"class_path": value}
    elif last == "class_path" and present != value and isinstance(node, dict):
        node.pop("init_args", None)
    if value is None and ".".join(parts[:-1]) == "trainer.callbacks" and last not in node:
        raise UserError(f"override '{text}': the recipe has no callback '{last}' to leave out.{did_you_mean(last, node)}")
    node[last] = _overlay(None, value, key)
    for stale in [place for place in origins if place == key or place.startswith((key + ".", key + "["))]:
        del origins[stale]
    origins[key] = COMMAND_LINE


def _index(node: list[Any], part: str, text: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override '{text}': '{part}' is not a position in a list of {len(node)}")
    return int(part)


_NODE_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\s*\}")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:FLOWACT_[A-Z0-9_]+(?:,[^${}]*)?\}")


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted place and value of everything that is not a mapping or list; empty ones count as leaves."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, join(at, key))
    elif isinstance(node, list) and node:
        for i, value in enumerate(node):
            yield from _leaves(value, f"{at}[{i}]")
    else:
        yield at, node


def _resolve(config: dict[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """Values of all `${...}`. Only places in the recipe and environment variables that start with FLOWACT_ may be asked for."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    places = {place for place, _ in _places(config)}
    for at, value in _leaves(config):
        if not isinstance(value, str) or "${" not in value:
            continue
        where = f"{at} ({_origin(at, origins)})"
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
        raise UserError(f"{f'{at} ({_origin(at, origins)}): ' if at else ''}{reason}") from None
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def _places(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if at:
        yield at, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _places(value, join(at, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _places(value, f"{at}[{i}]")
            yield from ((place.replace(f"{at}[{i}]", f"{at}.{i}"), item) for place, item in _places(value, f"{at}[{i}]"))


def _near_places(reference: str, places: set[str]) -> str:
    head = reference.rpartition(".")[0]
    siblings = {place for place in places if place.rpartition(".")[0] == head}
    return did_you_mean(reference, siblings or {place for place in places if "." not in place})


def _origin(at: str, origins: Mapping[str, str]) -> str:
    """Where a place, or the nearest place around it, was written."""
    while at:
        if at in origins:
            return origins[at]
        at = at[: max(at.rfind("."), at.rfind("["), 0)]
    return "recipe"


def _check_vars_used(config: Mapping[str, Any], origins: Mapping[str, str], path: Path) -> None:
    """A variable that this recipe or the command line sets and nothing reads is most likely misspelt."""
    text = "\n".join(value for _, value in _leaves(config) if isinstance(value, str))
    used = {re.split(r"[.\[]", reference)[1] for reference in _NODE_REFERENCE.findall(text) if reference.startswith("vars.")}
    for name in config.get("vars") or {}:
        where = origins.get(f"vars.{name}", "")
        if name not in used and (where == COMMAND_LINE or where.rpartition(":")[0] == str(path)):
            raise UserError(f"vars.{name} ({where}): nothing in the recipe reads it.{did_you_mean(name, used)}")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Recipe:
    """Compose a recipe. Names are looked up and checked against the allow-list; no component is imported.

    Args:
        path: a file, or the name of a packaged recipe.
        overrides: "a.b.c=value", values as in YAML, applied in order.
        trust: dotted prefixes that class paths may have besides the allow-list.

    Raises:
        UserError: with file and line.
    """
    file = find_recipe(path)
    config, origins, sources = _compose(file, ())
    for override in overrides:
        _override(config, override, origins)
    _check_sections(config, origins)
    _check_callbacks(config, origins)
    _check_vars_used(config, origins, file)
    config.setdefault("seed", 0)
    resolved = _resolve(deepcopy(config), origins)
    callbacks = (resolved.get("trainer") or {}).get("callbacks")
    if callbacks:  # those left out are no part of what is stored
        resolved["trainer"]["callbacks"] = {name: spec for name, spec in callbacks.items() if spec is not None}
    recipe = Recipe({}, file, tuple(sources), origins, tuple(trust))
    expanded = _located(recipe, registry.expand, resolved)
    for place, spec in _located(recipe, lambda: list(registry.specs(expanded))):
        _located(recipe, registry.check_allowed, spec["class_path"], trust, join(place, "class_path"))
    ordered = {section: expanded[section] for section in SECTIONS if section in expanded and section != "vars"}  # resolved, the variables are spent
    return Recipe(ordered, file, recipe.sources, origins, recipe.trusted)


def _located(recipe: Recipe, function: Any, *args: Any) -> Any:
    """Call a check; its error says the place first ("model.init_args.x: ..."), and the file and line are added."""
    try:
        return function(*args)
    except UserError as error:
        place, colon, rest = str(error).partition(": ")
        if not colon or " " in place:
            raise UserError(f"{recipe.path}: {error}") from error.__cause__
        raise UserError(f"{place} ({_origin(place, recipe.origins)}): {rest}") from error.__cause__


def _check_callbacks(config: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    callbacks = (config.get("trainer") or {}).get("callbacks")
    if callbacks is None:
        return
    where = _origin("trainer.callbacks", origins)
    if not isinstance(callbacks, Mapping):
        raise UserError(f"trainer.callbacks ({where}): a mapping name -> component is expected, so that a derived recipe can change one")
    names = [name for name, spec in callbacks.items() if isinstance(spec, Mapping) and "class_path" in spec]
    for name, spec in callbacks.items():
        if spec is not None and name not in names:
            where = _origin(f"trainer.callbacks.{name}", origins)
            raise UserError(f"trainer.callbacks.{name} ({where}): a callback has a class_path.{did_you_mean(name, names)}")


# --- checking against signatures --------------------------------------------------------------------------------------------------------------------


def trainer_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer section as `lightning.Trainer` takes it: named callbacks become a list, those set to null are left out."""
    arguments = dict(config.get("trainer") or {})
    if arguments.get("callbacks") is not None:
        arguments["callbacks"] = [spec for spec in arguments["callbacks"].values() if spec is not None]
    return arguments


def check_recipe(recipe: Recipe) -> None:
    """Check every key of a composed recipe against the signature of the class that takes it. Imports the classes, builds nothing.

    Raises:
        UserError: the key's place, file and line, what is wrong, and the nearest right name.
    """
    config = recipe.config
    for section, kind in (("data", "data"), ("model", "stages")):
        spec = config.get(section)
        if not isinstance(spec, Mapping) or "class_path" not in spec:
            names = ", ".join(component.name for component in registry.components(kind))
            raise UserError(f"{section} ({_origin(section, recipe.origins)}): needs a class_path and init_args; there is {names}")
    if isinstance(config["seed"], bool) or not isinstance(config["seed"], int) or config["seed"] < 0:
        raise UserError(f"seed ({_origin('seed', recipe.origins)}): {config['seed']!r} is not a whole number from 0")
    if not isinstance(config.get("init_from"), (str, type(None))):
        raise UserError(f"init_from ({_origin('init_from', recipe.origins)}): {config['init_from']!r} is not the path of a checkpoint folder")
    _located(recipe, _check_sections_by_signature, recipe)


def _check_sections_by_signature(recipe: Recipe) -> None:
    for section, kind in (("data", "data"), ("model", "stages")):
        spec = recipe.config[section]
        registry.check_spec(spec, section, recipe.trusted)
        cls = registry.load_class(spec["class_path"], recipe.trusted)
        if not registry.KINDS[kind].is_base_of(cls):
            raise UserError(f"{section}.class_path: {cls.__name__} is not a {registry.KINDS[kind].base}")
    registry.check_spec(recipe.config.get("trainer") or {}, "trainer", recipe.trusted)
    from lightning.pytorch import Trainer

    check_arguments(Trainer, trainer_arguments(recipe.config), "trainer")


# --- comparing --------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A place where two configs differ; `MISSING` stands for nothing there."""

    place: str
    before: Any
    after: Any


MISSING = "(absent)"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Places whose values differ, in reading order. `about` is left out: nothing reads it."""
    sides = [dict(_leaves({k: v for k, v in side.items() if k != "about"})) for side in (before, after)]
    places = [*sides[0], *(place for place in sides[1] if place not in sides[0])]
    return [Difference(p, sides[0].get(p, MISSING), sides[1].get(p, MISSING)) for p in places if sides[0].get(p, MISSING) != sides[1].get(p, MISSING)]

"""Recipes: YAML files that only pick combinations. Composed by the rules of `flowact.composition`, then checked; constructors are the schema."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flowact
from flowact import registry
from flowact.composition import CALLBACKS, COMMAND_LINE, Layers, check_vars_used, is_bare_name, leaves, origin_of, override, resolve
from flowact.errors import UserError, did_you_mean, differ_by_a_letter
from flowact.registry import SPEC_KEYS
from flowact.signatures import UnknownArgument, accepted_classes, argument_mistakes, join
from flowact.strict_yaml import read_yaml_file

SECTIONS = ("about", "vars", "seed", "init_from", "data", "model", "trainer")
ABOUT = ("title", "command", "hardware", "memory", "time", "expected", "source")


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


def _compose(path: Path, chain: tuple[Path, ...]) -> tuple[Layers, list[Path]]:
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
    layers = Layers()
    sources: list[Path] = []
    for base in bases:
        base_layers, base_sources = _compose(find_recipe(base, path.parent, asked_by), (*chain, path.resolve()))
        layers.add(base_layers.config, base_layers.origins)
        layers.read_vars |= base_layers.read_vars
        sources += [source for source in base_sources if source not in sources]
    _check_sections(own, own_origins)
    layers.add(own, own_origins)
    return layers, [*sources, path]


def _check_sections(config: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    for known, keys, prefix in ((SECTIONS, config, ""), (ABOUT, config.get("about") or {}, "about")):
        if not isinstance(keys, Mapping):
            raise UserError(f"{origins.get(prefix, prefix)}: {prefix} is a mapping of {', '.join(known)}")
        for key in keys:
            if key not in known and key != "_replace_":
                place = join(prefix, key)
                hint = did_you_mean(key, known if prefix else (*known, "_base_"))
                raise UserError(f"{place} ({origins.get(place, COMMAND_LINE)}): a recipe has no '{place}'.{hint}")
    for section in ("vars", "data", "model", "trainer"):
        if not isinstance(config.get(section), (Mapping, type(None))):
            raise UserError(f"{section} ({origins.get(section, COMMAND_LINE)}): a mapping is expected, not {config[section]!r}")


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
    layers, sources = _compose(file, ())
    for text in overrides:
        override(layers, text)
    config, origins = layers.config, layers.origins
    _check_sections(config, origins)
    _check_callbacks(config, origins)
    check_vars_used(layers, str(file))
    config.setdefault("seed", 0)
    resolved = resolve(deepcopy(config), origins)
    recipe = Recipe({}, file, tuple(sources), origins, tuple(trust))
    expanded = _located(recipe, registry.expand, resolved)
    for place, spec in _located(recipe, _specs, expanded):
        _located(recipe, registry.check_allowed, spec["class_path"], trust, join(place, "class_path"))
    expanded = _with_named_components(expanded, trust)
    ordered = {section: expanded[section] for section in SECTIONS if section in expanded and section != "vars"}  # resolved, the variables are spent
    return Recipe(ordered, file, recipe.sources, origins, recipe.trusted)


def _located(recipe: Recipe, function: Any, *args: Any) -> Any:
    """Call a check, and add to its error where the place was written."""
    try:
        return function(*args)
    except UserError as error:
        located = with_origin(error, recipe)
        raise located from located.__cause__


def _specs(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every component. One that a child only changes has no class where a key on the way to it is misspelt: then that key is told."""
    try:
        return list(registry.specs(config))
    except UserError as error:
        node: Any = config
        at = ""
        for key in str(error).partition(":")[0].split("."):
            if not isinstance(node, Mapping) or key not in node:
                break
            near = [other for other in node if other != key and differ_by_a_letter(key, other)]
            if near:
                raise UserError(f"{join(at, key)}: nothing here is changed by '{key}'. Did you mean {near[0]}?") from None
            node, at = node[key], join(at, key)
        raise


def _check_callbacks(config: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Callbacks are components by name; those left out are no part of what is stored, and a bare name is a component. Changes the trainer section."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks")
    if callbacks is None:
        return
    where = origin_of(CALLBACKS, origins)
    if not isinstance(callbacks, Mapping):
        raise UserError(f"{CALLBACKS} ({where}): a mapping name -> component is expected, so that a derived recipe can change one")
    found = {name: {"class_path": spec} if is_bare_name(spec) else spec for name, spec in callbacks.items() if spec is not None}
    names = [name for name, spec in found.items() if isinstance(spec, Mapping) and "class_path" in spec]
    for name, spec in found.items():
        if name not in names:
            place, hint = f"{CALLBACKS}.{name}", did_you_mean(name, names)
            wrong = next((key for key in spec if key not in SPEC_KEYS), None) if isinstance(spec, Mapping) else None
            if wrong is not None and "Did you mean" in did_you_mean(wrong, SPEC_KEYS):
                place, hint = join(place, wrong), did_you_mean(wrong, SPEC_KEYS)
            raise UserError(f"{place} ({origin_of(place, origins)}): a callback has a class_path.{hint}")
    trainer["callbacks"] = found


def _with_named_components(config: dict[str, Any], trusted: Sequence[str]) -> dict[str, Any]:
    """A config in which a registered name is a component wherever the constructor that gets it takes one of that kind.

    Text that is no component's name leaves everything as it is, and no class is imported then.
    """
    known: dict[str, list[registry.Component]] = {}
    for component in registry.components():
        known.setdefault(component.name, []).append(component)
        known.setdefault(component.class_path, []).append(component)

    def named(value: Any, accepted: tuple[type, ...]) -> Any:
        if isinstance(value, str):
            fitting = [c for c in known[value] if any(registry.KINDS[c.kind].is_base(cls) for cls in accepted)] if value in known else []
            return {"class_path": fitting[0].class_path} if len(fitting) == 1 else value
        if isinstance(value, list):
            return [named(item, accepted) for item in value]
        if isinstance(value, Mapping) and "class_path" not in value:
            return {key: named(item, accepted) for key, item in value.items()}
        return value

    def inside(node: Any) -> Any:
        if isinstance(node, list):
            return [inside(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        found = {key: inside(value) for key, value in node.items()}
        arguments = found.get("init_args")
        if isinstance(found.get("class_path"), str) and isinstance(arguments, Mapping):
            found["init_args"] = of_class(found["class_path"], arguments)
        return found

    def of_class(class_path: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        candidates = [key for key, value in arguments.items() if any(isinstance(text, str) and text in known for _, text in leaves(value))]
        try:
            cls = registry.load_class(class_path, trusted) if candidates else object
        except UserError:
            return dict(arguments)  # told by check_recipe
        return {key: named(value, accepted_classes(cls, key)) if key in candidates else value for key, value in arguments.items()}

    found = inside(config)
    if isinstance(found.get("trainer"), Mapping):
        found["trainer"] = of_class("lightning.pytorch.Trainer", found["trainer"])
    return found


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
        UserError: a line for each mistake: the key's place, file and line, what is wrong, and the nearest right name.
    """
    found = mistakes(recipe)
    if found:
        raise UserError("\n".join(map(str, found))) from found[0].__cause__


def mistakes(recipe: Recipe) -> list[UserError]:
    """What `check_recipe` refuses, each with its place, file and line."""
    return [with_origin(mistake, recipe) for mistake in _mistakes(recipe)]


def _mistakes(recipe: Recipe) -> Iterator[UserError]:
    config = recipe.config
    if isinstance(config["seed"], bool) or not isinstance(config["seed"], int) or config["seed"] < 0:
        yield UserError(f"seed: {config['seed']!r} is not a whole number from 0")
    if not isinstance(config.get("init_from"), (str, type(None))):
        yield UserError(f"init_from: {config['init_from']!r} is not the path of a checkpoint folder")
    for section, kind in (("data", "data"), ("model", "stages")):
        spec = config.get(section)
        if not isinstance(spec, Mapping) or "class_path" not in spec:
            names = ", ".join(component.name for component in registry.components(kind))
            yield UserError(f"{section}: needs a class_path and init_args; there is {names}")
            continue
        found = list(registry.spec_mistakes(spec, section, recipe.trusted))
        yield from found or _base_mistakes(spec, section, kind, recipe)
    trainer = config.get("trainer") or {}
    found = list(registry.spec_mistakes(trainer, "trainer", recipe.trusted))
    yield from found
    from lightning.pytorch import Trainer

    wrong = False
    for name, spec in (trainer.get("callbacks") or {}).items():
        if not found:
            for mistake in _base_mistakes(spec, join(CALLBACKS, name), "callbacks", recipe):
                wrong = True
                yield mistake
    yield from _doubled_callbacks(trainer.get("callbacks") or {}, recipe)
    yield from argument_mistakes(Trainer, trainer_arguments(config), "trainer", names_only=bool(found) or wrong)


def _base_mistakes(spec: Mapping[str, Any], at: str, kind: str, recipe: Recipe) -> Iterator[UserError]:
    """Whether a component is of the kind that its place takes."""
    cls = registry.load_class(spec["class_path"], recipe.trusted)
    if not registry.KINDS[kind].is_base_of(cls):
        yield UserError(f"{at}.class_path: {cls.__name__} is not a {registry.KINDS[kind].base}")


def _doubled_callbacks(callbacks: Mapping[str, Any], recipe: Recipe) -> Iterator[UserError]:
    """A child that misspells the name of a base's callback has added a second one."""
    for (older, spec), (name, other) in itertools.combinations(callbacks.items(), 2):
        first, second = (origin_of(join(CALLBACKS, which), recipe.origins) for which in (older, name))
        if spec["class_path"] == other["class_path"] and _file(first) != _file(second) and differ_by_a_letter(older, name):
            what = f"a second {spec['class_path'].rpartition('.')[2]} beside '{older}' ({first}), whose name differs by a letter"
            yield UserError(f"{join(CALLBACKS, name)}: {what}. Did you mean {older}?")


def _file(origin: str) -> str:
    return origin if origin == COMMAND_LINE else origin.rpartition(":")[0]


def with_origin(error: UserError, recipe: Recipe) -> UserError:
    """An error that says the place first ("model.init_args.x: ..."), with the file and line added."""
    place, colon, rest = str(error).partition(": ")
    if not colon or " " in place:
        located = UserError(f"{recipe.path}: {error}")
    else:
        located = UserError(f"{place} ({origin_of(place, recipe.origins)}): {rest}{_inherited(error, place, recipe)}")
    located.__cause__ = error.__cause__
    return located


def _inherited(error: UserError, place: str, recipe: Recipe) -> str:
    """What to do about an argument that a base wrote for another class than the one that a later file names."""
    owner, _, _ = place.rpartition(".init_args.")
    if not isinstance(error, UnknownArgument):
        return ""
    files = [*map(str, recipe.sources), COMMAND_LINE]
    written, named = (origin_of(at, recipe.origins) for at in (place, f"{owner}.class_path"))
    first, last = _file(written), _file(named)
    if first not in files or last not in files or files.index(first) >= files.index(last):
        return ""
    drop = f"{owner}=NAME starts" if last == COMMAND_LINE else "`_replace_: true` beside that class_path starts"
    return f" If it was written for another class than the one named later ({named}): {drop} without what bases say."


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
    sides = [dict(leaves({k: v for k, v in side.items() if k != "about"})) for side in (before, after)]
    places = [*sides[0], *(place for place in sides[1] if place not in sides[0])]
    return [Difference(p, sides[0].get(p, MISSING), sides[1].get(p, MISSING)) for p in places if sides[0].get(p, MISSING) != sides[1].get(p, MISSING)]

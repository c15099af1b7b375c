"""Names to classes, from packaging metadata. Listing imports nothing; a recipe imports only what it names; everything else is refused, loudly.

A component is an entry point in a group `flowact.<kind>`, named after its class, for our own components as for any plugin.
A spec is the plain mapping `{class_path: ..., init_args: {...}}` that recipes, shards and checkpoints hold; specs nest.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flowact.errors import UserError, did_you_mean
from flowact.signatures import accepted_classes, argument_mistakes, build, close_imports, is_inside, join, refusal

GROUP_PREFIX = "flowact."
#: what a recipe may name without --trust, besides components; narrower than all of torch, whose loaders would run what they load
LIBRARY_PREFIXES = (
    *("torch.nn", "torch.optim", "torch.utils.data", "torch.float16", "torch.bfloat16", "torch.float32"),
    *("lightning.pytorch", "lightning.fabric"),
)
PLUGIN_FILE_MODULE = "flowact_plugin_"
SPEC_KEYS = ("class_path", "init_args")


@dataclass(frozen=True)
class Kind:
    """A family of swappable components: the base class is known by name, so that looking something up imports no room."""

    name: str
    room: str
    base: str

    def is_base_of(self, cls: type) -> bool:
        """Whether `cls` derives from the kind's base class."""
        return any(self.is_base(c) for c in cls.__mro__)

    def is_base(self, cls: type) -> bool:
        """Whether `cls` is the kind's base class itself."""
        return cls.__name__ == self.base and (cls.__module__ + ".").startswith(self.room + ".")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("denoisers", "flowact.models", "Denoiser"),
        Kind("adapters", "flowact.models", "Adapter"),
        Kind("formats", "flowact.models", "WeightFormat"),
        Kind("memory", "flowact.memory", "MemoryBank"),
        Kind("corruptors", "flowact.memory", "MemoryCorruptor"),
        Kind("conditioning", "flowact.conditioning", "ConditioningEncoder"),
        Kind("schedulers", "flowact.schedulers", "NoiseScheduler"),
        Kind("solvers", "flowact.schedulers", "Solver"),
        Kind("autoencoders", "flowact.autoencoders", "Autoencoder"),
        Kind("planners", "flowact.planning", "Planner"),
        Kind("stages", "flowact.stages", "Stage"),
        Kind("data", "lightning.pytorch", "LightningDataModule"),
        Kind("callbacks", "lightning.pytorch", "Callback"),
        Kind("strategies", "lightning.pytorch", "Strategy"),
        Kind("characters", "flowact.characters", "Character"),
        Kind("writers", "flowact.writers", "VideoWriter"),
        Kind("judges", "flowact.evaluation", "Judge"),
        Kind("steps", "data_tools.steps", "Step"),
        Kind("detectors", "data_tools.steps", "FaceDetector"),
    )
}


@dataclass(frozen=True)
class Component:
    """One registered class.

    Attributes:
        name: class name, what a recipe says.
        kind: a key of `KINDS`.
        target: "module:Class".
        distribution: what `pip` calls the package that registers it, or the path of a plugin file.
        version: of the distribution; empty for a plugin file.
    """

    name: str
    kind: str
    target: str
    distribution: str
    version: str

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def class_path(self) -> str:
        """Dotted path, what a resolved recipe says."""
        return self.target.replace(":", ".")

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class Stray:
    """An entry point that registers nothing.

    Attributes:
        distribution: what `pip` calls the package.
        group: as written, which begins with `flowact.` and is no kind's; empty if the distribution's entry points cannot be read.
        name: of the entry point, or why they cannot be read.
    """

    distribution: str
    group: str
    name: str


_plugin_files: dict[tuple[str, str], Component] = {}
_trusted: set[str] = set()


# --- listing: metadata only -------------------------------------------------------------------------------------------------------------------------


def groups() -> tuple[str, ...]:
    """Kinds of components; the entry-point group of a kind is `flowact.<kind>`."""
    return tuple(KINDS)


@cache
def _read_metadata() -> tuple[tuple[Component, ...], tuple[Stray, ...]]:
    points, strays = _entry_points()
    found = []
    for point in points:
        distribution, kind = point.dist, point.group.removeprefix(GROUP_PREFIX)
        origin = (distribution.name, distribution.version) if distribution is not None else ("an unknown distribution", "")
        if kind in KINDS:
            found.append(Component(point.name, kind, point.value.replace(" ", ""), *origin))
        else:
            strays.append(Stray(origin[0], point.group, point.name))
    found.sort(key=lambda c: (list(KINDS).index(c.kind), c.distribution != "flowact", c.name, c.distribution))
    return tuple(found), tuple(strays)


def _entry_points() -> tuple[list[importlib.metadata.EntryPoint], list[Stray]]:
    """Entry points whose group begins as ours do; a distribution that wrote its own wrongly hides no other."""
    try:
        every = importlib.metadata.entry_points()
        return [point for group in every.groups if group.startswith(GROUP_PREFIX) for point in every.select(group=group)], []
    except Exception:  # one file that is none is enough; the slow way finds whose
        points: dict[tuple[str, str, str], importlib.metadata.EntryPoint] = {}
        strays = []
        for distribution in importlib.metadata.distributions():
            try:
                own = [point for point in distribution.entry_points if point.group.startswith(GROUP_PREFIX)]
            except Exception as error:
                strays.append(Stray(distribution.name or "an unknown distribution", "", f"{type(error).__name__}: {error}"))
                continue
            points.update({(distribution.name, point.group, point.name): point for point in reversed(own)})
        return list(points.values()), strays


def _installed() -> tuple[Component, ...]:
    return _read_metadata()[0]


def strays() -> tuple[Stray, ...]:
    """Entry points that mean to be of FlowAct and register nothing."""
    return _read_metadata()[1]


def repair(component: Component) -> str:
    """What to do about a component that is broken in itself."""
    if not component.version:  # a plugin file
        return f"correct {component.distribution}"
    return f"update or reinstall {component.distribution}, or pip uninstall {component.distribution}"


def refresh() -> None:
    """Forget what was read from packaging metadata and from plugin files, and which prefixes are trusted."""
    _read_metadata.cache_clear()
    for component in _plugin_files.values():
        sys.modules.pop(component.module, None)
    _plugin_files.clear()
    _trusted.clear()


def components(kind: str | None = None) -> list[Component]:
    """Every registered component, from metadata alone. A name taken twice appears twice; see `clashes`.

    Raises:
        UserError: no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"there is no kind of component called '{kind}'.{did_you_mean(kind, KINDS)}")
    return [c for c in (*_installed(), *_plugin_files.values()) if kind is None or c.kind == kind]


def clashes() -> list[tuple[Component, ...]]:
    """Components of one kind that claim the same name."""
    claims: dict[tuple[str, str], list[Component]] = {}
    for component in components():
        claims.setdefault((component.kind, component.name), []).append(component)
    return [tuple(found) for found in claims.values() if len(found) > 1]


def resolve(name: str, kind: str | None = None) -> Component:
    """The component called `name`: a class name, or the dotted path of a registered class.

    Raises:
        UserError: unknown (with the nearest names), or claimed by two distributions, or found in two kinds while `kind` is None.
    """
    known = components(kind)
    found = [c for c in known if (c.class_path if "." in name else c.name) == name]
    what = KINDS[kind].base if kind else "component"
    if not found:
        names = [c.class_path if "." in name else c.name for c in known]
        hint = did_you_mean(name, names) or f" No {what} is installed."
        raise UserError(f"no {what} called '{name}' is installed.{hint} (`flowact list{' ' + kind if kind else ''}` shows all.)")
    if len(found) > 1:
        if len({c.kind for c in found}) == 1:
            who = " and ".join(f"{c.origin} ({c.target})" for c in found)
            raise UserError(f"'{name}' is claimed by {who}; uninstall one, or write the full class path of the one you mean")
        paths = ", ".join(c.class_path for c in found)
        raise UserError(f"'{name}' exists as {' and as '.join(c.kind for c in found)}; write the full class path: {paths}")
    return found[0]


def source_file(component: Component) -> Path | None:
    """Where the module of a component lies, found without importing it or its package; None when it is not there."""
    head, *rest = component.module.split(".")
    if component.module in sys.modules and getattr(sys.modules[component.module], "__file__", None):
        return Path(str(sys.modules[component.module].__file__))
    try:
        spec = importlib.util.find_spec(head)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        for candidate in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if candidate.is_file():
                return candidate
    return None


def summary(component: Component) -> str | None:
    """First line of the class's docstring, read from the source without importing it; None when there is no such class."""
    file = source_file(component)
    if file is None:
        return None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == component.target.partition(":")[2]:
            return next(iter((ast.get_docstring(node) or "").splitlines()), "")
    return ""  # made by an assignment or imported from another module: there, but without words of its own


# --- what may be imported ---------------------------------------------------------------------------------------------------------------------------


def trust(*prefixes: str) -> None:
    """Let recipes and checkpoints name classes under these dotted prefixes, in this process.

    Raises:
        UserError: a prefix is not a dotted Python path.
    """
    for prefix in prefixes:
        if not all(part.isidentifier() for part in prefix.split(".")) or prefix.split(".")[0] == "jsonargparse":
            raise UserError(f"'{prefix}' cannot be trusted: give a dotted module prefix such as my_company.models")
        _trusted.add(prefix)


def allowed_prefixes(trusted: Sequence[str] = ()) -> tuple[str, ...]:
    """Dotted prefixes that a recipe may import: flowact, packages that register components, parts of torch and lightning, what is trusted."""
    plugins = sorted({c.module.partition(".")[0] for c in components()} - {"flowact"})
    return ("flowact", *plugins, *LIBRARY_PREFIXES, *sorted({*_trusted, *trusted}))


def _is_under(path: str, prefixes: Iterable[str]) -> bool:
    return any(path == prefix or path.startswith(prefix + ".") for prefix in prefixes)


def check_allowed(class_path: str, trusted: Sequence[str] = (), at: str = "class_path") -> None:
    """Refuse a dotted path that is outside the allow-list. Imports nothing.

    Raises:
        UserError: not a dotted path, or outside.
    """
    place = f"{at}: " if at else ""
    if not isinstance(class_path, str) or not all(part.isidentifier() for part in class_path.split(".")):
        raise UserError(f"{place}{class_path!r} is not the name of a class; write a name from `flowact list` or a dotted path")
    if _is_under(class_path, allowed_prefixes(trusted)):
        return
    raise UserError(f"{place}{refusal(class_path)}.{_near_paths(class_path)}")


def _near_paths(class_path: str) -> str:
    """' Did you mean ...?' for components, and for library classes whose path differs in one part; nothing is imported that is not yet."""
    near = did_you_mean(class_path, [c.class_path for c in components()])
    parts = class_path.split(".")
    for prefix in LIBRARY_PREFIXES:
        head = prefix.split(".")
        if len(parts) > len(head) and difflib.SequenceMatcher(None, ".".join(parts[: len(head)]), prefix).ratio() > 0.8:
            return f" Did you mean {'.'.join([*head, *parts[len(head) :]])}?"
    return near if near.startswith(" Did") else ""


def load_class(class_path: str, trusted: Sequence[str] = (), at: str = "class_path") -> type:
    """The class at an allowed dotted path.

    Raises:
        UserError: outside the allow-list (before any import), import fails, no such class, or an alias of something outside.
    """
    check_allowed(class_path, trusted, at)
    place = f"{at}: " if at else ""
    owner = next((c for c in components() if c.class_path == class_path), None)
    who = f"{owner.name} of {owner.origin}" if owner else class_path
    what_then = f"; {repair(owner)}" if owner else ""
    module_name, _, name = class_path.rpartition(".")
    if not module_name:
        raise UserError(f"{place}{f'{who}: ' if owner else ''}'{class_path}' names a module, not a class{what_then}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if _is_under(module_name, [missing]):
            raise UserError(f"{place}{who}: there is no module '{missing}'.{_near_modules(missing, class_path)}") from error
        raise UserError(f"{place}{who} needs the package '{missing}', which is not installed; try pip install {missing}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{place}{who} fails at import: {type(error).__name__}: {error}{what_then}") from error
    found = getattr(module, name, None)
    if found is None:
        names = [n for n, v in vars(module).items() if inspect.isclass(v) and not n.startswith("_")]
        raise UserError(f"{place}{who}: module {module_name} has no class '{name}'.{did_you_mean(name, names)}")
    if not inspect.isclass(found):
        raise UserError(f"{place}'{class_path}' is a {type(found).__name__}, not a class")
    check_allowed(f"{found.__module__}.{found.__qualname__}".replace(".<locals>", ""), trusted, at)
    if owner is not None:
        check_component(found, owner, at)
    return found


def _near_modules(missing: str, class_path: str) -> str:
    """' Did you mean ...?' for a module that is not there: the class in its neighbours of a similar name."""
    package, _, name = missing.rpartition(".")
    folder = getattr(sys.modules.get(package), "__path__", ())
    near = difflib.get_close_matches(name, [module.name for module in pkgutil.iter_modules(folder)], n=3)
    paths = [f"{package}.{other}{class_path[len(missing) :]}" for other in near]
    return f" Did you mean {', '.join(paths)}?" if paths else did_you_mean(class_path, [c.class_path for c in components()])


def load(name: str, kind: str | None = None) -> type:
    """Import a component by name.

    Raises:
        UserError: unknown or clashing name, failing import (names the distribution), wrong base class, abstract methods left.
    """
    component = resolve(name, kind)
    return load_class(component.class_path, at="")


def check_component(cls: type, component: Component, at: str = "") -> None:
    """Whether a class is what its distribution registered it as.

    Raises:
        UserError: it does not derive from the kind's base class, or leaves abstract methods.
    """
    kind, place = KINDS[component.kind], f"{at}: " if at else ""
    base = kind.base
    if not kind.is_base_of(cls):
        rule = f"derive it from {kind.room}.{base}, or register it in the group of its kind"
        what = f"{component.origin} registers {component.name} as {component.kind}"
        raise UserError(f"{place}{what}, but the class does not derive from {base}; {rule}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
        raise UserError(f"{place}{component.name} of {component.origin} is half a {base}: it does not define {missing}; {repair(component)}")


def load_plugin_file(path: str | Path) -> list[Component]:
    """Register the components that one Python file defines, as `--plugin` does. The kind follows from the base class.

    Returns:
        what was registered; the file's classes are importable as `flowact_plugin_<stem>.<Class>` in this process.

    Raises:
        UserError: no such file, it fails, it defines no component, or a name is taken.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--plugin {path}: not a Python file; give the path of one .py file")
    if not file.stem.isidentifier():
        raise UserError(f"--plugin {path}: the file's name must be a Python name, such as {re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}.py")
    module_name = PLUGIN_FILE_MODULE + file.stem
    loaded = sys.modules.get(module_name)
    if loaded is not None and Path(str(loaded.__file__)) == file.resolve():
        return [c for c in _plugin_files.values() if c.module == module_name]
    spec = importlib.util.spec_from_file_location(module_name, file.resolve())
    assert spec is not None
    assert spec.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        found = [(kind, cls) for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module_name for kind in _kinds_of(cls)]
        if not found:
            raise UserError(f"--plugin {path}: no class in it derives from a base class of FlowAct ({', '.join(k.base for k in KINDS.values())})")
        taken = {(c.kind, c.name): c for c in components()}
        new = []
        for kind, cls in found:
            component = Component(cls.__name__, kind, f"{module_name}:{cls.__qualname__}", str(file), "")
            if (kind, cls.__name__) in taken:
                raise UserError(f"'{cls.__name__}' is claimed by {taken[kind, cls.__name__].origin} and by {file}; rename the class in the file")
            check_component(cls, component)
            new.append(component)
    except UserError:
        sys.modules.pop(module_name, None)
        raise
    except Exception as error:
        sys.modules.pop(module_name, None)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.resolve())]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        raise UserError(f"--plugin {path}{f':{line}' if line else ''}: {type(error).__name__}: {error}") from error
    _plugin_files.update({(c.kind, c.name): c for c in new})
    return new


def _kinds_of(cls: type) -> list[str]:
    """Kinds a concrete class belongs to; abstract helpers of a plugin file are not components."""
    if inspect.isabstract(cls) or cls.__name__.startswith("_"):
        return []
    return [kind.name for kind in KINDS.values() if kind.is_base_of(cls)]


# --- specs ------------------------------------------------------------------------------------------------------------------------------------------


def expand(node: Any, at: str = "") -> Any:
    """A copy of a recipe or spec in which every short `class_path` is the full one. Looks names up; imports nothing.

    Raises:
        UserError: an unknown or ambiguous name, with its place.
    """
    if isinstance(node, Mapping):
        copy = {key: expand(value, f"{at}.{key}".lstrip(".")) for key, value in node.items()}
        name = copy.get("class_path")
        if isinstance(name, str) and "." not in name:
            try:
                copy["class_path"] = resolve(name).class_path
            except UserError as error:
                raise UserError(f"{at}.class_path: {error}".lstrip(".")) from None
        return copy
    if isinstance(node, (list, tuple)):
        return [expand(value, f"{at}[{i}]") for i, value in enumerate(node)]
    return node


def specs(node: Any, at: str = "", beside: Iterable[str] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every spec inside `node` with its dotted place, innermost first.

    Args:
        node: anything.
        at: its place.
        beside: keys beside the node's own, one of which a misspelt key may mean.

    Raises:
        UserError: a mapping that means to be a spec but has no `class_path`.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from specs(value, f"{at}.{key}".lstrip("."), [str(other) for other in node if other != key])
        if "class_path" in node:
            yield at, node
        elif near := [key for key in node if difflib.get_close_matches(str(key), SPEC_KEYS, cutoff=0.8)]:
            wrong = min(near, key=SPEC_KEYS.__contains__)
            own_name = at.rpartition(".")[2]
            hint = did_you_mean(str(wrong), SPEC_KEYS) if wrong not in SPEC_KEYS else did_you_mean(own_name, list(beside)) if beside else ""
            raise UserError(f"{join(at, str(wrong))}: a component has a class_path.{hint}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from specs(value, f"{at}[{i}]")


def spec_hash(spec: Mapping[str, Any]) -> str:
    """First 8 hex digits of the SHA-256 of a spec's canonical JSON; the same for a short and a full class path.

    Raises:
        UserError: the spec holds something that JSON cannot.
    """
    try:
        text = json.dumps(expand(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"a spec holds plain values only (text, finite numbers, lists, mappings): {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_spec(spec: Any, at: str = "", trusted: Sequence[str] = ()) -> None:
    """Check a spec and all inside it against the signatures of the classes it names, without building anything.

    Raises:
        UserError: says the place, what is wrong, and the nearest right name.
    """
    for mistake in spec_mistakes(spec, at, trusted):
        raise mistake


def spec_mistakes(spec: Any, at: str = "", trusted: Sequence[str] = ()) -> Iterator[UserError]:
    """Everything that `check_spec` would refuse, innermost first; where a part is wrong, only the names of what holds it are checked."""
    close_imports(allowed_prefixes(trusted))
    wrong: list[str] = []
    try:
        for place, node in specs(spec, at):
            found = list(_node_mistakes(place, node, trusted, names_only=any(is_inside(other, place) for other in wrong)))
            wrong += [place] * bool(found)
            yield from found
    except UserError as mistake:  # a mapping without class_path hides what is in it
        yield mistake


def _node_mistakes(place: str, node: Mapping[str, Any], trusted: Sequence[str], names_only: bool) -> Iterator[UserError]:
    for key in node:
        if key not in SPEC_KEYS:
            yield UserError(f"{join(place, key)}: a component has class_path and init_args only.{did_you_mean(key, (*SPEC_KEYS, '_replace_'))}")
    try:
        cls = load_class(node["class_path"], trusted, join(place, "class_path"))
    except UserError as mistake:
        yield mistake
        return
    arguments = node.get("init_args")
    found = list(_name_mistakes(cls, arguments, join(place, "init_args"))) if isinstance(arguments, Mapping) else []
    yield from found
    yield from argument_mistakes(cls, arguments, join(place, "init_args"), names_only or bool(found))


def _name_mistakes(cls: type, arguments: Mapping[str, Any], at: str) -> Iterator[UserError]:
    """Bare names where components belong: whatever names one that fits is a spec by now."""
    for key, value in arguments.items():
        if isinstance(value, str) and value.isidentifier() and value[0].isupper():  # other words may be among those that the constructor takes
            accepted = accepted_classes(cls, key)
            kind = next((kind for kind in KINDS.values() if str not in accepted and any(map(kind.is_base, accepted))), None)
            if kind is not None:
                names = [c.name for c in components(kind.name)]
                other = next((f"{value} is a {KINDS[c.kind].base}" for c in components() if c.name == value), f"there is no '{value}'")
                yield UserError(f"{join(at, key)}: {other}; here belongs a {kind.base}.{did_you_mean(value, names)}")


def instantiate(spec: Mapping[str, Any], kind: str | None = None, **overrides: Any) -> Any:
    """Build a component from its spec, and what is nested in it by the types of the constructors.

    Made for specs that come with a checkpoint or a shard: every class in it must be a registered component, or trusted by the user.

    Args:
        spec: `{class_path, init_args}`, class paths short or full.
        kind: what it must be, a key of `KINDS`.
        overrides: constructor arguments that replace the spec's.

    Raises:
        UserError: a class that is no component, an unknown or missing argument, a wrong type; says the place and the nearest right name.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
        raise UserError(f"a component is given as class_path and init_args, not {spec!r}")
    arguments = spec.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"init_args: the arguments of {spec['class_path']} are a mapping, not {arguments!r}")
    full = expand({**spec, "init_args": {**arguments, **overrides}})
    known = {c.class_path for c in components()}
    for place, node in specs(full):
        path = node["class_path"]
        if path not in known and not (isinstance(path, str) and _is_under(path, _trusted)):
            hint = did_you_mean(path, known) if isinstance(path, str) else ""
            hint = hint if hint.startswith(" Did") else ""
            raise UserError(
                f"{join(place, 'class_path')}: {path!r} is not a registered component;"
                f" install its plugin, give its file with --plugin, or add --trust.{hint}"
            )
    check_spec(full)
    cls = load_class(full["class_path"])
    if kind is not None:
        if kind not in KINDS:
            raise UserError(f"there is no kind of component called '{kind}'.{did_you_mean(kind, KINDS)}")
        if not KINDS[kind].is_base_of(cls):
            raise UserError(f"class_path: {cls.__name__} is not a {KINDS[kind].base}")
    return build(cls, full["init_args"])

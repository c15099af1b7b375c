"""What is wrong with an installed plugin, and what to do: found in packaging metadata and sources, without importing anything.

What the sources cannot tell (a base class made by a call, a module that fails when it runs) is left to whoever imports the class; the registry's own
errors name it then. Nothing here raises: one broken plugin hides no other.
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flowact import registry
from flowact.errors import UserError, did_you_mean
from flowact.registry import Component

#: what an abstract method's decorator is called
ABSTRACT = ("abstractmethod", "abc.abstractmethod")


@dataclass(frozen=True)
class Fault:
    """Why a component cannot be used.

    Attributes:
        reason: in a few words.
        fix: what to do, or type.
    """

    reason: str
    fix: str


def fault_of(component: Component) -> Fault | None:
    """The first thing that is wrong with a component, or None."""
    for look in (_entry_point, _clash, _requirements, _source, _class):
        fault = look(component)
        if fault is not None:
            return fault
    return None


def load_fault(component: Component) -> Fault | None:
    """`fault_of`, and if that finds nothing whatever goes wrong when the class is imported."""
    fault = fault_of(component)
    if fault is not None:
        return fault
    try:
        registry.check_component(registry.load_class(component.class_path, at=""), component)
    except UserError as error:
        return Fault(str(error), registry.repair(component))
    return None


def stray_faults() -> list[tuple[str, Fault]]:
    """Distributions whose entry points cannot be read or belong to no kind, and why."""
    found = []
    for stray in registry.strays():
        if stray.group:
            near = did_you_mean(stray.group, [registry.GROUP_PREFIX + kind for kind in registry.KINDS])
            reason = f"registers {stray.name} in the group '{stray.group}', which is no kind of component.{near}"
            fix = f"correct the group in the pyproject.toml of {stray.distribution} and install it again"
        else:
            reason = f"its entry points cannot be read ({stray.name})"
            fix = f"correct the entry points of {stray.distribution} and install it again, or pip uninstall {stray.distribution}"
        found.append((stray.distribution, Fault(reason, fix)))
    return found


# --- one look each ----------------------------------------------------------------------------------------------------------------------------------


def _entry_point(component: Component) -> Fault | None:
    module, _, name = component.target.partition(":")
    good = name.isidentifier() and all(part.isidentifier() for part in module.split("."))
    if not good:
        fix = f'write "module:Class" in the pyproject.toml of {component.distribution} and install it again'
        return Fault(f"its entry point says '{component.target}', which is no class of a module", fix)
    if not component.name.isidentifier():
        fix = f"give it the name of its class, {name}, in the pyproject.toml of {component.distribution} and install it again"
        return Fault("no recipe can write its name", fix)
    return None


def _clash(component: Component) -> Fault | None:
    for claim in registry.clashes():
        if component in claim:
            paths = " or ".join(c.class_path for c in claim)
            return Fault("claimed by " + " and ".join(c.origin for c in claim), f"uninstall one, or write the full class path: {paths}")
    return None


def _requires(distribution: str) -> tuple[str, ...]:
    try:
        return tuple(importlib.metadata.requires(distribution) or ())
    except importlib.metadata.PackageNotFoundError:
        return ()  # a plugin file


def _requirements(component: Component) -> Fault | None:
    """A dependency that is not installed, or too old. Those of FlowAct itself are doctor's."""
    if component.distribution == "flowact":
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    for text in _requires(component.distribution):
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name == "flowact" or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return Fault(f"needs {wanted}, which is not installed", f"pip install '{wanted}'")
        if not requirement.specifier.contains(version, prereleases=True):
            return Fault(f"needs {wanted}, and {version} is installed", f"pip install '{wanted}'")
    return None


def _source(component: Component) -> Fault | None:
    file = registry.source_file(component)
    if file is None:
        return Fault(f"no class {component.target}: there is no module '{component.module}'", registry.repair(component))
    if component.distribution == "flowact" or _parsed(file) is not None:
        return None
    try:
        ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        return Fault(f"{file}:{error.lineno}: {error.msg}", registry.repair(component))
    except (UnicodeDecodeError, OSError) as error:
        return Fault(f"{file} cannot be read: {error}", registry.repair(component))
    return None


def _class(component: Component) -> Fault | None:
    if component.distribution == "flowact":
        return None  # tested where it is made
    module, _, name = component.target.partition(":")
    source = _Source.of(module)
    if source is None:
        return None
    if not source.may_have(name):
        near = did_you_mean(name, source.classes)
        near = near if near.startswith(" Did") else ""
        return Fault(f"no class {component.target}: {source.file.name} has none of this name.{near}", registry.repair(component))
    chain = _ancestors(module, name)
    kind = registry.KINDS[component.kind]
    if chain is None:
        return None
    if not any(place == kind.base and (where + ".").startswith(kind.room + ".") for where, place in chain):
        fix = f"derive it from {kind.room}.{kind.base}, or register it in the group of its kind"
        return Fault(f"the class does not derive from {kind.base}", fix)
    missing = _abstract(chain)
    if missing:
        return Fault(f"half a {kind.base}: it does not define {', '.join(missing)}", f"define it in the class, or update {component.distribution}")
    return None


# --- classes, read and not imported -----------------------------------------------------------------------------------------------------------------


@cache
def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None


@dataclass(frozen=True)
class _Source:
    """A module's file and syntax."""

    module: str
    file: Path
    tree: ast.Module

    @staticmethod
    def of(module: str) -> _Source | None:
        """None where there is no such file, or it is no Python."""
        file = registry.source_file(Component("", "", f"{module}:", "", ""))
        tree = None if file is None else _parsed(file)
        return None if file is None or tree is None else _Source(module, file, tree)

    @property
    def classes(self) -> list[str]:
        return [node.name for node in self.tree.body if isinstance(node, ast.ClassDef)]

    def definition(self, name: str) -> ast.ClassDef | None:
        """The class of a name, where it is written in the module itself."""
        return next((node for node in self.tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)

    def imported(self, name: str) -> tuple[str, str] | None:
        """(module, name) that an import binds to a name."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return self._absolute(node), alias.name
        return None

    def dotted(self, path: str) -> tuple[str, str] | None:
        """(module, name) of a class that is written as `package.module.Class` or `module.Class`."""
        head, _, rest = path.partition(".")
        holder, _, name = rest.rpartition(".")
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname == head or (alias.asname is None and alias.name.split(".")[0] == head):
                        base = alias.name if alias.asname else head
                        return ".".join(part for part in (base, holder) if part), name
        found = self.imported(head)
        return None if found is None else (".".join(part for part in (*found, holder) if part), name)

    def may_have(self, name: str) -> bool:
        """Whether the module binds a name, or does what no reader of sources can follow."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in (name, "__getattr__"):
                return True
            if isinstance(node, (ast.Import, ast.ImportFrom)) and any((a.asname or a.name) in (name, "*") for a in node.names):
                return True
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
                return True
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("globals", "setattr", "exec"):
                return True
        return False

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.module.split(".") if self.file.name == "__init__.py" else self.module.split(".")[:-1]
        kept = package[: len(package) - node.level + 1]
        return ".".join([*kept, *([node.module] if node.module else [])])


def _written(module: str, name: str, depth: int = 8) -> tuple[_Source, ast.ClassDef] | None:
    """Where a class is written, following imports; None if that cannot be told."""
    source = _Source.of(module)
    if source is None or not depth:
        return None
    definition = source.definition(name)
    if definition is not None:
        return source, definition
    found = source.imported(name)
    return None if found is None else _written(*found, depth - 1)


def _ancestors(module: str, name: str) -> list[tuple[str, str]] | None:
    """(module, name) of a class and all it derives from, nearest first as far as that matters; None if one of them cannot be told."""
    written = _written(module, name)
    if written is None:
        return None
    source, definition = written
    chain = [(source.module, definition.name)]
    for base in definition.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base  # MemoryBank[State]
        path = ast.unparse(plain)
        if path in ("object", "ABC", "abc.ABC", "Generic", "typing.Generic", "Protocol"):
            continue
        if not isinstance(plain, (ast.Name, ast.Attribute)):
            return None
        if isinstance(plain, ast.Name):
            here = (source.module, path) if source.definition(path) is not None else source.imported(path)
        else:
            here = source.dotted(path)
        further = None if here is None else _ancestors(*here)
        if further is None:
            return None
        chain += [place for place in further if place not in chain]
    return chain


def _abstract(chain: list[tuple[str, str]]) -> list[str]:
    """Abstract methods that no class of a chain defines."""
    abstract: set[str] = set()
    defined: set[str] = set()
    for module, name in chain:
        source = _Source.of(module)
        definition = None if source is None else source.definition(name)
        if definition is None:
            continue
        for member in _members(definition):
            names = [ast.unparse(decorator) for decorator in getattr(member, "decorator_list", ())]
            for bound in _bound(member):
                (abstract if any(decorator in ABSTRACT for decorator in names) else defined).add(bound)
    return sorted(abstract - defined)


def _members(definition: ast.ClassDef) -> Iterator[ast.stmt]:
    for node in definition.body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from node.body


def _bound(member: ast.stmt) -> list[str]:
    """Names that a line of a class binds; an annotation without a value binds none."""
    if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [member.name]
    targets = member.targets if isinstance(member, ast.Assign) else [member.target] if isinstance(member, ast.AnnAssign) and member.value else []
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]

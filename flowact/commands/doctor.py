"""`flowact doctor`: whether this machine has what FlowAct needs, and how to get what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import flowact
from flowact import registry
from flowact.commands.environment import Finding, compilers, gpus, hub, media, ports, room, unmet
from flowact.faults import fault_of, load_fault, stray_faults

MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")
#: required packages whose versions are shown
TOLD = ("torch", "lightning", "deepspeed", "numpy", "av")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Output format."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def findings() -> list[Finding]:
    """Everything that is looked at, in the order it is printed."""
    return [*_python(), *_packages(), *compilers(), *room(), *media(), *hub(), *ports(), *gpus(), *_plugins()]


def _python() -> Iterator[Finding]:
    supported = sys.version_info >= (3, 11)
    yield Finding("flowact", "ok", f"{importlib.metadata.version('flowact')} in {Path(flowact.__file__).parent}")
    yield Finding("python", "ok" if supported else "missing", platform.python_version(), "" if supported else "install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    optional: dict[str, list[Finding]] = {}
    for text in importlib.metadata.requires("flowact") or []:
        requirement = Requirement(text)
        extra = next(
            (name for name in _extras() if requirement.marker and not requirement.marker.evaluate() and requirement.marker.evaluate({"extra": name})),
            "",
        )
        if requirement.marker and not extra and not requirement.marker.evaluate():
            continue  # for another platform
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            fix = f"pip install 'flowact[{extra}]'" if extra else f"pip install '{requirement.name}{requirement.specifier}'"
            found = Finding(requirement.name, "optional" if extra else "missing", "not installed", fix)
        else:
            fits = requirement.specifier.contains(version, prereleases=True)
            if requirement.name == "lightning" and version in MALICIOUS_LIGHTNING:
                found = Finding(
                    "lightning",
                    "missing",
                    f"{version} is a malicious release",
                    "pip install -U 'lightning>=2.6.4', and rotate this machine's secrets",
                )
            elif fits:
                found = Finding(requirement.name, "ok", version)
            else:
                fix = f"pip install '{requirement.name}{requirement.specifier}'"
                found = Finding(requirement.name, "optional" if extra else "missing", f"{version}, needs {requirement.specifier}", fix)
        if extra:
            optional.setdefault(extra, []).append(found)
        else:
            yield replace(found, group="required packages")
    for extra, members in optional.items():
        if extra != "dev":  # of those who change FlowAct
            yield from (replace(m, name=f"{m.name} [{extra}]", group=f"extra {extra}") for m in members)


def _extras() -> list[str]:
    return importlib.metadata.metadata("flowact").get_all("Provides-Extra") or []


def _plugins() -> Iterator[Finding]:
    """Plugins that cannot be used; those of other distributions are imported to find out."""
    for component in registry.components():
        fault = fault_of(component) if component.distribution == "flowact" else load_fault(component)
        if fault is not None:
            yield Finding(f"{component.kind} {component.name}", "missing", f"of {component.origin}: {fault.reason}", fault.fix)
    for distribution, fault in stray_faults():
        yield Finding(f"plugin {distribution}", "missing", fault.reason, fault.fix)
    for name in sorted({component.distribution for component in registry.components()} - {"flowact"}):
        try:
            plugin = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # a file given by --plugin
            continue
        for requirement, there in unmet(plugin):
            yield Finding(f"plugin {name}", "missing", f"needs {requirement}, {there}", f"pip install '{requirement}'")


def run(args: argparse.Namespace) -> int:
    """Print the findings; the exit code is 1 when something needed is missing."""
    found = findings()
    healthy = all(finding.status != "missing" for finding in found)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        lines = list(_lines(found))
        width = max(len(line.name) for line in lines)
        for line in lines:
            print(f"{line.status:8s}  {line.name:{width}s}  {line.value}{f'  ->  {line.fix}' if line.fix else ''}")
        print("ready" if healthy else "something needed is missing")
    return 0 if healthy else 1


def _lines(found: list[Finding]) -> Iterator[Finding]:
    """What is shown: of a group one line while all is well, and of an extra always, since one command brings all of it."""
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.group, []).append(finding)
    for finding in found:
        members = groups[finding.group]
        wrong = [member for member in members if member.status != "ok"]
        if not finding.group or (wrong and not finding.group.startswith("extra ")):
            if finding.status != "ok" or not finding.group:
                yield finding
        elif finding is members[0]:
            status = wrong[0].status if wrong else "ok"
            named = ", ".join(f"{_plain(m.name)} ({m.value})" for m in wrong) or _versions(members)
            yield Finding(finding.group, status, named, wrong[0].fix if wrong else "")


def _versions(members: list[Finding]) -> str:
    """Names, or the number of them and the versions that matter where there are many."""
    if len(members) < 10:
        return ", ".join(_plain(member.name) for member in members)
    return f"{len(members)}, with " + ", ".join(f"{m.name} {m.value}" for m in members if m.name in TOLD)


def _plain(name: str) -> str:
    return name.partition(" [")[0].removeprefix("encoder ")

"""`flowact doctor`: whether this machine has what FlowAct needs, and how to get what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from flowact.commands.listing import rows

GIBIBYTE = 1024**3
#: below these a quickstart does not finish
MIN_MEMORY, MIN_DISK = 4 * GIBIBYTE, 2 * GIBIBYTE
MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        status: "missing" makes the exit code 1; "optional" is absent and may stay so.
        fix: what to type, or "".
    """

    name: str
    status: Literal["ok", "missing", "optional"]
    value: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Output format."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def findings() -> list[Finding]:
    """Everything that is looked at, in the order it is printed."""
    return [*_python(), *_packages(), *_compilers(), *_hardware(), *_plugins()]


def _python() -> Iterator[Finding]:
    supported = sys.version_info >= (3, 11)
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
            yield found
    for extra, members in optional.items():
        yield from (Finding(f"{m.name} [{extra}]", m.status, m.value, m.fix) for m in members)


def _extras() -> list[str]:
    return importlib.metadata.metadata("flowact").get_all("Provides-Extra") or []


def _compilers() -> Iterator[Finding]:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    absent = "not found; training needs none, only operations that DeepSpeed compiles on demand"
    yield Finding("g++", "ok" if compiler else "optional", compiler or absent, "" if compiler else "apt-get install g++")


def _hardware() -> Iterator[Finding]:
    import psutil
    import torch

    from flowact.machine import computes_bfloat16

    yield Finding("cores", "ok", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
    memory = psutil.virtual_memory().available
    need = f"free {MIN_MEMORY // GIBIBYTE} GiB of memory"
    yield Finding("memory", "ok" if memory >= MIN_MEMORY else "missing", f"{memory / GIBIBYTE:.1f} GiB free", "" if memory >= MIN_MEMORY else need)
    disk = shutil.disk_usage(".").free
    need = f"free {MIN_DISK // GIBIBYTE} GiB on the disk of this folder"
    yield Finding("disk", "ok" if disk >= MIN_DISK else "missing", f"{disk / GIBIBYTE:.1f} GiB free", "" if disk >= MIN_DISK else need)
    native = computes_bfloat16("cpu")
    slow = "this CPU does not compute it; the quickstart and streams use float32, about as fast as ever"
    yield Finding("bfloat16", "ok" if native else "optional", "computed by this CPU" if native else slow)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"gpu {index}", "ok", f"{properties.name}, {properties.total_memory / GIBIBYTE:.0f} GiB")
    else:
        yield Finding("gpu", "optional", "none that torch can use; the quickstart runs on CPU")


def _plugins() -> Iterator[Finding]:
    for row in rows():
        if row["problem"]:
            yield Finding(f"{row['kind']} {row['name']}", "missing", row["problem"], f"reinstall or remove {row['distribution']}")


def run(args: argparse.Namespace) -> int:
    """Print the findings; the exit code is 1 when something needed is missing."""
    found = findings()
    healthy = all(finding.status != "missing" for finding in found)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            print(f"{finding.status:8s}  {finding.name:{width}s}  {finding.value}{f'  ->  {finding.fix}' if finding.fix else ''}")
        print("ready" if healthy else "something needed is missing")
    return 0 if healthy else 1

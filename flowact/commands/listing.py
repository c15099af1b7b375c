"""`flowact list`: what recipes can name. Reads packaging metadata and sources; imports no component."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from flowact import registry
from flowact.faults import fault_of, stray_faults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Kind and output format."""
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(registry.groups())}")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def rows(kind: str | None = None) -> list[dict[str, Any]]:
    """One plain mapping per component; `problem` says why a component cannot be used and `fix` what to do, or both are None."""
    result = []
    for component in registry.components(kind):
        line = registry.summary(component)
        fault = fault_of(component)
        result.append(
            {
                "kind": component.kind,
                "name": component.name,
                "class_path": component.class_path,
                "distribution": component.distribution,
                "version": component.version,
                "summary": line or "",
                "problem": fault and fault.reason,
                "fix": fault and fault.fix,
            }
        )
    return result


def run(args: argparse.Namespace) -> int:
    """Print the components; problems of plugins go to stderr and do not hide the rest."""
    found = rows(args.kind)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    width = max((len(row["name"]) for row in found), default=0)
    previous = None
    for row in found:
        if row["kind"] != previous:
            print(f"{'' if previous is None else chr(10)}{row['kind']}")
            previous = row["kind"]
        origin = "" if row["distribution"] == "flowact" else f"  [{row['distribution']} {row['version']}".rstrip() + "]"
        print(f"  {row['name']:{width}s}  {row['problem'] or row['summary']}{origin}".rstrip())
    if not found:
        print(f"no {args.kind} installed")
    for row in found:
        if row["problem"]:
            print(f"flowact: warning: {row['name']} of {row['distribution']}: {row['problem']}; {row['fix']}", file=sys.stderr)
    if args.kind is None:
        for distribution, fault in stray_faults():
            print(f"flowact: warning: {distribution}: {fault.reason}; {fault.fix}", file=sys.stderr)
    return 0

"""`flowact diff A B`: where two recipes differ, and of two checkpoints also what they descend from and what they hold."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowact.recipe import differences, load_recipe

#: of a checkpoint's lineage, what no two of them have in common; what a command says that matters is in the recipe
_OWN = ("created", "command")


@dataclass(frozen=True)
class _Side:
    """What is compared.

    Attributes:
        recipe: composed and resolved.
        facts: of a checkpoint, its `lineage` and its `weights`: hashes of files and shapes of tensors. None of a recipe.
    """

    recipe: Mapping[str, Any]
    facts: dict[str, Any] | None = field(default=None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two sides."""
    parser.add_argument("before", metavar="A", help="recipe file, packaged recipe or checkpoint folder")
    parser.add_argument("after", metavar="B", help="likewise; of two checkpoints lineage, hashes and shapes are compared too")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 when they differ")


def _load(name: str, trusted: list[str]) -> _Side:
    if not Path(name).is_dir():
        return _Side(load_recipe(name, trust=trusted).config)
    from flowact.checkpoints import open_checkpoint  # imports torch

    checkpoint = open_checkpoint(name)
    lineage = {key: value for key, value in checkpoint.lineage.items() if key not in _OWN}
    shapes = {weights: "x".join(map(str, shape)) or "scalar" for weights, shape in checkpoint.shapes().items()}
    return _Side(checkpoint.recipe, {"lineage": lineage, "weights": {"sha256": checkpoint.hashes(), "shape": shapes}})


def run(args: argparse.Namespace) -> int:
    """Print one line per place that differs."""
    before, after = _load(args.before, args.trust), _load(args.after, args.trust)
    found = differences(before.recipe, after.recipe)
    if before.facts is not None and after.facts is not None:
        found += differences(before.facts, after.facts)
    if args.json:
        print(json.dumps([{"place": d.place, "before": d.before, "after": d.after} for d in found], indent=2))
    else:
        for line in dict.fromkeys(f"{_family(d.place)}: {_text(d.before)} -> {_text(d.after)}" for d in found):
            print(line)
        if not found and not args.quiet:
            print("no difference")
    return 1 if found and args.exit_code else 0


def _family(place: str) -> str:
    """For people, blocks that differ alike are one line."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", place) if place.startswith("weights.shape.") else place


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

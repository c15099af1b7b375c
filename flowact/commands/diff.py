"""`flowact diff A B`: where two composed recipes, or the recipes of two checkpoints, differ."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flowact.recipe import Recipe, differences, load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two sides."""
    parser.add_argument("before", metavar="A", help="recipe file, packaged recipe or checkpoint folder")
    parser.add_argument("after", metavar="B", help="likewise")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 when they differ")


def _load(name: str, trusted: list[str]) -> Recipe:
    path = Path(name)
    return load_recipe(path / "recipe.yaml" if path.is_dir() else path, trust=trusted)


def run(args: argparse.Namespace) -> int:
    """Print one line per place that differs."""
    found = differences(_load(args.before, args.trust).config, _load(args.after, args.trust).config)
    if args.json:
        print(json.dumps([{"place": d.place, "before": d.before, "after": d.after} for d in found], indent=2))
    else:
        for difference in found:
            print(f"{difference.place}: {_text(difference.before)} -> {_text(difference.after)}")
        if not found and not args.quiet:
            print("no difference")
    return 1 if found and args.exit_code else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

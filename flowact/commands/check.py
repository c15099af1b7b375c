"""`flowact check RECIPE ...`: every key against the constructor that takes it; builds nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any

from flowact.commands.loggers import check_loggers
from flowact.errors import UserError
from flowact.recipe import check_recipe, load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipes and overrides."""
    parser.add_argument("recipes", nargs="+", metavar="RECIPE|key=value", help="recipes; words with a = are overrides applied to each")
    parser.set_defaults(overrides=[])
    parser.add_argument("--json", action="store_true", help="print as JSON")


def result_of(name: str, overrides: list[str], trusted: list[str]) -> dict[str, Any]:
    """What the check of one recipe found, as plain values."""
    try:
        recipe = load_recipe(name, overrides, trusted)
        check_loggers(recipe.config)
        check_recipe(recipe)
    except UserError as error:
        return {"recipe": name, "ok": False, "error": str(error)}
    config = recipe.config
    return {
        "recipe": name,
        "ok": True,
        "error": None,
        "stage": config["model"]["class_path"],
        "data": config["data"]["class_path"],
        "init_from": config.get("init_from"),
        "sources": [str(source) for source in recipe.sources],
    }


def run(args: argparse.Namespace) -> int:
    """Check each recipe; the exit code is 2 when one is wrong."""
    overrides = [*(word for word in args.recipes if "=" in word), *args.overrides]
    names = [word for word in args.recipes if "=" not in word]
    if not names:
        raise UserError("check needs a recipe, such as `flowact check recipes/quickstart/pretraining.yaml`")
    results = [result_of(name, overrides, args.trust) for name in names]
    failed = [result for result in results if not result["ok"]]
    if args.json:
        print(json.dumps(results, indent=2))
        return 2 if failed else 0
    for result in results:
        if result["ok"] and not args.quiet:
            after = f", after {result['init_from']}" if result["init_from"] else ""
            print(f"{result['recipe']}: ok ({result['stage'].rpartition('.')[2]} on {result['data'].rpartition('.')[2]}{after})")
    if failed:
        raise UserError("\nflowact: error: ".join(result["error"] for result in failed))
    return 0

"""`flowact check RECIPE ...`: every key against the constructor that takes it, and all that can be known before a device is held."""

from __future__ import annotations

import argparse
import json
from typing import Any

from flowact.commands.plan import parse_size
from flowact.errors import UserError
from flowact.recipe import check_recipe, load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipes, overrides and how far to look."""
    parser.add_argument("recipes", nargs="+", metavar="RECIPE|key=value", help="recipes; words with a = are overrides applied to each")
    parser.set_defaults(overrides=[])
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--keys-only", action="store_true", help="names and types alone: no constructor is called, no file opened")
    parser.add_argument("--strict", action="store_true", help="refuse what is only noted: data, checkpoints and devices that are not there")
    group = parser.add_argument_group("memory")
    group.add_argument("--device", help="whether it fits: h100, h200, a100, rtx4090, cpu, or TFLOP/s,TB/s,GiB of another (default: not planned)")
    group.add_argument("--processes", type=int, metavar="N", help="devices (default: the recipe's)")
    group.add_argument("--size", metavar="HxW", help="height and width of the picture in pixels, where no data say it, such as 480x832")


def result_of(name: str, overrides: list[str], trusted: list[str], args: argparse.Namespace | None = None) -> dict[str, Any]:
    """What the check of one recipe found, as plain values: mistakes, notes, and what was looked at."""
    result: dict[str, Any] = {"recipe": name, "ok": False, "error": None, "mistakes": [], "notes": [], "facts": []}
    try:
        recipe = load_recipe(name, overrides, trusted)
        if args is None or args.keys_only:
            check_recipe(recipe)
        else:
            from flowact.commands.readiness import Target, examine  # imports torch: after the recipe is known to be readable

            target = Target(args.device, args.processes, parse_size(args.size)) if args.device else None
            found = examine(recipe, target)
            result |= {"mistakes": found.mistakes, "notes": found.notes, "facts": found.facts}
            if args.strict:
                result |= {"mistakes": [*found.mistakes, *found.notes], "notes": []}
    except UserError as error:
        result["mistakes"] = str(error).splitlines()
    if result["mistakes"]:
        return result | {"error": "\n".join(result["mistakes"])}
    config = recipe.config
    return result | {
        "ok": True,
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
    if not args.device and (args.processes or args.size):
        raise UserError("--processes and --size are for planning memory: add --device, such as --device h100")
    results = [result_of(name, overrides, args.trust, args) for name in names]
    failed = [result for result in results if not result["ok"]]
    if args.json:
        print(json.dumps(results, indent=2))
        return 2 if failed else 0
    for result in results:
        if result["ok"] and not args.quiet:
            after = f", after {result['init_from']}" if result["init_from"] else ""
            facts = "".join(f"; {fact}" for fact in result["facts"])
            print(f"{result['recipe']}: ok ({result['stage'].rpartition('.')[2]} on {result['data'].rpartition('.')[2]}{after}{facts})")
        if not args.quiet:
            for note in result["notes"]:
                print(f"  note: {note}")
    if failed:
        raise UserError("\nflowact: error: ".join(mistake for result in failed for mistake in result["mistakes"]))
    return 0

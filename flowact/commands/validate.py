"""`flowact validate`: run a recipe's validation on the weights of a checkpoint."""

from __future__ import annotations

import argparse
import json

from flowact.commands.arguments import add_recipe_arguments
from flowact.errors import UserError
from flowact.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides and the checkpoint."""
    add_recipe_arguments(parser)
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder whose weights are validated; default: the recipe's init_from")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")


def run(args: argparse.Namespace) -> int:
    """Validate and print the metrics.

    Raises:
        UserError: there are no weights to validate.
    """
    recipe = load_recipe(args.config, args.overrides, args.trust)
    weights = args.checkpoint or recipe.config.get("init_from")
    if not weights:
        raise UserError("validate needs trained weights: give --checkpoint DIR, or a recipe with init_from")
    from flowact.commands.build import build

    built = build(recipe, quiet=args.quiet or args.json)
    built.stage.initialise_from(weights)
    metrics: dict[str, float] = {}
    for loader_metrics in built.trainer.validate(built.stage, datamodule=built.data, verbose=False):
        metrics.update({name: float(value) for name, value in loader_metrics.items()})
    print(json.dumps(metrics, indent=2) if args.json else "\n".join(f"{name:32s} {value:.6g}" for name, value in metrics.items()))
    return 0

"""`flowact fit`: train a stage from a recipe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flowact.commands.arguments import add_recipe_arguments
from flowact.recipe import load_recipe

if TYPE_CHECKING:
    from flowact.commands.build import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides and what to continue from."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--resume", metavar="DIR", help="continue the run that wrote this checkpoint folder, exactly, from its newest whole checkpoint"
    )
    parser.add_argument("--allow-changes", action="store_true", help="resume although data, model or seed differ from the checkpoint's recipe")


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is 0 when training ends by itself."""
    recipe = load_recipe(args.config, args.overrides, args.trust)
    from flowact.checkpoints import read_json
    from flowact.commands.build import build, engine_of  # imports torch and lightning: after the recipe is known to be readable

    engine = engine_of(args.resume, recipe, allow_changes=args.allow_changes) if args.resume else None
    built = build(recipe, quiet=args.quiet)
    if engine is not None:
        built.stage.ancestors = list(read_json(engine.parent / "lineage.json").get("ancestors", []))
    elif recipe.config.get("init_from"):
        built.stage.initialise_from(recipe.config["init_from"])
    return _fit(built, str(engine) if engine else None)


def _fit(built: Run, engine: str | None) -> int:
    try:
        built.trainer.fit(built.stage, datamodule=built.data, ckpt_path=engine, weights_only=True)  # nothing in a checkpoint is executed
    except SystemExit:
        if built.trainer.interrupted:  # Lightning shuts down in order and leaves with 1
            raise KeyboardInterrupt from None
        raise
    return 0

"""`flowact fit`: train a stage from a recipe."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from flowact.commands.arguments import add_recipe_arguments
from flowact.commands.quiet import print_events
from flowact.recipe import load_recipe

if TYPE_CHECKING:
    from flowact.commands.build import Run
    from flowact.recipe import Recipe

log = logging.getLogger(__name__)


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
    from flowact.callbacks import Throughput
    from flowact.callbacks.run_page import RunPage
    from flowact.checkpoints import read_json
    from flowact.commands.build import build, engine_of  # imports torch and lightning: after the recipe is known to be readable

    print_events(args.quiet)
    engine = engine_of(args.resume, recipe, allow_changes=args.allow_changes) if args.resume else None
    operations = _planned_operations(recipe)
    built = build(recipe, quiet=args.quiet)
    built.trainer.callbacks.insert(0, RunPage())  # type: ignore[attr-defined]
    for callback in built.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            callback.operations = operations
    if engine is not None:
        built.stage.ancestors = list(read_json(engine.parent / "lineage.json").get("ancestors", []))
    elif recipe.config.get("init_from"):
        built.stage.initialise_from(recipe.config["init_from"])
    return _fit(built, str(engine) if engine else None)


def _planned_operations(recipe: Recipe) -> float | None:
    """The model's operations for a batch of one process, where a denoiser does not run operation by operation; None where they can be counted."""
    denoiser = ((recipe.config["model"].get("init_args") or {}).get("denoiser") or {}).get("init_args") or {}
    if not denoiser.get("compile_blocks") and denoiser.get("attention") != "flex":
        return None
    from flowact.budget import DEVICES, make_plan

    try:
        training = make_plan(recipe, DEVICES["h100"]).training  # of the device nothing is taken
    except Exception as error:  # a figure for the log is no reason to stop
        log.info("no operations are planned, so none are logged: %s", error)
        return None
    return training.model_flops_per_sample * training.batch_size


def _fit(built: Run, engine: str | None) -> int:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        built.trainer.fit(built.stage, datamodule=built.data, ckpt_path=engine, weights_only=True)  # nothing in a checkpoint is executed
    except SystemExit as error:
        if built.trainer.interrupted and not isinstance(error, SIGTERMException):  # Lightning shuts down in order and leaves with 1
            raise KeyboardInterrupt from None
        raise
    return 0

"""`flowact-data build RECIPE --out DIR`: recordings into a dataset, with a reason for every clip that is in or out. The same command goes on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_tools.building.accounts import funnel
from data_tools.building.engine import Options, Outcome, build
from data_tools.building.recipe import BuildRecipe, read_recipe
from data_tools.workplace import show_table
from flowact.types import FRAMES_PER_SECOND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data build`."""
    parser.add_argument("recipe", type=Path, help="recipe, as `flowact-data init FOLDER` writes one")
    parser.epilog = "After these, KEY=VALUE changes the recipe for this run: steps.Length.max_seconds=10 output.size=128"
    parser.set_defaults(overrides=[])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset")
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of every verb that builds."""
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes; 0 works in this one; the result is the same (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="take only the first N recordings, to have a look first")
    parser.add_argument("--dry-run", action="store_true", help="look, score and judge, but make nothing")
    parser.add_argument("--score-only", action="store_true", help="score everything, reject nothing but what can not be read")
    parser.add_argument("--drop-missing", action="store_true", help="take out clips of recordings that the input no longer holds")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Build what is missing."""
    recipe, config = read_recipe(args.recipe, args.overrides)
    show(recipe, build(recipe, config, args.out, options_of(args)), args)
    return 0


def options_of(args: argparse.Namespace) -> Options:
    """The run options of a command line."""
    return Options(args.jobs, args.limit, args.dry_run, args.score_only, args.drop_missing, tuple(args.plugin), tuple(args.trust))


def show(recipe: BuildRecipe, outcome: Outcome, args: argparse.Namespace) -> None:
    """Print what a build came to: the funnel, the splits, the commonest reasons."""
    rejected = [clip for clip in outcome.clips if clip.rejection is not None]
    if args.json:
        reasons = [{"key": clip.key, **vars(clip.rejection)} for clip in rejected if clip.rejection is not None]
        counts = {"kept": len(outcome.kept), "measured": outcome.measured, "to_make": outcome.missing, "made": outcome.made}
        skipped = [vars(entry) for entry in outcome.skipped]
        print(json.dumps({"out": str(args.out), **counts, "splits": outcome.splits, "rejected": reasons, "skipped": skipped}, indent=1))
        return
    steps = {step.name for step in recipe.chain}
    rows = [(step, reached, out or "") for step, reached, out in funnel(recipe, outcome.clips) if out or step in steps]
    show_table("clips", ("step", "reached it", "out"), [*rows, ("kept", len(outcome.kept), "")])
    for key in outcome.lost_edits:
        print(f"made anew, its labels by hand are lost: {key}")
    for entry in outcome.skipped[:10]:
        print(f"no recording: {entry.address}: {entry.reason}")
    for clip in rejected[:10]:
        assert clip.rejection is not None  # chosen so
        print(f"out: {clip.key}: {clip.rejection.step}: {clip.rejection.reason}")
    if len(rejected) > 10:
        print(f"... {len(rejected)} clips are out in all; one: flowact-data explain {args.out} KEY")
    if not outcome.splits:
        print(f"nothing was written; {outcome.missing} clips would be made")
        return
    for name, counts in outcome.splits.items():
        hours = counts["frames"] / FRAMES_PER_SECOND / 3600
        print(f"{name}: {counts['samples']} clips, {hours:.2f} hours, {counts['shards']} shards in {args.out / name}")
    print(f"next: flowact-data report {args.out}; flowact-data lint {args.out}; flowact-data encode all {args.out} --autoencoder FOLDER")

"""`flowact-data append DATASET INPUT ...`: more recordings into a dataset that was built; its shards stay as they are, byte for byte."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from data_tools.build import add_run_options, options_of, show
from data_tools.building.engine import RECIPE_FILE, build
from data_tools.building.recipe import dump_recipe, read_recipe
from flowact.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data append`."""
    parser.add_argument("dataset", type=Path, help="folder that `flowact-data build` made")
    parser.add_argument("input", nargs="*", help="further folders, tables or shards; without any, what was added to the recipe's own input is taken")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Add the input to the dataset's recipe and build what is missing.

    Raises:
        UserError: a dataset without a recipe, or input that it has already.
    """
    recipe, config = extended(args.dataset, args.input)
    args.out = args.dataset
    show(recipe, build(recipe, config, args.dataset, options_of(args)), args)
    return 0


def extended(dataset: Path, added: list[str]):
    """The dataset's recipe with more input, and its plain values."""
    path = dataset / RECIPE_FILE
    if not path.is_file():
        raise UserError(f"{dataset} has no {RECIPE_FILE}, so it was not made by `flowact-data build`; flowact-data merge brings datasets together")
    recipe, config = read_recipe(path)
    known = [same(address) for address in recipe.inputs]
    for address in added:
        if same(address) in known:
            raise UserError(f"{address} is input of {dataset} already; `flowact-data append {dataset}` without it takes what was added there")
    config["input"] = [*recipe.inputs, *added]
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / RECIPE_FILE
        changed.write_bytes(dump_recipe(config))
        return read_recipe(changed)


def same(address: str) -> str:
    """An address by which two ways to write one folder are equal."""
    return address if "://" in address else str(Path(address).resolve())

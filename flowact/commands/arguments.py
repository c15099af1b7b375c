"""Options that several verbs share."""

from __future__ import annotations

import argparse


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a recipe on the command line."""
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a YAML file, or a packaged recipe such as quickstart/pretraining.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="values to replace, such as trainer.max_steps=100")

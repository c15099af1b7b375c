"""From a recipe to objects: what `fit` and `validate` share."""

from __future__ import annotations

import argparse
import logging
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from flowact.callbacks.run_record import RunRecord
from flowact.callbacks.termination import AgreedTermination
from flowact.checkpoints import latest_checkpoint
from flowact.commands.loggers import check_loggers
from flowact.errors import UserError
from flowact.machine import computes_bfloat16
from flowact.recipe import Recipe, check_recipe, differences, trainer_arguments

if TYPE_CHECKING:
    from flowact.stages.base import Stage

#: sections in which a resumed run must not differ
FIXED_SECTIONS = ("seed", "data", "model")


@dataclass(frozen=True)
class Run:
    """A stage with the data and the trainer of its recipe."""

    recipe: Recipe
    trainer: Trainer
    stage: Stage
    data: LightningDataModule


class _RecipeParser(LightningArgumentParser):
    """No value is taken for the path of a further YAML file: a recipe is composed before it gets here, and is all there is."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})


class _RecipeCLI(LightningCLI):
    """LightningCLI as the builder of one composed recipe: it types and instantiates, and reads no command line and no checkpoint."""

    def __init__(self, config: dict[str, Any], trainer_options: dict[str, Any]) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_RecipeParser,
            parser_kwargs={"exit_on_error": False},
            args={
                "model": config["model"],
                "data": config["data"],
                "trainer": {**trainer_arguments(config), **trainer_options},
            },
            run=False,
            seed_everything_default=False,
            save_config_callback=None,  # the CheckpointFolder callback stores the recipe
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_object(args)

    def _parse_ckpt_path(self) -> None:
        """Off: hyper-parameters of a checkpoint would override recipe and command line."""


def build(recipe: Recipe, *, quiet: bool = False) -> Run:
    """Check a recipe and build what it names, with every random generator seeded.

    The stage gets the resolved recipe as its attribute `recipe`, which checkpoints store.

    Raises:
        UserError: a mistake in the recipe, or a constructor that refuses its arguments.
    """
    check_loggers(recipe.config)
    check_recipe(recipe)
    seed_everything(recipe.config["seed"], workers=True, verbose=False)
    if quiet:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    options = {"enable_progress_bar": False, "enable_model_summary": False} if quiet else {}
    try:
        cli = _RecipeCLI(deepcopy(recipe.config), options)  # jsonargparse changes lists in place
    except (ValueError, argparse.ArgumentError) as error:
        from flowact.commands.readiness import explain_refusal  # on failure only: makes the parts one by one

        raise explain_refusal(recipe, ValueError(str(error))) from error
    cli.model.recipe = recipe.config
    cli.trainer.callbacks[:0] = [RunRecord(), AgreedTermination()]  # type: ignore[attr-defined]
    if isinstance(cli.trainer.accelerator, CPUAccelerator) and str(cli.trainer.precision).startswith("bf16") and not computes_bfloat16():
        print("flowact: warning: this CPU does not compute bfloat16; trainer.precision=32-true is some ten times as fast", file=sys.stderr)
    return Run(recipe, cli.trainer, cli.model, cli.datamodule)


def engine_of(checkpoint: str | Path, recipe: Recipe, *, allow_changes: bool = False) -> Path:
    """The trainer state that continues `recipe`, of the newest undamaged checkpoint of a run.

    Raises:
        UserError: no whole checkpoint, one without trainer state, or one of another recipe and `allow_changes` is not set; lists what differs.
    """
    found = latest_checkpoint(checkpoint)
    if found.engine is None:
        raise UserError(f"--resume {checkpoint}: it holds weights but no trainer state; start a new run from its weights with init_from={checkpoint}")
    changes = [change for change in differences(found.recipe, recipe.config) if change.place.partition(".")[0] in FIXED_SECTIONS]
    if changes and not allow_changes:
        lines = "".join(f"\n  {change.place}: {change.before} -> {change.after}" for change in changes)
        raise UserError(
            f"--resume {checkpoint}: it was trained by another recipe:{lines}\n"
            "start a new run from its weights with init_from=DIR, or add --allow-changes"
        )
    return found.engine

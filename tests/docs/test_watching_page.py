"""The loggers that docs/watching.md shows, and what it says of the console and the run folder."""

from __future__ import annotations

import importlib.util
import re

import pytest
import yaml
from pages import ROOT, blocks

from flowact.callbacks.run_page import LINES, PAGE, PICTURE
from flowact.commands.loggers import check_loggers
from flowact.errors import UserError
from flowact.recipe import load_recipe

WATCHING = ROOT / "docs" / "watching.md"


@pytest.fixture
def recipe(tmp_path):
    """A debug recipe with the page's loggers, composed without --trust."""
    (text,) = (block.text for block in blocks(WATCHING) if block.language == "yaml" and "WandbLogger" in block.text)
    (tmp_path / "loggers.yaml").write_text(f"_base_: debug/diffusion_forcing.yaml\n{text}")
    return load_recipe(tmp_path / "loggers.yaml", ["vars.run=there"])


def test_several_loggers_are_allowed_by_name(recipe):
    loggers = recipe.config["trainer"]["logger"]
    assert [logger["class_path"].rpartition(".")[2] for logger in loggers] == ["TensorBoardLogger", "WandbLogger", "CSVLogger"]
    assert loggers[0]["init_args"] == load_recipe("debug/diffusion_forcing.yaml", ["vars.run=there"]).config["trainer"]["logger"]["init_args"]
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(UserError, match=re.escape("trainer.logger[1]: WandbLogger needs the package 'wandb'")):
            check_loggers(recipe.config)


def test_the_run_folder_is_as_described():
    text = WATCHING.read_text()
    assert all(f"`{name}`" in text for name in (PAGE, LINES, PICTURE, "recipe.yaml", "provenance.json"))


def test_callbacks_of_the_page_are_in_the_shipped_recipes():
    names = {spec["class_path"].rpartition(".")[2] for spec in load_recipe("quickstart/pretraining.yaml").config["trainer"]["callbacks"].values()}
    assert {"StreamPreview", "NoiseLevels", "TrainingHealth", "Throughput", "StepProgress"} <= names
    shown = yaml.safe_load(next(block.text for block in blocks(WATCHING) if block.language == "yaml" and "StreamPreview" in block.text))
    assert shown["trainer"]["callbacks"]["preview"]["class_path"] == "StreamPreview"

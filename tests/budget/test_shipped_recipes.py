"""Every shipped recipe of a stage that trains a denoiser can be planned."""

from __future__ import annotations

import json

import pytest

from flowact.cli import main
from flowact.recipe import packaged_recipes

RECIPES = [name for name in packaged_recipes() if name.startswith("debug/") and "/_" not in name and "autoencoder" not in name]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_can_be_planned(recipe, capsys):
    assert main(["plan", recipe, "--size", "64x64", "--strides", "4x16", "--text-tokens", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"] == recipe
    assert any(role["trained"] for role in plan["roles"])

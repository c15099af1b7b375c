"""Every shipped recipe of a stage that trains a denoiser can be planned, and those of real size cost what their headers say."""

from __future__ import annotations

import json
import re

import pytest

from flowact.budget import DEVICES, UTILISATION, Wishes, make_plan
from flowact.cli import main
from flowact.models.presets import PRESETS
from flowact.recipe import load_recipe, packaged_recipes

RECIPES = [name for name in packaged_recipes() if "/_" not in name]
DEBUG = [name for name in RECIPES if name.startswith("debug/") and "autoencoder" not in name]
BASE = [name for name in RECIPES if name.startswith("base/")]
CHARACTERS = [name for name in RECIPES if name.startswith("character/") and name.endswith("B.yaml")]
H100 = DEVICES["h100"]
GIB = 1 << 30
STAGES = {name.removeprefix("debug/").removesuffix(".yaml") for name in DEBUG} & {
    "pretraining", "diffusion_forcing", "audio_motion", "self_forcing", "distillation", "cfg_distillation", "consistency_distillation",
    "distribution_matching",
}  # fmt: skip
#: what no plan fits: docs/recipes.md says why
TOO_LARGE = {"distribution_matching_13B_lora", "consistency_distillation_13B_lora"}


@pytest.mark.parametrize("recipe", DEBUG)
def test_every_stage_can_be_planned(recipe, capsys):
    assert main(["plan", recipe, "--size", "64x64", "--strides", "4x16", "--text-tokens", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"] == recipe
    assert any(role["trained"] for role in plan["roles"])


def test_batches_that_roles_accumulate_are_counted(capsys):
    def planned(*overrides):
        command = ["plan", "debug/distribution_matching.yaml", "--size", "64x64", "--strides", "4x16", "--text-tokens", "8", "--json"]
        assert main([*command, *overrides]) == 0
        training = json.loads(capsys.readouterr().out)["training"]
        return training["accumulated"], [(e["role"], e["per_step"]) for e in training["evaluations"] if e["gradient"]]

    assert planned() == (1, [("fake_score", 1.0), ("denoiser", 0.5)])
    assert planned("model.init_args.accumulate=3") == (3, [("fake_score", 1.0), ("denoiser", 0.5)])


# --- real size


def test_every_stage_has_a_recipe_for_each_size_on_eight_gpus_and_on_one():
    wanted = {f"{stage}_{shape}{kind}" for stage in STAGES for shape in ("1.3B", "13B") for kind in ("", "_lora")}
    assert len(STAGES) == 8
    assert {name.removeprefix("base/").removesuffix(".yaml") for name in BASE} == wanted - TOO_LARGE


@pytest.mark.parametrize("name", BASE)
def test_the_name_of_a_recipe_says_what_it_is(name):
    stage, shape, lora = re.fullmatch(r"base/([a-z_]+)_([\d.]+B)(_lora)?\.yaml", name).groups()
    config = load_recipe(name).config
    arguments, trainer, about = config["model"]["init_args"], config["trainer"], config["about"]
    assert PRESETS[shape]().items() <= arguments["denoiser"]["init_args"].items()
    assert trainer["callbacks"]["checkpoint"]["init_args"]["dirpath"].endswith(f"/checkpoints/{stage}{lora or ''}")
    assert trainer["devices"] == (1 if lora else 8)
    assert about["hardware"] == ("1 GPU of 80 GB" if lora else "8 GPUs of 80 GB")
    assert not lora or arguments["adapter"]["class_path"].endswith(".LoRA")
    planned = int(re.fullmatch(r"(\d+) GiB of each GPU as planned", about["memory"])[1])
    assert 0 < planned <= H100.usable_bytes / GIB
    assert "no figure is claimed" in about["expected"]


@pytest.mark.parametrize("name", [name for name in BASE if name.endswith("_lora.yaml")])
def test_a_chain_of_loras_follows_its_own(name):
    """Each stands on the LoRA of the stage that the full recipe stands on; the first one on a base model."""
    lora, full = (load_recipe(recipe).config.get("init_from") for recipe in (name, name.replace("_lora", "")))
    assert lora == (f"{full}_lora" if full else "runs/base/checkpoints/base")


@pytest.mark.slow  # half a minute for 1.3 billion parameters, one and a half for 13
@pytest.mark.parametrize("name", [*BASE, *CHARACTERS])
def test_the_header_of_a_recipe_of_real_size_says_what_its_plan_says(name):
    recipe = load_recipe(name)
    plan = make_plan(recipe, H100, wishes=Wishes(size=(480, 832)))
    about = recipe.config["about"]
    assert plan.memory.fits
    assert about["memory"] == f"{plan.memory.peak_bytes / GIB:.0f} GiB of each GPU as planned"
    hours = plan.training.seconds_per_step * recipe.config["trainer"]["max_steps"] / 3600
    assert about["time"] == f"{hours:.0f} hours as planned, at {100 * UTILISATION:.0f} % of an H100's peak and without communication"
    assert next(segment.visual for segment in plan.tokens.segments if segment.kind == "stream") == 3 * 1560
    assert not [warning for warning in plan.warnings if "does not fit" in warning]

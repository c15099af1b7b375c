"""Named sizes: their counts, and that recipes and presets say the same."""

from __future__ import annotations

import pytest
import torch
import yaml

from flowact.errors import UserError
from flowact.models.mmdit import MMDiT
from flowact.models.presets import PRESETS, PUBLISHED_INPUTS, preset
from flowact.recipe import load_recipe, packaged_folder

LARGE = {"300M": 294_332_096, "1.3B": 1_280_001_600, "5B": 5_069_823_040, "13B": 12_560_620_608}


def outline(name, **arguments):
    with torch.device("meta"):
        return preset(name, **(PUBLISHED_INPUTS | arguments))


@pytest.mark.parametrize("name", LARGE)
def test_a_preset_has_about_as_many_parameters_as_its_name_says(name):
    count = sum(parameter.numel() for parameter in outline(name).parameters())
    assert count == LARGE[name]
    named = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
    assert abs(count / named - 1) < 0.05


@pytest.mark.parametrize("name", LARGE)
def test_large_presets_have_products_that_gpus_divide_well(name):
    shape = outline(name).shape
    assert shape.head_width == (64 if name == "300M" else 128)
    assert shape.width % 256 == 0
    assert shape.hidden % 512 == 0


def test_the_largest_has_the_blocks_of_hunyuanvideo():
    assert PRESETS["13B"]().items() >= {"width": 3072, "num_heads": 24, "num_double_blocks": 20, "num_single_blocks": 40}.items()


def fragment(name):
    return yaml.safe_load((packaged_folder() / f"shapes/_{name}.yaml").read_text())["model"]["init_args"]["denoiser"]


@pytest.mark.parametrize("name", LARGE)
def test_the_recipe_of_a_shape_says_what_its_preset_says(name):
    assert fragment(name) == {"class_path": "MMDiT", "init_args": PRESETS[name]()}


def test_every_fragment_has_a_preset():
    assert {path.stem.removeprefix("_") for path in (packaged_folder() / "shapes").glob("*.yaml")} == LARGE.keys()


@pytest.mark.parametrize(("recipe", "name"), [("quickstart/pretraining.yaml", "tiny"), ("debug/pretraining.yaml", "debug")])
def test_small_recipes_have_the_shape_of_their_preset(recipe, name):
    arguments = load_recipe(recipe).config["model"]["init_args"]["denoiser"]["init_args"]
    inputs = {key: arguments.pop(key) for key in PUBLISHED_INPUTS}
    assert arguments == PRESETS[name]()
    assert isinstance(outline(name, **inputs), MMDiT)


def test_arguments_stand_in_front_of_the_preset():
    model = preset("debug", latent_channels=2, text_width=3, audio_width=5, num_single_blocks=3, checkpointing="full")
    assert len(model.single_blocks) == 3
    assert model.checkpointing == "full"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"there is no preset '1\.3b'\. Did you mean .*1\.3B"):
        preset("1.3b")

"""Every shipped recipe says what it is, builds its stage, and is refused before training when it is changed to something that cannot be."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flowact.errors import UserError
from flowact.recipe import ABOUT, check_recipe, load_recipe, packaged_recipes
from flowact.registry import load_class
from flowact.signatures import build
from flowact.stages.base import DenoiserStage

RECIPES = [name for name in packaged_recipes() if not name.rpartition("/")[2].startswith("_")]
PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
#: composed once; nothing here changes what it holds
composed = functools.cache(load_recipe)


def stage_of(recipe, **changes):
    """The stage of a recipe on the meta device: nothing is computed, and no weight is held."""
    spec = recipe.config["model"]
    with torch.device("meta"):
        return build(load_class(spec["class_path"]), spec["init_args"] | changes)


def data_of(recipe):
    spec = recipe.config["data"]
    return build(load_class(spec["class_path"]), spec["init_args"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_its_command_names_it(name):
    about = composed(name).config["about"]
    assert all(about.get(key) for key in ("title", "command", "hardware", "expected"))
    assert any(about.get(key) for key in ("memory", "time"))
    assert list(about) == [key for key in ABOUT if key in about]
    command = shlex.split(about["command"])
    assert command[:4] == ["flowact", "fit", "--config", name]
    assert all(word.startswith("vars.") for word in command[4:])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_stage_and_its_windows_fit(name):
    recipe = composed(name)
    check_recipe(recipe)
    stage, data = stage_of(recipe), data_of(recipe)
    assert all(parameter.is_meta for parameter in stage.parameters())
    if isinstance(stage, DenoiserStage):
        assert (data.history_frames, data.window_frames) == (stage.history_frames, stage.window_frames)
        assert stage.memory.chunk_frames in (None, stage.chunk_frames)
    else:
        assert (data.num_frames - 1) % stage.autoencoder.temporal_stride == 0


def test_a_stage_comes_after_one_whose_recipe_writes_its_checkpoint():
    """In a folder of recipes, `init_from` and `scores` are written by another recipe there, or of a character by its base; chunks are as long."""
    configs = {name: composed(name).config for name in RECIPES}
    written = {}
    for name, config in configs.items():
        folder = config["trainer"]["callbacks"]["checkpoint"]["init_args"]["dirpath"]
        for reader in {name.partition("/")[0], "character"}:
            written.setdefault((reader, folder), []).append(config["model"]["init_args"])
    for name, config in configs.items():
        arguments = config["model"]["init_args"]
        for parent in filter(None, (config.get("init_from"), arguments.get("scores"))):
            if parent.endswith("/checkpoints/base"):  # imported
                continue
            assert (name.partition("/")[0], parent) in written, (name, parent)
            others = written[name.partition("/")[0], parent]
            assert all(other.get("chunk_frames") == arguments.get("chunk_frames") for other in others)
            shape = {key: value for key, value in arguments["denoiser"]["init_args"].items() if key != "guidance_embedding"}
            if name.startswith(("quickstart/", "debug/", "overfit/")):
                assert all(other["denoiser"]["init_args"] == shape for other in others)
            elif name.startswith("character/"):  # recipes of all sizes write to the character's folder
                sizes = ("width", "num_single_blocks", "num_double_blocks", "latent_channels", "text_width", "audio_width")
                assert any(all(other["denoiser"]["init_args"].get(size) == shape.get(size) for size in sizes) for other in others)


def test_the_page_of_recipes_says_what_their_headers_say():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if re.match(r"\| `(base|character)/", line)]
    headers = {name: composed(name).config["about"] for name in RECIPES if name.startswith("base/") or re.match(r"character/.*B\.yaml", name)}
    assert sorted(row[0].strip("`") for row in rows) == sorted(headers)
    for name, hardware, memory, time in rows:
        about = headers[name.strip("`")]
        assert (hardware, f"{memory} of each GPU as planned") == (about["hardware"], about["memory"])
        assert about["time"].startswith(f"{time} as planned")
    assert set(re.findall(r"^\| `(overfit/[^`]+)`", PAGE, re.MULTILINE)) == {name for name in RECIPES if name.startswith("overfit/")}


# --- what cannot be is refused before training


@dataclass
class Run:
    """As much of a trainer as `setup` looks at."""

    datamodule: Any
    max_steps: int = 100


class Described:
    """A recipe's data, with the widths that its denoiser is made for."""

    def __init__(self, recipe):
        data, denoiser = data_of(recipe), recipe.config["model"]["init_args"]["denoiser"]["init_args"]
        self.history_frames, self.window_frames, self.boxes = data.history_frames, data.window_frames, data.boxes
        self.lineage = {"latent_space": "0123abcd"}
        self.conditions = {
            "latent_shape": (denoiser["latent_channels"], 4, 4),
            "text_shape": (8, denoiser["text_width"]),
            "audio_shape": (denoiser.get("audio_per_latent", 4), denoiser["audio_width"]),
        }


def start(name, *overrides):
    """Build a changed recipe and look at it beside the data of the recipe as it is shipped."""
    stage = stage_of(load_recipe(name, overrides))
    run = Run(Described(composed(name)))
    stage.trainer = run
    stage.setup("validate")


#: one recipe of each stage that trains a denoiser; the others differ in values, not in what is checked
DEBUG = [name for name in RECIPES if name.startswith("debug/") and "autoencoder" not in name]
SHORT = r"chunk_frames is 3, the stage's is 2|data has \d+, the stage wants \d+ \(set data.window_frames|window has \d+: set data.window_frames"


@pytest.mark.parametrize("name", DEBUG)
def test_other_chunks_and_channels_are_refused_with_both_values_and_the_key(name):
    start(name)
    with pytest.raises(UserError, match=SHORT):
        start(name, "model.init_args.chunk_frames=2")
    with pytest.raises(UserError, match=r"latent channels: the data has 96, the stage wants 48 \(set denoiser.latent_channels\)"):
        start(name, "model.init_args.denoiser.init_args.latent_channels=48")


@pytest.mark.parametrize("condition", ["text", "audio"])
@pytest.mark.parametrize("name", ["debug/cfg_distillation.yaml", "base/cfg_distillation_1.3B.yaml"])
def test_guidance_ranges_without_1_are_refused_with_the_range_that_would_be_right(name, condition):
    with pytest.raises(UserError, match=rf"guidance scales for {condition} from 2.0 to 4.0 leave 1 out.*set the range to \[1.0, 4.0\]"):
        stage_of(load_recipe(name, [f"model.init_args.{condition}=[2.0, 4.0]"]))


def test_a_rollout_that_the_history_does_not_hold_is_refused():
    with pytest.raises(UserError, match=r"rollout is 9 chunks, .* has 4 with this memory; set it between 0 and 4"):
        start("debug/distribution_matching.yaml", "model.init_args.rollout=9")

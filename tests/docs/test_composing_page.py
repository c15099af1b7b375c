"""The recipes of the page on composition mean what the page says."""

from __future__ import annotations

import pytest
from pages import ROOT, files

from flowact.recipe import check_recipe, load_recipe

SHOWN = files(ROOT / "docs" / "composing.md")
BASE = load_recipe("quickstart/diffusion_forcing.yaml").config
BANK = BASE["model"]["init_args"]["memory"]
AVERAGE = BASE["trainer"]["callbacks"]["average"]["class_path"]

#: file of the page -> places and what stands there
MEANT = {
    "mine.yaml": {"data.init_args.batch_size": 4, "model.init_args.optimizer.lr": 4e-4, "model.init_args.memory": BANK},
    "swapped.yaml": {
        "model.init_args.memory": {"class_path": "flowact.memory.sliding.SlidingWindowMemory", "init_args": {"chunks": 2}},
        "model.init_args.adapter": {"class_path": "flowact.models.adapters.LoRA"},
        "trainer.strategy": "auto",
    },
    "replaced.yaml": {"model.init_args.optimizer": {"lr": 2e-4}},
    "callbacks.yaml": {"trainer.callbacks.average": {"class_path": AVERAGE, "init_args": {"decay": 0.999}}, "trainer.callbacks.preview": None},
    "clean_sync.yaml": {"data.init_args.where": ["scores.Sync.confidence >= 0.3"]},
    "following.yaml": {
        "model.init_args.memory.init_args": {**BANK["init_args"], "chunk_frames": 2},
        "data.init_args.train": "runs/quickstart/shards/train",
    },
}


def at(config, place):
    for key in place.split("."):
        config = config.get(key)
    return config


def test_every_recipe_of_the_page_is_looked_at():
    assert set(SHOWN) == set(MEANT)


@pytest.mark.parametrize("name", MEANT)
def test_a_recipe_of_the_page_means_what_it_says_and_passes_the_check(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWACT_SHARDS", raising=False)
    for file, text in SHOWN.items():
        (tmp_path / file).write_text(text)
    recipe = load_recipe(tmp_path / name)
    check_recipe(recipe)
    assert {place: at(recipe.config, place) for place in MEANT[name]} == MEANT[name]


def test_a_callback_is_added_and_one_is_left_out_and_references_follow_overrides(tmp_path, monkeypatch):
    for file, text in SHOWN.items():
        (tmp_path / file).write_text(text)
    callbacks = load_recipe(tmp_path / "callbacks.yaml").config["trainer"]["callbacks"]
    assert set(callbacks) == (set(BASE["trainer"]["callbacks"]) | {"stop"}) - {"preview"}
    monkeypatch.setenv("FLOWACT_SHARDS", "/elsewhere")
    config = load_recipe(tmp_path / "following.yaml", ["vars.chunk=1"]).config
    assert config["model"]["init_args"]["memory"]["init_args"]["chunk_frames"] == 1
    assert config["data"]["init_args"]["val"] == "/elsewhere/val"

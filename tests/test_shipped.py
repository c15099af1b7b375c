"""The models that come with FlowAct are whole, small, documented, and stream."""

from __future__ import annotations

import json
import re

import pytest
import torch

from flowact.autoencoders import latent_space
from flowact.checkpoints import open_checkpoint
from flowact.cli import main
from flowact.errors import UserError
from flowact.shipped import named_folder, shipped_model, shipped_models

MODELS = shipped_models()


def test_the_default_is_there():
    assert shipped_model() is not None
    assert shipped_model().name == next(iter(MODELS))
    with pytest.raises(UserError, match="puppet"):
        shipped_model("pupet")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_verified_small_and_says_what_was_measured(name):
    model = MODELS[name]
    checkpoint = open_checkpoint(model.checkpoint)  # sizes and hashes
    assert sum(path.stat().st_size for path in model.folder.rglob("*.safetensors")) <= 16e6
    assert not (model.checkpoint / "engine").exists()
    places = [line for line in (model.checkpoint / "recipe.yaml").read_text(encoding="utf-8").splitlines() if re.search(r":\s+['\"]?/", line)]
    assert places == [], "a recipe names no folder of one machine"
    assert checkpoint.lineage["ancestors"], "its ancestry"
    card = (model.folder / "README.md").read_text(encoding="utf-8")
    (figures,) = json.loads((model.folder / "metrics.json").read_text(encoding="utf-8"))["stages"].values()
    assert re.search(rf"correlation \| {figures['lip_correlation']:.3f} \|", card)
    assert figures["lip_correlation"] > 0.8
    assert figures["state_accuracy"] > 0.85
    for word in ("Licence", "Trained on", "Made by"):
        assert word in card


@pytest.mark.parametrize("name", MODELS)
def test_a_model_can_be_exported_by_name_as_a_base_to_train_on(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", name, "--merge", "--no-stream", "--out", "base"]) == 0
    base = open_checkpoint(tmp_path / "base")
    assert base.lineage["latent_space"] == latent_space(base.autoencoder), "clips that are encoded with it fit"
    weights = MODELS[name].checkpoint
    assert all(torch.equal(value, base.weights()[key]) for key, value in open_checkpoint(weights).weights().items())
    assert named_folder(name) == weights
    (tmp_path / name).mkdir()
    assert str(named_folder(name)) == name, "a folder of one's own goes first"

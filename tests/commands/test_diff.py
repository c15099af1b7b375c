from __future__ import annotations

import json

import pytest
import torch

from flowact import cli
from flowact.checkpoints import write_checkpoint


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "a.yaml").write_text("vars: {n: 1}\nmodel: {x: '${vars.n}', same: 1}")
    (tmp_path / "b.yaml").write_text("_base_: a.yaml\nvars: {n: 2}\ntrainer: {max_steps: 3}")
    return str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")


def test_diff_prints_composed_places(pair, capsys):
    assert cli.main(["diff", *pair]) == 0
    assert capsys.readouterr().out == "model.x: 1 -> 2\ntrainer.max_steps: (absent) -> 3\n"


def test_diff_json_and_exit_code(pair, capsys):
    assert cli.main(["diff", *pair, "--json", "--exit-code"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"place": "model.x", "before": 1, "after": 2},
        {"place": "trainer.max_steps", "before": "(absent)", "after": 3},
    ]
    assert cli.main(["diff", pair[0], pair[0], "--exit-code"]) == 0
    assert capsys.readouterr().out == "no difference\n"


# --- checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint(name, width=, value=, **lineage)`: a folder of a checkpoint with two blocks."""

    def add(name, width=2, value=1.0, **lineage):
        weights = {f"blocks.{i}.weight": torch.full((width, 3), value) for i in range(2)} | {"bias": torch.zeros(2)}
        facts = {"stage": "pretraining", "step": 3, "latent_space": "0123abcd", "ancestors": [], "created": name, **lineage}
        recipe = {"seed": 0, "model": {"x": 1, "same": 1}}
        return str(
            write_checkpoint(
                tmp_path / name, weights=weights, ema=None, recipe=recipe, lineage=facts, autoencoder_folder=None, engine_saver=None
            )
        )

    return add


def lines(capsys, *arguments):
    assert cli.main(["diff", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_of_a_recipe_and_a_checkpoint_the_recipes_are_compared(pair, checkpoint, capsys):
    assert lines(capsys, pair[1], checkpoint("a")) == ["model.x: 2 -> 1", "trainer.max_steps: 3 -> (absent)"]


def test_two_checkpoints_of_the_same_weights_differ_in_what_their_lineages_say(checkpoint, capsys):
    parents = [{"stage": "autoencoder", "step": 9}]
    found = lines(capsys, checkpoint("a"), checkpoint("b", latent_space="ffff0000", ancestors=parents))
    assert found[0] == "lineage.latent_space: 0123abcd -> ffff0000"
    assert "lineage.ancestors[0].stage: (absent) -> autoencoder" in found
    assert not any(line.startswith(("weights.", "lineage.created")) for line in found)
    assert lines(capsys, checkpoint("c"), checkpoint("d")) == ["no difference"]


def test_versions_and_git_state_are_compared_and_commands_are_not(checkpoint, capsys):
    a = checkpoint("a", versions={"torch": "2.11.0"}, git={"flowact": {"commit": "1" * 40, "dirty": False}}, command=["flowact", "fit", "a"])
    b = checkpoint("b", versions={"torch": "2.12.0"}, git={"flowact": {"commit": "2" * 40, "dirty": True}}, command=["flowact", "fit", "b"])
    assert lines(capsys, a, b) == [
        "lineage.versions.torch: 2.11.0 -> 2.12.0",
        f"lineage.git.flowact.commit: {'1' * 40} -> {'2' * 40}",
        "lineage.git.flowact.dirty: false -> true",
    ]


def test_weights_are_compared_by_hash_and_shape(checkpoint, capsys):
    a, b, c = checkpoint("a"), checkpoint("b", value=2.0), checkpoint("c", width=4)
    (only,) = lines(capsys, a, b)
    assert only.startswith("weights.sha256.denoiser.safetensors: ")
    assert only.split()[1] != only.split()[3]
    assert lines(capsys, a, c)[1:] == ["weights.shape.blocks.*.weight: 2x3 -> 4x3"]
    assert cli.main(["diff", a, c, "--json"]) == 0
    places = [difference["place"] for difference in json.loads(capsys.readouterr().out)]
    assert places[1:] == ["weights.shape.blocks.0.weight", "weights.shape.blocks.1.weight"]


def test_a_folder_that_is_no_checkpoint_is_refused(pair, tmp_path, capsys):
    assert cli.main(["diff", pair[0], str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err

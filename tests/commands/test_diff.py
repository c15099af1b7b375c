from __future__ import annotations

import json

import pytest

from flowact import cli


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


def test_diff_reads_the_recipe_of_a_checkpoint_folder(pair, capsys, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "recipe.yaml").write_text("model: {x: 1, same: 2}")
    assert cli.main(["diff", pair[0], str(tmp_path / "checkpoint")]) == 0
    assert capsys.readouterr().out == "model.same: 1 -> 2\n"

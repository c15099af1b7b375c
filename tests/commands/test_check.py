from __future__ import annotations

import json

from flowact import cli


def test_check_says_what_it_found(toy, capsys):
    assert cli.main(["check", str(toy / "toy.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("toy.yaml: ok (ToyStage on ToyData)")


def test_check_goes_on_after_a_wrong_recipe(toy, capsys, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("trainr: {}")
    assert cli.main(["check", str(wrong), str(toy / "toy.yaml")]) == 2
    shown = capsys.readouterr()
    assert "ok (ToyStage" in shown.out
    assert "a recipe has no 'trainr'" in shown.err


def test_check_applies_overrides_written_anywhere(toy, capsys):
    assert cli.main(["check", str(toy / "toy.yaml"), "model.init_args.width=x", "--json", "seed=1"]) == 2
    (record,) = json.loads(capsys.readouterr().out)
    assert not record["ok"]
    assert record["error"].startswith("model.init_args.width (command line): expected int")


def test_check_json_of_a_good_recipe(toy, capsys):
    assert cli.main(["check", str(toy / "toy.yaml"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record == {
        "recipe": str(toy / "toy.yaml"),
        "ok": True,
        "error": None,
        "mistakes": [],
        "notes": [f"data ({toy}/toy.yaml:9): ToyData does not say where its data are, so they were not opened"],
        "facts": [],
        "stage": "flowact_plugin_toy.ToyStage",
        "data": "flowact_plugin_toy.ToyData",
        "init_from": None,
        "sources": [str(toy / "toy.yaml")],
    }


def test_check_without_a_recipe_says_so(capsys):
    assert cli.main(["check", "a=1"]) == 2
    assert "check needs a recipe" in capsys.readouterr().err


def test_trust_opens_the_allow_list_for_one_prefix(toy, canary, capsys):
    argv = ["check", str(toy / "toy.yaml"), "trainer.callbacks.early={class_path: canary_module.Thing}"]
    assert cli.main(argv) == 2
    assert "--trust canary_module" in capsys.readouterr().err
    assert not canary.exists()
    assert cli.main([*argv, "--trust", "canary_module"]) == 2
    assert canary.exists()
    assert "Callback" in capsys.readouterr().err  # imported now, and found to be no callback

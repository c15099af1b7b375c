"""The step that the page on footage shows runs in a build, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

from pages import ROOT, files

from data_tools.cli import main

PAGE = ROOT / "docs" / "footage.md"


def recordings():
    """tests/data_tools/recordings.py."""
    spec = importlib.util.spec_from_file_location("recordings_of_builds", ROOT / "tests" / "data_tools" / "recordings.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_step_of_the_page_rejects_what_has_no_colour(tmp_path, capsys):
    made = recordings()
    made.write_people(tmp_path / "raw", people=2, takes=1, frames=40)
    step = tmp_path / "saturation.py"
    step.write_text(files(PAGE)["saturation.py"])
    steps = {"Length": {"min_seconds": 1.0}, "Saturation": {}}
    recipe = made.write_recipe(tmp_path / "r.yaml", tmp_path / "raw", steps=steps, output={"size": 32, "val_fraction": 0.0})
    command = ["build", str(recipe), "--out", str(tmp_path / "out"), "--plugin", str(step), "--json"]
    assert main([*command, "-j", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 2
    scores = {key: entry["scores"]["Saturation"]["saturation"] for key, entry in made.metadata(tmp_path / "out").items()}
    assert all(value > 5 for value in scores.values())
    bound = max(scores.values())
    assert main([*command, "-j", "0", f"steps.Saturation.min_saturation={bound}"]) == 0
    [rejected] = json.loads(capsys.readouterr().out)["rejected"]
    assert rejected["step"] == "Saturation"
    assert rejected["key"] == min(scores, key=scores.get)


def test_the_page_names_every_step_and_verb():
    from importlib.metadata import entry_points

    from data_tools.cli import VERBS

    text = PAGE.read_text(encoding="utf-8")
    ours = [point.name for point in entry_points(group="flowact.steps") if point.value.startswith("data_tools.")]
    assert len(ours) >= 15
    assert [name for name in ours if f"`{name}`" not in text] == []
    assert {"init", "build", "status", "explain", "append", "report"} <= set(VERBS)
    assert Path(ROOT / "docs" / "data.md").is_file()

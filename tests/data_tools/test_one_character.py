"""A data set of one character: recordings are held out in place of people, and stay held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recordings import metadata, write_recipe, write_recording

from data_tools.cli import main
from data_tools.split import assign
from flowact import registry
from flowact.data import open_split, read_dataset
from flowact.errors import UserError

TAKES = 6


@pytest.fixture(scope="module")
def takes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("takes")
    for number in range(TAKES):
        write_recording(folder / f"take{number}", seed=number, frames=40)
    return folder


@pytest.fixture(scope="module")
def built(takes, tmp_path_factory) -> tuple[Path, Path]:
    """Recipe and dataset of everything by `init --person`, with half of the recordings held out."""
    folder = tmp_path_factory.mktemp("built")
    recipe = folder / "recipe.yaml"
    assert main(["init", str(takes), "--out", str(recipe), "--size", "32", "--person", "anna", "--consent", "signed"]) == 0
    assert build(recipe, folder / "shards") == 0
    return recipe, folder / "shards"


def build(recipe: Path, out: Path, *options: str) -> int:
    light = ["steps.Length.min_seconds=1", "steps.Duplicates.drop=false", "output.val_fraction=0.5"]
    return main(["build", str(recipe), "--out", str(out), "-j", "0", *light, *options])


def held(root: Path) -> dict[str, set[str]]:
    return {split: {clip.key for clip in open_split(root / split).clips} for split in read_dataset(root).splits}


def test_all_recordings_show_the_person_and_some_are_held_out(built, capsys):
    _, root = built
    assert {entry["identity"] for entry in metadata(root).values()} == {"anna"}
    assert {entry["source"]["consent"] for entry in metadata(root).values()} == {"signed"}
    assert {len(keys) > 0 for keys in held(root).values()} == {True}
    assert len(held(root)) == 2
    assert read_dataset(root).split_by == "recording"
    assert "more than one split" not in (root / "README.md").read_text()
    assert main(["report", str(root), "--films", "0"]) == main(["stats", str(root)]) == 0
    assert "more than one split" not in capsys.readouterr().out
    assert main(["lint", str(root), "-j", "1"]) == 0


def test_later_recordings_move_none(built, takes, tmp_path):
    _, root = built
    before = held(root)
    for number in range(TAKES, TAKES + 3):
        write_recording(tmp_path / "more" / f"take{number}", seed=number, frames=40)
    assert main(["append", str(root), str(tmp_path / "more"), "-j", "0"]) == 0
    after = held(root)
    assert sum(map(len, after.values())) == TAKES + 3
    assert all(before[split] <= after[split] for split in before)


def test_people_by_name_and_recordings_do_not_go_together(built, capsys):
    recipe, root = built
    assert build(recipe, root, "output.val_identities=[anna]") == 2
    assert "split_by: person" in capsys.readouterr().err
    assert main(["split", str(root), "--val-identities", "anna"]) == 2
    assert "--val-fraction" in capsys.readouterr().err


def test_split_moves_recordings_whole(built):
    _, root = built
    entries = [{"key": f"c{n}", "identity": "anna", "source": {"sha256": str(n // 2)}} for n in range(40)]
    split_of = assign(entries, None, 0.4, "recording")
    assert set(split_of) == {str(n) for n in range(20)}
    assert set(split_of.values()) == {"train", "val"}
    assert main(["split", str(root), "--val-fraction", "0.9"]) == 0
    assert len(held(root)["val"]) > len(held(root)["train"]) > 0
    assert main(["lint", str(root), "-j", "1"]) == 0


def test_lint_still_tells_of_people_in_two_splits(takes, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", takes, output={"size": 32, "split_by": "recording", "val_fraction": 0.5})
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "steps": {**json.loads(recipe.read_text())["steps"], "Identity": {"name": "a"}}}))
    assert main(["build", str(recipe), "--out", str(tmp_path / "out"), "-j", "0"]) == 0
    said = tmp_path / "out" / "dataset.yaml"
    said.write_text(said.read_text().replace("split_by: recording", "split_by: person"))
    assert main(["lint", str(tmp_path / "out"), "-j", "1"]) != 0
    assert "'a' is in train and val" in capsys.readouterr().out


def test_synthetic_clips_of_one_person(tmp_path, capsys):
    (tmp_path / "mira.yaml").write_text("skin: [0.52, 0.60, 0.92]\nhair_length: 0.55\n")
    clips = tmp_path / "clips"
    people = ["--train-identities", "2", "--val-identities", "2", "--seconds", "2", "--size", "48", "-j", "1"]
    assert main(["synth", "--appearance", str(tmp_path / "mira.yaml"), "--out", str(clips), *people]) == 0
    entries = [json.loads(path.read_bytes()) for path in sorted(clips.rglob("mira-*.json"))]
    assert [entry["identity"] for entry in entries] == ["mira"] * 4
    assert {json.dumps(entry["appearance"]) for entry in entries} == {json.dumps(entries[0]["appearance"])}
    assert entries[0]["appearance"]["skin"] == [0.52, 0.60, 0.92]
    assert main(["pack", str(clips), "--out", str(tmp_path / "torn")]) == 2
    assert "--split-by recording" in capsys.readouterr().err
    assert main(["pack", str(clips), "--out", str(tmp_path / "out"), "--split-by", "recording"]) == 0
    packed = held(tmp_path / "out")
    assert set(packed) == {"train", "val"}
    assert all(key.startswith(f"mira-{split}-") for split, keys in packed.items() for key in keys)
    (tmp_path / "mira.yaml").write_text("skin: [0.9, 0.7, 0.6]\n")
    assert main(["synth", "--appearance", str(tmp_path / "mira.yaml"), "--out", str(clips), *people]) == 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"skinn": [0.9, 0.7, 0.6]}, "Did you mean skin"),
        ({"skin": [0.9, 0.7]}, "should be 3 numbers"),
        ({"skin": [9, 0, 0]}, "0 to 1"),
        ({"skin": [0.3, 0.85, 0.35]}, "right mitten"),
        ({"skin": [0.6, 0.28, 0.13], "hair": [0.6, 0.28, 0.13]}, "skin can not be told from the hair"),
    ],
)
def test_impossible_looks_are_refused(parts, message):
    puppet = registry.instantiate({"class_path": "Puppet"}, "characters")
    with pytest.raises(UserError, match=message):
        puppet.identity_of(parts, np.random.default_rng(0))

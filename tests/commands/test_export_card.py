"""Every export carries recipe, lineage and a card; pictures are streamed from what was written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exportable import checkpoint_at
from PIL import Image

from flowact.checkpoints import open_checkpoint
from flowact.cli import main
from flowact.data import encode_sound
from flowact.data.shards import ShardWriter, encode_array, encode_json
from flowact.writers import Mp4Writer

FRAMES, SIZE = 41, 32
SIGNED = {"license": "CC-BY-4.0", "consent": "signed 2026-01"}
DATA = {"name": "anna", "clips": 3, "seconds": 9.0, "people": 1, "licenses": {"CC-BY-4.0": 3}, "consents": {"signed 2026-01": 3}, "character": None}


@pytest.fixture
def folder(folder):
    """There is a checkpoint `own` too, that says what it was trained on."""
    checkpoint_at(
        folder / "own",
        open_checkpoint(folder / "base").weights(),
        training_data=[DATA],
        command=["/home/me/flowact"],
        versions={"flowact": "0.1.0"},
    )
    return folder


def shards(root, source=SIGNED):
    """Two filmed clips of noise, of the size that the model makes."""
    generator = np.random.default_rng(0)
    with ShardWriter(root) as writer:
        for number in range(2):
            frames = generator.integers(0, 255, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
            path = root.parent / f"clip-{number}.mp4"
            with Mp4Writer(path, SIZE, SIZE, scale=1) as film:
                film.write(frames, np.zeros(FRAMES * 640, np.float32))
            Image.fromarray(frames[0]).save(root.parent / "picture.png")
            captions = [{"first": 0, "end": FRAMES, "state": "speaking", "text": "she speaks"}]
            metadata = {"key": f"clip-{number}", "frames": FRAMES, "identity": f"person-{number}", "captions": captions, "source": source}
            members = {
                "json": encode_json(metadata), "mp4": path.read_bytes(), "ref.png": (root.parent / "picture.png").read_bytes(), "txt": b"she speaks",
                "states.npy": encode_array(np.zeros(FRAMES, np.uint8)), "wav": encode_sound(np.zeros(FRAMES * 640, np.int16)),
            }  # fmt: skip
            writer.write(f"clip-{number}", members, FRAMES)
    return str(root)


@pytest.mark.parametrize("options", [["--merge"], ["--diffusers"], ["--lora", "peft"], ["--lora", "comfyui"]])
def test_every_export_has_recipe_lineage_card_and_pictures_of_what_it_streams(folder, options, capsys):
    spec = shards(folder / "films" / "val")
    assert main(["export", "lora", *options, "--shards", spec, "--out", "given"]) == 0
    place = folder / "given"
    assert {"recipe.yaml", "lineage.json", "README.md", "pictures"} <= {path.name for path in place.iterdir()}
    with Image.open(place / "pictures" / "stream.png") as sheet:
        assert sheet.width >= 2 * 112, "the reference and what came of it"
    assert (place / "pictures" / "stream.mp4").stat().st_size > 500
    card = (place / "README.md").read_text()
    assert "](pictures/stream.png)" in card
    assert "# given" in card
    assert str(folder) not in (place / "lineage.json").read_text() + card
    if options[0] != "--lora":
        assert open_checkpoint(place).weights(), "the card is no damage"


def test_what_the_checkpoint_says_of_its_data_goes_into_the_card(folder):
    stages = {"base": {"lip_correlation": 0.25}, "own": {"lip_correlation": 0.75}}
    comparison = {
        "before": "base",
        "after": "own",
        "changes": {"lip_correlation": {"before": 0.25, "after": 0.75, "difference": 0.5, "better": True}},
    }
    (folder / "metrics.json").write_text(json.dumps({"stages": stages, "comparison": comparison}))
    (folder / "sheets").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "sheets" / "before-after.png")
    (folder / "sheets" / "notes.txt").touch()
    arguments = ["--metrics", "metrics.json", "--pictures", "sheets", "--license", "apache-2.0", "--base-model", "studio/base"]
    assert main(["export", "own", "--merge", "--out", "given", *arguments]) == 0
    card = (folder / "given" / "README.md").read_text()
    assert "| diffusion_forcing | anna | 3 | 0.1 | 1 | CC-BY-4.0 (3) | signed 2026-01 (3) |" in card
    assert "license: apache-2.0" in card
    assert "base_model: studio/base" in card
    assert "| Lip sync | 0.250 | 0.750 | +0.500 | higher is better |" in card
    assert "![The same held-out clips before and after" in card
    assert (folder / "given" / "pictures" / "before-after.png").is_file()
    assert not (folder / "given" / "pictures" / "notes.txt").exists()
    assert "/home/me" not in (folder / "given" / "lineage.json").read_text()


def test_data_of_a_lora_that_is_added_are_data_of_the_result(folder):
    lora = open_checkpoint(folder / "lora")
    checkpoint_at(folder / "told", lora.trained(), adapter={"class_path": "LoRA"}, base=lora.lineage["base"], training_data=[DATA])
    assert main(["export", "told", "--lora", "peft", "--out", "files"]) == 0
    assert main(["export", "base", "--merge", "--add", "files", "--out", "again"]) == 0
    assert "| diffusion_forcing | anna | 3 |" in (folder / "again" / "README.md").read_text()
    (folder / "files" / "lineage.json").unlink()
    assert main(["export", "base", "--merge", "--add", "files", "--out", "unknown"]) == 0
    card = (folder / "unknown" / "README.md").read_text()
    assert "LoRA of another program was trained on**" in card
    assert "license: unknown" in card


@pytest.mark.parametrize(("source", "streams"), [(SIGNED, True), ({"license": "CC-BY-4.0"}, False)])
def test_the_recipes_validation_set_is_shown_only_if_everyone_agreed(folder, source, streams, capsys, monkeypatch):
    spec = shards(folder / "films" / "val", source)
    recipe = folder / "own" / "recipe.yaml"
    from flowact.commands import export

    real = export.default_shards

    def with_data(report, checkpoint, say):
        checkpoint.recipe["data"] = {"init_args": {"val": spec}}
        return real(report, checkpoint, say)

    monkeypatch.setattr(export, "default_shards", with_data)
    assert recipe.is_file()
    assert main(["export", "own", "--merge", "--out", "given"]) == 0
    assert (folder / "given" / "pictures").exists() == streams
    assert ("2 of 2 clips of" in capsys.readouterr().out) != streams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "absent.json"], "there is no such file"), (["--pictures", "absent.png"], "there is no such file"),
        (["--pictures", "ae/autoencoder.json"], "is no picture"), (["--shards", "x", "--no-stream"], "leave out one"),
        (["--shards", "absent"], "absent"),
    ],
)  # fmt: skip
def test_wrong_wishes_leave_nothing(folder, arguments, message, capsys):
    before = sorted(path.name for path in folder.iterdir())
    assert main(["export", "own", "--merge", "--out", "given", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before

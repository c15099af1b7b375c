"""`flowact check` beyond keys: constructors, data, checkpoints, this machine and memory, on the smallest of the shipped recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flowact import cli
from flowact.checkpoints import write_checkpoint
from flowact.commands import readiness
from flowact.commands.build import build
from flowact.commands.readiness import Target, examine
from flowact.data import ShardDataModule
from flowact.errors import UserError
from flowact.recipe import load_recipe

DEBUG = "debug/diffusion_forcing.yaml"
LATENTS = {
    "latent_space": "0123abcd",
    "autoencoder_path": "x/autoencoder",
    "encoders": {"text": "t", "audio": "a"},
    "fps": 25,
    "temporal_stride": 4,
    "latent_shape": [96, 4, 4],
    "text_shape": [7, 256],
    "audio_shape": [4, 127],
}


def findings(tmp_path: Path, *overrides: str, name: str = DEBUG, target: Target | None = None):
    return examine(load_recipe(name, [f"vars.run={tmp_path}", *overrides]), target)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """`data(**conditions)`: the recipe's shards are there, and what their columns say."""

    def add(**conditions):
        for split in ("train", "val"):
            (tmp_path / "shards" / split).mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(ShardDataModule, "setup", lambda self, stage=None: None)
        monkeypatch.setattr(ShardDataModule, "conditions", property(lambda self: LATENTS | conditions))
        monkeypatch.setattr(ShardDataModule, "lineage", property(lambda self: LATENTS | conditions))

    return add


def one(found) -> str:
    (mistake,) = found.mistakes
    return mistake


# --- constructors


def test_a_constructor_that_refuses_is_told_with_the_line_of_the_argument_that_it_names(tmp_path):
    place = "model.init_args.memory.init_args.long"
    assert one(findings(tmp_path, f"{place}=-1")).startswith(f"{place} (command line): ")
    found = findings(tmp_path, "model.init_args.corruptor.init_args.weights.gausian=1.0", name="debug/self_forcing_chain.yaml")
    assert one(found).startswith("model.init_args.corruptor.init_args.weights.gausian (command line): ")
    assert "Did you mean gaussian?" in one(found)


def test_fit_tells_the_same_place(tmp_path):
    with pytest.raises(UserError, match=r"^model\.init_args\.memory\.init_args\.long \(command line\): "):
        build(load_recipe(DEBUG, [f"vars.run={tmp_path}", "model.init_args.memory.init_args.long=-1"]), quiet=True)


# --- data


def test_windows_are_compared_without_any_data_and_absent_data_are_noted(tmp_path):
    found = findings(tmp_path)
    assert (found.mistakes, found.facts) == ([], ["windows agree"])
    notes = "\n".join(found.notes)
    assert f"there is no {tmp_path}/shards/train and no {tmp_path}/shards/val yet" in notes
    assert "init_from (" in notes
    wrong = one(findings(tmp_path, "data.init_args.history_frames=3"))
    assert wrong.startswith("data.init_args.history_frames (command line): ")
    assert "history frames: the data has 3, the stage wants 12" in wrong


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (
            {"audio_shape": [4, 512]},
            r"^model\.init_args\.denoiser\.init_args\.audio_width \(.*yaml:\d+\): .*the data has 512, the stage wants 127",
        ),
        ({"text_shape": [7, 99]}, r"^model\.init_args\.denoiser\.init_args\.text_width \(.*\): .*the data has 99, the stage wants 256"),
        ({"latent_shape": [48, 4, 4]}, r"^model\.init_args\.denoiser\.init_args\.latent_channels \(.*\): .*the data has 48, the stage wants 96"),
    ],
)
def test_columns_of_other_widths_are_refused_with_the_key_and_its_line(tmp_path, data, conditions, words):
    data()
    assert findings(tmp_path).facts == ["data opened", "windows and widths agree"]
    data(**conditions)
    assert re.search(words, one(findings(tmp_path)))


def test_shards_that_cannot_be_read_are_a_mistake(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "shards" / split).mkdir(parents=True)
    assert str(tmp_path / "shards") in one(findings(tmp_path))


def test_a_window_that_the_autoencoder_cannot_halve_is_refused(tmp_path):
    wrong = one(findings(tmp_path, "data.init_args.num_frames=16", name="debug/autoencoder.yaml"))
    assert wrong.startswith("data.init_args.num_frames (command line): 16 is not 1 + n times")
    assert wrong.endswith("set 13")


# --- checkpoints


@pytest.fixture
def parent(tmp_path):
    """`parent(change, **lineage)`: the checkpoint that the recipe's `init_from` names, with weights of its denoiser."""

    def add(change=lambda shapes: shapes, **lineage):
        recipe = load_recipe(DEBUG, [f"vars.run={tmp_path}"])
        spec = recipe.config["model"]
        with torch.device("meta"):
            stage = readiness.build(readiness.registry.load_class(spec["class_path"]), spec["init_args"])
        weights = {name: torch.zeros(shape) for name, shape in change({n: tuple(w.shape) for n, w in stage.denoiser.state_dict().items()}).items()}
        facts = {"stage": "pretraining", "step": 3, "chunk_frames": 3, **{k: LATENTS[k] for k in ("latent_space", "fps", "encoders")}, **lineage}
        write_checkpoint(recipe.config["init_from"], weights=weights, ema=None, recipe={}, lineage=facts, autoencoder_folder=None, engine_saver=None)

    return add


def test_a_parent_that_fits_is_accepted_and_others_are_refused_at_init_from(tmp_path, parent, data):
    data()
    parent()
    assert findings(tmp_path).mistakes == []
    parent(fps=30)
    assert one(findings(tmp_path)).startswith("init_from (")
    assert "fps: 30 in the checkpoint, 25 in this run" in one(findings(tmp_path))
    assert findings(tmp_path, 'model.init_args.allow_lineage=["fps"]').mistakes == []
    parent(lambda shapes: dict(list(shapes.items())[1:]))
    assert "missing: " in one(findings(tmp_path))
    parent(lambda shapes: {name: (*shape[:-1], shape[-1] + 1) for name, shape in shapes.items()})
    assert "in the checkpoint" in one(findings(tmp_path))


def test_a_folder_that_is_no_checkpoint_is_refused_and_an_absent_one_noted(tmp_path):
    folder = tmp_path / "checkpoints" / "pretraining"
    folder.mkdir(parents=True)
    assert "manifest.json" in one(findings(tmp_path))
    assert one(findings(tmp_path, "init_from=null", "model.init_args.adapter=LoRA")).startswith("model.init_args.adapter (command line): ")
    (tmp_path / "checkpoints" / "diffusion_forcing").mkdir()
    (tmp_path / "checkpoints" / "diffusion_forcing" / "notes.txt").write_text("mine")
    assert one(findings(tmp_path, "init_from=null")).startswith("trainer.callbacks.checkpoint.init_args.dirpath (")


# --- machine and memory


def test_what_this_machine_lacks_is_noted_and_refused_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["check", DEBUG, f"vars.run={tmp_path}", "trainer.accelerator=gpu"]
    assert cli.main(words) == 0
    assert "note: trainer.accelerator (command line): this machine has no GPU" in capsys.readouterr().out
    assert cli.main([*words, "--strict"]) == 2
    assert "this machine has no GPU" in capsys.readouterr().err
    assert cli.main([*words, "--keys-only"]) == 0
    assert "note" not in capsys.readouterr().out


def test_memory_is_compared_with_a_device(tmp_path):
    assert "GiB on each" in findings(tmp_path, target=Target("h100", size=(64, 64))).facts[-1]
    wrong = one(findings(tmp_path, target=Target("100,1,0.001", size=(64, 64))))
    assert "does not fit" in wrong

"""Folders that are handed to others: laid out as diffusers does, read back by objects made anew, and nothing left where a write went wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from exportable import SPEC, checkpoint_at, refused
from safetensors.torch import load_file, save_file

from flowact import checkpoints, registry
from flowact.autoencoders import DiffusersAutoencoder, load_autoencoder, save_autoencoder
from flowact.checkpoints import open_checkpoint
from flowact.cli import main
from flowact.errors import UserError
from flowact.models import MMDiT, lora_files
from flowact.models.sameness import output_of
from flowact.sampling.pipeline import Pipeline

FORMAT = '''
import torch
from flowact.models import Addition, MMDiT, WeightFormat
from flowact.models.rules import Rename

class RenamedMMDiT(WeightFormat):
    """MMDiT without ears, under other names."""

    class_name = "RenamedTransformer"
    denoiser = "MMDiT"
    defaults = {"arguments": {}}
    additions = (Addition("audio", ("*audio*",), ("*audio.modulation*",)),)

    def arguments(self, config):
        return config["arguments"]

    def config(self, arguments):
        return {"arguments": {name: value for name, value in arguments.items() if isinstance(value, (int, float, str))}}

    def rules(self, config):
        with torch.device("meta"):
            names = list(MMDiT(**config["arguments"]).state_dict())
        return [Rename(f"net.{name}", name) for name in names if "audio" not in name]
'''


def streamed(path, **options):
    pipeline = Pipeline.from_checkpoint(path, **options)
    return pipeline.generate([torch.zeros(3, *pipeline.picture_size)], [np.zeros(10, np.float32)], [[(0, "hello")]]).frames[0]


@pytest.fixture
def renamed(tmp_path):
    """A weight format for MMDiT, as a plugin would bring it."""
    file = tmp_path / "renamed_format.py"
    file.write_text(FORMAT)
    registry.refresh()
    registry.load_plugin_file(file)
    yield
    registry.refresh()


def test_a_folder_of_diffusers_layout_is_a_checkpoint_that_streams_the_same(folder):
    assert main(["export", "lora", "--diffusers", "--out", "parts"]) == 0
    parts, lora = open_checkpoint(folder / "parts"), open_checkpoint(folder / "lora")
    assert not parts.is_lora
    assert parts.autoencoder == folder / "parts" / "vae"
    for name, value in lora.weights().items():
        assert torch.equal(parts.weights()[name], value)
    assert np.array_equal(streamed(folder / "parts"), streamed(folder / "lora"))
    index = json.loads((folder / "parts" / "model_index.json").read_text())
    assert index["transformer"] == ["flowact", "MMDiT"]
    assert index["vae"] == ["flowact", "CausalVideoAutoencoder"]
    assert json.loads((folder / "parts" / "scheduler" / "scheduler_config.json").read_text())["shift"] == 1.0


def test_the_network_of_the_folder_is_built_from_its_config_and_file_alone(folder):
    assert main(["export", "base", "--diffusers", "--out", "parts"]) == 0
    config = json.loads((folder / "parts" / "transformer" / "config.json").read_text())
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    network = MMDiT(**arguments)
    network.load_state_dict(load_file(folder / "parts" / "transformer" / "diffusion_pytorch_model.safetensors"))
    assert config["_class_name"] == "MMDiT"
    assert torch.equal(output_of(SPEC, network.state_dict()), output_of(SPEC, open_checkpoint(folder / "base").weights()))


def test_in_the_format_of_a_library_its_own_file_has_its_names_and_ears_lie_beside(folder, renamed):
    assert main(["export", "lora", "--diffusers", "--out", "parts"]) == 0
    place = folder / "parts" / "transformer"
    theirs, beside = load_file(place / "diffusion_pytorch_model.safetensors"), load_file(place / checkpoints.ADDITIONS)
    assert theirs
    assert all(name.startswith("net.") and "audio" not in name for name in theirs)
    assert beside
    assert all("audio" in name for name in beside)
    parts = open_checkpoint(folder / "parts")
    assert parts.weight_format == "RenamedMMDiT"
    assert np.array_equal(streamed(folder / "parts"), streamed(folder / "lora"))
    assert main(["export", "parts", "--merge", "--out", "back"]) == 0, "and out of it again"
    for name, value in open_checkpoint(folder / "lora").weights().items():
        assert torch.equal(open_checkpoint(folder / "back").weights()[name], value)
    assert json.loads((folder / "parts" / "model_index.json").read_text())["transformer"] == ["diffusers", "RenamedTransformer"]


@pytest.mark.parametrize("option", ["--diffusers", "--merge"])
def test_a_wrapped_autoencoder_travels_with_the_folder(folder, option):
    """The wrapper reads its model from where it was downloaded; another machine has no such place."""
    diffusers = pytest.importorskip("diffusers", reason="pip install 'flowact[hf]'")
    torch.manual_seed(0)
    shape = {"base_dim": 8, "z_dim": 3, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]}
    model = diffusers.AutoencoderKLWan(**shape, latents_mean=[0.1, 0, 0], latents_std=[1.0, 2.0, 1.0])
    model.save_pretrained(folder / "downloaded")
    wrapped = DiffusersAutoencoder("AutoencoderKLWan", str(folder / "downloaded"))
    expected = wrapped.decode(torch.ones(1, 2, 3, 2, 2))
    for file in (folder / "ae").iterdir():
        file.unlink()
    save_autoencoder(wrapped, wrapped.spec, folder / "ae")
    checkpoint_at(folder / "wan", open_checkpoint(folder / "base").weights())
    assert main(["export", "wan", option, "--out", "parts"]) == 0
    (folder / "downloaded").rename(folder / "gone")
    place = open_checkpoint(folder / "parts").autoencoder
    assert str(folder) not in (place / "config.json").read_text()
    torch.testing.assert_close(load_autoencoder(place).decode(torch.ones(1, 2, 3, 2, 2)), expected)
    theirs = diffusers.AutoencoderKLWan.from_pretrained(str(place))
    assert torch.equal(theirs.state_dict()["decoder.conv_in.weight"], model.state_dict()["decoder.conv_in.weight"])


@pytest.mark.parametrize("program", ["peft", "comfyui", "checkpoint"])
def test_a_lora_is_added_while_a_stream_is_built(folder, program):
    path = folder / "lora"
    if program != "checkpoint":
        assert main(["export", "lora", "--lora", program, "--out", "files"]) == 0
        path = folder / "files"
    with_it, without = streamed(folder / "base", loras=[path]), streamed(folder / "base")
    difference = np.abs(with_it.astype(int) - streamed(folder / "lora").astype(int))
    assert difference.max() <= 1, "but for rounding of a pixel"
    assert not np.array_equal(with_it, without)


# --- what goes wrong


def flipped(tensors):
    """The same tensors with one number of the largest one changed."""
    name = max(tensors, key=lambda key: tensors[key].numel())
    changed = tensors[name].clone()
    changed.view(-1)[3] += 0.5
    return {**tensors, name: changed}


def broken_writes(monkeypatch):
    real = checkpoints.save_file

    def write(tensors, path, *rest):
        real(flipped(tensors) if "autoencoder" not in str(path) else tensors, path, *rest)

    for module in (checkpoints, lora_files):
        monkeypatch.setattr(module, "save_file", write)
    monkeypatch.setattr("flowact.models.adapters.save_file", write)


@pytest.mark.parametrize("options", [["--merge"], ["--diffusers"], ["--lora", "peft"], ["--lora", "comfyui"], ["--merge", "--eight-bit"]])
def test_one_wrong_number_on_the_disk_is_caught_and_nothing_is_left(folder, options, capsys, monkeypatch):
    before = sorted(path.name for path in folder.iterdir())
    broken_writes(monkeypatch)
    if "--eight-bit" in options:
        monkeypatch.setattr(checkpoints, "save_file", lambda tensors, path: save_file({n: t.roll(1) for n, t in tensors.items()}, path))
    assert "read back differs by" in refused(capsys, "export", "lora", *options, "--out", "x")
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("option", ["--merge", "--diffusers"])
def test_right_numbers_in_a_network_that_computes_something_else_are_caught(folder, option, capsys, monkeypatch):
    """As a recipe that lost an argument would do: names, shapes and numbers all agree."""
    real = lora_files.write_checkpoint

    def changed(place, *, recipe, **options):
        recipe = json.loads(json.dumps(recipe))
        recipe["model"]["init_args"]["denoiser"]["init_args"]["absolute_positions"] = True
        return real(place, recipe=recipe, **options)

    monkeypatch.setattr(lora_files, "write_checkpoint", changed)
    assert "computes something else" in refused(capsys, "export", "base", option, "--out", "x")
    assert not (folder / "x").exists()


@pytest.mark.parametrize("option", ["--merge", "--diffusers"])
def test_a_damaged_autoencoder_is_caught(folder, option, capsys, monkeypatch):
    real = lora_files.write_checkpoint

    def changed(place, *, autoencoder_folder, **options):
        for file in autoencoder_folder.glob("*.safetensors"):
            save_file(flipped(load_file(file)), file)
        return real(place, autoencoder_folder=autoencoder_folder, **options)

    monkeypatch.setattr(lora_files, "write_checkpoint", changed)
    assert "so x was not made" in refused(capsys, "export", "base", option, "--out", "x")
    assert not (folder / "x").exists()


def test_a_card_and_hidden_files_may_be_changed_and_weights_may_not(folder):
    assert main(["export", "base", "--merge", "--out", "merged"]) == 0
    place = folder / "merged"
    for name in ("README.md", "LICENSE.txt", ".gitattributes", ".cache/huggingface/x.lock", "pictures/mine.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
    assert open_checkpoint(place).weights()
    (place / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        open_checkpoint(place)
    (place / "notes.txt").unlink()
    file = place / "denoiser.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="sha256 differs"):
        open_checkpoint(place)

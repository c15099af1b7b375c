"""`flowact export` and `flowact lora`: what is written is read back key by key before it counts, and means the same everywhere."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exportable import SPEC, checkpoint_at, refused
from safetensors.torch import load_file, save_file

from flowact.autoencoders import latent_space
from flowact.checkpoints import open_checkpoint
from flowact.cli import main
from flowact.lora import LORA_WEIGHTS, merge
from flowact.models import lora_files
from flowact.models.adapters import PEFT_CONFIG, PEFT_WEIGHTS, linear_names
from flowact.models.lora_files import COMFYUI_WEIGHTS
from flowact.registry import instantiate
from flowact.sampling.pipeline import Pipeline


def extracted(capsys, *arguments, tuned="tuned"):
    """The report of an extraction."""
    capsys.readouterr()
    assert main(["lora", "extract", "--base", "base", "--tuned", tuned, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_close(first, second, tolerance=1e-5):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=tolerance, rtol=tolerance, msg=name)


# --- merged


@pytest.mark.parametrize("options", [[], ["--trained"]])
def test_merged_weights_are_a_checkpoint_that_needs_no_base(folder, options):
    lora = open_checkpoint(folder / "lora")
    expected = lora.weights(ema=not options)
    assert main(["export", "lora", "--merge", "--out", "merged", *options]) == 0
    shutil.rmtree(folder / "base")
    merged = open_checkpoint(folder / "merged")
    assert_close(expected, merged.weights(), 0.0)
    assert not merged.is_lora
    assert "adapter" not in merged.stage_arguments
    assert merged.engine is None
    assert merged.lineage["merged_from"]["weights_sha256"] == lora.weights_sha256
    assert {key: merged.lineage[key] for key in ("stage", "step", "encoders")} == {key: lora.lineage[key] for key in ("stage", "step", "encoders")}
    assert {path.name for path in folder.iterdir()} == {"ae", "lora", "merged", "tuned"}


def test_eight_bits_take_fewer_bytes_and_are_nearly_the_same_weights(folder, capsys):
    lora = open_checkpoint(folder / "lora")
    assert main(["export", "lora", "--merge", "--out", "merged"]) == 0
    assert main(["export", "lora", "--merge", "--eight-bit", "--out", "small"]) == 0
    small, merged = open_checkpoint(folder / "small"), open_checkpoint(folder / "merged")
    assert small.shapes() == merged.shapes()
    spaces = [latent_space(checkpoint.autoencoder) for checkpoint in (small, merged)]
    assert spaces[0] != spaces[1]
    assert [checkpoint.lineage["latent_space"] for checkpoint in (small, merged)] == spaces, "so that clips encoded with it fit"
    for name, value in lora.weights().items():
        rows = value.float().flatten(1) if value.ndim > 1 else value[None].float()
        error = (rows - small.weights()[name].view(rows.shape)).abs().amax(dim=1)
        assert (error <= rows.abs().amax(dim=1) * 0.51 / 127).all(), "half a step of its row"
    for name in ("denoiser.safetensors", "autoencoder/autoencoder.safetensors"):
        assert (folder / "small" / name).stat().st_size < 0.7 * (folder / "merged" / name).stat().st_size
    streams = [Pipeline.from_checkpoint(folder / name) for name in ("small", "merged")]
    clips = [p.generate([torch.zeros(3, *p.picture_size)], [np.zeros(10, np.float32)], [[(0, "hello")]]).frames[0].astype(int) for p in streams]
    assert 0 < np.abs(clips[0] - clips[1]).mean() < 4
    assert main(["export", "lora", "--lora", "peft", "--eight-bit", "--out", "no"]) == 2
    assert "--merge" in capsys.readouterr().err


def test_a_lora_streams_as_its_merged_weights_do(folder):
    assert main(["export", "lora", "--merge", "--out", "merged"]) == 0
    clips = []
    for name in ("lora", "merged", "base"):
        pipeline = Pipeline.from_checkpoint(folder / name)
        made = pipeline.generate([torch.zeros(3, *pipeline.picture_size)], [np.zeros(10, np.float32)], [[(0, "hello")]])
        clips.append(made.frames[0])
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])


def test_merged_weights_compute_what_the_lora_computes_beside_a_base_in_bfloat16(folder):
    """An imported base is often bfloat16, which would round the change away."""
    base = open_checkpoint(folder / "base")
    half = {name: value.bfloat16() for name, value in base.weights().items()}
    checkpoint_at(folder / "half", half)
    lora = open_checkpoint(folder / "lora")
    state = {name: value * 1e-3 if name.endswith("lora_B.weight") else value for name, value in lora.trained().items()}
    checkpoint_at(folder / "small", state, adapter={"class_path": "LoRA"}, base=open_checkpoint(folder / "half").identity)
    assert main(["export", "small", "--merge", "--out", "merged"]) == 0
    merged = open_checkpoint(folder / "merged").weights()
    layer = "double_blocks.0.towers.visual.qkv"
    delta = 3.0 / 2 * state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
    torch.testing.assert_close(merged[f"{layer}.weight"], half[f"{layer}.weight"].float() + delta, atol=1e-6, rtol=1e-6)


# --- formats of others


@pytest.mark.parametrize("program", ["peft", "comfyui"])
def test_an_exported_lora_is_added_to_its_base_again(folder, program, capsys):
    assert main(["export", "lora", "--lora", program, "--out", "files"]) == 0
    assert main(["export", "base", "--merge", "--add", "files", "--out", "again"]) == 0
    text = capsys.readouterr().out
    assert f"wrote files ({program})" in text
    assert "read files: every key matched" in text
    again = open_checkpoint(folder / "again")
    assert_close(open_checkpoint(folder / "lora").weights(), again.weights())
    assert again.lineage["stage"] == "pretraining"
    assert len(again.lineage["lora_sha256"]) == 64


def test_comfyui_has_one_file_with_the_names_of_its_loader(folder):
    assert main(["export", "lora", "--lora", "comfyui", "--out", "files"]) == 0
    tensors = load_file(folder / "files" / COMFYUI_WEIGHTS)
    layers = [layer for layer in linear_names(instantiate(SPEC, "denoisers")) if layer not in ("visual_in", "out")]
    ends = (".lora_A.weight", ".lora_B.weight", ".alpha")
    assert tensors.keys() == {f"diffusion_model.{layer}{end}" for layer in layers for end in ends} | {
        "diffusion_model.visual_in.diff", "diffusion_model.visual_in.diff_b",
    }  # fmt: skip
    assert {float(value) for name, value in tensors.items() if name.endswith(".alpha")} == {3.0}
    assert main(["export", "base", "--merge", "--add", f"files/{COMFYUI_WEIGHTS}", "--out", "again"]) == 0  # the file alone will do


def test_peft_has_its_two_files(folder):
    assert main(["export", "lora", "--lora", "peft", "--out", "files"]) == 0
    assert {PEFT_CONFIG, PEFT_WEIGHTS} < {path.name for path in (folder / "files").iterdir()}
    config = json.loads((folder / "files" / PEFT_CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["modules_to_save"]) == ("LORA", 2, 3.0, ["visual_in"])


def test_the_report_counts_what_was_written_and_matched(folder, capsys):
    assert main(["export", "lora", "--lora", "peft", "--out", "files", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    layers = len(linear_names(instantiate(SPEC, "denoisers"))) - 2
    assert (report["format"], report["out"], report["layers"], report["whole"]) == ("peft", "files", layers, 2)
    assert report["keys"] == len(load_file(folder / "files" / PEFT_WEIGHTS)) == 2 * layers + 2
    assert report["difference"] <= 1e-5
    assert main(["export", "lora", "--merge", "--out", "merged", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["layers"], report["whole"]) == ("checkpoint", layers, 2)
    assert report["keys"] == len(instantiate(SPEC, "denoisers").state_dict())


@pytest.mark.parametrize("program", ["peft", "comfyui"])
def test_extra_and_missing_keys_fail_and_are_all_listed(folder, program, capsys):
    assert main(["export", "lora", "--lora", program, "--out", "files"]) == 0
    file = folder / "files" / (PEFT_WEIGHTS if program == "peft" else COMFYUI_WEIGHTS)
    tensors = load_file(file)
    gone = sorted(name for name in tensors if name.endswith("lora_B.weight"))[:3]
    for name in gone:
        tensors[name.replace("lora_B", "lora_C")] = tensors.pop(name)
    save_file(tensors, file)
    text = refused(capsys, "export", "base", "--merge", "--add", "files", "--out", "again")
    for name in gone:
        assert f"missing: {name.removeprefix('diffusion_model.')}" in text
        assert f"unmatched: {name.replace('lora_B', 'lora_C')}" in text
    assert not (folder / "again").exists()


@pytest.mark.parametrize("options", [["--merge"], ["--lora", "peft"], ["--lora", "comfyui"]])
def test_nothing_stays_when_it_is_read_back_as_something_else(folder, options, capsys, monkeypatch):
    """As a disk or a library that changes numbers would do."""
    before = sorted(path.name for path in folder.iterdir())
    if options == ["--merge"]:
        real = lora_files.open_checkpoint

        def damaged(path):
            checkpoint = real(path)
            return SimpleNamespace(weights=lambda: {name: value * 1.01 for name, value in checkpoint.weights().items()})

        monkeypatch.setattr(lora_files, "open_checkpoint", damaged)
    else:
        loaded = lora_files.read_lora
        monkeypatch.setattr(lora_files, "read_lora", lambda *args: {name: value * 1.01 for name, value in loaded(*args).items()})
    text = refused(capsys, "export", "lora", *options, "--out", "x")
    assert "read back differs by" in text
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("program", ["peft", "comfyui"])
def test_a_key_that_is_lost_or_added_while_writing_fails(folder, program, capsys, monkeypatch):
    real = lora_files.save_peft if program == "peft" else lora_files.to_comfyui

    def changed(state):
        lost = sorted(name for name in state if name.endswith("lora_A.weight"))[0]
        return {name: value for name, value in state.items() if name != lost} | {lost.replace("lora_A", "lora_X"): state[lost]}

    if program == "peft":
        monkeypatch.setattr(lora_files, "save_peft", lambda state, network, out: _rename_in(out, real(state, network, out), changed))
    else:
        monkeypatch.setattr(lora_files, "to_comfyui", lambda state, base: changed(real(state, base)))
    text = refused(capsys, "export", "lora", "--lora", program, "--out", "x")
    assert "missing: " in text
    assert "unmatched: " in text
    assert "lora_X" in text
    assert not (folder / "x").exists()


def _rename_in(out, _, changed):
    save_file(changed(load_file(out / PEFT_WEIGHTS)), out / PEFT_WEIGHTS)


# --- extraction


@pytest.mark.parametrize("form", ["checkpoint", "comfyui"])
def test_a_merged_lora_is_extracted_again(folder, form, capsys):
    """At its own rank; `visual_in` was trained whole, so there the rank is not enough."""
    assert main(["export", "lora", "--merge", "--out", "merged"]) == 0
    report = extracted(capsys, "--rank", "2", "--others", "keep", "--format", form, "--out", "files", tuned="merged")
    assert report["errors"].keys() == {layer for layer in linear_names(instantiate(SPEC, "denoisers")) if layer != "out"}
    assert all(error < 1e-4 for layer, error in report["errors"].items() if layer != "visual_in")
    assert (report["whole"], report["left_out"]) == (1, [])
    if form == "comfyui":
        assert main(["export", "base", "--merge", "--add", "files", "--out", "again"]) == 0
    again = open_checkpoint(folder / ("again" if form == "comfyui" else "files")).weights()
    base = open_checkpoint(folder / "base").weights()
    for name, value in open_checkpoint(folder / "lora").weights().items():
        if name != "visual_in.weight":
            change = value - base[name]
            assert (again[name] - value).norm() <= 1e-4 * change.norm(), name


def test_what_is_extracted_is_a_small_checkpoint_beside_the_base(folder, capsys):
    extracted(capsys, "--rank", "2", "--others", "drop", "--out", "small")
    checkpoint, base = open_checkpoint(folder / "small"), open_checkpoint(folder / "base")
    assert checkpoint.is_lora
    assert checkpoint.weights_name == LORA_WEIGHTS
    assert checkpoint.base().path.name == "base"
    assert checkpoint.lineage["extracted_from"]["weights_sha256"] == open_checkpoint(folder / "tuned").weights_sha256
    assert checkpoint.weights().keys() == base.weights().keys()
    assert isinstance(Pipeline.from_checkpoint(folder / "small"), Pipeline)
    assert main(["export", "small", "--lora", "peft", "--out", "files"]) == 0


def test_a_larger_rank_holds_more_and_each_layer_is_reported(folder, capsys):
    totals = []
    for rank in ("2", "8"):
        assert main(["lora", "extract", "--base", "base", "--tuned", "tuned", "--rank", rank, "--others", "drop", "--out", f"rank-{rank}"]) == 0
        text = capsys.readouterr().out
        lines = [line for line in text.splitlines() if line.startswith("extracted ")]
        assert [line.split(":")[0].removeprefix("extracted ") for line in lines] == linear_names(instantiate(SPEC, "denoisers"))
        assert "left out visual_in.bias" in text
        assert f"{len(lines)} layers changed; the largest relative error is" in text
        totals.append(sum(float(line.rpartition(" ")[2]) for line in lines))
    assert totals[1] < totals[0]


def test_a_lora_is_extracted_again_at_a_smaller_rank(folder, capsys):
    extracted(capsys, "--rank", "1", "--others", "keep", "--out", "one", tuned="lora")
    tensors = open_checkpoint(folder / "one").trained()
    assert {value.shape[0] for name, value in tensors.items() if name.endswith("lora_A.weight")} == {1}


# --- options

EXTRACT = ["lora", "extract", "--base", "base", "--tuned", "tuned", "--out", "x", "--rank"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "lora", "--lora", "peft", "--out", "base"], "--out base exists"),
        (["export", "lora", "--lora", "peft", "--out", "x", "--add", "y"], "goes with --merge"),
        (["export", "tuned", "--lora", "peft", "--out", "x"], "holds all weights and no LoRA. Extract one first: flowact lora extract --base"),
        (["export", "base", "--merge", "--out", "x", "--add", "nowhere"], "nowhere is no LoRA"),
        (["export", "base", "--merge", "--out", "x", "--add", "ae"], "ae is no LoRA"),
        (["export", "nothing", "--merge", "--out", "x"], "there is no checkpoint folder nothing"),
        (["export", "lora", "--merge", "--out", "x", "--base", "tuned"], "These are not in tuned, which holds another checkpoint"),
        ([*EXTRACT, "2"], "differs: visual_in.bias"),
        ([*EXTRACT, "0"], "a rank of 0"),
        (["lora", "extract", "--base", "base", "--tuned", "tuned", "--out", "base", "--rank", "2"], "--out base exists"),
        (["lora", "extract", "--base", "base", "--tuned", "base", "--out", "x", "--rank", "2"], "there is nothing to extract"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, arguments, words, capsys):
    assert words in refused(capsys, *arguments)
    assert not (folder / "x").exists()
    assert not list(folder.glob("*.tmp-*"))


def test_one_thing_is_written_at_a_time(folder, capsys):
    for options in ([], ["--merge", "--lora", "peft"]):
        with pytest.raises(SystemExit) as caught:
            main(["export", "lora", "--out", "x", *options])
        assert caught.value.code == 2
        assert "--merge" in capsys.readouterr().err


def test_a_base_that_was_moved_can_be_named(folder, capsys):
    expected = open_checkpoint(folder / "lora").weights()
    (folder / "far").mkdir()
    (folder / "base").rename(folder / "far" / "away")
    assert "flowact export lora --base FOLDER --merge --out FOLDER" in refused(capsys, "export", "lora", "--merge", "--out", "merged")
    assert main(["export", "lora", "--merge", "--out", "merged", "--base", "far/away"]) == 0
    assert_close(expected, open_checkpoint(folder / "merged").weights(), 0.0)


def test_a_lora_on_a_lora_is_merged_through(folder):
    first = open_checkpoint(folder / "lora")
    state = {name: value * 0.5 for name, value in first.trained(ema=False).items()}
    checkpoint_at(folder / "second", state, adapter={"class_path": "LoRA"}, base=first.identity)
    assert main(["export", "second", "--merge", "--out", "merged"]) == 0
    assert_close(merge(first.weights(), state), open_checkpoint(folder / "merged").weights(), 0.0)

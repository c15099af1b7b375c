"""`flowact convert`: there and back without a changed bit, a checkpoint that training takes, and every refusal before work starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowact import registry
from flowact.checkpoints import check_compatible, load_into, open_checkpoint, write_checkpoint
from flowact.cli import main
from flowact.commands.convert import parse_size
from flowact.errors import UserError
from flowact.lora import LORA_WEIGHTS
from flowact.models import conversion
from flowact.models.translation import export_state
from flowact.sampling.pipeline import Pipeline
from flowact.stages.pretraining import FlowMatchingPretraining

PLUGIN = Path(__file__).parents[1] / "models" / "tiny_format.py"
CONFIG = {"_class_name": "TinyTransformer", "dim": 12, "layers": 3}
NAME = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def plugin():
    registry.refresh()
    registry.load_plugin_file(PLUGIN)
    yield
    registry.refresh()


@pytest.fixture
def their_weights() -> dict[str, Tensor]:
    """Random weights of theirs, in two number types."""
    form = registry.load("TinyFormat", "formats")()
    network = registry.instantiate(form.denoiser_spec(CONFIG, audio_width=5), "denoisers")
    theirs = export_state(form.rules(form.complete(CONFIG)), form.divide(network.state_dict())[0])
    generator = torch.Generator().manual_seed(0)
    random = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in theirs.items() if name != "frequencies"}
    return {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in random.items()} | {"frequencies": theirs["frequencies"]}


@pytest.fixture
def folder(tmp_path: Path, their_weights: dict[str, Tensor]) -> Path:
    """A folder of another library."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({**their_weights, "statistics.seen": torch.ones(1)}, folder / f"{NAME}.safetensors")
    return folder


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run it; the report, or the message of its error."""

    def run(*words: Any) -> Any:
        code = main(["convert", *map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert (code == 0) != bool(err), err
        return json.loads(out) if code == 0 else err.removeprefix("flowact: error: ").strip()

    return run


@pytest.fixture
def imported(folder: Path, convert: Callable[..., Any], tmp_path: Path) -> Path:
    convert(folder, "--out", tmp_path / "imported", "--set", "audio_width=5")
    return tmp_path / "imported"


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def retrained(checkpoint: Path, out: Path, ema: dict[str, Tensor] | None = None, **changes: Tensor) -> Path:
    """The checkpoint of a stage that changed these tensors; `__` stands for a dot."""
    found = open_checkpoint(checkpoint)
    weights = found.weights() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    lineage = {"stage": "pretraining", "step": 7}
    return write_checkpoint(out, weights=weights, ema=ema, recipe=found.recipe, lineage=lineage, autoencoder_folder=None, engine_saver=None)


# --- to flowact


def test_import_writes_a_checkpoint_with_its_source(folder: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    report = convert(folder, "--to", "flowact", "--out", tmp_path / "out", "--set", "audio_width=5")
    assert (report["direction"], report["format"], report["matched"]) == ("import", "TinyFormat", 19)
    assert report["ignored"] == ["statistics.seen"]
    assert set(report["made_new"]) == {"audio"}
    assert len(report["made_new"]["audio"]) == 8
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.lineage["stage"] == "imported"
    assert checkpoint.lineage["source"]["format"] == "TinyFormat"
    assert set(checkpoint.lineage["source"]["sha256"]) == {"config.json", f"{NAME}.safetensors"}
    assert not {"chunk_frames", "encoders", "latent_space", "fps"} & checkpoint.lineage.keys()
    weights = checkpoint.weights()
    assert {tensor.dtype for name, tensor in weights.items() if "blocks.0.qkv" in name} == {torch.bfloat16}
    denoiser = registry.instantiate(checkpoint.recipe["model"]["init_args"]["denoiser"], "denoisers")
    load_into(denoiser, weights)
    assert all(torch.count_nonzero(weights[name]) == 0 for name in weights if name.startswith("audio_blocks"))
    assert torch.count_nonzero(weights["audio_in.weight"])


def test_a_stage_starts_from_it(imported: Path) -> None:
    recipe = open_checkpoint(imported).recipe
    stage = FlowMatchingPretraining(registry.instantiate(recipe["model"]["init_args"]["denoiser"], "denoisers"))
    stage.initialise_from(imported)
    assert [ancestor["stage"] for ancestor in stage.ancestors] == ["imported"]
    assert torch.equal(stage.denoiser.state_dict()["blocks.1.out.bias"], open_checkpoint(imported).weights()["blocks.1.out.bias"].float())


def test_it_cannot_be_streamed_before_a_stage_has_joined_it_with_encoders(imported: Path) -> None:
    with pytest.raises(UserError, match="imported weights alone"):
        Pipeline.from_checkpoint(imported)


def test_what_an_imported_parent_does_not_say_is_unknown_and_allowed() -> None:
    own = {"stage": "pretraining", "latent_space": "abc", "chunk_frames": 3, "fps": 25, "encoders": {"text": None}}
    check_compatible({"stage": "imported"}, own)
    with pytest.raises(UserError, match="fps: 16 in the checkpoint, 25 in this run"):
        check_compatible({"stage": "imported", "fps": 16}, own)
    with pytest.raises(UserError, match="latent_space"):
        check_compatible({"stage": "pretraining"}, own)


def test_the_same_import_gives_the_same_file(folder: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(folder, "--out", tmp_path / name, "--set", "audio_width=5")
    assert (tmp_path / "a" / "denoiser.safetensors").read_bytes() == (tmp_path / "b" / "denoiser.safetensors").read_bytes()


# --- to another library


def test_there_and_back_changes_no_bit(imported: Path, convert: Callable[..., Any], tmp_path: Path, their_weights: dict[str, Tensor]) -> None:
    report = convert(imported, "--to", "diffusers", "--out", tmp_path / "back")
    assert (report["direction"], report["matched"], len(report["dropped"]["audio"])) == ("export", 35, 8)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["config.json", f"{NAME}.safetensors"]
    assert equal(load_file(tmp_path / "back" / f"{NAME}.safetensors"), their_weights)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert CONFIG.items() <= written.items()
    convert(tmp_path / "back", "--out", tmp_path / "again", "--set", "audio_width=5")
    assert equal(open_checkpoint(tmp_path / "again").weights(), open_checkpoint(imported).weights())


def test_large_exports_are_sharded_and_shards_are_read(imported: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    convert(imported, "--out", tmp_path / "back", "--max-shard-size", "0.001MB")
    assert (tmp_path / "back" / f"{NAME}.safetensors.index.json").is_file()
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    convert(tmp_path / "back", "--out", tmp_path / "again", "--set", "audio_width=5")
    assert equal(open_checkpoint(tmp_path / "again").weights(), open_checkpoint(imported).weights())
    assert len(open_checkpoint(tmp_path / "again").lineage["source"]["sha256"]) > 3


def test_the_moving_average_is_exported_unless_told(imported: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    average = {"visual_in.bias": torch.full((12,), 0.5)}
    trained = retrained(imported, tmp_path / "run", average, visual_in__bias=torch.full((12,), 2.0))
    convert(trained, "--out", tmp_path / "average")
    convert(trained, "--out", tmp_path / "trained", "--trained")
    assert load_file(tmp_path / "average" / f"{NAME}.safetensors")["embed.bias"][0] == 0.5
    assert load_file(tmp_path / "trained" / f"{NAME}.safetensors")["embed.bias"][0] == 2.0


def test_weights_can_have_another_number_type_and_constants_keep_theirs(imported: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    convert(imported, "--out", tmp_path / "half", "--dtype", "float16")
    half = load_file(tmp_path / "half" / f"{NAME}.safetensors")
    assert half.pop("frequencies").dtype == torch.float32
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    wanted = open_checkpoint(imported).weights()["blocks.0.out.weight"].half()
    assert torch.equal(half["layers.0.to_out.weight"], wanted)


def test_what_was_trained_of_an_addition_is_not_lost_unasked(imported: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    silent = retrained(imported, tmp_path / "silent", audio_in__weight=torch.ones(12, 5))
    assert convert(silent, "--out", tmp_path / "a")["dropped"]["audio"]
    loud = retrained(imported, tmp_path / "loud", audio_blocks__1__bias=torch.full((12,), 1e-20))
    message = convert(loud, "--out", tmp_path / "b")
    assert "TinyTransformer has no place for what was trained of audio" in message
    assert message.endswith("add --drop audio.")
    assert not (tmp_path / "b").exists()
    assert "Did you mean audio?" in convert(loud, "--out", tmp_path / "b", "--drop", "adio")
    assert len(convert(loud, "--out", tmp_path / "b", "--drop", "audio")["dropped"]["audio"]) == 8


def test_an_export_that_reads_back_otherwise_is_not_kept(imported: Path, convert: Callable[..., Any], tmp_path: Path, monkeypatch) -> None:
    write = conversion.write_folder

    def flip(folder: Path, *args: Any) -> None:
        write(folder, *args)
        state = load_file(folder / f"{NAME}.safetensors")
        state["embed.bias"][3] += 1
        save_file(state, folder / f"{NAME}.safetensors")

    monkeypatch.setattr(conversion, "write_folder", flip)
    assert "visual_in.bias is read back as something else" in convert(imported, "--out", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "theirs"]


def test_a_lora_is_exported_as_its_merged_weights(imported: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    base = open_checkpoint(imported)
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(36, 2, generator=generator), torch.randn(2, 12, generator=generator)
    layer = "blocks.1.qkv"
    state = {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down, f"{layer}.alpha": torch.tensor(1.0), "visual_in.bias": torch.ones(12)}
    write_checkpoint(
        tmp_path / "lora", weights=state, ema=None, recipe=base.recipe, lineage={"stage": "pretraining", "step": 1, "base": base.identity},
        autoencoder_folder=None, engine_saver=None, weights_name=LORA_WEIGHTS,
    )  # fmt: skip
    assert convert(tmp_path / "lora", "--out", tmp_path / "theirs-again")["matched"] == 35
    convert(tmp_path / "theirs-again", "--out", tmp_path / "again", "--set", "audio_width=5")
    again, before = open_checkpoint(tmp_path / "again").weights(), base.weights()
    torch.testing.assert_close(again[f"{layer}.weight"], before[f"{layer}.weight"].float() + 0.5 * up @ down, atol=1e-6, rtol=1e-6)
    assert torch.equal(again["visual_in.bias"], torch.ones(12))
    changed = {f"{layer}.weight", "visual_in.bias"}
    assert {name for name, value in before.items() if not torch.equal(value.float(), again[name].float())} == changed


# --- refusals


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "wrong class": (
        lambda f: set_config(f, _class_name="Other"),
        "theirs is a Other, which no installed format reads. .*TinyFormat reads TinyTransformer",
    ),
    "class of a plugin of ours": (
        lambda f: set_config(f, _class_name="WanTransformer3DModel"),
        "^WanTransformer3DModel is read by flowact-wan: pip install flowact-wan$",
    ),
    "class that is no text": (lambda f: set_config(f, _class_name=["WanTransformer3DModel"]), "which no installed format reads"),
    "unknown key": (lambda f: set_config(f, depth=3), "the key 'depth'"),
    "value that ours has not": (lambda f: set_config(f, norm="layer"), "norm is 'layer'"),
    "config.json is none": (lambda f: (f / "config.json").write_text("[1]"), "config.json holds list"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "holds neither config.json"),
    "pipeline": (lambda f: (f / "config.json").rename(f / "model_index.json"), "whole pipeline; give .*transformer"),
    "truncated": (lambda f: truncate(f / f"{NAME}.safetensors"), "is damaged"),
    "pickle": (lambda f: (f / f"{NAME}.safetensors").rename(f / f"{NAME}.bin"), "pickle only"),
    "other width": (lambda f: set_config(f, dim=16), r"nothing was converted:(.|\n)*shape of layers.0.to_q.weight: \(12, 12\), needed is \(16, 16\)"),
    "one block less": (lambda f: set_config(f, layers=2), r"0 missing, 10 unexpected(.|\n)*unexpected: layers.2.to_q.bias"),
    "one block more": (lambda f: set_config(f, layers=4), r"10 missing, 0 unexpected(.|\n)*missing: layers.3.norm_k.weight"),
    "heads that do not divide": (lambda f: set_config(f, heads=5), "heads"),
    "config.json is a link out": (lambda f: link_out(f / "config.json"), "is a link to"),
}


def set_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def link_out(path: Path) -> None:
    target = path.parents[1] / "elsewhere.json"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("fault", REFUSED)
def test_a_folder_that_cannot_be_converted_is_refused_before_work_starts(
    fault: str, folder: Path, convert: Callable[..., Any], tmp_path: Path, monkeypatch
) -> None:
    change, words = REFUSED[fault]
    change(folder)
    monkeypatch.setattr(conversion, "sha256_of", None)  # the first long step
    message = convert(folder, "--out", tmp_path / "out", "--set", "audio_width=5")
    assert re.search(words, message), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs audio_width.*--set audio_width="),
        (("--set", "audio_width=5", "depth=3"), "no argument 'depth'"),
        (("--set", "audio_width"), "write KEY=VALUE"),
        (("--set", "audio_width=5", "--format", "TinyForma"), "Did you mean TinyFormat"),
        (("--set", "audio_width=5", "--to", "diffusers"), "not a checkpoint of FlowAct, so it can be converted to flowact only"),
        (("--drop", "audio"), "--drop has no meaning when .* is converted to flowact"),
        (("--max-shard-size", "1MB"), "--max-shard-size has no meaning"),
    ],
)
def test_wrong_options_of_an_import(words: tuple[str, ...], said: str, folder: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    assert re.search(said, convert(folder, "--out", tmp_path / "out", *words))


def test_wrong_options_of_an_export(imported: Path, convert: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--set has no meaning" in convert(imported, "--out", out, "--set", "audio_width=5")
    assert "to diffusers only" in convert(imported, "--out", out, "--to", "flowact")
    assert "write a size above 0" in convert(imported, "--out", out, "--max-shard-size", "5")
    assert "is not a folder" in convert(tmp_path / "nothing", "--out", out)
    (imported / "denoiser.safetensors").write_bytes(b"")
    assert "is damaged" in convert(imported, "--out", out)
    assert not out.exists()


def test_nothing_is_overwritten(folder: Path, imported: Path, convert: Callable[..., Any]) -> None:
    before = (imported / "manifest.json").read_bytes()
    assert "exists; nothing is overwritten" in convert(folder, "--out", imported, "--set", "audio_width=5")
    assert "exists; nothing is overwritten" in convert(imported, "--out", folder / "config.json")
    assert (imported / "manifest.json").read_bytes() == before


def test_a_denoiser_without_a_format_is_named(convert: Callable[..., Any], tmp_path: Path) -> None:
    spec = {"class_path": "MMDiT", "init_args": {"latent_channels": 3, "text_width": 4, "audio_width": 5, "width": 8, "num_heads": 2}}
    recipe = {"model": {"class_path": "FlowMatchingPretraining", "init_args": {"denoiser": spec}}}
    weights = registry.instantiate(spec, "denoisers").state_dict()
    lineage = {"stage": "pretraining", "step": 1}
    write_checkpoint(tmp_path / "c", weights=weights, ema=None, recipe=recipe, lineage=lineage, autoencoder_folder=None, engine_saver=None)
    message = convert(tmp_path / "c", "--out", tmp_path / "out")
    assert "the denoiser is MMDiT; no installed format writes it." in message
    assert "TinyFormat writes TinyDenoiser" in message
    assert "which is not what --format asks for" in convert(tmp_path / "c", "--out", tmp_path / "out", "--format", "TinyFormat")


def test_a_disk_that_is_too_full_is_noticed_first(folder: Path, imported: Path, convert: Callable[..., Any], tmp_path: Path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda place: usage)
    for words in ((folder, "--set", "audio_width=5"), (imported,)):
        assert "GB are needed there" in convert(*words, "--out", tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_the_report_for_people_says_what_was_made_and_dropped(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), "--out", str(tmp_path / "c"), "--set", "audio_width=5"]) == 0
    out, err = capsys.readouterr()
    assert "19 tensors of TinyTransformer" in out
    assert "made new: audio, 8 tensors" in out
    assert f"init_from: {tmp_path / 'c'}" in out
    assert "convert" in err  # the bar
    assert main(["convert", str(tmp_path / "c"), "--out", str(tmp_path / "d"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("0MB", None), ("5", None), ("-1GB", None), ("5GiB", None)])
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UserError, match="500MB or 5GB"):
            parse_size(text)
    else:
        assert parse_size(text) == size

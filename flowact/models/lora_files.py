"""The LoRA of a checkpoint as files of other programs, merged weights, and a LoRA extracted from two checkpoints: `flowact export`, `flowact lora`.

Everything is written beside its place, read back by objects made anew, compared key by key and by what the network computes, and only then put there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowact import registry
from flowact.autoencoders import SPEC as AUTOENCODER_SPEC
from flowact.autoencoders import WEIGHTS as AUTOENCODER_WEIGHTS
from flowact.autoencoders import latent_space, load_autoencoder, save_diffusers_layout
from flowact.checkpoints import MANIFEST, Checkpoint, load_into, open_checkpoint, read_json, sha256_of, write_checkpoint
from flowact.eight_bit import LARGEST_ERROR, from_eight_bit, make_eight_bit, to_eight_bit
from flowact.errors import UserError
from flowact.lora import LORA_WEIGHTS, Others, extract, from_comfyui, largest_difference, merge, split, to_comfyui
from flowact.models.adapters import PEFT_WEIGHTS, linear_names, load_peft, save_peft
from flowact.models.sameness import OUTPUT_TOLERANCE, check_same_output, relative_difference
from flowact.models.weights import tensor_names
from flowact.strict_yaml import to_yaml

Program = Literal["peft", "comfyui"]
PROGRAMS: tuple[Program, ...] = ("peft", "comfyui")
#: the file of a folder that is written for ComfyUI
COMFYUI_WEIGHTS = "lora.safetensors"
#: what was written and read back may differ by, relative to the largest weight of a tensor
TOLERANCE = 1e-5

Say = Callable[[str], None]
Finish = Callable[[Path, "ExportReport"], None]
"""Adds what is about an export, such as its card, to the folder before it gets its name."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what came back when it was read again.

    Attributes:
        out: the folder.
        format: "checkpoint", "peft" or "comfyui".
        layers: linear layers with a low-rank change.
        whole: tensors beside them that are given whole.
        keys: tensors written; all of them were matched when read again.
        difference: largest difference of a weight of the merged network when read again, relative to the largest of its tensor.
        errors: of an extraction, layer -> relative error in the Frobenius norm of its change.
        left_out: of an extraction, tensors that differ and were dropped.
        output_difference: how much what the network computes differed when it was read again, relative to the largest number.
        parameters: numbers of the network.
    """

    out: str
    format: str
    layers: int
    whole: int
    keys: int
    difference: float
    errors: Mapping[str, float] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    output_difference: float = 0.0
    parameters: int = 0


def export_merged(
    checkpoint: Checkpoint,
    out: str | Path,
    base: str | Path | None,
    add: str | Path | None,
    ema: bool,
    say: Say,
    eight_bit: bool = False,
    finish: Finish = lambda folder, report: None,
) -> ExportReport:
    """Write a checkpoint folder of all weights, without trainer state.

    Args:
        checkpoint: of all weights, or of a LoRA, which is merged into its base.
        out: folder to write; absent.
        base: where the base of a LoRA is now; None looks where it was and beside.
        add: a LoRA that another program wrote, as `read_lora` takes it; it is merged on top. Or None.
        ema: the moving average in place of the trained weights.
        say: gets lines of progress.
        eight_bit: store weights, the autoencoder's too, in a quarter of the bytes; see `flowact.eight_bit`.
        finish: called when everything was compared.

    Raises:
        UserError: a place that is taken, a base that is missing, keys that do not match, all listed, or a network that computes something else.
    """
    weights, lineage, (layers, whole) = whole_weights(checkpoint, base, add, ema, say)
    with published(out) as unfinished, tempfile.TemporaryDirectory() as scratch:
        autoencoder = portable_autoencoder(checkpoint, Path(scratch) / "autoencoder")
        if eight_bit and autoencoder is not None and (autoencoder / AUTOENCODER_WEIGHTS).is_file():
            make_eight_bit(autoencoder / AUTOENCODER_WEIGHTS)
        if autoencoder is not None and (autoencoder / AUTOENCODER_WEIGHTS).is_file():
            lineage["latent_space"] = latent_space(autoencoder)  # that of the weights that travel, which may be rounded
        stored = to_eight_bit(weights) if eight_bit else weights
        write_all(unfinished, checkpoint, stored, lineage, autoencoder)
        expected = from_eight_bit(stored) if eight_bit else weights
        report = compared(unfinished, checkpoint, weights, expected, out, 1.01 * LARGEST_ERROR if eight_bit else TOLERANCE)
        report = replace(report, layers=layers, whole=whole)
        finish(unfinished, report)
    return report


def whole_weights(
    checkpoint: Checkpoint, base: str | Path | None, add: str | Path | None, ema: bool, say: Say
) -> tuple[dict[str, Tensor], dict[str, Any], tuple[int, int]]:
    """All weights of a checkpoint, its lineage as that of a checkpoint that needs no base, and the layers and whole tensors of its LoRA.

    Args:
        checkpoint: see `export_merged`.
        base: see `export_merged`.
        add: see `export_merged`.
        ema: see `export_merged`.
        say: see `export_merged`.
    """
    weights, lineage = checkpoint.weights(ema, base), public_lineage(checkpoint.lineage)
    count = _count(checkpoint.trained(ema)) if checkpoint.is_lora else (0, 0)
    if add is not None:
        state = read_lora(Path(add), plain_network(checkpoint), weights)
        count = _count(state)
        say(f"read {add}: every key matched, {count[0]} layers and {count[1]} whole tensors")
        weights = merge(weights, state)
        lineage["lora_sha256"] = lora_sha256(add)
        lineage["added"] = [*lineage.get("added", ()), *_trained_before(Path(add))]
    lineage.pop("base", None)
    lineage["merged_from"] = _without_path(checkpoint)
    return weights, lineage, count


def with_loras(checkpoint: Checkpoint, paths: Sequence[str | Path], ema: bool = True) -> dict[str, Tensor]:
    """All weights of a checkpoint with LoRAs merged on top, one after the other.

    Args:
        checkpoint: of all weights, or of a LoRA.
        paths: LoRAs as `read_lora` takes them.
        ema: the moving average, where there is one.

    Raises:
        UserError: as `read_lora`.
    """
    weights = checkpoint.weights(ema)
    for path in paths:
        weights = merge(weights, read_lora(Path(path), plain_network(checkpoint), weights))
    return weights


def compared(
    folder: Path, checkpoint: Checkpoint, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], out: str | Path, tolerance: float
) -> ExportReport:
    """Read a folder that was just written, and compare names, numbers, what the network computes and what the autoencoder decodes.

    Args:
        folder: as written, unpublished.
        checkpoint: the source.
        weights: of the source.
        expected: those that should be read: `weights`, or what is left of them in fewer bits.
        out: the place, for messages.
        tolerance: of the numbers, relative to the largest of their tensor.

    Raises:
        UserError: anything differs.
    """
    written = open_checkpoint(folder)
    again = written.weights()
    num_keys = len(load_into(plain_network(checkpoint), again).matched)
    largest = max(relative_difference(value, again[name]) for name, value in weights.items())
    difference = _checked(largest, out, tolerance)
    own, found = (source.stage_arguments["denoiser"] for source in (checkpoint, written))
    output = check_same_output((own, expected), (found, again), out)
    if checkpoint.autoencoder is not None:
        _check_autoencoder(checkpoint.autoencoder, written.autoencoder, out, tolerance)
    form = "diffusers" if written.weights_name.startswith("transformer/") else "checkpoint"
    return ExportReport(str(out), form, 0, 0, num_keys, difference, output_difference=output, parameters=_numbers(again))


def _check_autoencoder(source: Path, written: Path | None, out: str | Path, tolerance: float) -> None:
    if written is None:
        raise UserError(f"the autoencoder is missing from what was written, so {out} was not made")
    first, second = (load_autoencoder(folder) for folder in (source, written))
    own, found = first.state_dict(), second.state_dict()
    if own.keys() != found.keys():
        raise UserError(f"the autoencoder was read back with other tensors ({sorted(own.keys() ^ found.keys())[0]}), so {out} was not made")
    _checked(max((relative_difference(value, found[name]) for name, value in own.items() if value.is_floating_point()), default=0.0), out, tolerance)
    latents = torch.randn(1, 2, first.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        frames = relative_difference(*(model.decode(latents) for model in (first, second)))
    if not frames <= max(OUTPUT_TOLERANCE, 50 * tolerance if tolerance > TOLERANCE else 0):
        raise UserError(f"the autoencoder decodes something else after it was read back (difference {frames:.1e}), so {out} was not made")


def portable_autoencoder(checkpoint: Checkpoint, place: Path) -> Path | None:
    """A copy of a checkpoint's autoencoder that needs no other folder: a wrapped model of diffusers is copied from where it is.

    Args:
        checkpoint: whose.
        place: gets it; absent.
    """
    source = checkpoint.autoencoder
    if source is None:
        return None
    spec = read_json(source / AUTOENCODER_SPEC) if (source / AUTOENCODER_SPEC).is_file() else {}
    if str(spec.get("class_path")).rpartition(".")[2] == "DiffusersAutoencoder":
        save_diffusers_layout(load_autoencoder(source), spec, place)
    else:
        shutil.copytree(source, place)
        (place / MANIFEST).unlink(missing_ok=True)  # of the folder in which the autoencoder was trained
    if (source / "lineage.json").is_file():
        (place / "lineage.json").write_text(json.dumps(public_lineage(read_json(source / "lineage.json")), indent=2) + "\n", encoding="utf-8")
    return place


def public_lineage(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage without what names places on the machine that trained it."""
    kept = {name: value for name, value in lineage.items() if name != "command"}
    if "base" in kept:
        kept["base"] = {name: value for name, value in kept["base"].items() if name != "path"}
    return kept


def export_lora(
    checkpoint: Checkpoint,
    out: str | Path,
    program: Program,
    base: str | Path | None,
    ema: bool,
    say: Say,
    finish: Finish = lambda folder, report: None,
) -> ExportReport:
    """Write the LoRA of a checkpoint as a folder for another program.

    Args:
        checkpoint: of a LoRA.
        out: folder to write; absent.
        program: who will read it.
        base: see `export_merged`; it is needed for the comparison.
        ema: see `export_merged`.
        say: see `export_merged`.
        finish: see `export_merged`.

    Raises:
        UserError: a checkpoint of all weights; or as `export_merged`.
    """
    if not checkpoint.is_lora:
        raise UserError(
            f"{checkpoint.path} holds all weights and no LoRA. Extract one first: "
            f"flowact lora extract --base CHECKPOINT --tuned {checkpoint.path} --rank 32 --out DIR"
        )
    origin = checkpoint.base(base)
    say(f"read its base {origin.path}: stage {origin.lineage['stage']}, step {origin.step}")
    return _write_program(out, program, checkpoint.trained(ema), origin.weights(), checkpoint, checkpoint.lineage, finish)


def extract_lora(
    base: Checkpoint,
    tuned: Checkpoint,
    rank: int,
    out: str | Path,
    form: Program | Literal["checkpoint"] = "checkpoint",
    others: Others = "refuse",
    ema: bool = True,
    device: str = "cpu",
    say: Say = lambda text: None,
) -> ExportReport:
    """Write the LoRA of a rank that leads nearest from one checkpoint to another.

    Args:
        base: the LoRA will stand on its weights (the moving average, where there is one).
        tuned: where it leads.
        rank: see `flowact.lora.extract`.
        out: folder to write; absent.
        form: a checkpoint beside the base, or files of another program.
        others: see `flowact.lora.extract`.
        ema: take the moving average of `tuned`.
        device: where the decompositions run.
        say: gets lines of progress.

    Raises:
        UserError: as `flowact.lora.extract` and `export_merged`.
    """
    network, origin = plain_network(tuned), base.weights()
    done = extract(
        origin, tuned.weights(ema), linear_names(network), rank, others, device,
        lambda layer, error: say(f"extracted {layer}: relative error {error:.2e}"),
    )  # fmt: skip
    for name in done.left_out:
        say(f"left out {name}")
    if form == "checkpoint":
        lineage = {**tuned.lineage, "base": base.identity, "extracted_from": _without_path(tuned)}
        with published(out) as unfinished:
            write_all(unfinished, tuned, done.state, lineage, tuned.autoencoder, weights_name=LORA_WEIGHTS)
            again = open_checkpoint(unfinished)
            load_into(network, again.weights(base=base.path))
            difference = _checked(largest_difference(done.state, again.trained(), origin), out)
        report = ExportReport(str(out), form, *_count(done.state), len(done.state), difference)
    else:
        lineage = {**tuned.lineage, "base": base.identity, "extracted_from": _without_path(tuned)}
        report = _write_program(out, form, done.state, origin, tuned, lineage)
    return replace(report, errors=done.errors, left_out=done.left_out)


def read_lora(path: Path, network: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA that `export_lora` wrote, a checkpoint holds, or another program wrote with the same names, as `flowact.lora` describes it.

    Args:
        path: a folder for peft or ComfyUI, a checkpoint of a LoRA, or a .safetensors file with ComfyUI's names.
        network: the plain network; of no use afterwards.
        base: weights that it belongs on.

    Raises:
        UserError: not a LoRA, or listing every key that does not match.
    """
    file = _lora_file(path)
    if file.name == LORA_WEIGHTS:
        return _of_checkpoint(file.parent, base)
    if file.name != PEFT_WEIGHTS:
        return from_comfyui(load_file(file), base)
    network.load_state_dict(base, assign=True)
    return load_peft(file.parent, network)


def lora_sha256(path: str | Path) -> str:
    """Hash of a LoRA's file of tensors, given as `read_lora` takes it."""
    return sha256_of(_lora_file(Path(path)))


def check_free(out: str | Path) -> None:
    """Whether a folder can be written there; commands ask before long work.

    Raises:
        UserError: something stands there.
    """
    if Path(out).exists():
        raise UserError(f"--out {out} exists; nothing is overwritten, so choose another place or remove it")


def plain_network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, without numbers (on the meta device)."""
    with torch.device("meta"):
        network: nn.Module = registry.instantiate(checkpoint.stage_arguments["denoiser"], "denoisers")
    return network


def _write_program(
    out: str | Path,
    program: Program,
    state: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    source: Checkpoint,
    lineage: Mapping[str, Any],
    finish: Finish = lambda folder, report: None,
) -> ExportReport:
    """Write a LoRA with recipe and lineage for another program, and read it again."""
    network, spec = plain_network(source), source.stage_arguments["denoiser"]
    with published(out) as unfinished:
        if program == "peft":
            save_peft(state, network, unfinished)
        else:
            unfinished.mkdir(parents=True)
            save_file(to_comfyui(state, base), unfinished / COMFYUI_WEIGHTS, {"format": "pt"})
        (unfinished / "recipe.yaml").write_text(to_yaml(source.recipe), encoding="utf-8")
        (unfinished / "lineage.json").write_text(json.dumps(public_lineage(lineage), indent=2) + "\n", encoding="utf-8")
        again = read_lora(unfinished, network, base)
        difference = _checked(largest_difference(state, again, base), out)
        whole = merge(base, again)
        output = check_same_output((spec, merge(base, state)), (spec, whole), out)
        keys = len(tensor_names(_lora_file(unfinished)))
        report = ExportReport(
            str(out), program, *_count(state), keys, difference, output_difference=output, parameters=_numbers(whole)
        )  # fmt: skip
        finish(unfinished, report)
    return report


def write_all(
    folder: Path, source: Checkpoint, weights: Mapping[str, Tensor], lineage: Mapping[str, Any], autoencoder: Path | None, **options: Any
) -> None:
    """A checkpoint folder with other weights and another lineage, and the recipe of its source without the adapter."""
    model = source.recipe["model"]
    arguments = {key: value for key, value in model["init_args"].items() if key != "adapter"}
    write_checkpoint(
        folder, weights=weights, ema=None, recipe={**source.recipe, "model": {**model, "init_args": arguments}}, lineage=lineage,
        autoencoder_folder=autoencoder, engine_saver=None, **options,
    )  # fmt: skip


def _lora_file(path: Path) -> Path:
    """The file with the tensors of a LoRA."""
    candidates = [path / PEFT_WEIGHTS, path / COMFYUI_WEIGHTS, path / LORA_WEIGHTS, *([path] if path.suffix == ".safetensors" else [])]
    for file in candidates:
        if file.is_file():
            return file
    names = f"{PEFT_WEIGHTS}, {COMFYUI_WEIGHTS} or {LORA_WEIGHTS}"
    raise UserError(f"{path} is no LoRA: give a folder that holds {names}, or a .safetensors file with ComfyUI's names")


def _of_checkpoint(folder: Path, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a LoRA's checkpoint holds, its moving average where it has one; names and shapes are checked by merging."""
    state = open_checkpoint(folder).trained()
    merge(base, state)
    return state


def _trained_before(path: Path) -> list[dict[str, Any]]:
    """What a LoRA that is merged was trained on, as entries of a lineage."""
    lineage = _lora_file(path).with_name("lineage.json")
    if not lineage.is_file():
        return [{"stage": "LoRA of another program", "step": None, "training_data": None}]
    found = read_json(lineage)
    return [{"stage": found.get("stage"), "step": found.get("step"), "training_data": found.get("training_data")}]


def _numbers(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def _without_path(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.identity.items() if key != "path"}


def _count(state: Mapping[str, Tensor]) -> tuple[int, int]:
    pairs, others = split(state)
    return len(pairs), len(others)


def _checked(difference: float, out: str | Path, tolerance: float = TOLERANCE) -> float:
    """The difference.

    Raises:
        UserError: it is too large.
    """
    if not difference <= tolerance:
        raise UserError(f"what was read back differs by {difference:.1e} from what was written (allowed: {tolerance:.1e}), so {out} was not made")
    return difference


@contextmanager
def published(out: str | Path) -> Iterator[Path]:
    """A path beside `out` to write a folder to, which gets its name when nothing goes wrong and is removed otherwise.

    Raises:
        UserError: something stands at `out`.
    """
    check_free(out)
    place = Path(os.path.abspath(out))
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.parent / f"{place.name}.tmp-{secrets.token_hex(4)}"
    try:
        yield unfinished
        os.rename(unfinished, place)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise

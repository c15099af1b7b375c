"""The LoRA of a checkpoint as files of other programs, merged weights, and a LoRA extracted from two checkpoints: `flowact export`, `flowact lora`.

Everything is written beside its place, read back and compared key by key, and only then put there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowact import registry
from flowact.autoencoders import WEIGHTS as AUTOENCODER_WEIGHTS
from flowact.checkpoints import MANIFEST, Checkpoint, load_into, open_checkpoint, sha256_of, write_checkpoint
from flowact.eight_bit import LARGEST_ERROR, make_eight_bit, to_eight_bit
from flowact.errors import UserError
from flowact.lora import LORA_WEIGHTS, Others, extract, from_comfyui, largest_difference, merge, split, to_comfyui
from flowact.models.adapters import PEFT_WEIGHTS, linear_names, load_peft, save_peft
from flowact.models.weights import tensor_names

Program = Literal["peft", "comfyui"]
PROGRAMS: tuple[Program, ...] = ("peft", "comfyui")
#: the file of a folder that is written for ComfyUI
COMFYUI_WEIGHTS = "lora.safetensors"
#: what was written and read back may differ by, relative to the largest weight of a tensor
TOLERANCE = 1e-5

Say = Callable[[str], None]


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
    """

    out: str
    format: str
    layers: int
    whole: int
    keys: int
    difference: float
    errors: Mapping[str, float] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def export_merged(
    checkpoint: Checkpoint, out: str | Path, base: str | Path | None, add: str | Path | None, ema: bool, say: Say, eight_bit: bool = False
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

    Raises:
        UserError: a place that is taken, a base that is missing, or keys that do not match, all listed.
    """
    network = plain_network(checkpoint)
    weights, lineage = checkpoint.weights(ema, base), dict(checkpoint.lineage)
    layers, whole = _count(checkpoint.trained(ema)) if checkpoint.is_lora else (0, 0)
    if add is not None:
        state = read_lora(Path(add), network, weights)
        layers, whole = _count(state)
        say(f"read {add}: every key matched, {layers} layers and {whole} whole tensors")
        weights = merge(weights, state)
        lineage["lora_sha256"] = sha256_of(_lora_file(Path(add)))
    lineage.pop("base", None)
    lineage["merged_from"] = _without_path(checkpoint)
    with _published(out) as unfinished, tempfile.TemporaryDirectory() as scratch:
        autoencoder = checkpoint.autoencoder
        if eight_bit and autoencoder is not None:
            autoencoder = Path(shutil.copytree(autoencoder, Path(scratch) / "autoencoder"))
            make_eight_bit(autoencoder / AUTOENCODER_WEIGHTS)
            (autoencoder / MANIFEST).unlink(missing_ok=True)  # of the weights that they were
        _write(unfinished, checkpoint, to_eight_bit(weights) if eight_bit else weights, lineage, autoencoder)
        again = open_checkpoint(unfinished).weights()
        num_keys = len(load_into(plain_network(checkpoint), again).matched)
        largest = max(_relative(value, again[name]) for name, value in weights.items())
        difference = _checked(largest, out, 1.01 * LARGEST_ERROR if eight_bit else TOLERANCE)
    return ExportReport(str(out), "checkpoint", layers, whole, num_keys, difference)


def export_lora(checkpoint: Checkpoint, out: str | Path, program: Program, base: str | Path | None, ema: bool, say: Say) -> ExportReport:
    """Write the LoRA of a checkpoint as a folder for another program.

    Args:
        checkpoint: of a LoRA.
        out: folder to write; absent.
        program: who will read it.
        base: see `export_merged`; it is needed for the comparison.
        ema: see `export_merged`.
        say: see `export_merged`.

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
    state, network = checkpoint.trained(ema), plain_network(checkpoint)
    num_keys, difference = _write_program(out, program, state, origin.weights(), network)
    return ExportReport(str(out), program, *_count(state), num_keys, difference)


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
        with _published(out) as unfinished:
            _write(unfinished, tuned, done.state, lineage, tuned.autoencoder, weights_name=LORA_WEIGHTS)
            again = open_checkpoint(unfinished)
            load_into(network, again.weights(base=base.path))
            difference = _checked(largest_difference(done.state, again.trained(), origin), out)
        num_keys = len(done.state)
    else:
        num_keys, difference = _write_program(out, form, done.state, origin, network)
    return ExportReport(str(out), form, *_count(done.state), num_keys, difference, done.errors, done.left_out)


def read_lora(path: Path, network: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA that `export_lora` wrote, or another program with the same names, as `flowact.lora` describes it.

    Args:
        path: a folder for peft or ComfyUI, or a .safetensors file with ComfyUI's names.
        network: the plain network; of no use afterwards.
        base: weights that it belongs on.

    Raises:
        UserError: not a LoRA, or listing every key that does not match.
    """
    file = _lora_file(path)
    if file.name != PEFT_WEIGHTS:
        return from_comfyui(load_file(file), base)
    network.load_state_dict(base, assign=True)
    return load_peft(file.parent, network)


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
    out: str | Path, program: Program, state: Mapping[str, Tensor], base: Mapping[str, Tensor], network: nn.Module
) -> tuple[int, float]:
    """Number of tensors, and how much they differ when they are read again."""
    with _published(out) as unfinished:
        if program == "peft":
            save_peft(state, network, unfinished)
        else:
            unfinished.mkdir(parents=True)
            save_file(to_comfyui(state, base), unfinished / COMFYUI_WEIGHTS, {"format": "pt"})
        again = read_lora(unfinished, network, base)
        difference = _checked(largest_difference(state, again, base), out)
        return len(tensor_names(_lora_file(unfinished))), difference


def _write(
    folder: Path, source: Checkpoint, weights: Mapping[str, Tensor], lineage: Mapping[str, Any], autoencoder: Path | None, **options: Any
) -> None:
    model = source.recipe["model"]
    arguments = {key: value for key, value in model["init_args"].items() if key != "adapter"}
    write_checkpoint(
        folder, weights=weights, ema=None, recipe={**source.recipe, "model": {**model, "init_args": arguments}}, lineage=lineage,
        autoencoder_folder=autoencoder, engine_saver=None, **options,
    )  # fmt: skip


def _lora_file(path: Path) -> Path:
    """The file with the tensors of a LoRA."""
    candidates = [path / PEFT_WEIGHTS, path / COMFYUI_WEIGHTS, *([path] if path.suffix == ".safetensors" else [])]
    for file in candidates:
        if file.is_file():
            return file
    raise UserError(f"{path} is no LoRA: give a folder that holds {PEFT_WEIGHTS} or {COMFYUI_WEIGHTS}, or a .safetensors file with ComfyUI's names")


def _without_path(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.identity.items() if key != "path"}


def _count(state: Mapping[str, Tensor]) -> tuple[int, int]:
    pairs, others = split(state)
    return len(pairs), len(others)


def _relative(first: Tensor, second: Tensor) -> float:
    return float((first.float() - second.float()).abs().max() / first.float().abs().max().clamp(min=1e-12)) if first.numel() else 0.0


def _checked(difference: float, out: str | Path, tolerance: float = TOLERANCE) -> float:
    """The difference.

    Raises:
        UserError: it is too large.
    """
    if not difference <= tolerance:
        raise UserError(f"what was read back differs by {difference:.1e} from what was written (allowed: {tolerance:.1e}), so {out} was not made")
    return difference


@contextmanager
def _published(out: str | Path) -> Iterator[Path]:
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

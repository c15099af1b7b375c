"""`flowact export`: a checkpoint as merged weights, its LoRA for peft or ComfyUI, or a LoRA extracted from the difference of two checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowact.checkpoints import Checkpoint
    from flowact.lora import Extraction

FORMATS = ("merged", "peft", "comfyui")
#: what was written and read back may differ by, relative to the largest weight of a tensor
TOLERANCE = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to write, how, and where to."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder")
    parser.add_argument("--out", required=True, metavar="PATH", help="folder to write; of comfyui a .safetensors file. It must not exist yet")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="merged: a checkpoint of all weights; peft: a folder that peft loads; comfyui: one file"
    )
    parser.add_argument("--base", metavar="DIR", help="where the base of the LoRA is now; with --rank: the checkpoint where the LoRA starts")
    parser.add_argument("--trained", action="store_true", help="the trained weights, not their moving average")
    parser.add_argument("--lora", metavar="PATH", help="with merged: add this LoRA first, a folder of peft or a .safetensors file for ComfyUI")
    group = parser.add_argument_group("extracting a LoRA from full weights")
    group.add_argument("--rank", type=int, metavar="R", help="largest rank of a layer's change")
    group.add_argument("--others", choices=("keep", "drop"), help="tensors that differ and are not weights of linear layers; default: refuse")
    group.add_argument("--device", default="cpu", help="where the decompositions run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


@dataclass
class Report:
    """What was written, and what came back when it was read again.

    Attributes:
        out: where it is.
        format: of it.
        layers: linear layers with a low-rank change.
        whole: tensors beside them that are given whole.
        keys: tensors written; all of them were matched when read again.
        difference: largest difference of a weight when read again, relative to the largest of its tensor.
        errors: of an extraction, layer -> relative error in the Frobenius norm.
        left_out: of an extraction, tensors that differ and were dropped.
    """

    out: str
    format: str
    layers: int
    whole: int
    keys: int = 0
    difference: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def run(args: argparse.Namespace) -> int:
    """Write, read back, compare, and only then put it in its place.

    Raises:
        UserError: options that do not go together, a place that is taken, a base that is missing, or keys that do not match.
    """
    _check(args)
    from flowact.checkpoints import open_checkpoint

    say: Callable[[str], None] = (lambda text: None) if args.json or args.quiet else (lambda text: print(text, flush=True))
    checkpoint = open_checkpoint(args.checkpoint)
    say(f"read {args.checkpoint}: {'a LoRA' if checkpoint.is_lora else 'all weights'} of stage {checkpoint.lineage['stage']}, step {checkpoint.step}")
    network = plain_network(checkpoint)
    report = (write_merged if args.format == "merged" else write_lora)(checkpoint, network, args, say)
    if args.json:
        print(json.dumps(asdict(report), indent=1))
        return 0
    say(f"read back: {report.keys} of {report.keys} keys matched, largest relative difference {report.difference:.1e}")
    print(f"wrote {report.out} ({report.format})")
    return 0


def _check(args: argparse.Namespace) -> None:
    if Path(args.out).exists():
        raise UserError(f"--out {args.out} exists; nothing is overwritten, so choose another place or remove it")
    if args.format == "comfyui" and Path(args.out).suffix != ".safetensors":
        raise UserError(f"--out {args.out}: with --format comfyui it is a file that ends in .safetensors")
    if args.lora and args.format != "merged":
        raise UserError(f"--lora adds a LoRA to all weights, so it goes with --format merged and not with {args.format}")
    if args.rank is None and args.others:
        raise UserError("--others is about extraction; add --rank R")
    if args.rank is not None and args.format == "merged":
        raise UserError("--rank extracts a LoRA, so it goes with --format peft or comfyui")


# --- merged ---


def write_merged(checkpoint: Checkpoint, network: nn.Module, args: argparse.Namespace, say: Callable[[str], None]) -> Report:
    """A checkpoint folder of all weights, without trainer state."""
    from flowact.checkpoints import load_into, open_checkpoint, sha256_of, write_checkpoint
    from flowact.lora import merge

    weights, lineage = checkpoint.weights(ema=not args.trained, base=args.base), dict(checkpoint.lineage)
    layers, whole = _count(checkpoint.trained() if checkpoint.is_lora else {})
    if args.lora:
        state = read_lora(Path(args.lora), checkpoint, weights)
        layers, whole = _count(state)
        say(f"read {args.lora}: every key matched, {layers} layers and {whole} whole tensors")
        weights = merge(weights, state)
        lineage["lora_sha256"] = sha256_of(_lora_file(Path(args.lora)))
    lineage["merged_from"] = {key: value for key, value in checkpoint.identity.items() if key != "path"}
    lineage.pop("base", None)
    unfinished = _unfinished(args.out)
    try:
        write_checkpoint(
            unfinished, weights=weights, ema=None, recipe=_without_adapter(checkpoint.recipe), lineage=lineage,
            autoencoder_folder=checkpoint.autoencoder, engine_saver=None,
        )  # fmt: skip
        again = open_checkpoint(unfinished)
        matched = load_into(network, again.weights()).matched
        difference = _largest(weights, again.weights())
        _accept(unfinished, args.out, difference)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Report(args.out, args.format, layers, whole, len(matched), difference)


def _without_adapter(recipe: Mapping[str, Any]) -> dict[str, Any]:
    model = recipe["model"]
    return {**recipe, "model": {**model, "init_args": {key: value for key, value in model["init_args"].items() if key != "adapter"}}}


def _largest(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return max(float((first[name].float() - second[name].float()).abs().max() / first[name].abs().max().clamp(min=1e-12)) for name in first)


# --- LoRA ---


def write_lora(checkpoint: Checkpoint, network: nn.Module, args: argparse.Namespace, say: Callable[[str], None]) -> Report:
    """The LoRA of a checkpoint, or one that is extracted from it, in the format of another program."""
    from safetensors.torch import save_file

    from flowact.checkpoints import open_checkpoint
    from flowact.lora import largest_difference, to_comfyui
    from flowact.models.adapters import linear_names, save_peft
    from flowact.models.weights import tensor_names

    if not checkpoint.is_lora and (args.rank is None or args.base is None):
        raise UserError(f"{args.checkpoint} holds all weights and no LoRA; to extract one give --base CHECKPOINT, where it starts, and --rank R")
    origin = checkpoint.base(args.base) if checkpoint.is_lora else open_checkpoint(args.base)
    base = origin.weights()
    say(f"read {origin.path}: its base, stage {origin.lineage['stage']}, step {origin.step}")
    extraction = _extract(checkpoint, base, linear_names(network), args, say) if args.rank is not None else None
    state = extraction.state if extraction else checkpoint.trained(ema=not args.trained)
    unfinished = _unfinished(args.out)
    try:
        if args.format == "peft":
            save_peft(state, network, unfinished)
        else:
            unfinished = unfinished.with_name(f"{unfinished.name}.safetensors")
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            save_file(to_comfyui(state, base), unfinished, {"format": "pt"})
        again = read_lora(unfinished, checkpoint, base)
        num_keys, difference = len(tensor_names(_lora_file(unfinished))), largest_difference(state, again, base)
        _accept(unfinished, args.out, difference)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True) if unfinished.is_dir() else unfinished.unlink(missing_ok=True)
        raise
    report = Report(args.out, args.format, *_count(state), num_keys, difference)
    if extraction:
        report.errors, report.left_out = extraction.errors, extraction.left_out
    return report


def _extract(
    checkpoint: Checkpoint, base: Mapping[str, Tensor], layers: Sequence[str], args: argparse.Namespace, say: Callable[[str], None]
) -> Extraction:
    from flowact.lora import extract

    tuned = checkpoint.weights(ema=not args.trained)

    def progress(layer: str, error: float) -> None:
        say(f"extracted {layer}: relative error {error:.2e}")

    done = extract(base, tuned, layers, args.rank, args.others or "refuse", args.device, progress)
    for name in done.left_out:
        say(f"left out {name}")
    return done


def read_lora(path: Path, checkpoint: Checkpoint, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA that this command wrote, or another program with the same names, as `flowact.lora` describes it.

    Args:
        path: a folder of peft, or a .safetensors file with ComfyUI's names.
        checkpoint: says what the network is.
        base: weights that it belongs on.

    Raises:
        UserError: not a LoRA, or listing every key that does not match.
    """
    from safetensors.torch import load_file

    from flowact.lora import from_comfyui
    from flowact.models.adapters import load_peft

    _lora_file(path)
    if path.is_dir():
        network = plain_network(checkpoint)
        network.load_state_dict(base, assign=True)
        return load_peft(path, network)
    return from_comfyui(load_file(path), base)


def _lora_file(path: Path) -> Path:
    """The file with the tensors of a LoRA."""
    from flowact.models.adapters import PEFT_WEIGHTS

    file = path / PEFT_WEIGHTS if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise UserError(f"{path} is no LoRA: give a folder that holds {PEFT_WEIGHTS}, or a .safetensors file")
    return file


# --- both ---


def plain_network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, without numbers (on the meta device)."""
    import torch

    from flowact.registry import instantiate

    spec = checkpoint.stage_arguments["denoiser"]
    with torch.device("meta"):
        return instantiate(spec, "denoisers")


def _count(state: Mapping[str, Tensor]) -> tuple[int, int]:
    from flowact.lora import split

    pairs, others = split(state)
    return len(pairs), len(others)


def _unfinished(out: str) -> Path:
    place = Path(os.path.abspath(out))
    return place.parent / f"{place.name}.tmp-{secrets.token_hex(4)}"


def _accept(unfinished: Path, out: str, difference: float) -> None:
    """Move what was written to its place.

    Raises:
        UserError: it was read back as something else.
    """
    if not difference <= TOLERANCE:
        raise UserError(f"what was read back differs by {difference:.1e} from what was written (allowed: {TOLERANCE}), so {out} was not made")
    os.rename(unfinished, out)


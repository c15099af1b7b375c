"""A checkpoint laid out as diffusers lays out a pipeline: `flowact export --diffusers`. FlowAct reads the folder like any checkpoint.

    model_index.json                      parts and their classes
    transformer/config.json               the denoiser's class and arguments; in the format of a library that knows it, as that library has them
    transformer/diffusion_pytorch_model.safetensors
    transformer/flowact_additions.safetensors    what that library does not know of ours, such as ears
    vae/config.json, vae/diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json       flow matching, with the shift that was trained with
    recipe.yaml, lineage.json, manifest.json     as in every checkpoint

For the network alone, with sharded files or another number type, see `flowact.models.conversion`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from flowact import registry
from flowact.autoencoders import CONFIG, DIFFUSERS_WEIGHTS, load_autoencoder, save_diffusers_layout
from flowact.autoencoders import SPEC as AUTOENCODER_SPEC
from flowact.checkpoints import Checkpoint, read_json
from flowact.models.conversion import find_writer
from flowact.models.formats import CLASS_NAME, WeightFormat, installed_formats
from flowact.models.lora_files import TOLERANCE, ExportReport, Finish, Say, compared, published, whole_weights, write_all
from flowact.models.translation import export_state

INDEX = "model_index.json"
WEIGHTS_NAME = f"transformer/{DIFFUSERS_WEIGHTS}"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
VERSION = "_flowact_version"


def export_diffusers(
    checkpoint: Checkpoint,
    out: str | Path,
    base: str | Path | None,
    add: str | Path | None,
    ema: bool,
    shift: float,
    say: Say,
    finish: Finish = lambda folder, report: None,
) -> ExportReport:
    """Write the folder, read it back and compare.

    Args:
        checkpoint: see `flowact.models.lora_files.export_merged`.
        out: folder to write; absent.
        base: see `export_merged`.
        add: see `export_merged`.
        ema: see `export_merged`.
        shift: of the noise levels that the model was trained with.
        say: see `export_merged`.
        finish: see `export_merged`.

    Raises:
        UserError: as `export_merged`.
    """
    spec = checkpoint.stage_arguments["denoiser"]
    weights, lineage, (layers, whole) = whole_weights(checkpoint, base, add, ema, say)
    chosen = _writer(spec)
    theirs, additions, config = _in_format(chosen, spec, weights)
    with published(out) as unfinished, tempfile.TemporaryDirectory() as scratch:
        vae, vae_class = _vae(checkpoint, Path(scratch) / "vae")
        classes = {
            "transformer": ["flowact" if chosen is None else chosen.library, config[CLASS_NAME]],
            **({} if vae_class is None else {"vae": vae_class}),
            "scheduler": ["diffusers", SCHEDULER],
        }
        documents = {
            INDEX: {CLASS_NAME: "FlowActPipeline", VERSION: version("flowact"), **classes},
            f"transformer/{CONFIG}": config,
            "scheduler/scheduler_config.json": {CLASS_NAME: SCHEDULER, "num_train_timesteps": 1000, "shift": shift},
        }
        write_all(
            unfinished, checkpoint, theirs, lineage, vae, weights_name=WEIGHTS_NAME, autoencoder_name="vae", additions=additions,
            weight_format=None if chosen is None else type(chosen).__name__,
            documents={name: json.dumps(value, indent=2) + "\n" for name, value in documents.items()},
        )  # fmt: skip
        report = compared(unfinished, checkpoint, weights, weights, out, TOLERANCE)
        report = ExportReport(**{**vars(report), "layers": layers, "whole": whole})
        finish(unfinished, report)
    if additions:
        say(f"{config[CLASS_NAME]} does not know {len(additions)} tensors of ours; they lie beside its own, for FlowAct to read")
    return report


def _writer(spec: Mapping[str, Any]) -> WeightFormat | None:
    """The format of a library that knows the denoiser; None where it is known here only."""
    return find_writer(spec, None) if any(candidate.writes(spec) for candidate in installed_formats().values()) else None


def _in_format(
    chosen: WeightFormat | None, spec: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights under the library's names, those that it does not know under ours, and config.json."""
    if chosen is None:
        name = registry.resolve(str(spec["class_path"]), "denoisers").name
        return dict(weights), {}, {CLASS_NAME: name, VERSION: version("flowact"), **(spec.get("init_args") or {})}
    config = chosen.exported_config(spec)
    kept, additions = chosen.divide(weights)
    return export_state(chosen.rules(chosen.complete(config)), kept), additions, config


def _vae(checkpoint: Checkpoint, place: Path) -> tuple[Path | None, list[str] | None]:
    """The autoencoder's folder in this layout, and its library and class."""
    source = checkpoint.autoencoder
    if source is None:
        return None, None
    autoencoder = load_autoencoder(source)
    spec = read_json(source / AUTOENCODER_SPEC) if (source / AUTOENCODER_SPEC).is_file() else _spec_of(source)
    name = save_diffusers_layout(autoencoder, spec, place)
    return place, ["flowact" if name == str(spec["class_path"]).rpartition(".")[2] else "diffusers", name]


def _spec_of(folder: Path) -> dict[str, Any]:
    """{class_path, init_args} of an autoencoder that is in this layout already."""
    config = read_json(folder / CONFIG)
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    return {"class_path": config[CLASS_NAME], "init_args": arguments}

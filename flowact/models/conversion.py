"""Weights of another library as a checkpoint to train from, and a checkpoint as that library's folder: what `flowact convert` does."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowact import registry
from flowact.checkpoints import IMPORTED, MANIFEST, SCHEMA, open_checkpoint, read_json, sha256_of, write_checkpoint
from flowact.errors import UserError, did_you_mean
from flowact.models.formats import CLASS_NAME, WeightFormat, installed_formats
from flowact.models.translation import Translation, translate
from flowact.models.weights import build_outline, build_partly, check_inside, read_folder, write_folder

if TYPE_CHECKING:
    from rich.progress import Progress

CONFIG = "config.json"
#: classes that a plugin of ours reads, so that who lacks it is told its name
PLUGINS = {
    "WanTransformer3DModel": "flowact-wan",
    "HunyuanVideoTransformer3DModel": "flowact-hunyuan",
    "HunyuanVideo15Transformer3DModel": "flowact-hunyuan",
}


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        direction: "import" or "export".
        format: name of the weight format.
        class_name: the other library's class.
        source: folder that was read.
        out: folder that was written.
        matched: tensors of the result that the source's became.
        parameters: numbers in them.
        made_new: of an import: tensors of ours that are freshly initialised, by the part that they belong to.
        dropped: of an export: tensors of ours that the library does not know, likewise.
        ignored: of an import: tensors of theirs that mean nothing to us.
    """

    direction: str
    format: str
    class_name: str
    source: str
    out: str
    matched: int
    parameters: int
    made_new: Mapping[str, list[str]] = field(default_factory=dict)
    dropped: Mapping[str, list[str]] = field(default_factory=dict)
    ignored: Sequence[str] = ()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours; if not, it is one of another library.

    Raises:
        UserError: it is neither.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds {CONFIG} and the safetensors, or a checkpoint folder")
    if (folder / MANIFEST).is_file():
        return True
    if (folder / CONFIG).is_file():
        return False
    if (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is a whole pipeline; give the folder of its network, {folder / 'transformer'}")
    raise UserError(f"{folder} holds neither {CONFIG} (a folder of another library) nor {MANIFEST} (a checkpoint of FlowAct)")


# --- formats ----------------------------------------------------------------------------------------------------------------------------------------


def find_format(config: Mapping[str, Any], name: str | None, folder: Path) -> WeightFormat:
    """The format that reads a config.json.

    Args:
        config: as read.
        name: the one that is asked for; None finds it.
        folder: for messages.

    Raises:
        UserError: none reads it, with what is installed and what would; or several do; or the one that is asked for does not.
    """
    found = config.get(CLASS_NAME)
    candidates = _candidates(name)
    fitting = {key: candidate for key, candidate in candidates.items() if candidate.recognises(config)}
    if fitting:
        return _only(fitting, f"{folder} is a {found}, which")
    if name is not None:
        raise UserError(f"--format {name} reads {candidates[name].class_name}, and {folder} is a {found}")
    if plugin := PLUGINS.get(str(found)):
        raise UserError(f"{found} is read by {plugin}: pip install {plugin}")
    listed = ", ".join(f"{key} reads {candidate.class_name}" for key, candidate in candidates.items())
    raise UserError(f"{folder} is a {found}, which no installed format reads. Installed: {listed or 'none'}.")


def find_writer(spec: Mapping[str, Any], name: str | None) -> WeightFormat:
    """The format that writes a denoiser, given as `{class_path, init_args}`.

    Raises:
        UserError: as `find_format`.
    """
    candidates = _candidates(name)
    fitting = {key: candidate for key, candidate in candidates.items() if candidate.writes(spec)}
    if fitting:
        return _only(fitting, f"the denoiser is {spec['class_path']}, which")
    listed = ", ".join(f"{key} writes {candidate.denoiser}" for key, candidate in candidates.items())
    what = "no installed format writes it. Installed:" if name is None else "which is not what --format asks for:"
    raise UserError(f"the denoiser is {spec['class_path']}; {what} {listed or 'none'}.")


def _candidates(name: str | None) -> dict[str, WeightFormat]:
    return installed_formats() if name is None else {name: registry.load(name, "formats")()}


def _only(fitting: Mapping[str, WeightFormat], what: str) -> WeightFormat:
    if len(fitting) > 1:
        raise UserError(f"{what} {' and '.join(fitting)} know; choose one with --format")
    return next(iter(fitting.values()))


def _translate(chosen: WeightFormat, config: Mapping[str, Any], *args: Any) -> Translation:
    try:
        return translate(chosen.rules(chosen.complete(config)), *args)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{type(chosen).__name__} does not fit {chosen.denoiser}, which is a fault of its plugin: {error}") from error


# --- import -----------------------------------------------------------------------------------------------------------------------------------------


def import_folder(
    source: Path, out: Path, format_name: str | None = None, settings: Mapping[str, Any] | None = None, bar: Progress | None = None
) -> ConversionReport:
    """Write another library's weights as a checkpoint that `init_from` takes. What is wrong is found before anything is read or written.

    Args:
        source: folder with config.json and safetensors.
        out: the checkpoint folder.
        format_name: see `find_format`.
        settings: arguments of our denoiser that config.json does not say.
        bar: shows how far it is.

    Raises:
        UserError: whatever is wrong with the folder, the format or the settings.
    """
    bar = bar or _no_bar()
    check_inside(source, source / CONFIG)
    config = read_json(source / CONFIG)
    chosen = find_format(config, format_name, source)
    files = read_folder(source)
    spec = chosen.denoiser_spec(config, **(settings or {}))
    outline = build_outline(lambda: registry.instantiate(spec, "denoisers"))
    known, new = chosen.divide(outline)
    translation = _translate(chosen, config, files, "ours", known)
    _check_space(out, [*translation.outline.values(), *new.values()])

    hashes = {path.name: sha256_of(path) for path in bar.track([source / CONFIG, *files.files], description="hash the source")}
    weights = dict(bar.track(translation.tensors(), total=len(known), description="convert"))
    if new:
        weights |= build_partly(lambda: registry.instantiate(spec, "denoisers"), new.__contains__)
    lineage = {
        "schema": SCHEMA,
        "stage": IMPORTED,
        "step": 0,
        "ancestors": [],
        "source": {"format": type(chosen).__name__, "class_name": chosen.class_name, "library": chosen.library, "sha256": hashes},
        "versions": {name: version(name) for name in ("flowact", "torch")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    recipe = {
        "about": {"title": f"Weights of a {chosen.class_name}"},
        "model": {"class_path": registry.resolve("FlowMatchingPretraining", "stages").class_path, "init_args": {"denoiser": spec}},
    }
    with _step(bar, "write the checkpoint"):
        write_checkpoint(out, weights=weights, ema=None, recipe=recipe, lineage=lineage, autoencoder_folder=None, engine_saver=None)
    return _report("import", chosen, source, out, translation, made_new=_present(chosen.by_addition(new)), ignored=sorted(translation.ignored))


# --- export -----------------------------------------------------------------------------------------------------------------------------------------


def export_checkpoint(
    source: Path,
    out: Path,
    format_name: str | None = None,
    drop: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    average: bool = True,
    bar: Progress | None = None,
) -> ConversionReport:
    """Write the weights of a checkpoint as another library's folder, read it back and compare. What is wrong is found before anything is written.

    Args:
        source: checkpoint folder.
        out: the folder; absent or empty.
        format_name: see `find_writer`.
        drop: names of additions that may be lost although they have an effect.
        dtype: number type of the weights; None keeps the checkpoint's.
        max_shard_bytes: size of the largest file.
        average: export the moving average, where there is one.
        bar: shows how far it is.

    Raises:
        UserError: a damaged checkpoint, no format, or a trained part that the library does not know.
    """
    bar = bar or _no_bar()
    with _step(bar, "verify the checkpoint"):
        checkpoint = open_checkpoint(source)
    spec = checkpoint.stage_arguments["denoiser"]
    chosen = find_writer(spec, format_name)
    config = chosen.exported_config(spec)
    kept, dropped = chosen.divide(checkpoint.weights(ema=average))
    _check_dropped(chosen, dropped, drop)
    wanted, _ = chosen.divide(build_outline(lambda: registry.instantiate(spec, "denoisers")))
    translation = _translate(chosen, config, kept, "theirs", _translate(chosen, config, wanted, "theirs").outline)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    outline = {name: tensor if name in translation.constants else cast(tensor) for name, tensor in translation.outline.items()}
    _check_space(out, outline.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f"{out.name}.tmp-{secrets.token_hex(4)}"
    unfinished.mkdir()
    try:
        tensors = ((name, tensor.to(outline[name].dtype)) for name, tensor in translation.tensors())
        write_folder(unfinished, bar.track(tensors, total=len(outline), description="write"), outline, max_shard_bytes)
        (unfinished / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written = _translate(chosen, read_json(unfinished / CONFIG), read_folder(unfinished), "ours", wanted)
        for name, tensor in bar.track(written.tensors(), total=len(wanted), description="read back and compare"):
            if not torch.equal(tensor, cast(kept[name])):
                raise UserError(f"{name} is read back as something else than was written, so {out} was not made; check the disk")
        if out.exists():
            out.rmdir()
        os.rename(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return _report("export", chosen, source, out, translation, dropped=_present(chosen.by_addition(dropped)))


def _check_dropped(chosen: WeightFormat, dropped: Mapping[str, Tensor], allowed: Sequence[str]) -> None:
    """Refuse to lose what has an effect, unless it was said that it may go."""
    names = [addition.name for addition in chosen.additions]
    if unknown := [name for name in allowed if name not in names]:
        raise UserError(f"--drop {unknown[0]}: {type(chosen).__name__} has no such part.{did_you_mean(unknown[0], names)}")
    held = chosen.by_addition(dropped)
    trained = [a.name for a in chosen.additions if held[a.name] and a.name not in allowed and not a.is_silent(dropped)]
    if trained:
        raise UserError(
            f"{chosen.class_name} has no place for what was trained of {', '.join(trained)}: its gates are not zero, so without it the model gives "
            f"something else. To lose it nevertheless, add --drop {' '.join(trained)}."
        )


# --- both -------------------------------------------------------------------------------------------------------------------------------------------


def _check_space(out: Path, tensors: Iterable[Tensor]) -> None:
    needed = sum(tensor.nbytes for tensor in tensors)
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(f"--out {out}: {needed / 1e9:.1f} GB are needed there and {free / 1e9:.1f} GB are free")


def _report(direction: str, chosen: WeightFormat, source: Path, out: Path, translation: Translation, **parts: Any) -> ConversionReport:
    numbers = sum(tensor.numel() for tensor in translation.outline.values())
    return ConversionReport(direction, type(chosen).__name__, chosen.class_name, str(source), str(out), len(translation.outline), numbers, **parts)


def _present(parts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: tensors for name, tensors in parts.items() if tensors}


@contextmanager
def _step(bar: Progress, description: str) -> Iterator[None]:
    """Work of unknown length."""
    task = bar.add_task(description, total=None)
    yield
    bar.update(task, total=1, completed=1)


def _no_bar() -> Progress:
    from rich.progress import Progress

    return Progress(disable=True)

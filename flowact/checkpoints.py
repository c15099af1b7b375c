"""The checkpoint folder: written whole or not at all, verified before anything is read, no file of it is ever executed.

    denoiser.safetensors   trained weights, fp32 (another name for other networks)
    ema.safetensors        their moving average, fp32, trainable parameters only
    recipe.yaml            the resolved recipe
    lineage.json           stage, step, latent space, encoders, ancestors
    autoencoder/           the autoencoder that the latents belong to
    engine/                trainer and optimizer state, for resuming only (one file without DeepSpeed)
    manifest.json          sizes and sha256 of all of the above, written last

Older checkpoints of a run stand beside the newest one as `NAME@STEP`.

The checkpoint of a LoRA has `adapter.safetensors` (see `flowact.lora`) in place of all weights, and its lineage names the base: path and hashes.

An exported folder may be laid out as diffusers does it (see `flowact.models.diffusers_folder`): its manifest names the places of weights and
autoencoder, and the format that the weights are in. A card, its pictures, licences and hidden files may lie in any checkpoint; they are not verified,
because people edit them.
"""

from __future__ import annotations

import ctypes
import fnmatch
import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowact import registry
from flowact.eight_bit import SCALES, load_weights
from flowact.errors import UserError
from flowact.lora import merge
from flowact.strict_yaml import read_yaml, to_yaml

SCHEMA = 1
KIND = "flowact-checkpoint"
MANIFEST = "manifest.json"
ENGINE = "engine"
AUTOENCODER = "autoencoder"
#: beside weights in another library's format: what that library does not know
ADDITIONS = "flowact_additions.safetensors"
#: what may lie in a checkpoint unlisted: it is about the weights, and people and hosts of models change it
BESIDE = ("README.md", "LICENSE*", "NOTICE*", "pictures/*", ".*")
#: entries of a lineage that weights depend on, and what brings a difference into line
COMPARED = {
    "latent_space": "encode the latents with the checkpoint's autoencoder (flowact-data encode latents), or name it in data.init_args.latents",
    "chunk_frames": "set model.init_args.chunk_frames, and the memory's and the data's windows with it, to the checkpoint's",
    "fps": "encode clips of the checkpoint's frame rate",
    "encoders": "encode captions and sound with the checkpoint's encoders, or name their columns in data.init_args.text and audio",
}
#: stage in the lineage of weights that were trained elsewhere (`flowact convert`)
IMPORTED = "imported"

_BLOCK = 1 << 20
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder.

    Attributes:
        path: the folder.
        recipe: the resolved recipe that trained it.
        lineage: stage, step, latent space, encoders, ancestors.
        weights_name: the weights' file.
        has_ema: whether it holds a moving average.
        autoencoder_name: folder of the autoencoder that it carries, if it does.
        weight_format: component of `flowact list formats` that reads the weights; None for our own names.
        additions_name: with a format, the file of what the format does not know; None without such tensors.
    """

    path: Path
    recipe: dict[str, Any]
    lineage: dict[str, Any]
    weights_name: str
    has_ema: bool
    autoencoder_name: str = AUTOENCODER
    weight_format: str | None = None
    additions_name: str | None = None

    @property
    def step(self) -> int:
        return int(self.lineage["step"])

    @property
    def engine(self) -> Path | None:
        """What `Trainer.fit(ckpt_path=...)` continues from, if the folder has it."""
        path = self.path / ENGINE
        return path if path.exists() else None

    @property
    def autoencoder(self) -> Path | None:
        """Folder of the autoencoder, if the checkpoint carries one."""
        path = self.path / self.autoencoder_name
        return path if path.is_dir() else None

    @property
    def stage_arguments(self) -> dict[str, Any]:
        """Arguments of the stage that trained it, as in its recipe.

        Raises:
            UserError: there is no denoiser among them.
        """
        model = self.recipe.get("model")
        arguments = model.get("init_args") if isinstance(model, Mapping) else None
        if not isinstance(arguments, Mapping) or not isinstance(arguments.get("denoiser"), Mapping):
            stage = self.lineage.get("stage")
            raise UserError(f"{self.path} holds no denoiser (its stage is {stage}); give a checkpoint of a denoiser stage")
        return dict(arguments)

    @property
    def is_lora(self) -> bool:
        """Whether it holds only what was trained beside the weights of a base."""
        return "base" in self.lineage

    def weights(self, ema: bool = True, base: str | Path | None = None) -> dict[str, Tensor]:
        """fp32 weights of the whole network by name, on the CPU; those of a LoRA are merged into its base.

        Args:
            ema: put the moving average in place of the parameters that have one. Without effect if `has_ema` is false.
            base: see `base`; of a LoRA only.

        Raises:
            UserError: the base of a LoRA is not found or does not fit.
        """
        state = self.trained(ema)
        return merge(self.base(base).weights(), state) if self.is_lora else state

    def trained(self, ema: bool = True) -> dict[str, Tensor]:
        """What the folder itself holds: all weights, or what a LoRA changes."""
        state = load_weights(self.path / self.weights_name)
        if self.weight_format is not None:
            state = self._translated(state)
        if ema and self.has_ema:
            state |= self.ema()
        return state

    def _translated(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors of those in another library's format."""
        assert self.weight_format is not None
        config = read_json((self.path / self.weights_name).with_name("config.json"))
        state: dict[str, Tensor] = registry.load(self.weight_format, "formats")().read(config, theirs)
        return state | (load_weights(self.path / self.additions_name) if self.additions_name else {})

    def base(self, folder: str | Path | None = None) -> Checkpoint:
        """The checkpoint that a LoRA was trained on, told by its hashes.

        Args:
            folder: where it is. None: where it was in training, or anywhere beside this checkpoint.

        Raises:
            UserError: it is not there; says what is, and what to do.
        """
        wanted = self.lineage["base"]
        recorded = Path(wanted["path"])
        places = [recorded, *_archived(recorded), *sorted(self.path.resolve().parent.iterdir())] if folder is None else [Path(folder)]
        for place in places:
            if (place / MANIFEST).is_file() and _hashes(place) == {key: wanted[key] for key in ("weights_sha256", "ema_sha256")}:
                return open_checkpoint(place)
        there = "which holds another checkpoint" if (places[0] / MANIFEST).is_file() else "which holds no checkpoint"
        beside = "" if folder else f", nor beside {self.path}"
        raise UserError(
            f"{self.path} holds a LoRA on the weights of stage {wanted['stage']}, step {wanted['step']} (sha256 {wanted['weights_sha256'][:12]}...). "
            f"These are not in {places[0]}, {there}{beside}. Put the folder, or a link to it, beside {self.path}; "
            f"or merge the two once: flowact export {self.path} --base FOLDER --merge --out FOLDER"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """How descendants name this checkpoint and check that it is the same."""
        facts = {"stage": self.lineage.get("stage"), "step": self.lineage.get("step")}
        return {"path": str(self.path.resolve()), **facts, **_hashes(self.path)}

    def hashes(self) -> dict[str, str]:
        """sha256 of every file of weights, by name; an autoencoder's among them."""
        files = _read_manifest(self.path)["files"]
        return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors") and not name.startswith(f"{ENGINE}/")}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained weights by name, without reading the numbers."""
        with safe_open(self.path / self.weights_name, "pt") as file:
            names = [name for name in file.keys() if not name.endswith(SCALES)]  # noqa: SIM118 - not a mapping
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}

    def ema(self) -> dict[str, Tensor]:
        """The moving average alone; empty if there is none."""
        return load_weights(self.path / "ema.safetensors") if self.has_ema else {}

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights' file: how descendants name this checkpoint."""
        return _read_manifest(self.path)["files"][self.weights_name]["sha256"]


@dataclass(frozen=True)
class LoadReport:
    """Names that `load_into` found, sorted."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.wrong_shape)} misshapen"


# --- writing ---


def write_checkpoint(
    folder: str | Path,
    *,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    recipe: Mapping[str, Any],
    lineage: Mapping[str, Any],
    autoencoder_folder: str | Path | None,
    engine_saver: Callable[[Path], None] | None,
    weights_name: str = "denoiser.safetensors",
    documents: Mapping[str, str] | None = None,
    keep: int = 1,
    autoencoder_name: str = AUTOENCODER,
    weight_format: str | None = None,
    additions: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint folder beside its place, complete it on disk, then put it there in one step.

    At every moment `folder` is absent, the old checkpoint or the new one. Only one process writes; others take part in
    `engine_saver` by calling it themselves.

    Args:
        folder: where it ends up. A checkpoint that stands there is replaced.
        weights: name -> tensor; stored as given (fp32 by contract).
        ema: moving averages by the same names, or None.
        recipe: the resolved recipe, plain values.
        lineage: at least "stage" and "step".
        autoencoder_folder: copied to `autoencoder/`, or None.
        engine_saver: called with the path `engine` inside the unfinished folder; creates a file or a folder there. Or None.
        weights_name: the weights' file.
        documents: name -> text of further files.
        keep: checkpoints of the run to keep, the new one included; older ones move to `FOLDER@STEP`.
        autoencoder_name: where the autoencoder goes.
        weight_format: see `Checkpoint`; `documents` must hold the config.json beside the weights then.
        additions: tensors that the format does not know, stored beside the weights.

    Raises:
        UserError: weights that are not finite, or a folder that is not a checkpoint of the same stage: nothing is overwritten.
        OSError: the disk refuses; the old checkpoint is untouched and the unfinished folder is removed.
    """
    folder = Path(os.path.abspath(folder))
    check_writable(folder, str(lineage["stage"]), weights, ema or {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    unfinished = folder.parent / f"{folder.name}.tmp-{secrets.token_hex(4)}"
    unfinished.mkdir()
    try:
        if engine_saver is not None:
            engine_saver(unfinished / ENGINE)
        for name in (weights_name, autoencoder_name, *(documents or {})):
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        _save_tensors(weights, unfinished / weights_name)
        additions_name = str(Path(weights_name).with_name(ADDITIONS).as_posix()) if additions else None
        if additions and additions_name:
            _save_tensors(additions, unfinished / additions_name)
        if ema:
            _save_tensors(ema, unfinished / "ema.safetensors")
        (unfinished / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        (unfinished / "lineage.json").write_text(json.dumps(dict(lineage), indent=2) + "\n", encoding="utf-8")
        for name, text in (documents or {}).items():
            (unfinished / name).write_text(text, encoding="utf-8")
        if autoencoder_folder is not None:
            shutil.copytree(autoencoder_folder, unfinished / autoencoder_name)
        files = {name: {"bytes": (unfinished / name).stat().st_size, "sha256": sha256_of(unfinished / name)} for name in _files(unfinished)}
        layout = {"autoencoder": autoencoder_name if autoencoder_name != AUTOENCODER else None, "format": weight_format, "additions": additions_name}
        told = {name: value for name, value in layout.items() if value is not None}
        manifest = {"schema": SCHEMA, "kind": KIND, "weights": weights_name, **told, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _flush(unfinished)
        _publish(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _purge(folder, keep)
    return folder


def check_writable(folder: str | Path, stage: str, weights: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> None:
    """Whether `write_checkpoint` would accept these.

    Raises:
        UserError: weights that are not finite, or as `check_replaceable`.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder, stage)
    for kind, tensors in (("the weights", weights), ("the moving average", ema)):
        broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
        if broken:
            raise UserError(
                f"{len(broken)} of {len(tensors)} tensors of {kind} hold NaN or infinity (first: {broken[0]}), so training has diverged. "
                f"No checkpoint is written; {folder} keeps the last good one. Lower the learning rate or set gradient_clip_val."
            )


def check_replaceable(folder: Path, stage: str) -> None:
    """Make sure that writing a checkpoint of `stage` to `folder` destroys nothing else.

    Raises:
        UserError: the folder holds something that is not a checkpoint, or a checkpoint of another stage.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists and is not a checkpoint. Choose another folder for checkpoints, or remove it.")
    found = read_json(folder / "lineage.json").get("stage")
    if found != stage:
        raise UserError(f"{folder} holds a checkpoint of stage {found}; one of stage {stage} would replace it. Choose another folder, or remove it.")


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of a checkpoint that was to become `folder`."""
    for left in folder.parent.glob(f"{_escape(folder.name)}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _publish(unfinished: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(unfinished, folder)
    else:
        if not any(folder.iterdir()):
            folder.rmdir()
            os.rename(unfinished, folder)
            _flush_directory(folder.parent)
            return
        archived = _archive_name(folder)
        shutil.rmtree(archived, ignore_errors=True)
        if _exchange(unfinished, folder):
            os.rename(unfinished, archived)
        else:  # no atomic exchange on this file system: for a moment only `NAME@STEP` exists, which `latest_checkpoint` finds
            os.rename(folder, archived)
            os.rename(unfinished, folder)
    _flush_directory(folder.parent)


def _archive_name(folder: Path) -> Path:
    step = int(read_json(folder / "lineage.json").get("step", 0))
    return folder.parent / f"{folder.name}@{step:08d}"


def _purge(folder: Path, keep: int) -> None:
    for old in _archived(folder)[max(keep - 1, 0) :]:
        shutil.rmtree(old, ignore_errors=True)


def _archived(folder: Path) -> list[Path]:
    """Older checkpoints of the run, newest first."""
    found = [path for path in folder.parent.glob(f"{_escape(folder.name)}@*") if re.fullmatch(r"\d{8,}", path.name.rpartition("@")[2])]
    return sorted(found, key=lambda path: int(path.name.rpartition("@")[2]), reverse=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the kernel and the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    at_working_directory, exchange = -100, 2
    return rename(at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second), exchange) == 0


def _flush(folder: Path) -> None:
    for name in [*_files(folder), MANIFEST]:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _flush_directory(path)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading ---


def open_checkpoint(folder: str | Path, *, contents: bool = True) -> Checkpoint:
    """Verify a checkpoint folder against its manifest, then read its recipe and lineage.

    Args:
        folder: the checkpoint.
        contents: compare hashes, for which all of it is read; else names and sizes alone.

    Raises:
        UserError: naming the file: absent, too many, of another size, of other contents, or from a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        near = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
        raise UserError(f"there is no checkpoint folder {folder}." + (f" Beside it: {', '.join(near)}." if near else ""))
    manifest = _read_manifest(folder)
    listed, present = manifest["files"], set(_files(folder))
    if missing := sorted(set(listed) - present):
        raise UserError(f"checkpoint {folder} is damaged: {missing[0]} is listed in {MANIFEST} but missing.")
    if extra := sorted(present - set(listed)):
        raise UserError(f"checkpoint {folder} holds {extra[0]}, which {MANIFEST} does not list. Remove that file if you put it there.")
    for name, expected in listed.items():
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            raise UserError(f"checkpoint {folder} is damaged: {name} has {size} bytes, {expected['bytes']} were written.")
    for name, expected in listed.items():
        if contents and sha256_of(folder / name) != expected["sha256"]:
            raise UserError(f"checkpoint {folder} is damaged: the contents of {name} are not what was written (sha256 differs).")
    name = manifest["weights"]
    for required in (name, "recipe.yaml", "lineage.json"):
        if required not in listed:
            raise UserError(f"checkpoint {folder} is incomplete: {required} is missing.")
    recipe, _ = read_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))
    layout = manifest.get("autoencoder") or AUTOENCODER, manifest.get("format"), manifest.get("additions")
    return Checkpoint(folder, _unescape(recipe), read_json(folder / "lineage.json"), name, "ema.safetensors" in listed, *layout)


def latest_checkpoint(folder: str | Path) -> Checkpoint:
    """The newest undamaged checkpoint of a run.

    Args:
        folder: where a run writes (its older checkpoints stand beside it as `FOLDER@STEP`), or a folder of checkpoint folders.

    Raises:
        UserError: none is there, or all are damaged.
    """
    folder = Path(os.path.abspath(folder))
    if (folder / MANIFEST).is_file() or _archived(folder):
        candidates = [path for path in (folder, *_archived(folder)) if path.is_dir()]
    elif folder.is_dir():
        children = [path.parent for path in folder.glob(f"*/{MANIFEST}") if ".tmp-" not in path.parent.name]
        candidates = sorted(children, key=lambda path: (path / MANIFEST).stat().st_mtime_ns, reverse=True)
    else:
        candidates = []
    problems = []
    for candidate in candidates:
        try:
            checkpoint = open_checkpoint(candidate)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{' '.join(problems)} Going on with {candidate}, step {checkpoint.step}.", stacklevel=2)
        return checkpoint
    raise UserError(" ".join(problems) if problems else f"there is no checkpoint in {folder}.")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}, which is written last.")
    manifest = read_json(path)
    if manifest.get("kind") != KIND or not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("weights"), str):
        raise UserError(f"{path} is not the manifest of a FlowAct checkpoint.")
    if manifest.get("schema") != SCHEMA:
        raise UserError(f"checkpoint {folder} has schema {manifest.get('schema')}; this version of FlowAct reads schema {SCHEMA}. Update FlowAct.")
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            raise UserError(f"{path} is damaged: the entry of {name} needs bytes and sha256.")
    return manifest


def _hashes(folder: Path) -> dict[str, str | None]:
    """Hashes of the weights and of their moving average, from the manifest."""
    manifest = _read_manifest(folder)
    names = {"weights_sha256": manifest["weights"], "ema_sha256": "ema.safetensors"}
    return {key: manifest["files"].get(name, {}).get("sha256") for key, name in names.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: unreadable, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {_MAX_JSON_BYTES} bytes and not read.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not an object.")
    return value


def _files(folder: Path) -> list[str]:
    """Every file of a checkpoint but the manifest and what may lie beside, as relative posix names."""
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in BESIDE):
            continue
        if path.is_symlink():
            raise UserError(f"checkpoint {folder} holds a link, {name}: a checkpoint is made of plain files.")
        if path.is_file() and path != folder / MANIFEST:
            names.append(name)
    return names


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _unescape(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _unescape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_unescape(value) for value in node]
    return node.replace("\\${", "${") if isinstance(node, str) else node


def _escape(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


# --- using ---


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], *, allow_missing: Iterable[str] = (), allow_unexpected: Iterable[str] = ()
) -> LoadReport:
    """Copy a state into a module, all of it or nothing.

    Args:
        module: gets the values, in its own types and on its own devices.
        state: name -> tensor.
        allow_missing: patterns ("audio_blocks.*") of names that the module may have and the state may lack.
        allow_unexpected: patterns of names that the state may have and the module may lack.

    Raises:
        UserError: listing every name that is missing, unexpected or of another shape; the module is then unchanged.
    """
    own = module.state_dict()
    missing = tuple(sorted(own.keys() - state.keys()))
    unexpected = tuple(sorted(state.keys() - own.keys()))
    wrong_shape = tuple(sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape))
    matched = tuple(sorted((own.keys() & state.keys()) - set(wrong_shape)))
    report = LoadReport(matched, missing, unexpected, wrong_shape)
    problems = [f"missing: {name}" for name in _not_allowed(missing, allow_missing)]
    problems += [f"unexpected: {name}" for name in _not_allowed(unexpected, allow_unexpected)]
    problems += [f"shape of {name}: {tuple(state[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model" for name in wrong_shape]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(
            f"the weights do not fit {type(module).__name__} ({report}); nothing was loaded:{listed}\n"
            "Build the model of the checkpoint's recipe, or allow the names to be missing or unexpected."
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(state[name])
    return report


def check_compatible(lineage_a: Mapping[str, Any], lineage_b: Mapping[str, Any], allow: Iterable[str] = ()) -> None:
    """Check that weights trained under `lineage_a` mean the same under `lineage_b`.

    Compared are the latent space, frames per chunk, frame rate and encoders. What imported weights do not state is unknown and allowed.

    Args:
        lineage_a: of the checkpoint.
        lineage_b: of the run that takes its weights.
        allow: names among `COMPARED` that may differ.

    Raises:
        UserError: naming for each difference both values and what brings them into line, and how to allow it.
    """
    asked = allowed = set(allow)
    if unknown := asked - COMPARED.keys():
        raise UserError(f"allow_lineage={sorted(unknown)}: what may differ is one of {', '.join(COMPARED)}.")
    if lineage_a.get("stage") == IMPORTED:
        allowed = asked | (COMPARED.keys() - lineage_a.keys())
    differing = [name for name in COMPARED if name not in allowed and lineage_a.get(name) != lineage_b.get(name)]
    if differing:
        lines = "".join(
            f"\n  {name}: {json.dumps(lineage_a.get(name))} in the checkpoint, {json.dumps(lineage_b.get(name))} in this run; {COMPARED[name]}"
            for name in differing
        )
        whose = f"the checkpoint's weights (stage {lineage_a.get('stage')}, step {lineage_a.get('step')}) mean something else here"
        allowing = json.dumps(sorted(asked.union(differing)))
        raise UserError(f"{whose}:{lines}\nTo take them nevertheless, set model.init_args.allow_lineage={allowing}.")


def _not_allowed(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

"""What can be known of a recipe before a device is held: networks are made without memory, data and checkpoints are opened where they are there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from flowact import registry
from flowact.budget import Wishes, find_device, make_plan
from flowact.checkpoints import MANIFEST, Checkpoint, check_compatible, check_replaceable, load_into, open_checkpoint, read_json
from flowact.commands.loggers import check_loggers
from flowact.composition import leaves, origin_of
from flowact.errors import UserError
from flowact.machine import computes_bfloat16
from flowact.recipe import Recipe, mistakes, with_origin
from flowact.signatures import build, one_line
from flowact.stages.base import DenoiserStage, Stage

_GIB = 2**30


@dataclass(frozen=True)
class Target:
    """The device that a recipe's memory is compared with.

    Attributes:
        device: as `flowact plan --device` takes it.
        processes: devices; None takes the recipe's.
        size: height and width of the picture in pixels, where no data say it.
    """

    device: str
    processes: int | None = None
    size: tuple[int, int] | None = None


@dataclass
class Findings:
    """What was found.

    Attributes:
        mistakes: what `flowact fit` would refuse, on any machine.
        notes: what is not there yet or not on this machine, and what was therefore not looked into.
        facts: what was looked at and is right.
    """

    recipe: Recipe
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def refuse(self, error: UserError) -> None:
        """Add a mistake; the error says its place first."""
        self.mistakes.append(str(with_origin(error, self.recipe)))

    def note(self, place: str, words: str) -> None:
        """Add a note about a place."""
        self.notes.append(f"{place} ({origin_of(place, self.recipe.origins)}): {words}")


def examine(recipe: Recipe, target: Target | None = None) -> Findings:
    """Look at a composed recipe: keys, types, constructors, sizes of data and network, data, checkpoints, this machine, and memory on `target`."""
    found = Findings(recipe)
    found.mistakes += map(str, mistakes(recipe))
    if found.mistakes:
        return found
    try:
        check_loggers(recipe.config)
    except UserError as error:
        found.refuse(error)
    stage, data = _construct(found, "model", meta=True), _construct(found, "data", meta=False)
    opened = isinstance(data, LightningDataModule) and _open_data(found, data)
    if isinstance(stage, Stage):
        stage.recipe = recipe.config
        fits = _compare(found, stage, data, opened)
        _parents(found, stage, data if opened and fits else None)
        _output(found, stage)
    _machine(found)
    if target is not None and stage is not None and not found.mistakes:
        _memory(found, target)
    return found


# --- constructors -----------------------------------------------------------------------------------------------------------------------------------


def _construct(found: Findings, section: str, meta: bool) -> Any:
    """The object of a section; None when its constructor refuses, or cannot do without memory."""
    spec = found.recipe.config[section]
    cls = registry.load_class(spec["class_path"], found.recipe.trusted)
    try:
        with torch.device("meta" if meta else "cpu"):
            return build(cls, spec.get("init_args") or {})
    except ValueError as error:
        found.mistakes.append(str(explain_refusal(found.recipe, error, [section])))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        found.note(section, f"{cls.__name__} could not be made without memory, so it was not compared with the data ({why})")
    return None


def explain_refusal(recipe: Recipe, error: ValueError, sections: Iterable[str] = ("data", "model", "trainer")) -> UserError:
    """A constructor's refusal with the place of the component that refuses, and of the argument that it names."""
    for place, spec in (found for section in sections for found in registry.specs(recipe.config.get(section), section)):
        if place.startswith("trainer.logger"):
            continue  # may reach out
        try:
            with torch.device("meta"):
                build(registry.load_class(spec["class_path"], recipe.trusted), spec.get("init_args") or {})
        except ValueError as own:
            return with_origin(UserError(f"{named_place(place, spec, str(own))}: {own}"), recipe)
        except Exception:  # what cannot be made here is no refusal
            continue
    return UserError(f"{recipe.path}: {one_line(str(error))}")


def named_place(place: str, spec: Mapping[str, Any], text: str) -> str:
    """The place of the argument that a message names: what it quotes, then what it says to set, then any word that is an argument."""
    places = [at for at, _ in leaves(spec.get("init_args") or {}, f"{place}.init_args")]
    words = [*re.findall(r"'(\w+)'", text), *(word.rpartition(".")[2] for word in re.findall(r"\bset ([\w.]+\w)", text)), *re.findall(r"\w+", text)]
    for word in words:
        near = [at for at in places if re.split(r"[.\[]", at)[-1] == word]
        if near:
            return min(near, key=lambda at: at.count("."))
    return place


# --- data -------------------------------------------------------------------------------------------------------------------------------------------


def _open_data(found: Findings, data: LightningDataModule) -> bool:
    """Open the splits, if all of their folders are there."""
    sources = getattr(data, "sources", None)
    if not isinstance(sources, Mapping):
        found.note("data", f"{type(data).__name__} does not say where its data are, so they were not opened")
        return False
    absent = [(split, folder) for split, folder in _folders(sources) if not folder.exists()]
    if absent:
        folders = " and no ".join(dict.fromkeys(str(folder) for _, folder in absent))
        found.note(f"data.init_args.{absent[0][0]}", f"there is no {folders} yet, so shards and columns were not looked at")
        return False
    try:
        data.setup("fit")
    except (UserError, OSError) as error:
        found.refuse(UserError(f"{named_place('data', found.recipe.config['data'], str(error))}: {error}"))
        return False
    found.facts.append("data opened")
    return True


def _folders(sources: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Folders of the splits; brace strings and addresses are resolved by the data module itself."""
    for split, of_split in sources.items():
        for source in of_split:
            text = str(source.folder)
            if not re.search(r"[{}*?]|://", text):
                yield split, Path(text)


def _compare(found: Findings, stage: Stage, data: Any, opened: bool) -> bool:
    """Let the stage compare windows and widths with the data, or with data made to its measure where there are none yet."""
    autoencoder = getattr(stage, "autoencoder", None)
    if autoencoder is not None and isinstance(getattr(data, "num_frames", None), int):
        stride, frames = autoencoder.temporal_stride, data.num_frames
        if (frames - 1) % stride:
            near = (frames - 1) // stride * stride + 1
            found.refuse(UserError(f"data.init_args.num_frames: {frames} is not 1 + n times the autoencoder's temporal stride {stride}; set {near}"))
    if not isinstance(stage, DenoiserStage) or data is None:
        return data is not None
    seen = data if opened else _Described(data, stage)
    trainer = SimpleNamespace(datamodule=seen, max_steps=(found.recipe.config.get("trainer") or {}).get("max_steps", -1))
    try:
        stage.trainer = trainer  # type: ignore[assignment]
        stage.setup("validate")
    except UserError as error:
        in_data = re.search(r"\bset data\.(\w+)", str(error))
        place = f"data.init_args.{in_data[1]}" if in_data else named_place("model", found.recipe.config["model"], str(error))
        found.refuse(UserError(f"{place}: {error}"))
        return False
    except Exception as error:
        found.note("model", f"{type(stage).__name__} was not compared with its data ({type(error).__name__}: {error})")
        return False
    finally:
        _kept.append(trainer)  # the stage holds no reference of its own
    found.facts.append("windows and widths agree" if opened else "windows agree")
    return True


_kept: list[Any] = []


class _Described:
    """A recipe's data as far as the recipe describes them, with the widths that its denoiser is made for."""

    def __init__(self, data: Any, stage: DenoiserStage) -> None:
        denoiser = stage.denoiser
        self._data = data
        self.conditions = {
            "latent_shape": [denoiser.latent_channels, 0, 0],
            "text_shape": [0, denoiser.text_width],
            "audio_shape": [denoiser.audio_per_latent or 4, denoiser.audio_width],
            "temporal_stride": denoiser.audio_per_latent or 4,
        }
        self.lineage: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


# --- checkpoints ------------------------------------------------------------------------------------------------------------------------------------


def _parents(found: Findings, stage: Stage, data: Any) -> None:
    """The checkpoint named by `init_from`: there, whole, and fitting; and those that the stage's own arguments name."""
    parent = found.recipe.config.get("init_from")
    if parent is None:
        _guarded(found, "model.init_args.adapter", stage.attach_adapter)
    else:
        checkpoint = _checkpoint(found, "init_from", parent)
        if checkpoint is not None:
            _guarded(found, "init_from", lambda: _fits(stage, checkpoint, data))
    scores = (found.recipe.config["model"].get("init_args") or {}).get("scores")
    if isinstance(scores, str):
        _checkpoint(found, "model.init_args.scores", scores)


def _checkpoint(found: Findings, place: str, folder: str) -> Checkpoint | None:
    if not Path(folder).exists():
        found.note(place, f"there is no checkpoint {folder} yet, so it was not compared with this recipe")
        return None
    opened: list[Checkpoint] = []
    _guarded(found, place, lambda: opened.append(open_checkpoint(folder, contents=False)))
    return opened[0] if opened else None


def _fits(stage: Stage, checkpoint: Checkpoint, data: Any) -> None:
    if "guidance_ranges" in checkpoint.lineage:
        raise UserError(f"{checkpoint.path} takes guidance scales as inputs, and no stage asks a parent for them; name its own parent")
    weights = checkpoint.base() if checkpoint.is_lora else checkpoint
    shapes = {name: torch.empty(shape, device="meta") for name, shape in weights.shapes().items()}
    load_into(stage.trained_module(), shapes, allow_missing=stage.parent_may_lack)
    if data is not None and isinstance(stage, DenoiserStage):
        check_compatible(checkpoint.lineage, stage.lineage(), allow=stage.allow_lineage)
    if stage.adapter.keeps_base:
        stage.adapter.attach(stage.trained_module())


def _guarded(found: Findings, place: str, action: Callable[[], object]) -> None:
    try:
        action()
    except (UserError, OSError) as error:
        found.refuse(UserError(f"{place}: {error}"))
    except Exception as error:  # a plugin's network that cannot do without memory
        found.note(place, f"not looked into ({type(error).__name__}: {error})")


def _output(found: Findings, stage: Stage) -> None:
    """Whether the checkpoint folder may be written."""
    wanted = registry.resolve("CheckpointFolder", "callbacks").class_path
    for name, spec in ((found.recipe.config.get("trainer") or {}).get("callbacks") or {}).items():
        if spec["class_path"] == wanted:
            folder = Path(spec["init_args"]["dirpath"])
            place = f"trainer.callbacks.{name}.init_args.dirpath"
            try:
                check_replaceable(folder, stage.name)
            except (UserError, OSError) as error:
                found.refuse(UserError(f"{place}: {error}"))
                continue
            if (folder / MANIFEST).is_file():
                step = read_json(folder / "lineage.json").get("step")
                found.note(place, f"{folder} holds step {step} of this stage; a new run replaces it, --resume {folder} goes on")


# --- machine ----------------------------------------------------------------------------------------------------------------------------------------


def _machine(found: Findings) -> None:
    """What the trainer asks for and this machine does not have: the recipe may be meant for another."""
    trainer = found.recipe.config.get("trainer") or {}
    accelerator, devices, precision = trainer.get("accelerator", "auto"), trainer.get("devices", "auto"), str(trainer.get("precision") or "32-true")
    if accelerator in ("gpu", "cuda"):
        have = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if have == 0:
            found.note("trainer.accelerator", "this machine has no GPU that torch can use")
        elif isinstance(devices, int) and devices > have:
            found.note("trainer.devices", f"{devices} are asked for, this machine has {have}")
        elif precision.startswith("bf16") and torch.cuda.get_device_capability()[0] < 8:
            found.note("trainer.precision", f"{torch.cuda.get_device_name()} does not compute bfloat16")
    elif accelerator == "cpu":
        cores = os.cpu_count() or 1
        if isinstance(devices, int) and devices > cores:
            found.note("trainer.devices", f"{devices} processes are asked for, this machine has {cores} cores")
        if precision.startswith("bf16") and not computes_bfloat16():
            found.note("trainer.precision", "this CPU does not compute bfloat16; 32-true is some ten times as fast")


def _memory(found: Findings, target: Target) -> None:
    """Compare the planned peak with the device."""
    try:
        plan = make_plan(found.recipe, find_device(target.device), wishes=Wishes(size=target.size), processes=target.processes)
    except UserError as error:
        found.notes.append(f"memory was not planned: {error}")
        return
    peak, device = plan.memory.peak_bytes / _GIB, plan.device.name
    if plan.memory.fits is False:
        fix = "see `flowact plan` for what other ZeRO stages and checkpointing need"
        found.mistakes.append(f"{found.recipe.path}: {peak:.0f} GiB on each {device} as planned, which does not fit; {fix}")
    else:
        known = "" if plan.memory.fits else ", whose memory is not known"
        found.facts.append(f"{peak:.0f} GiB on each {device}{known}")

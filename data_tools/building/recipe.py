"""The recipe of a build: where recordings are, which steps look at them, how clips are written. Constructors are the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.steps.base import Step, json_hash
from flowact import registry
from flowact.data.schema import SplitBy
from flowact.errors import UserError, did_you_mean
from flowact.signatures import arguments_of, build, check_arguments
from flowact.strict_yaml import read_yaml_file, to_yaml

Tracks = Literal["mix", "channels", "streams"]


@dataclass(frozen=True)
class Output:
    """How clips are written.

    Attributes:
        size: pixels: one number makes every picture a square of that side, [width, height] any even size, null keeps each clip's own. One size
            for all is needed to encode latents, unless the recipe trains with buckets.
        crf: quality of the h264 video, lower is better; 18 looks lossless.
        preset: of x264; slower ones make smaller files.
        shard_mb: size of a shard at most, in MiB.
        shard_clips: clips of a shard at most; null for no bound.
        min_shards: of each split, as far as there are clips: at least ranks times workers that will read them.
        val_fraction: share of people (or recordings, see `split_by`) in val, chosen by hash, so that adding some moves none.
        val_identities: people of val by name; replaces the choice by hash.
        split_by: 'person' keeps everyone in one split; 'recording' holds recordings out, for a set of one character.
    """

    size: int | tuple[int, int] | None = 256
    crf: int = 18
    preset: str = "veryfast"
    shard_mb: float = 256.0
    shard_clips: int | None = None
    min_shards: int = 1
    val_fraction: float = 0.05
    val_identities: list[str] | None = None
    split_by: SplitBy = "person"

    def __post_init__(self) -> None:
        sides = (self.size, self.size) if isinstance(self.size, int) else self.size
        if sides is not None and any(side < 16 or side % 2 for side in sides):
            raise UserError(f"output.size {self.size}: sides are even and at least 16 pixels")
        for name, smallest in {"crf": 0, "shard_mb": 0.01, "min_shards": 1}.items():
            if getattr(self, name) < smallest:
                raise UserError(f"output.{name} {getattr(self, name)}: must be at least {smallest}")
        if self.crf > 51:
            raise UserError(f"output.crf {self.crf}: h264 has 0 (lossless) to 51")
        if self.shard_clips is not None and self.shard_clips < 1:
            raise UserError(f"output.shard_clips {self.shard_clips}: at least 1, or null")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"output.val_fraction {self.val_fraction}: a share of people, 0 up to (not including) 1")
        if self.split_by not in get_args(SplitBy):
            raise UserError(f"output.split_by {self.split_by!r}: one of {', '.join(get_args(SplitBy))}")
        if self.val_identities is not None and self.split_by != "person":
            raise UserError("output.val_identities names people, so it goes with split_by: person; recordings are held out by val_fraction")

    @property
    def pixels(self) -> tuple[int, int] | None:
        """(width, height), or None where each clip keeps its own."""
        if self.size is None:
            return None
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    @property
    def hash(self) -> str:
        """Of what decides a clip's bytes; where it goes does not."""
        return json_hash([self.pixels, self.crf, self.preset])


@dataclass(frozen=True)
class BuildRecipe:
    """A recipe with its steps built.

    Args:
        name: of the dataset.
        input: one or several of: a folder, table (CSV, TSV, JSONL, Parquet) or WebDataset shards; a local path or any address that fsspec knows.
        steps: name of a step -> its arguments, in order.
        output: how clips are written.
        columns: of a table: our name -> its name ('video', 'identity', 'caption', 'start', 'end', 'license', 'consent', 'split').
        tracks: 'mix' mixes all channels to one; 'channels': left is the person, right whom they talk to; 'streams': the first and second soundtrack.

    Attributes:
        chain: the steps, in order.
        specs: a step's name -> its spec with every argument, defaults too: what hashes are made of.

    Raises:
        UserError: a step that does not exist (with the nearest names), a wrong argument, a step before one that it reads.
    """

    name: str
    input: str | list[str]
    steps: dict[str, dict[str, Any] | None]
    output: Output = field(default_factory=Output)
    columns: dict[str, str] = field(default_factory=dict)
    tracks: Tracks = "mix"
    chain: tuple[Step, ...] = field(init=False)
    specs: Mapping[str, Mapping[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.steps:
            raise UserError("steps: there is none; name at least Length, or take the steps that `flowact-data init` writes")
        chain: list[Step] = []
        specs: dict[str, Mapping[str, Any]] = {}
        for name, arguments in self.steps.items():
            try:
                spec = registry.expand({"class_path": name, "init_args": arguments or {}})
                step = registry.instantiate(spec, "steps")
            except UserError as error:
                raise UserError(f"steps.{name}: {error}") from error
            missing = [need for need in step.needs if need not in specs]
            if missing:
                raise UserError(f"steps.{name}: {step.name} reads what {missing[0]} finds; put {missing[0]} before it")
            if step.name in specs:
                raise UserError(f"steps.{name}: {step.name} is there already; a step is named once")
            specs[step.name] = {"class_path": spec["class_path"], "init_args": _all_arguments(type(step), spec["init_args"])}
            chain.append(step)
        object.__setattr__(self, "chain", tuple(chain))
        object.__setattr__(self, "specs", specs)

    @property
    def inputs(self) -> list[str]:
        """Addresses of the recordings."""
        return [self.input] if isinstance(self.input, str) else list(self.input)

    @property
    def hash(self) -> str:
        """Of all that decides the dataset, besides the recordings."""
        return json_hash([self.columns, self.tracks, self.specs, asdict(self.output)])

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.chain if step.name == name)

    def measured_hash(self, name: str) -> str:
        """Of all that decides a step's signals and scores: its class, version and arguments without thresholds, and the steps it reads."""
        step, spec = self.step(name), self.specs[name]
        arguments = {key: value for key, value in spec["init_args"].items() if key not in step.thresholds}
        return json_hash([spec["class_path"], step.version, arguments, self.tracks, [self.measured_hash(need) for need in step.needs]])


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[BuildRecipe, dict[str, Any]]:
    """A recipe file with `KEY=VALUE` overrides, checked and built.

    Returns:
        the recipe, and its plain values as they are stored with the dataset.

    Raises:
        UserError: no such file, a key or step that does not exist (with the nearest names), a wrong type.
    """
    if not path.is_file():
        raise UserError(f"there is no recipe {path}; write one with: flowact-data init FOLDER --out {path}")
    config, origins = read_yaml_file(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, expected keys with values; `flowact-data init FOLDER` writes a recipe")
    if overrides:
        config = _overlay(config, overrides)
    try:
        check_arguments(BuildRecipe, config, "")
        return build(BuildRecipe, config), config
    except UserError as error:
        place = next((origins[name] for name in _prefixes(str(error)) if name in origins), str(path))
        raise UserError(f"{place}: {error}") from error


def dump_recipe(config: Mapping[str, Any]) -> bytes:
    """The plain values as YAML, as they are kept with the dataset."""
    return to_yaml(config).encode()


def _prefixes(message: str) -> list[str]:
    """Dotted places that a message may begin with, the longest first."""
    parts = message.partition(":")[0].split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _overlay(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        name, equals, _ = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is no KEY=VALUE, e.g. steps.Sync.min_confidence=0.4 or output.size=128")
        parts, steps = name.split("."), config.get("steps") or {}
        if parts[0] in steps:
            raise UserError(f"{text!r}: {parts[0]} is a step; write steps.{text}")
        if parts[0] == "steps" and len(parts) > 1 and parts[1] not in steps:
            raise UserError(f"{text!r}: the recipe has no step {parts[1]!r}.{did_you_mean(parts[1], steps)}")
    try:
        merged = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(overrides)}: {error}") from error
    # interpolations stay as they are written: a recipe reads no environment
    return OmegaConf.to_container(merged, resolve=False)  # type: ignore[return-value]


def _all_arguments(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults too, so that a changed default is another step."""
    return {**{argument.name: argument.default for argument in arguments_of(cls) if not argument.required}, **given}

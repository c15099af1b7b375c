"""The parts of a recipe that a plan is made of. Legend: flowact/types.py."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

import torch

from flowact import registry
from flowact.budget.recording import Recorder
from flowact.budget.states import Strategy
from flowact.errors import UserError
from flowact.models.adapters import Adapter
from flowact.models.base import Denoiser
from flowact.models.blocks import Checkpointing
from flowact.recipe import Recipe
from flowact.signatures import build, class_parser
from flowact.stages.base import DenoiserStage

_RECORDER = f"{Recorder.__module__}.{Recorder.__qualname__}"


class Source:
    """A recipe of a stage that trains a denoiser.

    Args:
        recipe: checked.

    Raises:
        UserError: the stage trains something else, or a constructor refuses its values.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.trainer: dict[str, Any] = recipe.config.get("trainer") or {}
        self.arguments: dict[str, Any] = recipe.config["model"].get("init_args") or {}
        self.stage_class = self._load(recipe.config["model"])
        spec = self.arguments.get("denoiser")
        if not issubclass(self.stage_class, DenoiserStage) or not isinstance(spec, Mapping):
            raise UserError(f"{recipe.path}: a plan is made of stages that train a denoiser; {self.stage_class.__name__} does not")
        self.spec: Mapping[str, Any] = spec
        self.data: Any = build(self._load(recipe.config["data"]), recipe.config["data"].get("init_args") or {})
        self.batch_size: int = self.data.batch_size
        #: a stage with several roles accumulates by itself
        self.accumulated = int(self.trainer.get("accumulate_grad_batches") or 1) * int(self.arguments.get("accumulate", 1))

    def _load(self, spec: Mapping[str, Any]) -> Any:
        return registry.load_class(spec["class_path"], self.recipe.trusted)

    @property
    def choices(self) -> tuple[str, ...]:
        """Ways of activation checkpointing that the denoiser offers."""
        _, names = class_parser(self._load(self.spec))
        return typing.get_args(Checkpointing) if "checkpointing" in names else ()

    @property
    def choice(self) -> str | None:
        """The recipe's choice among them; None if there are none."""
        if not self.choices:
            return None
        arguments = self.spec.get("init_args") or {}
        return arguments["checkpointing"] if "checkpointing" in arguments else _defaults(self._load(self.spec))["checkpointing"]

    def outline(self, **changes: Any) -> Denoiser:
        """The denoiser on the meta device, without what needs a real one: compilation, and masks for FlexAttention."""
        arguments = {**(self.spec.get("init_args") or {}), **changes}
        if arguments.get("compile_blocks"):
            arguments["compile_blocks"] = False
        if arguments.get("attention") == "flex":
            arguments["attention"] = "rectangles"
        with torch.device("meta"):
            return build(self._load(self.spec), arguments)

    def recording_stage(self, denoiser: Denoiser) -> tuple[DenoiserStage, Recorder]:
        """The stage with a recorder in place of the denoiser, and without adapter."""
        names = ("latent_channels", "text_width", "audio_width", "audio_per_latent", "reuses_memory", "takes_guidance")
        widths = {name: getattr(denoiser, name) for name in names}
        arguments = {name: value for name, value in self.arguments.items() if name != "adapter"}
        stage = build(self.stage_class, arguments | {"denoiser": {"class_path": _RECORDER, "init_args": widths}})
        return stage, stage.denoiser

    def adapt(self, denoiser: Denoiser) -> None:
        """Attach the recipe's adapter."""
        spec = self.arguments.get("adapter")
        if spec:
            adapter: Adapter = build(self._load(spec), spec.get("init_args") or {})
            with torch.device("meta"):
                adapter.attach(denoiser)

    @property
    def keeps_average(self) -> bool:
        """Whether a moving average is kept."""
        wanted = registry.resolve("ExponentialMovingAverage", "callbacks").class_path
        return any(spec and spec.get("class_path") == wanted for spec in (self.trainer.get("callbacks") or {}).values())

    def strategy(self, processes: int | None, zero: int | None) -> tuple[Strategy, list[str]]:
        """The trainer's strategy, with the user's numbers in front, and what was assumed of it."""
        spec = self.trainer.get("strategy")
        settings: dict[str, Any] = {}
        assumed = []
        if isinstance(spec, Mapping) and spec["class_path"] == registry.resolve("DeepSpeed", "strategies").class_path:
            settings = _defaults(self._load(spec)) | (spec.get("init_args") or {})
        if processes is None:
            devices, nodes = self.trainer.get("devices"), self.trainer.get("num_nodes") or 1
            processes = devices * nodes if isinstance(devices, int) and devices > 0 else 1
            if processes == 1 and devices != 1:
                assumed.append(f"trainer.devices is {devices!r}, taken as one process (--processes)")
        overlaps = settings.get("overlap_communication")
        return Strategy(
            processes=processes,
            zero=zero if zero is not None else settings.get("stage"),
            bucket_size=settings.get("bucket_size", Strategy.bucket_size),
            overlaps=self.trainer.get("accelerator") != "cpu" if overlaps is None else overlaps,
            offload_optimizer=settings.get("offload_optimizer", False),
            offload_parameters=settings.get("offload_parameters", False),
            partition_frozen=settings.get("partition_frozen", False),
        ), assumed


def _defaults(cls: type) -> dict[str, Any]:
    """Constructor arguments that have a default."""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}

"""Formats in which other libraries keep the weights of a network: which of our denoisers it is, and how their tensors are ours."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowact import registry
from flowact.errors import UserError, did_you_mean
from flowact.models.rules import Rule
from flowact.models.translation import import_state
from flowact.signatures import arguments_of

CLASS_NAME = "_class_name"


@dataclass(frozen=True)
class Addition:
    """Tensors of ours that the other side does not know, such as an audio branch. Import makes them anew, export leaves them out.

    Attributes:
        name: what it is called on the command line and in reports.
        tensors: patterns of the names of all its tensors ("audio_blocks.*").
        gates: patterns of those among them that what it adds is multiplied by; while they are all zero it has no effect, as when it is new.
    """

    name: str
    tensors: tuple[str, ...]
    gates: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Whether a tensor belongs to it."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.tensors)

    def is_silent(self, state: Mapping[str, Tensor]) -> bool:
        """Whether it has no effect: it has gates in this state and all of them are zero."""
        gates = [name for name in state if self.holds(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.gates)]
        return bool(gates) and not any(torch.count_nonzero(state[name]) for name in gates)


class WeightFormat(ABC):
    """How one class of another library keeps its weights and its arguments, and which denoiser of ours it is.

    A folder of it holds `config.json` and safetensors. A subclass says facts only; `flowact convert` does the work, and
    `flowact.testing.check_format` checks that nothing is lost in either direction.

    Attributes:
        class_name: `_class_name` in config.json.
        library: where the class is from, for messages.
        denoiser: name of our denoiser.
        defaults: every key that config.json may have (but for those that begin with `_`), with the value that an absent key stands for.
        additions: what our denoiser has and theirs has not.
    """

    class_name: str
    library: str = "diffusers"
    denoiser: str
    defaults: Mapping[str, Any]
    additions: tuple[Addition, ...] = ()

    @abstractmethod
    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of our denoiser that follow from theirs.

        Args:
            config: all keys of `defaults`.

        Raises:
            UserError: a value that our denoiser cannot express; names the key, the value and what is possible.
        """

    @abstractmethod
    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The way back, for export: all keys of `defaults`.

        Args:
            arguments: all arguments of our denoiser, also those that were left at their default.

        Raises:
            UserError: a value that theirs cannot express.
        """

    @abstractmethod
    def rules(self, config: Mapping[str, Any]) -> Sequence[Rule]:
        """Between their tensors and ours, but for those of the additions.

        Args:
            config: all keys of `defaults`.
        """

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether config.json is of this format."""
        return config.get(CLASS_NAME) == self.class_name

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What config.json says, without keys that begin with `_`, and defaults for what it does not say.

        Raises:
            UserError: a key that is not in `defaults`: it may change what the weights mean.
        """
        own = {key: value for key, value in config.items() if not key.startswith("_")}
        if unknown := [key for key in own if key not in self.defaults]:
            raise UserError(
                f"config.json of {self.class_name} has the key '{unknown[0]}' ({own[unknown[0]]!r}), which {type(self).__name__} does not know."
                f"{did_you_mean(unknown[0], self.defaults)} It may change what the weights mean, so they are not read; update the plugin."
            )
        return {**self.defaults, **own}

    def denoiser_spec(self, config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """The denoiser of a config.json as `{class_path, init_args}`.

        Args:
            config: as read, see `complete`.
            settings: further arguments of the denoiser, such as audio_width.

        Raises:
            UserError: as `complete` and `arguments`, a setting that contradicts config.json, or an argument that is wrong or missing.
        """
        fixed = self.arguments(self.complete(config))
        for key, value in settings.items():
            if key in fixed and fixed[key] != value:
                raise UserError(f"{key}={value!r}: it follows from config.json of {self.class_name} and is {fixed[key]!r}; leave it out")
        missing = [argument.name for argument in arguments_of(registry.load(self.denoiser, "denoisers")) if argument.required]
        if missing := [name for name in missing if name not in fixed and name not in settings]:
            hint = " ".join(f"{name}=..." for name in missing)
            raise UserError(f"{self.denoiser} needs {', '.join(missing)}, which config.json of {self.class_name} does not say; add --set {hint}")
        spec = {"class_path": registry.resolve(self.denoiser, "denoisers").class_path, "init_args": {**fixed, **settings}}
        registry.check_spec(spec)
        return spec

    def exported_config(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of a denoiser given as `{class_path, init_args}`.

        Raises:
            UserError: as `config`.
        """
        cls = registry.load(self.denoiser, "denoisers")
        defaults = {argument.name: argument.default for argument in arguments_of(cls) if not argument.required}
        return {CLASS_NAME: self.class_name, **self.config({**defaults, **(spec.get("init_args") or {})})}

    def writes(self, spec: Mapping[str, Any]) -> bool:
        """Whether a denoiser given as `{class_path, init_args}` is ours of this format."""
        return registry.resolve(str(spec.get("class_path"))).class_path == registry.resolve(self.denoiser, "denoisers").class_path

    def read(self, config: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors of all of theirs; those of the additions are not among them.

        Args:
            config: as config.json has it.
            theirs: by their names.

        Raises:
            UserError: as `complete`, or tensors that are missing or do not fit, all listed.
        """
        return import_state(self.rules(self.complete(config)), theirs)

    def divide(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A state of ours as what the other side knows and what the additions hold."""
        added = {name for addition in self.additions for name in state if addition.holds(name)}
        return {name: state[name] for name in state if name not in added}, {name: state[name] for name in state if name in added}

    def by_addition(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Names of tensors by the addition that holds them."""
        names = sorted(names)
        return {addition.name: [name for name in names if addition.holds(name)] for addition in self.additions}


def installed_formats() -> dict[str, WeightFormat]:
    """Every registered format by name.

    Raises:
        UserError: the import of one fails, or its name is claimed twice.
    """
    return {component.name: registry.load(component.name, "formats")() for component in registry.components("formats")}

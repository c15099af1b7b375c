"""What of a network is trained: all of it, or a low-rank change beside frozen weights. The only file that imports peft, when it is needed.

LoRA: Hu et al. 2021 (arXiv 2106.09685), section 4.1. How a checkpoint holds one: `flowact.lora`.
"""

from __future__ import annotations

import fnmatch
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowact.errors import UserError, did_you_mean
from flowact.lora import ALPHA, DOWN, split

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_NAME = "default"


class Adapter(ABC):
    """Decides which parameters of a network train. What it adds leaves the network's output as it was when training starts."""

    #: whether the weights that it is attached to stay as they are; a checkpoint then holds what was trained, and names its base
    keeps_base: bool

    @abstractmethod
    def attach(self, network: nn.Module) -> None:
        """Change a network in place.

        Args:
            network: with the weights that training starts from, before any optimizer is built.

        Raises:
            UserError: it does not fit the network.
        """

    def stored_names(self, network: nn.Module) -> dict[str, str]:
        """Names in the state of an attached network of what a checkpoint holds -> names in the checkpoint."""
        if not self.keeps_base:
            return {name: name for name in network.state_dict()}
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        return {name: stored for name, stored in stored_names(network).items() if name in trained}

    def constants(self, network: nn.Module) -> dict[str, Tensor]:
        """What a checkpoint holds of an attached network besides its parameters and buffers."""
        return {}


class FullFinetune(Adapter):
    """Every parameter trains."""

    keeps_base = False

    def attach(self, network: nn.Module) -> None:
        """Nothing to add."""


class LoRA(Adapter):
    """A trained change of low rank beside the frozen weight of each chosen linear layer: y = W x + alpha / rank * B A x, with B zero at first.

    Patterns are as in file names and match whole names: `double_blocks.*.qkv` takes `double_blocks.0.towers.visual.qkv`, since a star stands
    for dots too. The weights under it come from `init_from`.

    Args:
        rank: r, of A and B.
        alpha: the change is scaled by alpha / rank.
        targets: patterns of names of linear layers; each must match.
        exclude: patterns of names of linear layers that are left out again; each must match.
        dropout: probability with which an input of A is dropped in training.
        train_also: patterns of names of parameters that are trained whole, such as `*.audio.*`; each must match.

    Raises:
        UserError: a rank below 1, a scale of 0 or less, or a dropout outside [0, 1).
    """

    keeps_base = True

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 16.0,
        targets: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        dropout: float = 0.0,
        train_also: Sequence[str] = (),
    ) -> None:
        if rank < 1:
            raise UserError(f"rank of LoRA is {rank}; it is at least 1, and often 16 to 128")
        if alpha <= 0:
            raise UserError(f"alpha of LoRA is {alpha}; it is above 0, and often the rank or twice it")
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout of LoRA is {dropout}; it lies in [0, 1)")
        if not targets:
            raise UserError('targets of LoRA is empty; name linear layers by pattern, ["*"] is all of them')
        self.rank = rank
        self.alpha = alpha
        self.targets = tuple(targets)
        self.exclude = tuple(exclude)
        self.dropout = dropout
        self.train_also = tuple(train_also)

    def attach(self, network: nn.Module) -> None:
        """See `Adapter.attach`; patterns that match nothing are refused with the nearest names."""
        if adapted_layers(network):
            raise UserError(f"{type(network).__name__} has a LoRA already; merge it before another is trained")
        layers = self.layers(network)
        further = self.further(network, layers)
        peft = _peft()
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=_exactly(layers))
        peft.inject_adapter_in_model(config, network, _NAME)  # freezes everything else
        for layer in map(network.get_submodule, layers):
            layer.train(layer.base_layer.training)  # type: ignore[union-attr]  # new modules are in training mode, and would drop inputs
        for parameter in further:
            parameter.requires_grad_(True)

    def layers(self, network: nn.Module) -> list[str]:
        """Names of the linear layers that are changed.

        Raises:
            UserError: a pattern that matches no linear layer, or none is left.
        """
        linears = linear_names(network)
        excluded = _matching(self.exclude, linears, "exclude", "linear layer")
        chosen = [name for name in _matching(self.targets, linears, "targets", "linear layer") if name not in set(excluded)]
        if not chosen:
            raise UserError(f"exclude of LoRA leaves none of the layers that targets name: {list(self.exclude)} and {list(self.targets)}")
        return chosen

    def further(self, network: nn.Module, layers: Collection[str]) -> list[nn.Parameter]:
        """The parameters that are trained whole.

        Raises:
            UserError: a pattern that matches no parameter, or the weight of a layer that gets a low-rank change.
        """
        parameters = dict(network.named_parameters())
        names = _matching(self.train_also, parameters, "train_also", "parameter")
        if twice := [name for name in names if name.removesuffix(".weight") in set(layers) and name.endswith(".weight")]:
            listed = "".join(f"\n  {name}" for name in twice)
            raise UserError(f"train_also of LoRA trains weights whole that targets give a low-rank change; add these layers to exclude:{listed}")
        return [parameters[name] for name in names]

    def constants(self, network: nn.Module) -> dict[str, Tensor]:
        """The scale of each layer's change."""
        return {name + ALPHA: torch.tensor(float(self.alpha)) for name in adapted_layers(network)}


def linear_names(network: nn.Module) -> list[str]:
    """Names of the linear layers that compute by being called; attention layers of torch read their output weight without calling it."""
    uncalled = {module.out_proj for module in network.modules() if isinstance(module, nn.MultiheadAttention)}
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and module not in uncalled]


def adapted_layers(network: nn.Module) -> list[str]:
    """Names of the layers with a low-rank change, known by peft's attributes."""
    return [name for name, module in network.named_modules() if hasattr(module, "base_layer") and hasattr(module, "lora_A")]


def stored_names(network: nn.Module) -> dict[str, str]:
    """Name of each parameter -> name in a checkpoint: that in the plain network, and `X.lora_A.weight`, `X.lora_B.weight` for a layer X."""
    names = {name: name for name, _ in network.named_parameters()}
    for layer in adapted_layers(network):
        for name, _ in network.get_submodule(layer).named_parameters():
            names[f"{layer}.{name}"] = f"{layer}." + name.removeprefix("base_layer.").replace(f".{_NAME}.", ".")
    return names


def _matching(patterns: Sequence[str], names: Iterable[str], argument: str, what: str) -> list[str]:
    """The names that any pattern matches, in the order of the network."""
    names = list(names)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"{argument} of LoRA: {pattern!r} matches no {what} of the network.{did_you_mean(pattern, _families(names))}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _families(names: Iterable[str]) -> set[str]:
    """Patterns that match: names with a star for a block's number, what they begin with, and what is inside them."""
    whole = {re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names}
    parts = [name.split(".") for name in whole]
    begins = {".".join([*part[:end], "*"]) for part in parts for end in range(1, len(part)) if part[end - 1] != "*"}
    return whole | begins | {f"*.{word}.*" for part in parts for word in part[1:-1] if word != "*"}


# --- peft's files ---


def save_peft(state: Mapping[str, Tensor], network: nn.Module, folder: Path) -> None:
    """Write a LoRA as peft does: `adapter_config.json` and `adapter_model.safetensors`. Modules trained whole become `modules_to_save`.

    Args:
        state: as `flowact.lora` describes it.
        network: the plain network; only its structure is read.
        folder: is created.

    Raises:
        UserError: parameters trained whole that make up no module which peft can save.
    """
    pairs, others = split(state)
    saved = _whole_modules(network, others)
    ranks, alphas = {name: pair.rank for name, pair in pairs.items()}, {name: pair.alpha for name, pair in pairs.items()}
    rank, alpha = _most_common(ranks.values(), 1), _most_common(alphas.values(), 1.0)
    config = _peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=_exactly(pairs),
        rank_pattern={f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        alpha_pattern={f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        modules_to_save=saved or None,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    tensors = {name: tensor for name, tensor in state.items() if not (name.endswith(ALPHA) and name.removesuffix(ALPHA) in pairs)}
    save_file({_PEFT_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, folder / PEFT_WEIGHTS, {"format": "pt"})


def load_peft(folder: Path, network: nn.Module) -> dict[str, Tensor]:
    """A LoRA that peft wrote, loaded by peft itself, as `flowact.lora` describes it.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`; nothing is fetched.
        network: the plain network; peft wraps its layers, so it is of no use afterwards.

    Raises:
        UserError: no such files, another method than plain LoRA, or keys of the file that the network lacks or the reverse; lists all.
    """
    if absent := [name for name in (PEFT_CONFIG, PEFT_WEIGHTS) if not (folder / name).is_file()]:
        raise UserError(f"{folder} holds no LoRA in peft's format: {' and '.join(absent)} are missing")
    peft = _peft()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.peft_type != peft.PeftType.LORA or config.init_lora_weights not in (True, False, "gaussian"):  # others change the base as well
            raise UserError(f"{folder / PEFT_CONFIG} is of another method than plain LoRA; its weights mean something else")
        model = peft.PeftModel(network, config)
        found, expected = load_file(folder / PEFT_WEIGHTS), peft.get_peft_model_state_dict(model).keys()
        problems = [f"missing: {name}" for name in sorted(expected - found.keys())]
        problems += [f"unmatched: {name}" for name in sorted(found.keys() - expected)]
        if problems:
            listed = "".join(f"\n  {problem}" for problem in problems)
            raise UserError(f"the LoRA in {folder} does not fit {type(network).__name__} and nothing was loaded:{listed}")
        peft.set_peft_model_state_dict(model, found)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be loaded by peft: {' '.join(str(error).split())}") from error
    tensors: dict[str, Tensor] = peft.get_peft_model_state_dict(model)
    state = {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    for layer in adapted_layers(network):
        scale = network.get_submodule(layer).scaling[_NAME]  # type: ignore[union-attr, index]
        state[layer + ALPHA] = torch.tensor(float(scale * state[layer + DOWN].shape[0]))
    return state


def _whole_modules(network: nn.Module, names: Collection[str]) -> list[str]:
    """The modules that parameters make up, outermost first.

    Raises:
        UserError: listing parameters that are a part of a module, or in a module that peft would confuse with another.
    """
    left, chosen = set(names), []
    for name, module in network.named_modules():
        inside = {f"{name}.{own}" for own, _ in module.named_parameters()}
        if name and inside and inside <= left and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            chosen.append(name)
            left -= inside
    problems = [f"part of a module: {name}" for name in sorted(left)]
    for name in chosen:  # peft goes by how a name ends
        problems += [f"peft would take {other} for {name}" for other, _ in network.named_modules() if other.endswith(name) and other != name]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        what = "peft keeps whole modules, found by how their names end, which these do not fit"
        raise UserError(f"{what}:{listed}\nWrite for ComfyUI instead, or merge.")
    return chosen


def _exactly(names: Iterable[str]) -> str:
    """A pattern of peft that matches these names and no other; a list of names would also match names that end like them."""
    return "|".join(re.escape(name) for name in names)


def _most_common(values: Iterable[Any], default: Any) -> Any:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else default


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'flowact[lora]'") from error
    return peft

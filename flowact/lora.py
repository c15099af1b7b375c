"""LoRA as tensors: what a checkpoint of one holds, merging, extracting, and ComfyUI's names. Knows no network and no peft.

    X.lora_A.weight [r, in], X.lora_B.weight [out, r], X.alpha []    the base's X.weight changes by alpha / r * B A
    any other name                                                  replaces the base's tensor of that name

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; extraction by truncated singular value decomposition (Eckart and Young).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from flowact.errors import UserError, did_you_mean

DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
COMFYUI_PREFIX = "diffusion_model."
#: the file of a checkpoint that holds a LoRA
LORA_WEIGHTS = "adapter.safetensors"

Others = Literal["refuse", "keep", "drop"]
"""What extraction does with tensors that differ and are not weights of linear layers."""


@dataclass(frozen=True)
class LowRank:
    """The change of one linear layer.

    Attributes:
        down: A [r, in].
        up: B [out, r].
        alpha: scale of the change, times r.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that changes."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        """alpha / r * B A, fp32 [out, in]."""
        return (self.up.float() @ self.down.float()) * (self.alpha / self.rank)

    def tensors(self, module: str) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        return {module + DOWN: self.down, module + UP: self.up, module + ALPHA: torch.tensor(float(self.alpha))}


def split(state: Mapping[str, Tensor]) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """The low-rank changes by layer, and the tensors that replace those of the base.

    Raises:
        UserError: listing every layer of which a part is missing or whose parts do not fit each other.
    """
    _refuse(_incomplete(state), "the LoRA is incomplete")
    modules = _modules(state)
    pairs = {module: LowRank(state[module + DOWN], state[module + UP], float(state[module + ALPHA])) for module in modules}
    parts = {module + end for module in modules for end in (DOWN, UP, ALPHA)}
    return pairs, {name: tensor for name, tensor in state.items() if name not in parts}


def _modules(state: Mapping[str, Tensor]) -> list[str]:
    return sorted({name.removesuffix(end) for name in state for end in (DOWN, UP) if name.endswith(end)})


def _incomplete(state: Mapping[str, Tensor]) -> list[str]:
    """Parts that are missing; if none is, those that do not fit each other."""
    modules = _modules(state)
    if missing := [f"missing: {module}{end}" for module in modules for end in (DOWN, UP, ALPHA) if module + end not in state]:
        return missing
    shapes = {module: (tuple(state[module + UP].shape), tuple(state[module + DOWN].shape)) for module in modules}
    return [f"shapes of {m}: B {b} and A {a} have no common rank" for m, (b, a) in shapes.items() if len(a) != 2 or b[1:] != a[:1]]


def merge(base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full weights: those of the base with a LoRA's changes, by the base's names. What changes is fp32: bfloat16 would round small changes away.

    Raises:
        UserError: listing every layer and tensor that the base does not have, or has in another shape.
    """
    pairs, others = split(state)
    _refuse(_misfits(pairs, others, base), "the LoRA does not fit its base and nothing was merged")
    changed = {f"{module}.weight": base[f"{module}.weight"].float() + pair.delta() for module, pair in pairs.items()}
    return dict(base) | changed | others


def _misfits(pairs: Mapping[str, LowRank], others: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> list[str]:
    wanted = {f"{module}.weight": pair.shape for module, pair in pairs.items()} | {name: tuple(tensor.shape) for name, tensor in others.items()}
    problems = [f"not in the base: {name}.{did_you_mean(name, base)}" for name in wanted if name not in base]
    return problems + [
        f"shape of {name}: {shape} in the LoRA, {tuple(base[name].shape)} in the base"
        for name, shape in wanted.items()
        if name in base and tuple(base[name].shape) != shape
    ]


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> float:
    """The largest difference of any weight that two LoRAs give on one base, relative to the largest weight of its tensor.

    Raises:
        UserError: listing every name that only one of the two has, or as `merge`.
    """
    problems = [f"only in one of the two: {name}" for name in sorted(set(first) ^ set(second))]
    _refuse(problems, "what was written and what was read back differ")
    largest = 0.0
    sides = split(first), split(second)
    for module in sides[0][0]:
        largest = max(largest, _relative(*(base[f"{module}.weight"].float() + pairs[module].delta() for pairs, _ in sides)))
    for name in sides[0][1]:
        largest = max(largest, _relative(*(others[name].float() for _, others in sides)))
    return largest


def _relative(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-12)) if first.numel() else 0.0


# --- extraction ---


@dataclass(frozen=True)
class Extraction:
    """A LoRA made of the difference of two networks.

    Attributes:
        state: as a checkpoint holds it.
        errors: layer -> Frobenius norm of what the rank cannot hold, relative to that of the difference.
        left_out: tensors that differ and are not in it.
    """

    state: dict[str, Tensor]
    errors: dict[str, float]
    left_out: tuple[str, ...]


def extract(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    layers: Iterable[str],
    rank: int,
    others: Others = "refuse",
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Extraction:
    """The nearest change of a rank to every linear layer that differs.

    Args:
        base: weights that the LoRA will stand on.
        tuned: weights that it shall lead to.
        layers: names of the linear layers.
        rank: at most; a small layer has no more than its smaller side.
        others: what happens to other tensors that differ: refuse, keep them whole, or drop them.
        device: where the decompositions run.
        progress: called with a layer's name and relative error.

    Raises:
        UserError: a rank below 1, two networks of other names or shapes, no difference, or other tensors that differ and `others` is refuse.
    """
    if rank < 1:
        raise UserError(f"a rank of {rank} holds nothing; it is at least 1, and often 16 to 128")
    problems = [f"only in {'the base' if name in base else 'the tuned network'}: {name}" for name in sorted(set(base) ^ set(tuned))]
    problems += [f"shape of {n}: {tuple(base[n].shape)} and {tuple(tuned[n].shape)}" for n in base if n in tuned and base[n].shape != tuned[n].shape]
    _refuse(problems, "the two networks are not alike, so their difference is no LoRA")
    layers = list(layers)
    weights = {f"{layer}.weight" for layer in layers}
    differing = {name for name in base if not _equal(base[name], tuned[name])}
    if not differing:
        raise UserError("the two networks have the same weights: there is nothing to extract")
    further = [name for name in base if name in differing - weights]
    if further and others == "refuse":
        hint = "Say whether to keep them whole (--others keep) or to leave them as in the base (--others drop)."
        _refuse([f"differs: {name}" for name in further], "tensors that are not weights of linear layers differ, and a LoRA does not hold them", hint)
    state: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for layer in layers:
        name = f"{layer}.weight"
        if name in differing:
            pair, errors[layer] = nearest(tuned[name].float() - base[name].float(), rank, device)
            state |= pair.tensors(layer)
            if progress:
                progress(layer, errors[layer])
    if others == "keep":
        state |= {name: tuned[name] for name in further}
    return Extraction(state, errors, tuple(further) if others == "drop" else ())


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers, whatever their types: an imported base is often bfloat16, what was trained is fp32."""
    common = torch.promote_types(first.dtype, second.dtype)
    return torch.equal(first.to(common), second.to(common))


def nearest(delta: Tensor, rank: int, device: str = "cpu") -> tuple[LowRank, float]:
    """The change of a rank that is nearest to `delta` in the Frobenius norm, and its relative error; both factors have the same norm."""
    left, values, right = torch.linalg.svd(delta.to(device, torch.float32), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    error = float(values[rank:].norm() / values.norm().clamp(min=1e-30))
    down, up = (factor.cpu().contiguous() for factor in (root[:, None] * right[:rank], left[:, :rank] * root))
    return LowRank(down, up, float(rank)), error


# --- ComfyUI ---


def to_comfyui(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys that ComfyUI's LoRA loader reads: low-rank pairs, and for other tensors their difference from the base (`diff`, `diff_b`).

    Raises:
        UserError: as `merge`.
    """
    pairs, others = split(state)
    _refuse(_misfits(pairs, others, base), "the LoRA does not fit its base and nothing was written")
    named = {name: tensor for module, pair in pairs.items() for name, tensor in pair.tensors(module).items()}
    named |= {_difference_key(name, base): tensor.float() - base[name].float() for name, tensor in others.items()}
    return {COMFYUI_PREFIX + name: tensor.contiguous() for name, tensor in named.items()}


def from_comfyui(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `to_comfyui` wrote, as a checkpoint holds it. A layer without alpha has its rank as alpha, as there.

    Raises:
        UserError: listing every key that the base has no place for.
    """
    targets = {_difference_key(name, base): name for name in base}
    state: dict[str, Tensor] = {}
    unmatched: list[str] = []
    for key, tensor in tensors.items():
        name = key.removeprefix(COMFYUI_PREFIX)
        if name == key:
            unmatched.append(f"unmatched: {key} (keys begin with {COMFYUI_PREFIX})")
        elif name.endswith((DOWN, UP, ALPHA)):
            state[name] = tensor
        elif name in targets and tensor.shape == base[targets[name]].shape:
            state[targets[name]] = base[targets[name]].float() + tensor.float()
        else:
            unmatched.append(f"unmatched: {key}.{did_you_mean(name, targets)}")
    for name in [name for name in state if name.endswith(DOWN)]:
        state.setdefault(name.removesuffix(DOWN) + ALPHA, torch.tensor(float(state[name].shape[0])))
    problems = _incomplete(state) or _misfits(*split(state), base)
    _refuse(unmatched + problems, "the LoRA does not fit its base and nothing was loaded")
    return state


def _difference_key(name: str, base: Mapping[str, Tensor]) -> str:
    stem, _, kind = name.rpartition(".")
    if kind == "weight":
        return f"{stem}.diff"
    return f"{stem}.diff_b" if kind == "bias" and f"{stem}.weight" in base else f"{name}.diff"


def _refuse(problems: list[str], what: str, hint: str = "") -> None:
    if problems:
        _raise(problems, what, hint)


def _raise(problems: list[str], what: str, hint: str) -> NoReturn:
    listed = "".join(f"\n  {problem}" for problem in problems)
    raise UserError(f"{what}:{listed}" + (f"\n{hint}" if hint else ""))

"""Weights in eight bits a number: a quarter of the bytes of float32, for files that travel. Read back, they are float32 again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

#: what a tensor's scales are called, after its own name; no parameter can have such a name
SCALES = "/scales"
#: smaller tensors are kept as they are: they are no bytes, and biases and norms are what small errors hurt most
SMALLEST = 1024
#: of the largest number of a row
LARGEST_ERROR = 0.5 / 127


def to_eight_bit(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """int8 in place of every large tensor, with one float32 scale per row (first axis), the largest of the row being 127."""
    stored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2 or value.numel() < SMALLEST or not value.is_floating_point():
            stored[name] = value
            continue
        rows = value.float().flatten(1)
        scales = rows.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        stored[name] = (rows / scales[:, None]).round().to(torch.int8).view(value.shape)
        stored[f"{name}{SCALES}"] = scales
    return stored


def from_eight_bit(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 of every tensor that has scales; the others as they are."""
    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(SCALES):
            continue
        scales = stored.get(f"{name}{SCALES}")
        weights[name] = value if scales is None else (value.float().flatten(1) * scales[:, None]).view(value.shape)
    return weights


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whether in eight bits or not."""
    return from_eight_bit(load_file(path))


def make_eight_bit(path: str | Path) -> None:
    """Rewrite a safetensors file in eight bits."""
    save_file(to_eight_bit(load_weights(path)), path)

"""What an evaluation and a training step of a denoiser compute and keep, measured on the meta device. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_pre_hook

from flowact.budget.accelerator import Accelerator, Flops, Meter
from flowact.errors import UserError
from flowact.models.attention import AttentionPlan
from flowact.models.base import Denoiser
from flowact.models.blocks import Geometry
from flowact.types import ConditionTokens, MemoryFeatures, WindowLayout


@dataclass(frozen=True)
class Precision:
    """Number types of training, by the words of `trainer.precision`.

    Attributes:
        name: "32-true", "bf16-mixed" (weights and gradients in float32, products in bfloat16) or "bf16-true" (master weights in the optimizer).
    """

    name: str

    @classmethod
    def of(cls, setting: Any) -> Precision:
        """The precision that a trainer is given; none is float32.

        Raises:
            UserError: another one.
        """
        names = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed"}
        name = names.get(str(setting), str(setting))
        if name not in ("32-true", "bf16-mixed", "bf16-true"):
            raise UserError(f"trainer.precision is {setting!r}; a plan can be made for 32-true, bf16-mixed and bf16-true")
        return cls(name)

    @property
    def autocast(self) -> bool:
        return self.name == "bf16-mixed"

    @property
    def weights(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bf16-true" else torch.float32

    @property
    def products(self) -> torch.dtype:
        """What matrix products are computed in."""
        return torch.float32 if self.name == "32-true" else torch.bfloat16


@dataclass(frozen=True)
class Sizes:
    """Sizes of what a denoiser sees.

    Attributes:
        latent: channels, height and width of a latent frame.
        text: rows and width of a caption.
        audio: features of a latent frame, and their width.
    """

    latent: tuple[int, int, int]
    text: tuple[int, int]
    audio: tuple[int, int]

    def window(self, layout: WindowLayout, batch: int, kept: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, ConditionTokens]:
        """Latents, noise levels and conditions on the meta device; see `Denoiser.forward`."""
        frames = layout.num_stream_frames if kept else layout.num_frames
        segments = len(layout.segments) - (layout.num_memory_segments if kept else 0)

        def empty(*shape: int) -> Tensor:
            return torch.empty(batch, *shape, dtype=dtype, device="meta")

        conditions = ConditionTokens(empty(segments, *self.text), empty(frames, *self.audio))
        return empty(frames, *self.latent), empty(frames).float(), conditions


@dataclass(frozen=True)
class EvaluationCost:
    """One forward pass without gradients.

    Attributes:
        flops: computed, for the whole batch.
        operations: see `Meter`.
        peak_bytes: most bytes alive at a time beside weights and inputs.
        result_bytes: of what it returns.
        plan: order and sizes of the tokens in attention; None for networks that do not attend as ours do.
    """

    flops: Flops
    operations: int
    peak_bytes: int
    result_bytes: int
    plan: AttentionPlan | None


@dataclass(frozen=True)
class TrainingCost:
    """One forward and backward pass.

    Attributes:
        flops: computed, with what activation checkpointing computes again, for the whole batch.
        operations: see `Meter`.
        saved_bytes: kept for the backward pass, each storage once, without copies of weights.
        copied_bytes: copies of weights in another number type that are kept for the backward pass; the same for any batch.
        peak_bytes: most bytes alive at a time beside weights, inputs and gradients of weights.
    """

    flops: Flops
    operations: int
    saved_bytes: int
    copied_bytes: int
    peak_bytes: int


def evaluation_cost(
    network: Denoiser, sizes: Sizes, layout: WindowLayout, precision: Precision, *, kept: bool = False, batch: int = 1, on_cpu: bool = False
) -> EvaluationCost:
    """Cost of a forward pass over a window, or over its stream alone in front of kept memory.

    Args:
        network: on the meta device.
        sizes: of its inputs.
        layout: of the whole window; of memory segments alone it is the cost of encoding them.
        precision: number types.
        kept: features of memory are handed in.
        batch: samples.
        on_cpu: see `Accelerator`.
    """
    network = network.to(precision.weights).eval()
    latents, sigma, conditions = sizes.window(layout, batch, kept, precision.weights)
    with torch.no_grad(), _frozen(network):
        features: dict[str, MemoryFeatures] = {}
        if kept:
            memory, _, memory_conditions = sizes.window(layout.memory, batch, False, precision.weights)
            with Accelerator(precision.autocast, on_cpu):
                features = {"memory": network.encode_memory(memory, memory_conditions, layout.memory)}
        given = [*network.parameters(), *network.buffers(), latents, sigma, *_tensors(conditions), *_tensors(features)]
        with _plans() as plans, Meter(given) as meter, Accelerator(precision.autocast, on_cpu):
            if layout.num_stream_frames:
                result: Any = network(latents, sigma, conditions, layout, **features)
            else:
                result = network.encode_memory(latents, conditions, layout)
    unique = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(result)}
    return EvaluationCost(meter.flops, meter.operations, meter.peak, sum(unique.values()), plans[0] if plans else None)


def training_cost(network: Denoiser, sizes: Sizes, layout: WindowLayout, precision: Precision, batch: int = 1, on_cpu: bool = False) -> TrainingCost:
    """Cost of a forward and backward pass over a window. Arguments as of `evaluation_cost`."""
    network = network.to(precision.weights).train()
    with Accelerator(precision.autocast, on_cpu) as device:
        meter, result = _forward(network, sizes, layout, precision, batch, device)
        saved, copied = meter.alive, meter.copies_of_weights

        def finish(weight: Tensor) -> None:
            weight.grad = None  # what gradients need is a matter of the ZeRO stage
            device.forget_copy(weight)

        hooks = [weight.register_post_accumulate_grad_hook(finish) for weight in network.parameters() if weight.requires_grad]
        with meter:
            # an edge, not a tensor: functions of tensors would put the accelerator aside, and checkpoints compute again on the way back
            torch.autograd.backward(get_gradient_edge(result.sum()))
    for hook in hooks:
        hook.remove()
    return TrainingCost(meter.flops, meter.operations, saved - copied, copied, meter.peak)


def saved_bytes(network: Denoiser, sizes: Sizes, layout: WindowLayout, precision: Precision, batch: int = 1, on_cpu: bool = False) -> int:
    """`TrainingCost.saved_bytes` alone, which takes a forward pass."""
    with Accelerator(precision.autocast, on_cpu) as device:
        meter, result = _forward(network.to(precision.weights).train(), sizes, layout, precision, batch, device)
    found = meter.alive - meter.copies_of_weights
    del result  # it holds what was saved
    return found


def _forward(
    network: Denoiser, sizes: Sizes, layout: WindowLayout, precision: Precision, batch: int, device: Accelerator
) -> tuple[Meter, Tensor]:
    latents, sigma, conditions = sizes.window(layout, batch, False, precision.weights)
    with Meter([*network.parameters(), *network.buffers(), latents, sigma, *_tensors(conditions)]) as meter:
        result = network(latents, sigma, conditions, layout)
        device.forget_copies()
    return meter, result


def _tensors(value: Any) -> list[Tensor]:
    """Tensors of records, tuples and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(tuple(value.values()))
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return _tensors(tuple(vars(value).values())) if hasattr(value, "__dict__") else []


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """As a stream and a teacher hold it: autocast keeps no copies of weights that do not train."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    yield
    for parameter in trained:
        parameter.requires_grad_(True)


@contextmanager
def _plans() -> Iterator[list[AttentionPlan]]:
    """Attention plans that blocks are handed."""
    found: list[AttentionPlan] = []

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.extend(argument.plan for argument in arguments if isinstance(argument, Geometry))

    handle = register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()

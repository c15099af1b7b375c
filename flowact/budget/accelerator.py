"""What a device does with tensors that have no data: number types under autocast, fused attention, memory that is alive, products.

Networks run on torch's meta device, so their own forward and backward pass is what is measured, whatever they are. Two things differ there from a
real device, and are put right here: autocast does not know the meta device, and attention falls back to a form that keeps all its weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_OWNERS = (torch, torch.Tensor, torch.linalg, nnf)


def _functions(*names: str) -> frozenset[Any]:
    return frozenset(getattr(owner, name) for name in names for owner in _OWNERS if hasattr(owner, name))


#: what autocast computes in bfloat16, on GPUs and on CPUs
_LOWER = _functions(
    *("linear", "matmul", "__matmul__", "mm", "bmm", "mv", "addmm", "addmv", "addr", "addbmm", "baddbmm", "einsum"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention"),
)
#: what it computes in float32 on GPUs: those functions of torch's list that networks here may come upon
_FULL = _functions(
    *("layer_norm", "native_layer_norm", "rms_norm", "group_norm", "softmax", "log_softmax", "exp", "log", "pow", "rsqrt", "reciprocal"),
    *("norm", "vector_norm", "cumsum", "cumprod", "prod", "sum", "softplus", "mse_loss", "l1_loss", "cosine_similarity", "interpolate"),
)


class Accelerator(TorchFunctionMode):
    """Tensors on the meta device behave as on a device with fused attention, under autocast if asked.

    Args:
        autocast: bfloat16 autocast.
        on_cpu: autocast as on CPUs, which leaves normalisation as it is; attention with gradients in bfloat16 is written out there
            (`flowact.models.attention.attention`).
    """

    def __init__(self, autocast: bool, on_cpu: bool = False) -> None:
        super().__init__()
        self.autocast = autocast
        self.on_cpu = on_cpu
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # the weight too: an object that is gone would give its id to another

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if self.autocast and function in _LOWER:
            arguments, options = self._cast(arguments, torch.bfloat16), self._cast(options, torch.bfloat16)
        elif self.autocast and not self.on_cpu and function in _FULL:
            arguments, options = self._cast(arguments, torch.float32), self._cast(options, torch.float32)
        if function is nnf.scaled_dot_product_attention:
            return self._attention(*arguments, **options)
        return function(*arguments, **options)

    def forget_copies(self) -> None:
        """The end of an autocast region: its copies of weights live on only where a backward pass needs them."""
        self._copies.clear()

    def forget_copy(self, weight: Tensor) -> None:
        """The end of the autocast region in which a checkpointed part was computed again."""
        self._copies.pop(id(weight), None)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._cast(part, dtype) for part in value)
        if isinstance(value, dict):
            return {name: self._cast(part, dtype) for name, part in value.items()}
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.bfloat16) or value.dtype == dtype:
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.to(dtype)
        if id(value) not in self._copies:  # as autocast does: one copy of a weight for the whole region
            self._copies[id(value)] = value, value.to(dtype)
        return self._copies[id(value)][1]

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
        aten = torch.ops.aten
        if self.on_cpu and attn_mask is None and query.dtype == torch.bfloat16 and query.requires_grad:
            return torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2), dim=-1) @ value
        if self.on_cpu:
            return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=attn_mask)[0]
        if attn_mask is None:
            return aten._scaled_dot_product_flash_attention(query, key, value)[0]
        bias = torch.zeros_like(attn_mask, dtype=query.dtype) if attn_mask.dtype == torch.bool else attn_mask
        bias = bias.expand(*query.shape[:3], key.shape[2])
        return aten._scaled_dot_product_efficient_attention(query, key, value, bias, query.requires_grad)[0]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, two for a multiplication with addition, of matrix products and convolutions, and of fused attention."""

    linear: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        return self.linear + self.attention

    @property
    def training(self) -> float:
        """Of a forward and a backward pass without recomputation: fused attention multiplies five times on the way back."""
        return 3.0 * self.linear + 3.5 * self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)


class Meter(TorchDispatchMode):
    """Counts products by torch's own formulas, and the bytes of numbers that operations allocate, as long as their storage is alive.

    Whole numbers (indices, states of random generators) are a few bytes, and left out.

    torch's FlopCounterMode gives the same counts, but holds on to what checkpoints compute again. Hooks for saved tensors would miss what a function
    keeps in a closure to compute again, and do not see past hooks of the network's own.

    Args:
        given: tensors that were there before (weights, inputs); they and views of them do not count.

    Attributes:
        flops: so far.
        operations: so far, without those that only look at a tensor in another way.
        alive: bytes now.
        peak: most bytes so far.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops = Flops()
        self.operations = 0
        self.alive = 0
        self.peak = 0
        self._given = {tensor.untyped_storage()._cdata: tensor for tensor in given}
        self._weights = {address for address, tensor in self._given.items() if isinstance(tensor, torch.nn.Parameter)}
        self._known: dict[int, tuple[weakref.ref[Any], int, bool]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        result = operation(*arguments, **options)
        self.operations += not operation.is_view
        formula = flop_registry.get(operation.overloadpacket)
        if formula is not None:
            count = formula(*arguments, **options, out_val=result)
            self.flops += Flops(attention=count) if "attention" in str(operation) else Flops(count)
        is_copy = operation is torch.ops.aten._to_copy.default and arguments[0].untyped_storage()._cdata in self._weights
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.is_floating_point():
                self._add(value.untyped_storage(), is_copy)
        return result

    @property
    def copies_of_weights(self) -> int:
        """Bytes now alive that are weights in another number type."""
        return sum(size for _, size, is_copy in self._known.values() if is_copy)

    def _add(self, storage: torch.UntypedStorage, is_copy: bool) -> None:
        address = storage._cdata
        if address in self._given or address in self._known:
            return
        size = storage.nbytes()
        self._known[address] = (weakref.ref(storage, lambda _: self._remove(address)), size, is_copy)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _remove(self, address: int) -> None:
        self.alive -= self._known.pop(address)[1]

"""Counting the operations of training steps while they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


#: torch's formulas, and those of attention on CPUs, which torch lacks
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class OperationCounter(TorchDispatchMode):
    """Counts what matrix products, convolutions and fused attention compute, two operations for a multiplication with addition.

    What checkpoints compute again is counted apart: it is work of the device and none of the model (Chowdhery et al. 2022, appendix B). torch's
    FlopCounterMode gives the same counts, but cannot tell the two.

    Attributes:
        model: operations of forward and backward passes.
        repeated: operations of forward passes that the backward pass repeats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = 0.0
        self.repeated = 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        result = operation(*arguments, **options)
        formula = _FORMULAS.get(getattr(operation, "overloadpacket", None))
        if formula is not None:
            count = formula(*arguments, **options, out_val=result)
            # inside of a backward pass only a checkpoint, which computes its part again, has gradients switched on
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
                self.repeated += count
            else:
                self.model += count
        return result


def can_be_counted(module: nn.Module) -> bool:
    """Whether a network runs operation by operation: what torch.compile makes of it, FlexAttention too, shows none."""
    return not any(
        isinstance(part, OptimizedModule) or part._compiled_call_impl is not None or getattr(part, "attention", None) == "flex"
        for part in module.modules()
    )

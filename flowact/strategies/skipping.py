"""Steps that change nothing because their gradient is not finite. Nothing here imports DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SKIPPED = "flowact_skipped"


def skip_unless_finite(optimizer: Any, strategy: Any) -> None:
    """Let the coming step change neither weights nor moments if a process holds a gradient that is not finite, or norms that overflow.

    Between the last backward pass and the step. A collective operation: every process calls it, whatever it saw, and all do the same. ZeRO's
    optimizers own the gradients from stage 1 on; they compute the norm anyway and skip by themselves. All others make a step without gradients.

    Args:
        optimizer: whose step comes.
        strategy: the trainer's strategy.
    """
    if _looks_itself(optimizer):
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = bool(torch.isfinite(total_norm(gradients))) if gradients else True
    skipped = not strategy.reduce_boolean_decision(finite)
    if skipped:
        optimizer.zero_grad(set_to_none=True)
    setattr(optimizer, _SKIPPED, skipped)


def step_was_skipped(optimizer: Any) -> bool:
    """Whether an optimizer's last step changed nothing, because its gradient was not finite. The same on every process."""
    return bool(optimizer.overflow if _looks_itself(optimizer) else getattr(optimizer, _SKIPPED, False))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Norm of all gradients as one vector. A collective operation where they are partitioned (FSDP)."""
    norm: Any = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _looks_itself(optimizer: Any) -> bool:
    return hasattr(optimizer, "overflow")

"""Weights of a module whose parameters a strategy may have cast to bf16, partitioned or both.

The functions recognise parameters of DeepSpeed and of `FullySharded`, which are DTensors, by their attributes, so that nothing here imports them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from flowact.errors import UserError


def full_fp32_weights(module: nn.Module, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """State of `module` as a single process without mixed precision would hold it.

    A collective operation: every process calls it, while the strategy is set up (inside fit).

    Args:
        module: the whole trained module or a part of it, whatever the strategy: ZeRO 0 to 3, FSDP, DDP, a single device.
        only: names to take; None takes all.

    Returns:
        On the process with rank 0, name -> tensor on the CPU for parameters and persistent buffers; floating-point tensors
        are fp32 and come from the optimizer's master weights where the module itself holds bf16. Empty on other processes.
    """
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if only is not None and name not in only:
            continue
        full = _full_parameter(value) if isinstance(value, nn.Parameter) else value.detach()
        if _rank() == 0:
            full = full.float() if full.is_floating_point() else full
            state[name] = full.detach().to("cpu", copy=True).contiguous()
    return state


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy under which `full_fp32_weights` would not see whole weights.

    Raises:
        UserError: Lightning's FSDP.
    """
    from lightning.pytorch.strategies import FSDPStrategy

    if isinstance(strategy, FSDPStrategy):
        raise UserError("trainer.strategy is Lightning's fsdp (FSDP1), which hides whole weights from checkpoints; set it to FullySharded.")


def is_partitioned(parameter: Tensor) -> bool:
    """Whether this process holds only its share of the parameter (ZeRO stage 3, FSDP)."""
    return hasattr(parameter, "ds_tensor") or _is_dtensor(parameter)


def local_values(parameter: Tensor) -> Tensor:
    """The values that this process stores: a flat share under ZeRO stage 3, some rows under FSDP, the parameter's own data otherwise."""
    if _is_dtensor(parameter):
        return parameter.detach().to_local()  # type: ignore[attr-defined]
    return parameter.ds_tensor.data if is_partitioned(parameter) else parameter.data  # type: ignore[attr-defined]


def gather_values(values: Tensor, parameter: Tensor) -> Tensor:
    """Full tensor from every process's `values`, which lie like `local_values(parameter)`. A collective operation where weights are partitioned."""
    if _is_dtensor(parameter):
        place: Any = parameter
        shape = {"shape": parameter.shape, "stride": parameter.stride()}
        return type(place).from_local(values, place.device_mesh, place.placements, run_check=False, **shape).full_tensor()
    if not is_partitioned(parameter):
        return values
    group = parameter.ds_process_group  # type: ignore[attr-defined]
    shares = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(shares, values.contiguous(), group=group)
    return torch.cat(shares)[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]


def scatter_values(full: Tensor, parameter: Tensor) -> Tensor:
    """This process's share of `full`, laid out like `local_values(parameter)`: the inverse of `gather_values`."""
    if _is_dtensor(parameter):  # every process has the whole, so nothing is sent
        from torch.distributed.tensor import distribute_tensor

        place: Any = parameter
        return distribute_tensor(full, place.device_mesh, place.placements, src_data_rank=None).to_local()
    if not is_partitioned(parameter):
        return full.view(parameter.shape)
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    rank = torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
    share = full.new_zeros(size)
    own = full.flatten()[rank * size : (rank + 1) * size]
    share[: own.numel()] = own
    return share


def _is_dtensor(parameter: Tensor) -> bool:
    return hasattr(parameter, "placements")


def _full_parameter(parameter: nn.Parameter) -> Tensor:
    if is_partitioned(parameter):
        if parameter.requires_grad and not _is_dtensor(parameter):
            return parameter._z3_optimizer.get_full_hp_param(parameter)  # type: ignore[attr-defined]
        return gather_values(local_values(parameter), parameter)
    if hasattr(parameter, "_hp_mapping") and parameter.dtype != torch.float32:  # None on processes without a share: still collective
        return parameter.get_full_hp_param()  # type: ignore[attr-defined]
    return parameter.detach()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0

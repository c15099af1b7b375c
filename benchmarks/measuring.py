"""How the benchmarks measure: process CPU time side by side, heavy operations alone, memory that stays allocated."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEAVY = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def cpu_seconds(first: Callable[[], object], second: Callable[[], object], rounds: int = 15, calls: int = 3) -> tuple[float, float]:
    """CPU time of the process for one call of each, the least of several rounds in which both take turns."""
    best = [float("inf"), float("inf")]
    for call in (first, second):
        call()
    for _ in range(rounds):
        for index, call in enumerate((first, second)):
            begin = time.process_time()
            for _ in range(calls):
                call()
            best[index] = min(best[index], (time.process_time() - begin) / calls)
    return best[0], best[1]


class _HeavyOperations(TorchDispatchMode):
    """Records matrix products and attention with their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if operation in HEAVY:
            copies = tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in arguments)
            self.calls.append((operation, copies, options or {}))
        return operation(*arguments, **(options or {}))


def floor_of(call: Callable[[], object]) -> Callable[[], None]:
    """The matrix products and attention of a call, to be replayed without anything between them."""
    with _HeavyOperations() as heavy:
        call()
    assert heavy.calls

    @torch.no_grad()
    def replay() -> None:
        for operation, arguments, options in heavy.calls:
            operation(*arguments, **options)

    return replay


class _Allocations(TorchDispatchMode):
    """Every storage that operations return, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operation(*arguments, **(options or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.storages[StorageWeakRef(storage)] = storage.nbytes()
        return result


def alive_after(call: Callable[[], object], given: list[Tensor]) -> int:
    """Bytes that a call allocated and that are still alive while its result is: the result, and what is kept for the backward pass.

    Args:
        call: runs forward with gradients.
        given: tensors that were there before (inputs, weights); views of them do not count.
    """
    before = {StorageWeakRef(tensor.untyped_storage()) for tensor in given}
    with _Allocations() as allocations:
        result = call()
    alive = sum(size for storage, size in allocations.storages.items() if not storage.expired() and storage not in before)
    del result
    return alive


def report(name: str, ratios: dict[str, float], what: str) -> None:
    """Print a benchmark's result as one JSON line."""
    facts = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps({"benchmark": name, "ratios": ratios, "what": what, **facts, "load": os.getloadavg()[0]}))

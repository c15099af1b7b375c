"""What devices reach: as their makers state, or as this machine does."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from flowact.errors import UserError, did_you_mean

_TERA, _GIB = 1e12, 1 << 30
#: that an operation takes to start in eager mode, however small it is
START_SECONDS = 4e-6


@dataclass(frozen=True)
class Work:
    """What a device is to do.

    Attributes:
        flops: products.
        num_bytes: memory traffic.
        operations: to be started.
    """

    flops: float = 0.0
    num_bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.num_bytes + other.num_bytes, self.operations + other.operations)

    def __mul__(self, factor: float) -> Work:
        return Work(self.flops * factor, self.num_bytes * factor, self.operations * factor)


@dataclass(frozen=True)
class Device:
    """A device's limits.

    Attributes:
        name: for people.
        bf16_flops: dense matrix products in bfloat16, operations a second.
        fp32_flops: in float32.
        bytes_per_second: memory traffic; None if unknown.
        memory_bytes: as torch reports it; None if unknown.
        is_cpu: computes as CPUs do (see `flowact.budget.accelerator.Accelerator`).
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    bytes_per_second: float | None = None
    memory_bytes: int | None = None
    is_cpu: bool = False

    @property
    def usable_bytes(self) -> float:
        """What a training may take of the memory; the rest is CUDA's and NCCL's, and lost between blocks. Without limit if unknown."""
        return float("inf") if self.memory_bytes is None else 0.9 * self.memory_bytes

    def flops_per_second(self, dtype: torch.dtype) -> float:
        """Peak of matrix products in a number type."""
        return self.fp32_flops if dtype == torch.float32 else self.bf16_flops

    def seconds(self, work: Work, dtype: torch.dtype, utilisation: float) -> float:
        """Time of some work: the longest of its products, at a share of the peak, its memory traffic, and starting its operations."""
        traffic = 0.0 if self.bytes_per_second is None else work.num_bytes / self.bytes_per_second
        return max(work.flops / (self.flops_per_second(dtype) * utilisation), traffic, work.operations * START_SECONDS)


#: from the makers' data sheets, without sparsity; float32 without TF32, which torch leaves off
DEVICES = {
    "h100": Device("H100 SXM", 989 * _TERA, 67 * _TERA, 3.35 * _TERA, 79 * _GIB),
    "h200": Device("H200 SXM", 989 * _TERA, 67 * _TERA, 4.8 * _TERA, 139 * _GIB),
    "a100": Device("A100 SXM 80 GB", 312 * _TERA, 19.5 * _TERA, 2.04 * _TERA, 79 * _GIB),
    "rtx4090": Device("RTX 4090", 165 * _TERA, 82.6 * _TERA, 1.01 * _TERA, 23 * _GIB),
    "b200": Device("B200", 2250 * _TERA, 75 * _TERA, 7.7 * _TERA, 178 * _GIB),
    "l40s": Device("L40S", 362 * _TERA, 91.6 * _TERA, 0.864 * _TERA, 44 * _GIB),
    "rtx5090": Device("RTX 5090", 209 * _TERA, 105 * _TERA, 1.79 * _TERA, 31 * _GIB),
    "rtx3090": Device("RTX 3090", 71 * _TERA, 35.6 * _TERA, 0.936 * _TERA, 23 * _GIB),
}
#: how torch's names of them end; variants with other clocks (PCIe, NVL, D) are other devices
_ENDINGS = {
    "h100": r"H100 80GB HBM3",
    "h200": r"H200",
    "a100": r"A100-(SXM4|PCIE)-[48]0GB",
    "rtx4090": r"RTX 4090",
    "b200": r"\bB200",
    "l40s": r"L40S",
    "rtx5090": r"RTX 5090",
    "rtx3090": r"RTX 3090",
}


def named_device(torch_name: str) -> Device | None:
    """The device that torch calls so, such as "NVIDIA H100 80GB HBM3"; None if its figures are not known here."""
    return next((DEVICES[name] for name, ending in _ENDINGS.items() if re.search(f"{ending}$", torch_name)), None)


def device_at_hand(device: torch.device) -> Device | None:
    """What a device of this machine reaches: a CPU is measured, see `this_cpu`; None if nothing is known."""
    if device.type == "cuda":
        return named_device(torch.cuda.get_device_name(device))
    return this_cpu() if device.type == "cpu" else None


def find_device(name: str) -> Device:
    """A device by name; "cpu" is this machine; numbers state TFLOP/s, and if wanted TB/s and GiB, as in "400,2.0,48".

    Raises:
        UserError: neither.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name == "cpu":
        return this_cpu()
    try:
        flops, bandwidth, memory = (*(float(part) for part in name.split(",")), 0.0, 0.0)[:3]
    except ValueError:
        flops = bandwidth = memory = -1.0
    if flops <= 0 or min(bandwidth, memory) < 0 or name.count(",") > 2:
        hint = did_you_mean(name, [*DEVICES, "cpu"])
        raise UserError(f"--device {name}: write a name, or the device's TFLOP/s, TB/s and GiB such as 400,2.0,48.{hint}")
    return Device(f"{flops:g} TFLOP/s", flops * _TERA, flops * _TERA, bandwidth * _TERA or None, int(memory * _GIB) or None)


def this_cpu() -> Device:
    """This machine's CPU, as torch uses it now: its peak is measured with matrix products, which takes a fraction of a second."""
    size = 512
    operations = {}
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(size, size, dtype=dtype)
        operations[dtype] = 2 * size**3 / _least_seconds(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
    numbers = torch.ones(1 << 22)
    traffic = 2 * numbers.nbytes / _least_seconds(numbers.clone)
    name = f"this CPU, {torch.get_num_threads()} threads"
    memory = psutil.virtual_memory().total
    return Device(name, operations[torch.bfloat16], operations[torch.float32], traffic, memory, is_cpu=True)


def _least_seconds(work: Callable[[], object], repeats: int = 2) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)

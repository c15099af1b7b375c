"""Choices that the quickstart makes for CPUs, each as a ratio to what it replaces, measured side by side on one thread.

    OMP_NUM_THREADS=1 python benchmarks/cpu_kernels.py

CPU time of the process, the least of several runs, A and B in turn; a ratio below 1 means that the choice is faster. One JSON line.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from measuring import cpu_seconds, report

from flowact.models.attention import attention

TOKENS, HEADS, WIDTH, BATCH = 344, 4, 192, 6


def backward_of(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> Callable[[], None]:
    inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    gradient = torch.randn_like(function(*inputs))
    return lambda: function(*inputs).backward(gradient)


def main() -> None:
    torch.set_num_threads(1)
    heads = (BATCH, HEADS, TOKENS, WIDTH // HEADS)
    hidden = (BATCH * TOKENS, 4 * WIDTH)
    tokens = (BATCH, TOKENS, 2, HEADS, WIDTH // HEADS)
    size = tokens[-1:]
    pairs = {
        "attention written out / fused": (backward_of(attention, *[heads] * 3), backward_of(nnf.scaled_dot_product_attention, *[heads] * 3)),
        "silu / gelu tanh": (backward_of(nnf.silu, hidden), backward_of(lambda x: nnf.gelu(x, approximate="tanh"), hidden)),
        "layer norm / rms norm of queries and keys": (
            backward_of(lambda x: nnf.layer_norm(x, size), tokens),
            backward_of(lambda x: nnf.rms_norm(x, size), tokens),
        ),
    }
    ratios = {}
    for name, (choice, other) in pairs.items():
        mine, theirs = cpu_seconds(choice, other)
        ratios[name] = round(mine / theirs, 3)
    report("cpu_kernels", ratios, "forward and backward, bf16")


if __name__ == "__main__":
    main()

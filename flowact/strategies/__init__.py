"""Strategies: how a stage's module is placed on processes and devices.

`flowact.strategies.deepspeed.DeepSpeed` and `flowact.strategies.fully_sharded.FullySharded` are not imported here: they need deepspeed and
Lightning's strategies, the functions below do not.
"""

from flowact.strategies.skipping import skip_unless_finite, step_was_skipped, total_norm
from flowact.strategies.weights import check_strategy, full_fp32_weights, gather_values, is_partitioned, local_values, scatter_values

__all__ = [
    "check_strategy",
    "full_fp32_weights",
    "gather_values",
    "is_partitioned",
    "local_values",
    "scatter_values",
    "skip_unless_finite",
    "step_was_skipped",
    "total_norm",
]

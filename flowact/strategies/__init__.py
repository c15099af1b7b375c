"""Strategies: how a stage's module is placed on processes and devices.

`flowact.strategies.deepspeed.DeepSpeed` is not imported here: it needs deepspeed, the functions below do not.
"""

from flowact.strategies.weights import full_fp32_weights, gather_values, is_partitioned, local_values, scatter_values

__all__ = ["full_fp32_weights", "gather_values", "is_partitioned", "local_values", "scatter_values"]

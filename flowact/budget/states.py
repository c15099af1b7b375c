"""What stays in a device's memory through training: weights, gradients, optimizer, by ZeRO stage (Rajbhandari et al. 2020, section 3).

As DeepSpeed 0.17 to 0.19 keep them: from stage 1 on the optimizer owns a float32 copy of its share of the weights, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowact.budget.costs import Precision

#: AdamW's two moments in float32
MOMENTS = 8
MASTER = 4
AVERAGE = 4
#: most parameters that DeepSpeed keeps gathered under stage 3; it lets go of none that comes again within as many (stage3_max_live_parameters and
#: stage3_max_reuse_distance)
GATHERED_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Strategy:
    """How the trainer shares the work.

    Attributes:
        processes: devices.
        zero: ZeRO stage; None for Lightning's own data parallelism.
        bucket_size: numbers in a communication bucket.
        overlaps: communication runs beside the backward pass, with a second bucket.
        offload_optimizer: the optimizer's part is not on the device.
        offload_parameters: weights are not on the device, but for those at work.
        partition_frozen: under stage 3 frozen networks are shared out too.
    """

    processes: int = 1
    zero: int | None = 2
    bucket_size: int = 50_000_000
    overlaps: bool = True
    offload_optimizer: bool = False
    offload_parameters: bool = False
    partition_frozen: bool = False


@dataclass(frozen=True)
class RoleSize:
    """Parameters of one network of a stage.

    Attributes:
        name: of the role.
        parameters: all.
        trained: those that train.
        averaged: a moving average of what trains is kept.
        followed: numbers of another network that it follows by a float32 average of its own, whole on each device.
    """

    name: str
    parameters: int
    trained: int
    averaged: bool = False
    followed: int = 0


@dataclass(frozen=True)
class States:
    """Bytes on one device.

    Attributes:
        zero: stage that they are for; None is data parallelism without DeepSpeed.
        weights: of trained networks.
        gradients: as they are when the backward pass ends.
        optimizer: moments, and master weights where there are any.
        average: moving average.
        frozen: weights of networks of which nothing trains; each device has them whole, unless they are partitioned.
        buffers: communication buckets, and weights that are gathered for use.
    """

    zero: int | None
    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.frozen + self.buffers


def states(roles: Sequence[RoleSize], precision: Precision, strategy: Strategy) -> States:
    """States of a stage's networks on one device.

    Args:
        roles: the networks.
        precision: number types.
        strategy: ZeRO stage and processes.
    """
    count, stage = strategy.processes, strategy.zero or 0
    size = torch.empty((), dtype=precision.weights).element_size()
    trains = [role for role in roles if role.trained]
    everything, trained = sum(role.parameters for role in trains), sum(role.trained for role in trains)
    keeps_engine = precision.name == "bf16-true" or strategy.offload_optimizer
    if count == 1 and stage < 3 and not keeps_engine:
        stage = 0  # `flowact.strategies.DeepSpeed` does so: alone there is nobody to share with

    def share(total: int, least_stage: int) -> int:
        return -(-total // count) if stage >= least_stage else total

    optimizer = share(trained * (MOMENTS + (MASTER if stage else 0)), 1)
    buffers = 0
    if count > 1 and stage:
        buffers = min(strategy.bucket_size, trained) * size * (2 if strategy.overlaps else 1)
    elif count > 1 and strategy.zero is None:
        buffers = trained * size  # DDP's buckets hold every gradient once more
    frozen = sum(role.parameters for role in roles if not role.trained)
    if stage == 3:
        buffers += min(GATHERED_PARAMETERS, everything) * size
        if strategy.partition_frozen:
            buffers += min(GATHERED_PARAMETERS, frozen) * size
            frozen = share(frozen, 3)
    return States(
        strategy.zero,
        0 if strategy.offload_parameters else share(everything * size, 3),
        share(trained * size, 2),
        0 if strategy.offload_optimizer else optimizer,
        share(sum(role.trained for role in trains if role.averaged) * AVERAGE, 3) + sum(role.followed for role in roles) * AVERAGE,
        frozen * size,
        buffers,
    )

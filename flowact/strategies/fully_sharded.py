"""Fully sharded data parallel (FSDP2), on GPUs and on CPUs (gloo)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from flowact.errors import UserError


class FullySharded(ModelParallelStrategy):
    """Weights, gradients and optimizer of the trained network shared out over all processes by PyTorch itself (FSDP2), without DeepSpeed.

    A stage that trains one network trains under it as it is. The members of each list of blocks are gathered one at a time, the rest of the network
    with them. Lightning's own "fsdp" (FSDP1) runs on GPUs only, and hides whole weights from averages and checkpoints.

    Precision is "32-true", or "bf16-mixed", which keeps fp32 weights and optimizer.

    Args:
        methods: names of the network's methods, besides `forward`, that compute with its weights.
        timeout_minutes: how long a collective operation may wait for a lost process.

    Raises:
        UserError: from fit: a stage that trains several networks or a LoRA, or another precision.
    """

    def __init__(self, methods: tuple[str, ...] = ("posterior", "reconstruct", "encode", "decode"), timeout_minutes: float = 30.0) -> None:
        super().__init__(save_distributed_checkpoint=True, timeout=timedelta(minutes=timeout_minutes))
        self.methods = tuple(methods)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Place the module, share out its network, build the optimizer."""
        assert self.model is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        precision = self.precision_plugin.precision
        if precision not in ("32-true", "bf16-mixed"):
            raise UserError(f"trainer.precision is {precision!r}; under FullySharded it is 32-true or bf16-mixed, which keep float32 weights.")
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            self._share_out(trainer.lightning_module)
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _share_out(self, stage: Any) -> None:
        if hasattr(stage, "roles"):
            raise UserError(f"{type(stage).__name__} trains several networks, which FullySharded cannot; set trainer.strategy to DeepSpeed.")
        network: nn.Module = stage.trained_module()
        if not all(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(f"{type(stage).__name__} trains beside frozen weights (a LoRA), which FullySharded cannot; use DeepSpeed or ddp.")
        mesh = self.device_mesh["data_parallel"]
        blocks = [block for members in network.modules() if isinstance(members, nn.ModuleList) for block in members]
        for block in reversed(blocks):  # inner ones first
            if not isinstance(block, nn.ModuleList | nn.ModuleDict):  # these are not called
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
        for method in self.methods:
            if hasattr(network, method):
                register_fsdp_forward_method(network, method)

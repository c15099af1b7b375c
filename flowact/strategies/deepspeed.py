"""Lightning's DeepSpeed strategy, made to run on CPUs too and to keep fp32 weights under mixed precision.

The only file that imports deepspeed; it does so when a `DeepSpeed` object is built, not when the module is imported.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.plugins.precision.utils import _convert_fp_tensor
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowact.errors import UserError

if TYPE_CHECKING:
    import deepspeed

_LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")


class AutocastPrecision(DeepSpeedPrecision):
    """DeepSpeed precision with Lightning's meaning of the words.

    - "32-true": fp32 everywhere.
    - "bf16-mixed": fp32 weights, gradients and optimizer; matrix products in bf16 under autocast. (Lightning's own plugin
      turns weights and inputs to bf16 here.)
    - "bf16-true": bf16 weights and gradients, fp32 master weights in the optimizer, inputs cast to bf16.

    Args:
        precision: one of the above.
        device_type: "cpu" or "cuda", where autocast applies.
    """

    def __init__(self, precision: Literal["32-true", "bf16-mixed", "bf16-true"], device_type: str) -> None:
        if precision not in ("32-true", "bf16-mixed", "bf16-true"):
            raise UserError(f"trainer.precision is {precision!r}; with DeepSpeed it is one of 32-true, bf16-mixed, bf16-true.")
        super().__init__(precision)
        self.device_type = device_type

    @property
    def autocasts(self) -> bool:
        return self.precision == "bf16-mixed"

    def convert_input(self, data: Any) -> Any:
        if self.autocasts:
            return data
        return apply_to_collection(data, function=_convert_fp_tensor, dtype=Tensor, dst_type=self._desired_dtype)

    def forward_context(self) -> AbstractContextManager:
        """Autocast under "bf16-mixed", the precision's default floating type otherwise."""
        if self.autocasts:
            return torch.autocast(self.device_type, torch.bfloat16)
        return super().forward_context() if self.precision != "32-true" else nullcontext()


class DeepSpeed(DeepSpeedStrategy):
    """DeepSpeed ZeRO on GPUs and on CPUs (gloo), one process or several.

    A process shares the CPU's cores evenly with its neighbours unless OMP_NUM_THREADS is set. Precision is chosen by
    `trainer.precision`, see `AutocastPrecision`; gradients are clipped by norm through `trainer.gradient_clip_val`. Frozen
    parameters are left out of the engine's checkpoint: they come from the recipe.

    Args:
        stage: ZeRO stage: 0 nothing is partitioned, 1 optimizer states, 2 and gradients, 3 and parameters.
        offload_optimizer: keep optimizer states off the accelerator.
        offload_parameters: keep parameters off the accelerator; stage 3 only.
        offload_device: where to offload to.
        nvme_path: folder on the NVMe drive; needed with `offload_device: nvme`.
        bucket_size: gradients and parameters are communicated in buckets of so many elements. Larger is fewer messages
            and more memory.
        overlap_communication: reduce gradients while the backward pass still runs. None: on GPUs only.
        timeout_minutes: how long a collective operation may wait for a lost process.
        extra: further DeepSpeed settings, merged over those made from the arguments above.

    Raises:
        UserError: settings that contradict each other, or an accelerator other than CUDA and CPU.
    """

    def __init__(
        self,
        stage: Literal[0, 1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        offload_device: Literal["cpu", "nvme"] = "cpu",
        nvme_path: str | None = None,
        bucket_size: int = 50_000_000,
        overlap_communication: bool | None = None,
        timeout_minutes: float = 30.0,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if stage not in (0, 1, 2, 3):
            raise UserError(f"strategy.stage is {stage}; ZeRO has stages 0, 1, 2 and 3.")
        if offload_parameters and stage != 3:
            raise UserError(f"strategy.offload_parameters needs stage 3, got stage {stage}.")
        if offload_optimizer and stage == 0:
            raise UserError("strategy.offload_optimizer needs stage 1, 2 or 3, got stage 0.")
        if offload_device == "nvme" and nvme_path is None:
            raise UserError("strategy.offload_device is nvme, so strategy.nvme_path must name a folder on that drive.")
        on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
        if not on_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is first imported
        offload = {"device": offload_device, "pin_memory": on_gpu} | ({"nvme_path": nvme_path} if nvme_path else {})
        zero: dict[str, Any] = {
            "stage": stage,
            "overlap_comm": on_gpu if overlap_communication is None else overlap_communication,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket_size,
            "allgather_bucket_size": bucket_size,
        }
        if offload_optimizer:
            zero["offload_optimizer"] = offload
        if offload_parameters:
            zero["offload_param"] = offload
        config: dict[str, Any] = {
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }
        super().__init__(
            config=_merge(config, extra or {}),
            exclude_frozen_parameters=True,
            logging_level=logging.WARNING,
            timeout=timedelta(minutes=timeout_minutes),
        )
        _skip_inference_kernels()
        self._environment_before: dict[str, str | None] = {}

    @property
    def on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if isinstance(plugin, DeepSpeedPrecision) and not isinstance(plugin, AutocastPrecision):
            plugin = AutocastPrecision(plugin.precision, "cpu" if self.on_cpu else "cuda")  # type: ignore[arg-type]
        self._precision_plugin = plugin

    def setup_environment(self) -> None:
        """Start the process group: NCCL on GPUs, gloo on CPUs."""
        from deepspeed.accelerator import get_accelerator

        wanted = "cpu" if self.on_cpu else "cuda"
        found = get_accelerator().device_name()
        if found != wanted:
            raise UserError(
                f"trainer.accelerator is {wanted}, but DeepSpeed was loaded for {found}. "
                f"Set DS_ACCELERATOR={wanted} in the environment, or choose trainer.accelerator={'gpu' if found == 'cuda' else found}."
            )
        if self.on_cpu:
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        self._environment_before = {name: os.environ.get(name) for name in _LAUNCH_VARIABLES}
        if self.on_cpu:  # no device index to validate
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()
        atexit.register(_leave_process_group)

    def teardown(self) -> None:
        engine = self.model
        if engine is not None and hasattr(engine, "destroy"):
            engine.destroy()  # its gradient hooks would fire in a later fit of the same module
            for parameter in engine.module.parameters():
                if hasattr(parameter, "_hp_mapping"):
                    del parameter._hp_mapping  # the optimizer that it points to is gone
        super().teardown()
        if self.world_size == 1:  # a later Trainer of this process would take these for a launcher's
            for name, value in self._environment_before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: LRScheduler | None = None
    ) -> tuple[deepspeed.DeepSpeedEngine, Optimizer]:
        """Build the engine of one trainable module."""
        return self._engine(model, optimizer, lr_scheduler, [p for p in model.parameters() if p.requires_grad], self.config)

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Build an engine without optimizer; parameters are partitioned at stage 3."""
        assert isinstance(self.config, dict)
        keys = ("bf16", "torch_autocast") + (("zero_optimization", "zero_allow_untested_optimizer") if self.zero_stage_3 else ())
        config = {"train_micro_batch_size_per_gpu": 1} | {key: self.config[key] for key in keys if key in self.config}
        self.model, _ = self._engine(model, None, None, [], config)

    def _engine(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any, parameters: list[nn.Parameter], config: dict[str, Any] | None
    ) -> tuple[Any, Any]:
        import deepspeed

        device_rank = self.local_rank if self.on_cpu else self.root_device.index
        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=device_rank),
            config=config,
            model=model,
            model_parameters=parameters,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, wrapped

    def _format_config(self) -> None:
        assert isinstance(self.config, dict)
        plugin = self.precision_plugin
        if isinstance(plugin, AutocastPrecision) and plugin.autocasts:
            # No module is named, so that gradients keep fp32 on their way between processes.
            self.config.setdefault("torch_autocast", {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []})
            self.config.setdefault("bf16", {"enabled": False})  # present: Lightning adds none of its own
        if plugin.precision == "bf16-true" and self.config["zero_optimization"]["stage"] == 0:
            raise UserError("trainer.precision bf16-true needs strategy.stage 1, 2 or 3: fp32 master weights live in ZeRO's optimizer, got stage 0.")
        super()._format_config()


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), dict) else value
    return merged


def _skip_inference_kernels() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce when a process group starts on a CPU.

    That operation serves tensor-parallel inference only; training never calls it. Without it no compiler is needed and the
    first run on a machine starts half a minute sooner.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _leave_process_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


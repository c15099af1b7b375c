"""Lightning's DeepSpeed strategy, made to run on CPUs too and to keep fp32 weights under mixed precision.

The only file that imports deepspeed; it does so when a `DeepSpeed` object is built, not when the module is imported.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import copyreg
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from lightning.fabric.plugins.precision.utils import _convert_fp_tensor
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowact.errors import UserError
from flowact.strategies.skipping import step_was_skipped
from flowact.types import TensorRecord

if TYPE_CHECKING:
    import deepspeed

_LAYOUT_FILE = "layout.json"
_LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK")


class TrainedRole(Protocol):
    """One of several networks that a module trains.

    Attributes:
        network: the network, which gets an engine of its own.
        clip: largest norm of its gradient; None does not clip.
    """

    network: nn.Module
    clip: float | None


@runtime_checkable
class TrainsSeveralRoles(Protocol):
    """A module with manual optimization that trains several networks."""

    def roles(self) -> Mapping[str, TrainedRole]:
        """The networks by name, in the order of `configure_optimizers`."""


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
        if isinstance(data, TensorRecord):  # frozen: Lightning would want to write into a copy of it
            return data.to(self._desired_dtype)
        return apply_to_collection(data, function=_convert_fp_tensor, dtype=Tensor, dst_type=self._desired_dtype)

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Backward pass through the optimizer's engine. Lightning has already divided the loss by the number of accumulated batches."""
        model.trainer.strategy.engine_of(optimizer).backward(tensor, *args, **{"scale_wrt_gas": False, **kwargs})

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Step of the engine that `optimizer` belongs to; it does nothing while gradients are still being accumulated.

        Hooks "before a step" come before such steps only. (Lightning's own plugin calls them with every accumulated batch.)
        """
        engine = model.trainer.strategy.engine_of(optimizer)
        if closure() is None and model.automatic_optimization:
            raise UserError(f"training_step of {type(model).__name__} returned None: under DeepSpeed every batch has a loss.")
        if engine.is_gradient_accumulation_boundary():
            self._after_closure(model, optimizer)
            if step_was_skipped(optimizer) and not engine.zero_optimization():  # no gradients are left, and the engine would clip them
                engine.micro_steps += 1
                return None
        return engine.step(**kwargs)

    def forward_context(self) -> AbstractContextManager:
        """Autocast under "bf16-mixed", the precision's default floating type otherwise."""
        if self.autocasts:
            return torch.autocast(self.device_type, torch.bfloat16)
        return super().forward_context() if self.precision != "32-true" else nullcontext()


class DeepSpeed(DeepSpeedStrategy):
    """DeepSpeed ZeRO on GPUs and on CPUs (gloo), one process or several.

    One process has nobody to share with, so there stages 1 and 2 run as stage 0, which gives the same weights with less copying;
    offloading and "bf16-true" need ZeRO's optimizer and keep their stage.

    A process shares the CPU's cores evenly with its neighbours unless OMP_NUM_THREADS is set. Precision is chosen by
    `trainer.precision`, see `AutocastPrecision`; gradients are clipped by norm through `trainer.gradient_clip_val`. Frozen
    parameters are left out of the engine's checkpoint: they come from the recipe.

    A stage that trains several networks has an engine for each (`engines`, by role), with the role's own clipping. One engine with a
    group of parameters for each would move the network whose turn it is not. Such a stage hands its optimizer to `backward` and
    `optimizer_step`, which find the engine by it, and calls the engines in the networks' place.

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
        partition_frozen: at stage 3 also share out the weights of frozen networks (teacher, real score), each through an engine for inference.
            Every process must then evaluate them equally often; stages of the house do.
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
        partition_frozen: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if stage not in (0, 1, 2, 3):
            raise UserError(f"strategy.stage is {stage}; ZeRO has stages 0, 1, 2 and 3.")
        if offload_parameters and stage != 3:
            raise UserError(f"strategy.offload_parameters needs stage 3, got stage {stage}.")
        if partition_frozen and stage != 3:
            raise UserError(f"strategy.partition_frozen needs stage 3, got stage {stage}; at the others frozen networks are whole on each process.")
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
            "contiguous_gradients": on_gpu,  # one more copy of every gradient, against fragmentation of GPU memory
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
            "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's own log only; loaders of ours have no batch sampler to ask
        }
        super().__init__(
            config=_merge(config, extra or {}),
            exclude_frozen_parameters=True,
            logging_level=logging.WARNING,
            timeout=timedelta(minutes=timeout_minutes),
        )
        _skip_inference_kernels()
        self.partition_frozen = partition_frozen
        self.engines: dict[str, Any] = {}
        self._frozen_engines: list[Any] = []
        # before Lightning's launcher, which sets some of them even for one process
        self._environment_before = {name: os.environ.get(name) for name in _LAUNCH_VARIABLES}

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
        if self.on_cpu:  # no device index to validate
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()
        atexit.register(_leave_process_group)

    def teardown(self) -> None:
        engines: list[Any] = list(self.engines.values()) or [self.model]
        for engine in [*engines, *self._frozen_engines]:
            if engine is not None and hasattr(engine, "destroy"):
                engine.destroy()  # its gradient hooks would fire in a later fit of the same module
                for parameter in engine.module.parameters():
                    if hasattr(parameter, "_hp_mapping"):
                        del parameter._hp_mapping  # the optimizer that it points to is gone
        self.engines, self._frozen_engines = {}, []
        _restore_linear()
        super().teardown()
        if self.world_size == 1:  # a later Trainer of this process would take these for a launcher's
            for name, value in self._environment_before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load an engine's folder; frozen parameters are not in it and keep the values that the recipe gave them.

        Args:
            checkpoint_path: folder that `save_checkpoint` wrote with the same number of processes, stage and precision.
            weights_only: not used; code in the folder's files is never run.

        Raises:
            UserError: no such folder, another layout, or a module with other weights.
        """
        folder = Path(checkpoint_path)
        if not (folder / _LAYOUT_FILE).is_file():
            raise UserError(f"{folder} holds no complete state of a DeepSpeed engine. Resume from the engine/ folder of a checkpoint.")
        saved = json.loads((folder / _LAYOUT_FILE).read_text(encoding="utf-8"))
        own = self._layout()
        differing = [f"{key} {saved.get(key)} (now {own.get(key)})" for key in own | saved if saved.get(key) != own.get(key)]
        if differing:
            raise UserError(
                f"{folder} was written with {', '.join(differing)}. An engine resumes only as it was saved; "
                "to go on with another layout start from the weights (init_from) with a fresh optimizer."
            )
        module = self.lightning_module
        assert module is not None
        client_states = [
            engine.load_checkpoint(
                str(folder / name),
                tag="checkpoint",
                load_optimizer_states=module.trainer.state.fn == TrainerFn.FITTING,
                load_lr_scheduler_states=False,
                custom_load_fn=_load_trained,
            )[1]
            for name, engine in (self.engines or {"": self.deepspeed_engine}).items()
        ]
        return client_states[0]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the engine's folder, with a folder inside for each role if there are several; every process calls it."""
        if self.engines:
            filepath = self.broadcast(filepath)
            state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
            for name, engine in self.engines.items():
                engine.save_checkpoint(
                    str(Path(filepath) / name), client_state=state, tag="checkpoint", exclude_frozen_parameters=self.exclude_frozen_parameters
                )
                state = {}  # the trainer's state stands in the first role's folder
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        if self.is_global_zero:
            (Path(filepath) / _LAYOUT_FILE).write_text(json.dumps(self._layout()), encoding="utf-8")

    def _layout(self) -> dict[str, Any]:
        assert isinstance(self.config, dict)
        layout = {"processes": self.world_size, "stage": self.config["zero_optimization"]["stage"], "precision": self.precision_plugin.precision}
        return layout | ({"roles": list(self.engines)} if self.engines else {})

    def engine_of(self, optimizer: Any) -> Any:
        """The engine of the role that an optimizer belongs to; where there are no roles, the only one."""
        if not self.engines:
            return self.model
        return next(engine for engine in self.engines.values() if engine.optimizer is optimizer)

    def _initialize_deepspeed_train(self, model: nn.Module) -> None:
        if not isinstance(model, TrainsSeveralRoles):
            super()._initialize_deepspeed_train(model)
            return
        assert isinstance(self.config, dict)
        assert self.lightning_module is not None
        if "offload_param" not in self.config["zero_optimization"]:
            model.to(self.root_device)  # engines move their own network only
        optimizers, schedules = _init_optimizers_and_lr_schedulers(self.lightning_module)
        wrapped = []
        for (name, role), optimizer in zip(model.roles().items(), optimizers, strict=True):
            config = copy.deepcopy(self.config) | {"gradient_clipping": role.clip or 0.0}
            self.engines[name], own = self._trained_engine(role.network, optimizer, None, config)
            wrapped.append(own)
        self._set_deepspeed_activation_checkpointing()
        self.optimizers, self.lr_scheduler_configs = wrapped, schedules

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: LRScheduler | None = None
    ) -> tuple[deepspeed.DeepSpeedEngine, Optimizer]:
        """Build the engine of one trainable module."""
        assert isinstance(self.config, dict)
        return self._trained_engine(model, optimizer, lr_scheduler, self.config)

    def _trained_engine(self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any, config: dict[str, Any]) -> tuple[Any, Any]:
        zero = config["zero_optimization"]
        alone = self.world_size == 1 and zero["stage"] < 3 and "offload_optimizer" not in zero and self.precision_plugin.precision != "bf16-true"
        if alone:
            config = config | {"zero_optimization": {"stage": 0}}
        engine, wrapped = self._engine(model, optimizer, lr_scheduler, [p for p in model.parameters() if p.requires_grad], config)
        if alone:
            engine.enable_backward_allreduce = False
        return engine, wrapped

    def place_frozen(self, network: nn.Module) -> Any:
        """What to call in the place of a frozen network: an engine that shares out its weights under `partition_frozen`, else the network."""
        if not self.partition_frozen:
            return network
        self._frozen_engines.append(self._inference_engine(network).eval())
        return self._frozen_engines[-1]

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        self.model = self._inference_engine(model)

    def _inference_engine(self, model: nn.Module) -> Any:
        """Build an engine without optimizer; parameters are partitioned at stage 3."""
        assert isinstance(self.config, dict)
        keys = ("bf16", "torch_autocast") + (("zero_optimization", "zero_allow_untested_optimizer") if self.zero_stage_3 else ())
        config = {"train_micro_batch_size_per_gpu": 1} | {key: self.config[key] for key in keys if key in self.config}
        return self._engine(model, None, None, [], config)[0]

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
        engine.checkpoint_engine = _WeightsOnlyEngine(engine.checkpoint_engine)
        return engine, wrapped

    def _format_config(self) -> None:
        assert isinstance(self.config, dict)
        plugin = self.precision_plugin
        if isinstance(plugin, AutocastPrecision) and plugin.autocasts:
            # No module is named, so that gradients keep fp32 on their way between processes.
            self.config.setdefault("torch_autocast", {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []})
            self.config.setdefault("bf16", {"enabled": False})  # present: Lightning adds none of its own
        elif plugin.precision == "bf16-true":  # otherwise a gradient that is not finite is looked for only where weights are fp32
            self.config.setdefault("bf16", {"enabled": True, "check_grad_overflow": True})
        if plugin.precision == "bf16-true" and self.config["zero_optimization"]["stage"] == 0:
            raise UserError("trainer.precision bf16-true needs strategy.stage 1, 2 or 3: fp32 master weights live in ZeRO's optimizer, got stage 0.")
        super()._format_config()


def _load_trained(src: Mapping[str, Tensor], dst: nn.Module) -> None:
    """Load a module state from which frozen parameters were left out."""
    frozen = {name for name, parameter in dst.named_parameters() if not parameter.requires_grad}
    missing, unexpected = dst.load_state_dict(src, strict=False)
    wrong = [f"lacks {name}" for name in sorted(set(missing) - frozen)] + [f"holds {name}, which the module does not have" for name in unexpected]
    if wrong:
        raise UserError(f"the engine's checkpoint {'; it '.join(wrong[:8])}{' ...' if len(wrong) > 8 else ''}. Resume with its own recipe.")


class _WeightsOnlyEngine:
    """DeepSpeed's reader and writer of checkpoint files, except that reading never runs code from the file."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Any, path: str) -> None:
        from deepspeed.runtime.zero.config import ZeroStageEnum

        # Python before 3.11.4 pickles a member as a call of `getattr`, which a reader that runs no code refuses
        copyreg.pickle(ZeroStageEnum, lambda member: (ZeroStageEnum, (member.value,)))  # type: ignore[arg-type]
        self._inner.save(state_dict, path)

    def load(self, path: str, map_location: Any = None) -> Any:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), dict) else value
    return merged


def _restore_linear() -> None:
    """Undo what stage 3 leaves behind: it puts its own `linear` in the place of PyTorch's, for every module of the process and for good."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    nn.functional.linear = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", nn.functional.linear)


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

"""Exponential moving average of the trained weights, kept in fp32 beside the optimizer rather than in the engine's checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor, nn

from flowact.errors import UserError
from flowact.models.adapters import stored_names
from flowact.stages.curves import is_logged
from flowact.strategies import gather_values, is_partitioned, local_values, scatter_values

if TYPE_CHECKING:
    from flowact.stages.base import Stage


class ExponentialMovingAverage(Callback):
    """Average the trainable parameters of `trained_module()` after each of its optimizer steps.

    After the t-th averaged step, ema = d ema + (1 - d) weights with d = min(decay, (1 + t) / (10 + t)): the warm-up keeps the
    random initialisation from lingering. Values are fp32; under ZeRO stage 3 every process averages its own share. Validation
    inside fit sees the averaged weights. Logged are `ema/decay`, the last d, and `ema/distance`, see `distance`.

    Args:
        decay: weight of the past, in [0, 1).
        start_step: until this optimizer step the average just follows the weights.
        warmup: lower the decay of the first steps as above.

    Raises:
        UserError: a decay or start outside its range.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"decay of the moving average is {decay}; it lies in [0, 1), typically 0.99 to 0.9999.")
        if start_step < 0:
            raise UserError(f"start_step of the moving average is {start_step}; it is 0 or more.")
        self.decay = decay
        self.start_step = start_step
        self.warmup = warmup
        self._names: list[str] = []
        self._parameters: list[nn.Parameter] = []
        self._averages: list[Tensor] = []
        self._num_updates = 0
        self._last_update = 0
        self._restored = False
        self._validation: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether there is an average: from the start of fit on."""
        return bool(self._averages)

    def decay_at(self, num_updates: int) -> float:
        """Decay of update number `num_updates`, counted from 0."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = cast("Stage", pl_module).trained_module()
        names = stored_names(network)
        named = [(names[name], parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._last_update = cast("Stage", pl_module).num_updates
        if self._restored:
            saved = _saved_averages(trainer.ckpt_path, self._names)
            shares = [scatter_values(saved[name], parameter) for name, parameter in named]
            self._averages = [share.to(local_values(p).device, torch.float32, copy=True) for share, p in zip(shares, self._parameters)]
            self._restored = False
        else:
            self._averages = [local_values(parameter).detach().to(torch.float32, copy=True) for parameter in self._parameters]
            self._num_updates = 0

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        update = cast("Stage", pl_module).num_updates
        if update != self._last_update:  # gradients are still being accumulated, or it was another network's turn
            self._last_update = update
            self._follow(update)
        if is_logged(trainer, trainer.global_step):
            decay = self.decay_at(self._num_updates - 1) if self._num_updates else 0.0
            pl_module.log_dict({"ema/decay": decay, "ema/distance": self.distance(trainer)})

    def _follow(self, update: int) -> None:
        values = [local_values(parameter) for parameter in self._parameters]
        if update <= self.start_step:
            torch._foreach_copy_(self._averages, values)
            return
        if any(value.dtype != torch.float32 for value in values):
            values = [value.float() for value in values]
        torch._foreach_lerp_(self._averages, values, 1.0 - self.decay_at(self._num_updates))
        self._num_updates += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_ready and not trainer.sanity_checking:
            self._validation = self.applied()
            self._validation.__enter__()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validation is not None:
            self._validation.__exit__(None, None, None)
            self._validation = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Put the averages in the module's place, and the trained weights back afterwards. Without an average nothing changes."""
        kept = [local_values(parameter).clone() for parameter in self._parameters]
        self._overwrite(self._averages)
        try:
            yield
        finally:
            self._overwrite(kept)

    @torch.no_grad()
    def distance(self, trainer: Trainer) -> Tensor:
        """|average - weights| / |weights| over all averaged parameters. Every process calls it."""
        squares = torch.zeros(2, device=trainer.strategy.root_device)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            value = local_values(parameter).to(average)
            squares += torch.stack([(average - value).square().sum(), value.square().sum()]).to(squares)
        if any(is_partitioned(parameter) for parameter in self._parameters):
            squares = trainer.strategy.reduce(squares, reduce_op="sum")
        return (squares[0] / squares[1].clamp_min(torch.finfo(squares.dtype).tiny)).sqrt()

    def averages(self) -> dict[str, Tensor]:
        """Full fp32 averages by name on the CPU, on the process with rank 0; empty on others. Every process calls it."""
        full = {name: gather_values(average, p) for name, average, p in zip(self._names, self._averages, self._parameters)}
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return {name: average.to("cpu", copy=True).contiguous() for name, average in full.items()} if is_first else {}

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self._num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_updates = int(state_dict["num_updates"])
        self._restored = True

    @torch.no_grad()
    def _overwrite(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values):
            share = local_values(parameter)
            share.copy_(value)
            if getattr(parameter, "ds_persist", False):  # ZeRO 3 keeps small parameters whole on every process, beside their shares
                whole = gather_values(share, parameter)
                if parameter.data.shape == whole.shape:
                    parameter.data.copy_(whole)


def moving_average(trainer: Trainer) -> ExponentialMovingAverage | None:
    """The trainer's moving average, if it keeps one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, ExponentialMovingAverage)), None)


def _saved_averages(engine: str | Path | None, names: list[str]) -> dict[str, Tensor]:
    path = Path(engine or "").parent / "ema.safetensors"
    if not path.is_file():
        raise UserError(f"the run that is resumed kept a moving average, but {path} is missing. Resume from the engine of a checkpoint folder.")
    saved = load_file(path)
    if differing := sorted(set(names) ^ set(saved)):
        raise UserError(f"{path} averages other parameters than this run trains (first: {differing[0]}). Resume with the recipe that wrote it.")
    return saved

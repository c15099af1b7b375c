"""Stages that train several networks: each is a role with an optimizer, a schedule, a clipping norm and a count of its own."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from flowact.errors import UserError
from flowact.stages.base import AdamW, Stage
from flowact.strategies import step_was_skipped

#: key of the counts of updates in a trainer's state
_UPDATES = "flowact_role_updates"


@dataclass
class Role:
    """A trained network and what trains it.

    Attributes:
        network: the network; no parameter belongs to two roles.
        optimizer: optimizer and schedule; the schedule runs over the role's own updates.
        clip: largest norm of the role's gradient; None does not clip.
        every: the role is updated in every so many training steps, in the last of them.
        num_updates: how often it was updated so far.

    Raises:
        ValueError: `every` below 1, or a clipping norm that is not positive.
    """

    network: nn.Module
    optimizer: AdamW
    clip: float | None = None
    every: int = 1
    num_updates: int = 0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"a role is updated in every n-th training step with n of 1 or more, got {self.every}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"the clipping norm of a role is above 0, or null for no clipping, got {self.clip}")

    def is_due(self, step: int) -> bool:
        """Whether the training step with this number, counted from 0, updates the role."""
        return (step + 1) % self.every == 0

    def total_updates(self, total_steps: int) -> int:
        """Updates in a run of so many training steps."""
        return total_steps // self.every


class SeveralRoles(Stage):
    """A stage whose training step updates its roles one after the other, each with a loss of its own.

    Under `flowact.strategies.deepspeed.DeepSpeed` each role has an engine; on one device, and under DDP, the networks are called as they are.
    The last role is updated in every training step, which the trainer counts once. An update that is skipped, because loss or gradient is not finite,
    counts for the trainer but neither for the role nor for its schedule.

    Args:
        accumulate: batches of a training step. The gradients of each role that is due are the mean over them; a role's turn, its `every`, and
            `trainer.max_steps` count training steps. It stands in for `trainer.accumulate_grad_batches`, which Lightning refuses here.

    Raises:
        ValueError: `accumulate` below 1.
    """

    def __init__(self, *args: Any, accumulate: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; a training step takes at least 1 batch")
        self.automatic_optimization = False
        self.accumulate = accumulate
        self._num_accumulated = 0
        self._losses: dict[str, Any] = {}

    @abstractmethod
    def roles(self) -> dict[str, Role]:
        """The trained networks by name, always in the same order; the last one has `every` = 1."""

    def network(self, name: str) -> Any:
        """What to call in the place of a role's network: its engine, where it has one."""
        engine = self._engine(name)
        return self.roles()[name].network if engine is None else engine

    def update(self, name: str, loss: Tensor) -> None:
        """One optimizer step of a role, and of its schedule, with the last of the accumulated batches; no other role moves.

        Args:
            name: of the role.
            loss: scalar that reaches only this role's weights, of one batch.
        """
        roles = self.roles()
        index, role = list(roles).index(name), roles[name]
        optimizer: Any = self.optimizers(use_pl_optimizer=False)[index]  # type: ignore[index]
        strategy, engine = self.trainer.strategy, self._engine(name)
        steps = self._num_accumulated + 1 == self.accumulate
        if engine is not None:
            engine.set_gradient_accumulation_boundary(steps)
        with nullcontext() if steps or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync():
            strategy.backward(loss / self.accumulate, optimizer)
        self._losses[name] = self._losses.get(name, 0.0) + loss.detach() / self.accumulate
        if not steps:
            return
        norm = None
        if engine is None:  # an engine clips in its step
            norm = nn.utils.clip_grad_norm_(role.network.parameters(), float("inf") if role.clip is None else role.clip)
        if index == len(roles) - 1:
            self.optimizers()[index].step()  # type: ignore[index, union-attr]
        else:  # past the wrapper by which the trainer counts steps
            strategy.optimizer_step(optimizer, _nothing, model=self)
        if engine is None:
            optimizer.zero_grad()
        else:
            norm = engine.get_global_grad_norm()
        schedule: Any = self.lr_schedulers()[index]  # type: ignore[index]
        rate = schedule.get_last_lr()[0]
        if not step_was_skipped(optimizer):
            schedule.step()
            role.num_updates += 1
        self.log_dict({f"train/{name}_loss": self._losses.pop(name), f"train/{name}_lr": rate, f"train/{name}_updates": float(role.num_updates)})
        if norm is not None:
            self.log(f"train/{name}_grad_norm", norm)

    def configure_callbacks(self) -> list[Any]:
        """Say what to set in place of what Lightning refuses; it asks for callbacks just before."""
        name, trainer = type(self).__name__, self.trainer
        if trainer.accumulate_grad_batches != 1:
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but {name} updates several networks by hand: "
                "leave it at 1 and set model.init_args.accumulate."
            )
        if trainer.gradient_clip_val:  # type: ignore[attr-defined]
            raise UserError(
                f"trainer.gradient_clip_val is {trainer.gradient_clip_val}, but {name} clips each of its networks: "  # type: ignore[attr-defined]
                "set it to null, and model.init_args.clip to the largest norm."
            )
        return []

    def on_train_start(self) -> None:
        self._num_accumulated = 0
        self._losses = {}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_index)
        self._num_accumulated = (self._num_accumulated + 1) % self.accumulate

    def attach_adapter(self) -> None:
        """See `Stage.attach_adapter`; each role trains adapters of its own, beside its own frozen weights."""
        if self._is_adapted:
            return
        super().attach_adapter()
        for role in self.roles().values():
            if self._is_adapted and role.network is not self.trained_module():
                self.adapter.attach(role.network)

    def configure_optimizers(self) -> Any:
        self._check_strategy()
        total_steps = self.trainer.max_steps
        roles = self.roles()
        slowest = max(role.every for role in roles.values())
        if total_steps < slowest:
            raise UserError(
                f"trainer.max_steps is {total_steps}, but a role of {type(self).__name__} is updated in every {slowest}-th step only; "
                f"set it to {slowest} or more."
            )
        return [_optimization(role, role.total_updates(total_steps)) for role in roles.values()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[_UPDATES] = {name: role.num_updates for name, role in self.roles().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(_UPDATES, {})
        roles = self.roles()
        if saved.keys() != roles.keys():
            raise UserError(f"the run was saved with the roles {sorted(saved)}, this stage has {sorted(roles)}. Resume with its own recipe.")
        for name, role in roles.items():
            role.num_updates = saved[name]

    def _engine(self, name: str) -> Any:
        return _engines(self.trainer.strategy).get(name) if self._trainer is not None else None

    def _check_strategy(self) -> None:
        strategy = self.trainer.strategy
        if hasattr(strategy, "engines") or isinstance(strategy, SingleDeviceStrategy):
            return
        if isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters"):
            return
        raise UserError(
            f"{type(self).__name__} trains several networks, which {type(strategy).__name__} as it is set cannot: a step's losses reach one each. "
            "Set trainer.strategy to DeepSpeed, to ddp_find_unused_parameters_true, or train on one device."
        )


def _engines(strategy: Any) -> dict[str, Any]:
    return getattr(strategy, "engines", {})


def _optimization(role: Role, total_updates: int) -> dict[str, Any]:
    optimizer = role.optimizer.build(role.network)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: role.optimizer.rate(step, total_updates))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _nothing() -> None:
    """The closure of an optimizer step whose gradients are there already."""

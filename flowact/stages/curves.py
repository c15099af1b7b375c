"""What stages log beside their loss: held-out error by noise level, statistics of latents, gradient norms. Legend: flowact/types.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowact.schedulers.base import NoiseScheduler
from flowact.strategies import total_norm

#: noise levels by which the loss is logged
LEVEL_BINS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01))
#: how many draws of a stage's law of levels the held-out levels are taken from
_POOL = 2048


def bin_name(low: float) -> str:
    """How the bin that begins at a level is called in the log."""
    return f"loss_sigma_{low:.2f}"


def is_logged(trainer: Any, step: int) -> bool:
    """Whether the trainer logs what belongs to the optimizer step with this number, counted from 1."""
    return trainer.log_every_n_steps > 0 and step % trainer.log_every_n_steps == 0


@torch.no_grad()
def level_sums(error_BF: Tensor, sigma_BF: Tensor) -> Tensor:
    """Sum of the errors and number of frames in each bin of levels, [bins, 2]."""
    error = error_BF.detach().float()
    inside = [((sigma_BF >= low) & (sigma_BF < high)).to(error) for low, high in LEVEL_BINS]
    return torch.stack([torch.stack([(error * mask).sum(), mask.sum()]) for mask in inside])


class LevelRecord:
    """Which levels a stage drew in training for each place in its stream, and the error there, on this process. K chunks, N bins of equal width.

    Attributes:
        sums_2KN: latent frames, and the sum of their errors; None before the first batch.
    """

    num_bins = 20

    def __init__(self) -> None:
        self.sums_2KN: Tensor | None = None

    @torch.no_grad()
    def add(self, error_BF: Tensor, sigma_BF: Tensor, chunk_frames: int) -> None:
        """Take in the frames of a batch; nothing is read back from the device."""
        num_chunks = -(-sigma_BF.shape[1] // chunk_frames)
        if self.sums_2KN is None or self.sums_2KN.shape[1] != num_chunks or self.sums_2KN.device != error_BF.device:
            self.sums_2KN = torch.zeros(2, num_chunks, self.num_bins, device=error_BF.device)
        bins_BF = (sigma_BF.to(error_BF.device).float() * self.num_bins).long().clamp(0, self.num_bins - 1)
        chunk_F = torch.arange(sigma_BF.shape[1], device=error_BF.device) // chunk_frames
        error = error_BF.detach().float()
        finite = error.isfinite()
        places = (chunk_F * self.num_bins + bins_BF).flatten()
        for sums_KN, values in zip(self.sums_2KN, (finite.float(), error.where(finite, 0.0)), strict=True):
            sums_KN.view(-1).index_add_(0, places, values.flatten())

    def take(self) -> Tensor:
        """The sums so far, which begin anew."""
        assert self.sums_2KN is not None
        taken, self.sums_2KN = self.sums_2KN, torch.zeros_like(self.sums_2KN)
        return taken


@torch.no_grad()
def latent_sums(made_BFCHW: Tensor, real_BFCHW: Tensor) -> Tensor:
    """What `statistics` are made of, float64 [8]; the sums of several batches add up."""
    made, real = made_BFCHW.detach().float(), real_BFCHW.float()
    sizes_BD = real.abs().flatten(1)
    edge_B = sizes_BD.kthvalue(sizes_BD.shape[1] - sizes_BD.shape[1] // 1000, dim=1).values
    beyond = made.abs().flatten(1) > edge_B[:, None]
    moments = [power.sum(dtype=torch.float64) for latents in (made, real) for power in (latents, latents.square())]
    steps = [latents.diff(dim=1).abs().sum(dtype=torch.float64) for latents in (made, real)]
    return torch.stack([moments[0].new_tensor(made.numel()), *moments, beyond.sum().double(), *steps])


def statistics(sums: Tensor) -> dict[str, Tensor]:
    """How latents that a model made compare with those of the data, from their `latent_sums`.

    Returns:
        `saturation`, spread of all values over the data's: above 1 exaggerated, below 1 dull; `beyond_range`, share of values further from 0 than
        99.9 % of the data's; `motion`, mean absolute difference of consecutive frames over the data's. The data itself has 1, at most 0.001, and 1.
    """
    count, made, made_squares, real, real_squares, beyond, made_steps, real_steps = sums
    made_variance, real_variance = (squares - first.square() / count for first, squares in ((made, made_squares), (real, real_squares)))
    tiny = torch.finfo(sums.dtype).tiny
    return {
        "saturation": (made_variance / real_variance.clamp_min(tiny)).clamp_min(0.0).sqrt(),
        "beyond_range": beyond / count,
        "motion": made_steps / real_steps.clamp_min(tiny),
    }


class HeldOutCurves:
    """Means over one validation, over its batches and its processes.

    Levels are drawn from the stage's own law, but so that each bin that the law reaches has its turn: after as many samples as there are bins every
    bin has some, and a bin's samples are the same at each validation.

    Args:
        law: levels of the stage.
        num_chunks: chunks of its stream.
    """

    def __init__(self, law: NoiseScheduler, num_chunks: int) -> None:
        self.pool_PK = law.sample(_POOL, num_chunks, torch.Generator().manual_seed(0))
        inside = [((self.pool_PK >= low) & (self.pool_PK < high)).any(dim=1).nonzero().flatten() for low, high in LEVEL_BINS]
        self.rows = [rows for rows in inside if len(rows)]
        self._errors, self._latents = torch.zeros(len(LEVEL_BINS), 2, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)

    def levels(self, first: int, count: int) -> Tensor:
        """sigma_BK of so many samples of a validation, from the one with number `first` on."""
        turns = [(self.rows[number % len(self.rows)], number // len(self.rows)) for number in range(first, first + count)]
        return self.pool_PK[torch.stack([rows[turn % len(rows)] for rows, turn in turns])]

    def add_errors(self, error_BF: Tensor, sigma_BF: Tensor) -> None:
        """Take in the frames of a batch, each with its level."""
        self._errors = self._errors.to(error_BF.device) + level_sums(error_BF, sigma_BF)

    def add_latents(self, made_BFCHW: Tensor, real_BFCHW: Tensor) -> None:
        """Take in latents that the network made, and the data's in their place."""
        self._latents = self._latents.to(made_BFCHW.device) + latent_sums(made_BFCHW, real_BFCHW)

    def means(self, strategy: Any) -> dict[str, Tensor]:
        """The means by name, the same on every process; bins without samples are left out. Every process calls it."""
        sums = torch.cat([self._errors.flatten(), self._latents]).to(strategy.root_device)
        errors, latents = strategy.reduce(sums, reduce_op="sum").split([self._errors.numel(), len(self._latents)])
        by_level = {bin_name(low): total / count for (low, _), (total, count) in zip(LEVEL_BINS, errors.view(-1, 2), strict=True) if count > 0}
        return {name: mean.float() for name, mean in (by_level | (statistics(latents) if latents[0] > 0 else {})).items()}


def gradient_norm(module: nn.Module) -> Tensor | None:
    """The norm of the gradients that lie on the parameters; None if none do, as in a step that is skipped. Every process calls it."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return total_norm(gradients) if gradients else None


def partitioning_engine(trainer: Any) -> Any:
    """The trainer's DeepSpeed engine if ZeRO partitions gradients, so that only it knows their norm, and only after its step; else None."""
    engine = trainer.model
    partitions = hasattr(engine, "get_global_grad_norm") and engine.zero_optimization_stage() > 0
    return engine if partitions else None

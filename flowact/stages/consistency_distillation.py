"""Causal consistency distillation on chunks (Song et al. 2023; causal as in Causal-Forcing). Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import GroundTruthMemory, MemoryCorruptor
from flowact.models.base import Denoiser
from flowact.sampling.window import Guidance, gaussian, predict_velocity, split_frames
from flowact.schedulers.base import shift_levels
from flowact.schedulers.named import SolverWord
from flowact.schedulers.solver import Solver
from flowact.stages.moving_target import MovingTarget
from flowact.stages.self_forcing import SelfForcing
from flowact.types import Batch, Chunk, MemoryView

#: of the target network in a trainer's state
_TARGET = "flowact_target"


class ConsistencyDistillation(SelfForcing):
    """The student says from any point of the teacher's path where the path ends, because it says the same from the next point.

        1 = t_0 > t_1 > .. > t_N = 0             shifted grid;  i uniform in 0 .. N-1
        x_t = (1 - t_i) x0 + t_i eps
        x_t' = x_t + (t_{i+1} - t_i) v_teacher(x_t, t_i)          one Euler step, guided, no gradient
        f(x, t) = x - t v(x, t)                  clean latents; at t = 0 this is x itself, so the path's end is known
        loss = | f_student(x_t, t_i) - f_target(x_t', t_{i+1}) |^2

    All in front of the same clean memory. The target is a moving average of the student, or the student of the last update.
    Sample the student with `solver`: a consistency model's own sampler goes to the clean estimate and noises it anew.

    Args:
        denoiser: the student; teacher, student and target start from the checkpoint of `init_from`.
        corruptor: what happens to history before it is written to memory; the default leaves it clean.
        grid_points: N.
        shift: of the grid; of a stream's staircase too.
        guidance: classifier-free guidance scale w of the teacher, v = v_without + w (v_with - v_without); 1 is none.
        chunks_share_level: one t per sample, as in Causal-Forcing; False draws one per chunk, as the chunks of a staircase have.
        target_decay: weight of the past in the target's moving average; 0 makes the target the student of the last update.
        target_start: until so many optimizer steps the target is the student of the last update.
        solver: see `ChunkwiseDiffusionForcing`.
        options: the other arguments of `SelfForcing`.

    Raises:
        ValueError: no grid, or a decay or start outside its range.
    """

    name = "consistency_distillation"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        *,
        corruptor: MemoryCorruptor | None = None,
        grid_points: int = 48,
        shift: float = 1.0,
        guidance: float = 1.0,
        chunks_share_level: bool = False,
        target_decay: float = 0.99,
        target_start: int = 200,
        solver: SolverWord | Solver = "renoise",
        **options: Any,
    ) -> None:
        super().__init__(
            denoiser, memory, None, corruptor=corruptor or GroundTruthMemory(), dropout=ConditionDropout(0.0, 0.0), solver=solver, **options
        )
        if grid_points < 1:
            raise ValueError(f"grid_points is {grid_points}; a path has at least 1 step, typically 20 to 50")
        self.grid = shift_levels(torch.linspace(1.0, 0.0, grid_points + 1), shift)
        self.guidance = Guidance(guidance)
        self.chunks_share_level = chunks_share_level
        self.target = MovingTarget(target_decay, target_start)

    # --- the target network, beside the trained one

    def setup(self, stage: str) -> None:
        """See `DenoiserStage.setup`; the target is a copy of the student as it starts, adapter included."""
        super().setup(stage)
        if stage == "fit" and not self.target.is_made:
            self.target.copy_from(self.denoiser)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.target.to(self.denoiser)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[_TARGET] = self.target.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if _TARGET in checkpoint:
            self.target.restore(checkpoint[_TARGET])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.target.follow(self.denoiser, self.num_updates)
        return super().training_step(batch, batch_index)

    # --- the algorithm

    def draw_points(self, batch: int) -> Tensor:
        """Grid indices i, [B, K] in 0 .. N-1."""
        columns = 1 if self.chunks_share_level else self.num_chunks
        return torch.randint(len(self.grid) - 1, (batch, columns)).expand(-1, self.num_chunks)

    @torch.no_grad()
    def teacher_step(self, memory: MemoryView, stream: Sequence[Chunk], now_BK: Tensor, after_BK: Tensor) -> list[Chunk]:
        """The chunks one grid point further down the teacher's path."""
        velocity = predict_velocity(self.intermediate.network, memory, stream, now_BK, visibility=self.visibility, guidance=self.guidance)
        steps_BF = (after_BK - now_BK).repeat_interleave(self.chunk_frames, dim=1)
        return [
            replace(chunk, latents_BFCHW=chunk.latents_BFCHW + step[:, :, None, None, None] * run.latents_BFCHW)
            for chunk, run, step in zip(stream, split_frames(velocity, stream), steps_BF.split(self.chunk_frames, dim=1), strict=True)
        ]

    def clean_estimate(self, denoiser: Denoiser, memory: MemoryView, stream: Sequence[Chunk], sigma_BK: Tensor) -> Tensor:
        """f(x, t) of a network, [B, stream frames, C, H, W]; at t = 0 it is x, whatever the network says."""
        latents = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
        velocity = predict_velocity(denoiser, memory, stream, sigma_BK, visibility=self.visibility)
        sigma = sigma_BK.repeat_interleave(self.chunk_frames, dim=1)[:, :, None, None, None]
        return torch.where(sigma == 0.0, latents, latents - sigma * velocity)

    def flow_matching(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distance of the student's clean estimate to the target's at the next point; shapes as in `DenoiserStage`."""
        stream = self.stream(batch)
        clean = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
        points_BK = self.draw_points(clean.shape[0])
        now_BK, after_BK = (self.grid[points].to(clean.device) for points in (points_BK, points_BK + 1))
        sigma_BF = now_BK.repeat_interleave(self.chunk_frames, dim=1)
        sigma = sigma_BF[:, :, None, None, None].to(clean)
        noisy = split_frames((1 - sigma) * clean + sigma * gaussian(clean), stream)
        memory = self.memory_of(batch)
        with torch.no_grad():
            goal = self.clean_estimate(self.target.network, memory, self.teacher_step(memory, noisy, now_BK, after_BK), after_BK)
        estimate = self.clean_estimate(self.denoiser, memory, noisy, now_BK)
        error_BF = (estimate - goal).float().square().mean(dim=(2, 3, 4))
        return error_BF, sigma_BF, error_BF.mean()

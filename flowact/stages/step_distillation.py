"""Segment-wise step distillation on the staircase (FlowAct-R1, distillation; the exact target is not in it). Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory.base import MemoryBank
from flowact.models.base import Denoiser
from flowact.sampling.window import Guidance, gaussian, predict_velocity, split_frames
from flowact.schedulers.forcing import StaircaseLevels
from flowact.schedulers.staircase import Staircase
from flowact.stages.self_forcing import SelfForcing
from flowact.types import Batch, Chunk, MemoryView


class StepDistillation(SelfForcing):
    """The student crosses each stair of the staircase in one evaluation where the teacher needs M, and with the teacher's guidance built in.

        x_k = (1 - s_k) x0 + s_k eps                      all chunks at once, s_k the stairs
        x_end = M Euler steps of the teacher from s_k to s_{k-1}, with guidance
        loss = | v_student(x_k, s_k) - (x_k - x_end) / (s_k - s_{k-1}) |^2

    Args:
        denoiser: the student; teacher and student start from the checkpoint of `init_from`.
        shift: of the staircase, the same as in the stream.
        teacher_steps: M of the teacher.
        guidance: classifier-free guidance scale of the teacher; 1 is none.
        options: the other arguments of `SelfForcing`.
    """

    name = "distillation"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        *,
        shift: float = 1.0,
        teacher_steps: int = 4,
        guidance: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, memory, levels=StaircaseLevels(shift, first_step=1.0), dropout=ConditionDropout(0.0, 0.0), **options)
        self.staircase = Staircase(self.num_chunks, teacher_steps, shift)
        self.guidance = Guidance(guidance)

    @torch.no_grad()
    def teacher_end(self, memory: MemoryView, stream: Sequence[Chunk]) -> list[Chunk]:
        """The chunks one stair lower, by the teacher's micro-steps."""
        batch = stream[0].latents_BFCHW.shape[0]
        chunks = list(stream)
        for micro_step in range(self.staircase.micro_steps):
            now_K, next_K = self.staircase.stairs(micro_step), self.staircase.stairs(micro_step + 1)
            velocity = predict_velocity(
                self.intermediate.network, memory, chunks, now_K.expand(batch, -1), visibility=self.visibility, guidance=self.guidance
            )
            chunks = [
                replace(chunk, latents_BFCHW=chunk.latents_BFCHW + (after - now) * run.latents_BFCHW)
                for chunk, run, now, after in zip(chunks, split_frames(velocity, chunks), now_K.tolist(), next_K.tolist(), strict=True)
            ]
        return chunks

    def flow_matching(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error of the student's velocity against the teacher's mean velocity over each stair; shapes as in `DenoiserStage`."""
        top_K, bottom_K = self.staircase.stairs(0.0), self.staircase.stairs(float(self.staircase.micro_steps))
        stream = [
            chunk.noised(sigma, gaussian(chunk.latents_BFCHW))
            for chunk, sigma in zip(self.stream(batch), top_K.tolist(), strict=True)
        ]
        memory = self.memory_of(batch)
        ends = self.teacher_end(memory, stream)
        target = torch.cat(
            [
                (start.latents_BFCHW - end.latents_BFCHW) / (top - bottom)
                for start, end, top, bottom in zip(stream, ends, top_K.tolist(), bottom_K.tolist(), strict=True)
            ],
            dim=1,
        )
        size = target.shape[0]
        velocity = predict_velocity(self.denoiser, memory, stream, top_K.expand(size, -1), visibility=self.visibility)
        error_BF = (velocity - target).square().mean(dim=(2, 3, 4))
        sigma_BF = top_K.to(target).repeat_interleave(self.chunk_frames).expand(size, -1)
        return error_BF, sigma_BF, error_BF.mean()

"""Chunkwise diffusion forcing: the base model becomes a stream with memory (FlowAct-R1, Figure 2, second panel). Legend: flowact/types.py."""

from __future__ import annotations

from typing import Any

import torch

from flowact.memory.base import MemoryBank
from flowact.memory.structured import StructuredMemory
from flowact.models.base import Denoiser
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.forcing import MixedLevels
from flowact.schedulers.named import SolverWord
from flowact.schedulers.solver import Solver
from flowact.stages.base import DenoiserStage
from flowact.types import Batch, Chunk


class ChunkwiseDiffusionForcing(DenoiserStage):
    """Each chunk of the stream has its own noise level; memory is clean, never sees the stream, and carries no loss.

        levels_K ~ staircase or independent;   loss = mean over the stream's frames of | v - (eps - x0) |^2

    Args:
        denoiser: the trained network.
        memory: memory strategy; training writes ground-truth history to it as the live stream writes what it made.
        levels: noise levels per chunk; which law the paper uses is not stated, so the default mixes two.
        start: probability that a training step's memory holds only the reference and a random part of the history, as in a stream's first seconds.
        micro_steps: M, evaluations per stair in streams of the checkpoint, unless they are asked for another; training does not depend on it.
        solver: how streams of the checkpoint descend, unless they are asked for another way, and rollouts in training: "euler", "renoise", or a
            component of kind solvers.
        options: the other arguments of `DenoiserStage`.

    Raises:
        ValueError: a start outside [0, 1], or micro_steps below 1.
    """

    name = "diffusion_forcing"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        levels: NoiseScheduler | None = None,
        *,
        start: float = 0.2,
        micro_steps: int = 1,
        solver: SolverWord | Solver = "euler",
        **options: Any,
    ) -> None:
        super().__init__(denoiser, memory or StructuredMemory(), levels or MixedLevels(), **options)
        if not 0 <= start <= 1:
            raise ValueError(f"start is a probability in [0, 1], got {start}")
        if micro_steps < 1:
            raise ValueError(f"micro_steps is {micro_steps}; a chunk is evaluated at least 1 time on each stair, several times if it has one stair")
        self.start = start
        self.micro_steps = micro_steps
        self.solver = solver

    def history(self, batch: Batch) -> list[Chunk]:
        """The chunks before the stream; sometimes only the last few, on every process as many, so that memory is partly filled."""
        chunks = super().history(batch)
        generator = self.shared_generator("history")
        if self.training and chunks and float(torch.rand((), generator=generator)) < self.start:
            kept = int(torch.randint(len(chunks), (), generator=generator))
            return chunks[len(chunks) - kept :]
        return chunks

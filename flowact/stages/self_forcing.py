"""The self-forcing variant: train on memory that a model produced (FlowAct-R1, autoregressive adaptation). Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flowact.conditioning.dropout import ConditionDropout
from flowact.errors import UserError
from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import GeneratedMemory, MemoryCorruptor
from flowact.memory.structured import reference_chunk
from flowact.models.adapters import Adapter
from flowact.models.base import Denoiser
from flowact.sampling.window import gaussian, predict_velocity, split_frames
from flowact.schedulers.base import NoiseScheduler
from flowact.stages.base import AdamW
from flowact.stages.diffusion_forcing import ChunkwiseDiffusionForcing
from flowact.stages.frozen import Frozen
from flowact.types import Batch, Chunk, MemoryView, Visibility


class SelfForcing(ChunkwiseDiffusionForcing):
    """Diffusion forcing whose memory comes, with some probability, from an intermediate checkpoint instead of from the ground truth.

        history_hat = denoise(noise(history, sigma_r))        by the checkpoint of `init_from`, no gradient
        loss as in diffusion forcing, in front of memory(history_hat); the target stays the real next chunk

    Not Self-Forcing of Huang et al. 2025, which rolls out and matches distributions.

    Args:
        denoiser: the trained network.
        memory: memory strategy.
        levels: noise levels per chunk.
        corruptor: what happens to history before it is written to memory.
        chunk_frames: n, latent frames of a chunk.
        num_chunks: W, chunks of the stream.
        start: see `ChunkwiseDiffusionForcing`.
        dropout: condition dropout.
        visibility: who may attend to whom in the window; streams use the same.
        optimizer: optimizer and schedule.
        allow_lineage: see `DenoiserStage`.
        adapter: see `DenoiserStage`.
    """

    name = "self_forcing"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        levels: NoiseScheduler | None = None,
        corruptor: MemoryCorruptor | None = None,
        chunk_frames: int = 3,
        num_chunks: int = 3,
        start: float = 0.2,
        dropout: ConditionDropout | None = None,
        visibility: Visibility = Visibility(),
        optimizer: AdamW | None = None,
        allow_lineage: Sequence[str] = (),
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(denoiser, memory, levels, chunk_frames, num_chunks, start, dropout, visibility, optimizer, allow_lineage, adapter)
        self.corruptor = corruptor or GeneratedMemory()
        self.intermediate = Frozen()

    def initialise_from(self, path: str | Path) -> None:
        """See `Stage.initialise_from`; the same weights become the intermediate checkpoint."""
        super().initialise_from(path)
        self.intermediate.copy_from(self.denoiser)

    def setup(self, stage: str) -> None:
        """See `DenoiserStage.setup`."""
        if stage == "fit" and not self.intermediate._network:
            parent = self.recipe.get("init_from")
            if not parent:
                raise UserError(f"{type(self).__name__} needs the checkpoint of an earlier stage: set init_from to its folder")
            own = {name: tensor.clone() for name, tensor in self.denoiser.state_dict().items()}
            self.initialise_from(parent)  # a resumed run: its own weights come from the engine
            if not self.adapter.keeps_base:
                self.denoiser.load_state_dict(own)
        super().setup(stage)

    def on_fit_start(self) -> None:
        self.intermediate.to(self.denoiser)

    def memory_of(self, batch: Batch) -> MemoryView:
        """Memory of corrupted history."""
        history = self.history(batch)
        if not self.training or not history:
            return self.remember(batch, history)
        return self.remember(batch, self.corruptor.corrupt(history, lambda chunks, sigma_B: self.regenerate(batch, chunks, sigma_B)))

    @torch.no_grad()
    def regenerate(self, batch: Batch, history: Sequence[Chunk], sigma_B: Tensor) -> list[Chunk]:
        """Noise history to sigma_B and let the intermediate checkpoint denoise it in one evaluation, W chunks at a time."""
        like = history[0]
        state = self.memory.reset(reference_chunk(batch.reference_BFCHW, like))
        done: list[Chunk] = []
        for first in range(0, len(history), self.num_chunks):
            clean = list(history[first : first + self.num_chunks])
            sigma = sigma_B.to(like.latents_BFCHW)[:, None, None, None, None]
            noisy = [replace(c, latents_BFCHW=(1 - sigma) * c.latents_BFCHW + sigma * gaussian(c.latents_BFCHW)) for c in clean]
            levels_BK = sigma_B[:, None].expand(-1, len(clean))
            velocity = predict_velocity(self.intermediate.network, self.memory.read(state), noisy, levels_BK, visibility=self.visibility)
            made = [
                replace(chunk, latents_BFCHW=chunk.latents_BFCHW - sigma * run.latents_BFCHW)
                for chunk, run in zip(noisy, split_frames(velocity, noisy), strict=True)
            ]
            for chunk in made:
                state = self.memory.write(state, chunk)
            done += made
        return done

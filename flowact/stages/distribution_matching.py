"""Distribution matching distillation with a trained fake score (Yin et al. 2024, DMD2). Legend: flowact/types.py."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowact.conditioning.dropout import ConditionDropout
from flowact.errors import UserError
from flowact.memory.base import MemoryBank
from flowact.memory.structured import reference_chunk
from flowact.models.base import Denoiser
from flowact.sampling.window import Guidance, WindowEngine, WindowState, gaussian, predict_velocity, split_frames
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.flow import UniformLevel
from flowact.schedulers.staircase import Staircase
from flowact.stages.base import AdamW
from flowact.stages.diffusion_forcing import ChunkwiseDiffusionForcing
from flowact.stages.frozen import Frozen
from flowact.stages.roles import Role, SeveralRoles
from flowact.types import Batch, Chunk, MemoryView, Visibility


class DistributionMatching(SeveralRoles, ChunkwiseDiffusionForcing):
    """The student's clips are moved to where the real score finds them likelier than the fake score, which follows the student.

        x0 = x - s_k v_student(x, s_k)                            each chunk from its stair, in one evaluation
        x_t = (1 - t) x0 + t eps,   t ~ score_levels              in front of the same memory and conditions
        g = (x0_fake(x_t) - x0_real(x_t)) / mean | x0 - x0_real(x_t) |      per sample, in float64, no gradient
        student, every k-th step:   1/2 | x0 - stopgrad(x0 - g) |^2
        fake score, every step:     | v_fake(x_t, t) - (eps - x0) |^2

    The window x is noised data, or, with `rollout`, what the student's own stream arrives at: memory, and the chunks on their stairs, are
    then its own. A rollout has no gradient, so each chunk gets one through one evaluation. The adversarial loss of DMD2 is not part of it.

    Args:
        denoiser: the student; it starts from the checkpoint of `init_from`.
        scores: checkpoint that real and fake score start from. It knows every noise level: one from before step distillation. None is `init_from`.
        memory: memory strategy.
        chunk_frames: n, latent frames of a chunk.
        num_chunks: W, chunks of the stream and stairs.
        shift: of the staircase, the same as in the stream.
        score_levels: noise levels t of the scores; the default is uniform in [0.02, 0.98].
        guidance: classifier-free guidance scale w of the real score, v = v_without + w (v_with - v_without); 1 is none.
        rollout: most chunks that the student streams before the window, each step from none to so many; they stand in the history.
        solver: how a rollout descends, see `WindowEngine`; the same as in the stream.
        student_every: k, the student is updated in every k-th training step.
        clip: largest gradient norm of either role; None does not clip.
        start: see `ChunkwiseDiffusionForcing`.
        visibility: who may attend to whom in the window; streams use the same.
        optimizer: of the student; its schedule runs over the student's updates.
        fake_score_optimizer: of the fake score.
        allow_lineage: see `DenoiserStage`.

    Raises:
        UserError: from `setup`: no `init_from`, or more rollout chunks than the memory's history holds.
    """

    name = "distribution_matching"

    def __init__(
        self,
        denoiser: Denoiser,
        scores: str | None = None,
        memory: MemoryBank | None = None,
        chunk_frames: int = 3,
        num_chunks: int = 3,
        shift: float = 1.0,
        score_levels: NoiseScheduler | None = None,
        guidance: float = 1.0,
        rollout: int = 0,
        solver: Literal["euler", "renoise"] = "euler",
        student_every: int = 5,
        clip: float | None = 10.0,
        start: float = 0.2,
        visibility: Visibility = Visibility(),
        optimizer: AdamW = AdamW(lr=2e-6, betas=(0.0, 0.999), warmup_steps=0, final_lr=1.0),
        fake_score_optimizer: AdamW = AdamW(lr=4e-7, betas=(0.0, 0.999), warmup_steps=0, final_lr=1.0),
        allow_lineage: Sequence[str] = (),
    ) -> None:
        never = ConditionDropout(0.0, 0.0)
        levels = score_levels or UniformLevel(0.02, 0.98)
        super().__init__(denoiser, memory, levels, chunk_frames, num_chunks, start, never, visibility, optimizer, allow_lineage)
        self.scores = scores
        self.staircase = Staircase(num_chunks, 1, shift)
        self.guidance = Guidance(guidance)
        self.rollout = rollout
        self.solver: Literal["euler", "renoise"] = solver
        self.fake_score = copy.deepcopy(denoiser)
        self.real_score = Frozen()
        self._scores_lineage: dict[str, Any] | None = None
        self._roles = {
            "student": Role(self.denoiser, optimizer, clip, student_every),
            "fake_score": Role(self.fake_score, fake_score_optimizer, clip),
        }

    def roles(self) -> dict[str, Role]:
        """See `SeveralRoles.roles`."""
        return self._roles

    @property
    def num_updates(self) -> int:
        """See `Stage.num_updates`."""
        return self._roles["student"].num_updates

    # --- where the three networks start

    def initialise_from(self, path: str | Path) -> None:
        """See `Stage.initialise_from`; both scores start from `scores`, or from the same weights."""
        from flowact.checkpoints import load_into, open_checkpoint

        super().initialise_from(path)
        if self.scores is None:
            self.fake_score.load_state_dict(self.denoiser.state_dict())
        else:
            checkpoint = open_checkpoint(Path(self.scores))
            load_into(self.fake_score, checkpoint.weights(ema=True))
            self._scores_lineage = checkpoint.lineage
        self.real_score.copy_from(self.fake_score)

    def setup(self, stage: str) -> None:
        """See `DenoiserStage.setup`."""
        from flowact.checkpoints import check_compatible

        if not 0 <= self.rollout <= self.memory.history_chunks:
            raise UserError(
                f"rollout is {self.rollout} chunks, but they stand in the history, which has {self.memory.history_chunks} with this memory; "
                f"set it between 0 and {self.memory.history_chunks}, or give the memory more."
            )
        if stage == "fit" and not self.real_score._network:
            parent = self.recipe.get("init_from")
            if not parent:
                raise UserError(f"{type(self).__name__} needs the checkpoint of an earlier stage: set init_from to its folder")
            own = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            self.initialise_from(parent)  # a resumed run: its own weights come from the engines
            self.load_state_dict(own)
        super().setup(stage)
        if self._scores_lineage is not None:
            check_compatible(self._scores_lineage, self.lineage(), allow=self.allow_lineage)

    def on_fit_start(self) -> None:
        self.real_score.to(self.denoiser)

    # --- what the student makes

    def depth(self) -> int:
        """Chunks of this step's rollout: the same on every process, because partitioned weights need as many evaluations on each."""
        if not self.training:
            return self.rollout
        return int(torch.randint(self.rollout + 1, (), generator=torch.Generator().manual_seed(self.global_step)))

    @torch.no_grad()
    def window(self, batch: Batch, depth: int) -> tuple[MemoryView, list[Chunk]]:
        """Memory, and the W chunks on their stairs, after the student has streamed `depth` chunks from noised data."""
        chunks = self.chunks(batch, self.history_frames - depth * self.chunk_frames, depth + self.num_chunks)
        history = self.history(batch)
        memory = self.memory.reset(reference_chunk(batch.reference_BFCHW, chunks[0]))
        for chunk in history[: max(len(history) - depth, 0)]:
            memory = self.memory.write(memory, chunk)
        standing, entering = chunks[: self.num_chunks - 1], chunks[self.num_chunks - 1 :]
        stairs = self.staircase.stairs(0.0).tolist()
        state = WindowState(memory, tuple(_noised(chunk, sigma) for chunk, sigma in zip(standing, stairs, strict=False)))
        engine = WindowEngine(
            self.network("student"), self.memory, self.staircase, solver=self.solver, visibility=self.visibility, reuse_memory=False
        )
        for chunk in entering[:-1]:
            state, _ = engine.step(state, _noised(chunk, 1.0))
        return self.memory.read(state.memory), [*state.stream, _noised(entering[-1], 1.0)]

    def sample(self, batch: Batch) -> tuple[MemoryView, list[Chunk]]:
        """The student's clean chunks, and the memory that it made them in front of. The last evaluation carries a gradient where that is enabled."""
        memory, window = self.window(batch, self.depth())
        sigma_K = self.staircase.stairs(0.0)
        sigma_BK = sigma_K.expand(window[0].latents_BFCHW.shape[0], -1)
        velocity = predict_velocity(self.network("student"), memory, window, sigma_BK, visibility=self.visibility)
        return memory, [
            replace(chunk, latents_BFCHW=chunk.latents_BFCHW - sigma * run.latents_BFCHW)
            for chunk, run, sigma in zip(window, split_frames(velocity, window), sigma_K.tolist(), strict=True)
        ]

    # --- the two losses

    def noised(self, samples: Sequence[Chunk]) -> tuple[list[Chunk], Tensor, Tensor]:
        """Samples at random levels: the noisy chunks, their sigma_BK, and the noise_BFCHW."""
        clean = torch.cat([chunk.latents_BFCHW for chunk in samples], dim=1).detach()
        sigma_BK = self.levels.sample(clean.shape[0], len(samples)).to(clean.device)
        noise = gaussian(clean)
        sigma = self._per_frame(sigma_BK).to(clean)
        return split_frames((1 - sigma) * clean + sigma * noise, samples), sigma_BK, noise

    @torch.no_grad()
    def distribution_gradient(self, memory: MemoryView, samples: Sequence[Chunk]) -> Tensor:
        """Direction g_BFCHW, float64, along which the student's samples leave the fake distribution for the real one (DMD, equation 7 and 8).

        Not-finite values stay so, for `NonFiniteGuard` to see.
        """
        noisy, sigma_BK, _ = self.noised(samples)
        fake = predict_velocity(self.network("fake_score"), memory, noisy, sigma_BK, visibility=self.visibility)
        real = predict_velocity(self.real_score.network, memory, noisy, sigma_BK, visibility=self.visibility, guidance=self.guidance)
        sigma = self._per_frame(sigma_BK).double()
        clean, inputs = (torch.cat([chunk.latents_BFCHW for chunk in chunks], dim=1).double() for chunks in (samples, noisy))
        clean_real = inputs - sigma * real.double()
        clean_fake = inputs - sigma * fake.double()
        scale = (clean - clean_real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        return (clean_fake - clean_real) / scale.clamp_min(torch.finfo(torch.float32).tiny)

    def student_loss(self, memory: MemoryView, samples: Sequence[Chunk]) -> Tensor:
        """A loss whose gradient with respect to the samples is g over their number of elements; computed in float64."""
        clean = torch.cat([chunk.latents_BFCHW for chunk in samples], dim=1).double()
        target = clean.detach() - self.distribution_gradient(memory, samples)
        return (0.5 * (clean - target).square().mean()).float()

    def fake_score_loss(self, memory: MemoryView, samples: Sequence[Chunk]) -> Tensor:
        """Flow matching of the fake score on the student's samples."""
        noisy, sigma_BK, noise = self.noised(samples)
        velocity = predict_velocity(self.network("fake_score"), memory, noisy, sigma_BK, visibility=self.visibility)
        clean = torch.cat([chunk.latents_BFCHW for chunk in samples], dim=1).detach()
        return (velocity - (noise - clean)).square().mean()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        student_turn = self._roles["student"].is_due(self.global_step)
        with torch.set_grad_enabled(student_turn):
            memory, samples = self.sample(batch)
        if student_turn:
            self.update("student", self.student_loss(memory, samples))
        loss = self.fake_score_loss(memory, samples)
        self.update("fake_score", loss)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/saturation", self._saturation(batch, samples))
        return loss.detach()

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # the same levels and noise at every validation: a smooth curve
            torch.manual_seed(batch_index)
            memory, samples = self.sample(batch)
            loss, fake_score_loss = self.student_loss(memory, samples), self.fake_score_loss(memory, samples)
        values = {"val/loss": loss, "val/fake_score_loss": fake_score_loss, "val/saturation": self._saturation(batch, samples)}
        self.log_dict(values, sync_dist=True, batch_size=batch.latents_BFCHW.shape[0])
        return loss

    def _saturation(self, batch: Batch, samples: Sequence[Chunk]) -> Tensor:
        """Spread of the student's latents over that of the data: above 1 it exaggerates, below 1 it is dull."""
        made = torch.cat([chunk.latents_BFCHW for chunk in samples], dim=1).detach().float()
        return made.std() / batch.latents_BFCHW[:, -made.shape[1] :].float().std()

    def _per_frame(self, sigma_BK: Tensor) -> Tensor:
        """Levels of chunks as [B, F, 1, 1, 1]."""
        return sigma_BK.repeat_interleave(self.chunk_frames, dim=1)[:, :, None, None, None]


def _noised(chunk: Chunk, sigma: float) -> Chunk:
    return replace(chunk, latents_BFCHW=(1 - sigma) * chunk.latents_BFCHW + sigma * gaussian(chunk.latents_BFCHW))

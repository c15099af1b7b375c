"""Distribution matching distillation with a trained fake score (Yin et al. 2024, DMD2). Legend: flowact/types.py."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowact.conditioning.dropout import ConditionDropout
from flowact.data.rights import trained_on
from flowact.errors import UserError
from flowact.memory.base import MemoryBank
from flowact.memory.none import NoMemory
from flowact.memory.structured import reference_chunk
from flowact.models.base import Denoiser
from flowact.sampling.window import Guidance, WindowEngine, WindowState, gaussian, predict_velocity, split_frames
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.flow import UniformLevel
from flowact.schedulers.named import solver_of
from flowact.schedulers.staircase import Staircase
from flowact.stages.adversarial import Adversarial, ScoreWithHead, critic_loss, generator_loss
from flowact.stages.base import AdamW
from flowact.stages.curves import latent_sums, statistics
from flowact.stages.diffusion_forcing import ChunkwiseDiffusionForcing
from flowact.stages.frozen import Frozen
from flowact.stages.roles import Role, SeveralRoles
from flowact.stages.student_rollout import as_noise, graded_rollout, latents_of, stream_from_truth
from flowact.types import FULL_VISIBILITY, Batch, Chunk, MemoryView


class DistributionMatching(SeveralRoles, ChunkwiseDiffusionForcing):
    """The student's clips are moved to where the real score finds them likelier than the fake score, which follows the student.

        x0 = x - s_k v_student(x, s_k)                            each chunk from one of its stairs, in one evaluation
        x_t = (1 - t) x0 + t eps,   t ~ score_levels              in front of the same memory and conditions
        g = (x0_fake(x_t) - x0_real(x_t)) / mean | x0 - x0_real(x_t) |      per sample, in float64, no gradient
        student, every k-th step:   1/2 | x0 - stopgrad(x0 - g) |^2
        fake score, every step:     | v_fake(x_t, t) - (eps - x0) |^2

    The window x is noised data, or, with `rollout`, what the student's own stream arrives at: memory, and the chunks on their stairs, are
    then its own. With several `windows` or `micro_steps` the clip is what the stream makes from there on, and each of its chunks has a gradient
    through exactly one evaluation, see `graded_rollout`. W = 1 with M > 1 is Self-Forcing (Huang et al. 2025), W > 1 with several windows Rolling
    Forcing. Which micro-step is graded, and how deep a rollout goes, follow from the seed and the number of the step: the same on every process.

    Real and fake score see the whole clip as one stream, in front of the memory that preceded its first chunk. With `scores_see: reference` they
    see it as pretraining does: every frame sees every frame, and memory is the reference alone. So a base model can judge a student that streams;
    how the clip continues what was before it is then not judged, which a clip from the stream's beginning (`start: 1`) makes up for.

    With `adversarial` a head on the fake score's features learns to tell the student's clips from the batch's own, noised to the same level by the
    same noise and in front of the same memory, and the student learns to mislead it.

    Args:
        denoiser: the student; it starts from the checkpoint of `init_from`.
        scores: checkpoint that real and fake score start from. It knows every noise level: one from before step distillation. None is `init_from`.
        windows: consecutive windows of W chunks in a clip; the data's window holds them all.
        shift: of the staircase, the same as in the stream.
        score_levels: noise levels t of the scores; the default is uniform in [0.02, 0.98].
        scores_see: what the scores see beside the clip: the student's memory under `visibility`, or the reference under full visibility.
        guidance: classifier-free guidance scale w of the real score, v = v_without + w (v_with - v_without); 1 is none.
        rollout: most chunks that the student streams before the window, each step from none to so many; they stand in the history.
        student_every: k, the student is updated in every k-th training step.
        clip: largest gradient norm of either role; None does not clip.
        adversarial: weights of the adversarial loss; off by default.
        optimizer: of the student; its schedule runs over the student's updates.
        fake_score_optimizer: of the fake score.
        options: the other arguments of `ChunkwiseDiffusionForcing` and `SeveralRoles`; `micro_steps` is M in training too, rollouts descend by
            `solver`, and an adapter is attached to student and fake score.

    Raises:
        ValueError: no window, an adversarial loss beside an adapter, or as `Staircase` and `ScoreWithHead`.
        UserError: from `setup`: no `init_from`, more rollout chunks than the memory's history holds, data whose windows hold another number of
            chunks, or scores that never saw what `scores_see` shows them.
    """

    name = "distribution_matching"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        *,
        scores: str | None = None,
        windows: int = 1,
        shift: float = 1.0,
        score_levels: NoiseScheduler | None = None,
        scores_see: Literal["memory", "reference"] = "memory",
        guidance: float = 1.0,
        rollout: int = 0,
        student_every: int = 5,
        clip: float | None = 10.0,
        adversarial: Adversarial = Adversarial(),
        optimizer: AdamW = AdamW(lr=2e-6, betas=(0.0, 0.999), warmup_steps=0, final_lr=1.0),
        fake_score_optimizer: AdamW = AdamW(lr=4e-7, betas=(0.0, 0.999), warmup_steps=0, final_lr=1.0),
        **options: Any,
    ) -> None:
        levels = score_levels or UniformLevel(0.02, 0.98)
        super().__init__(denoiser=denoiser, memory=memory, levels=levels, dropout=ConditionDropout(0.0, 0.0), optimizer=optimizer, **options)
        if windows < 1:
            raise ValueError(f"windows is {windows}; a clip has at least 1 window of {self.num_chunks} chunks")
        if scores_see not in ("memory", "reference"):
            raise ValueError(f"scores_see is {scores_see!r}; it is memory or reference")
        if adversarial.is_on and self.adapter.keeps_base:
            raise ValueError(
                f"adversarial trains a head on the fake score, all of it, and {type(self.adapter).__name__} trains beside frozen weights; "
                "set adversarial.student and adversarial.critic to 0, or leave out the adapter"
            )
        self.scores = scores
        self.staircase = Staircase(self.num_chunks, self.micro_steps, shift)
        self.windows = windows
        self.scores_see = scores_see
        self.adversarial = adversarial
        self.guidance = Guidance(guidance)
        self.rollout = rollout
        score = copy.deepcopy(denoiser)
        self.fake_score: Denoiser | ScoreWithHead = ScoreWithHead(score, adversarial.blocks) if adversarial.is_on else score
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

    def lineage(self) -> dict[str, Any]:
        """See `Stage.lineage`; `teachers` say what the scores were trained on."""
        teachers = {"teachers": trained_on(self._scores_lineage)} if self.scores is not None and self._scores_lineage is not None else {}
        return super().lineage() | teachers

    @property
    def window_frames(self) -> int:
        """See `DenoiserStage.window_frames`: the clip's."""
        return self.windows * self.num_chunks * self.chunk_frames

    def stream(self, batch: Batch) -> list[Chunk]:
        """See `DenoiserStage.stream`: the clip's chunks."""
        return self.chunks(batch, self.history_frames, self.windows * self.num_chunks)

    # --- where the three networks start

    @property
    def score(self) -> Denoiser:
        """The fake score without its head."""
        return self.fake_score.score if isinstance(self.fake_score, ScoreWithHead) else self.fake_score

    def initialise_from(self, path: str | Path) -> None:
        """See `Stage.initialise_from`; both scores start from `scores`, or from the same weights."""
        from flowact.checkpoints import load_into, open_checkpoint

        super().initialise_from(path)
        if self.scores is None:
            self.score.load_state_dict(self.denoiser.state_dict())
            self._scores_lineage = self._parent_lineage
        else:
            checkpoint = open_checkpoint(Path(self.scores))
            load_into(self.score, checkpoint.weights(ema=True))
            self._scores_lineage = checkpoint.lineage
        self.real_score.copy_from(self.score)

    def setup(self, stage: str) -> None:
        """See `DenoiserStage.setup`."""
        from flowact.checkpoints import check_compatible

        if not 0 <= self.rollout <= self.memory.history_chunks:
            raise UserError(
                f"rollout is {self.rollout} chunks, but they stand in the history, which has {self.memory.history_chunks} with this memory; "
                f"set it between 0 and {self.memory.history_chunks}, or give the memory more."
            )
        if (have := self._data().window_frames) != self.window_frames:
            raise UserError(
                f"a clip of {self.windows} windows of {self.num_chunks} chunks of {self.chunk_frames} latent frames has {self.window_frames}, but "
                f"the data's window has {have}: set data.window_frames to windows * num_chunks * chunk_frames = {self.window_frames}, "
                "or change windows"
            )
        if stage == "fit" and not self.real_score._network:
            parent = self.recipe.get("init_from")
            if not parent:
                raise UserError(f"{type(self).__name__} needs the checkpoint of an earlier stage: set init_from to its folder")
            own = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            self.initialise_from(parent)  # a resumed run: its own weights come from the engines
            if not self.adapter.keeps_base:
                self.load_state_dict(own)
        super().setup(stage)
        if self._scores_lineage is not None:
            check_compatible(self._scores_lineage, self.lineage(), allow=self.allow_lineage)
            self._check_what_scores_see(self._scores_lineage)

    def _check_what_scores_see(self, lineage: dict[str, Any]) -> None:
        """A score judges what it was trained to see. Memory is not among what `check_compatible` compares: a base model has none."""
        stage, memory, own = lineage.get("stage"), lineage.get("memory"), type(self.memory).__name__
        wrong = None
        if self.scores_see == "reference" and ("stream_chunks" in lineage or memory not in (None, NoMemory.__name__)):
            wrong = f"was trained on a stream ({memory}); set scores_see to memory, or scores to a pretraining checkpoint"
        elif self.scores_see == "memory" and memory == NoMemory.__name__ != own:
            wrong = f"never saw {own}; set scores_see to reference, or scores to the checkpoint of a stage that trains with memory"
        if wrong:
            raise UserError(f"scores_see is {self.scores_see}, but the scores' stage, {stage}, {wrong}")

    def on_fit_start(self) -> None:
        self.real_score.to(self.denoiser, self.trainer.strategy)

    # --- what the student makes

    def depth(self) -> int:
        """Chunks of this step's rollout: the same on every process, because partitioned weights need as many evaluations on each.

        The same also for all batches that one step accumulates, so that they add up to one large batch.
        """
        if not self.training:
            return self.rollout
        return int(torch.randint(self.rollout + 1, (), generator=torch.Generator().manual_seed(self.global_step)))

    def exits(self) -> list[int]:
        """Micro-step at which each window of this step's clip is graded: the same on every process; in validation the last."""
        if not self.training:
            return [self.micro_steps - 1] * self.windows
        return torch.randint(self.micro_steps, (self.windows,), generator=self.shared_generator("exits")).tolist()

    @property
    def window_engine(self) -> WindowEngine:
        """The student's window engine."""
        network = self.network("student")
        return WindowEngine(network, self.memory, self.staircase, solver=solver_of(self.solver), visibility=self.visibility, reuse_memory=False)

    @torch.no_grad()
    def begin(self, batch: Batch, depth: int) -> tuple[WindowState, list[Chunk]]:
        """The stream after the student has streamed `depth` chunks from noised data, and the chunks that enter it next, as noise."""
        chunks = self.chunks(batch, self.history_frames - depth * self.chunk_frames, depth + self.windows * self.num_chunks)
        history = self.history(batch)
        memory = self.memory.reset(reference_chunk(batch.reference_BFCHW, chunks[0]))
        for chunk in history[: max(len(history) - depth, 0)]:
            memory = self.memory.write(memory, chunk)
        state, _ = stream_from_truth(self.window_engine, memory, chunks, depth)
        return state, [as_noise(chunk) for chunk in chunks[self.num_chunks - 1 + depth :]]

    def sample(self, batch: Batch) -> tuple[MemoryView, list[Chunk]]:
        """What the scores see in front of the clip, and the student's clean chunks; these carry a gradient where that is enabled."""
        state, entering = self.begin(batch, self.depth())
        view = self.memory.read(state.memory) if self.scores_see == "memory" else reference_alone(batch)
        return view, graded_rollout(self.window_engine, state, entering, self.exits())

    # --- the losses

    def believe(self, network: Any, memory: MemoryView, noisy: Sequence[Chunk], sigma_BK: Tensor, guidance: Guidance | None = None) -> Tensor:
        """Velocity that a score believes in, [B, clip frames, C, H, W]."""
        visibility = self.visibility if self.scores_see == "memory" else FULL_VISIBILITY
        return predict_velocity(network, memory, noisy, sigma_BK, visibility=visibility, guidance=guidance)

    def noised(self, samples: Sequence[Chunk]) -> tuple[list[Chunk], Tensor, Tensor]:
        """Samples at random levels: the noisy chunks, their sigma_BK, and the noise_BFCHW."""
        clean = latents_of(samples)
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
        fake = self.believe(self.network("fake_score"), memory, noisy, sigma_BK)
        real = self.believe(self.real_score.network, memory, noisy, sigma_BK, self.guidance)
        sigma = self._per_frame(sigma_BK).double()
        clean, inputs = latents_of(samples).double(), latents_of(noisy).double()
        clean_real = inputs - sigma * real.double()
        clean_fake = inputs - sigma * fake.double()
        scale = (clean - clean_real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        return (clean_fake - clean_real) / scale.clamp_min(torch.finfo(torch.float32).tiny)

    def student_loss(self, memory: MemoryView, samples: Sequence[Chunk]) -> Tensor:
        """A loss whose gradient with respect to the samples is g over their number of elements; computed in float64."""
        clean = latents_of(samples).double()
        target = clean.detach() - self.distribution_gradient(memory, samples)
        return (0.5 * (clean - target).square().mean()).float()

    def adversarial_loss(self, memory: MemoryView, samples: Sequence[Chunk]) -> Tensor:
        """The adversarial loss of the student. Its gradient stops at the samples on the way back, so that the fake score's engine sees none of it."""
        clean = latents_of(samples)
        leaf = clean.detach().requires_grad_()
        noisy, sigma_BK, _ = self.noised(split_frames(leaf, samples))
        loss = generator_loss(self._logits(memory, noisy, sigma_BK))
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach() + (gradient * (clean - leaf.detach())).sum()

    def fake_score_loss(self, memory: MemoryView, samples: Sequence[Chunk], real: Sequence[Chunk] = ()) -> Tensor:
        """Flow matching of the fake score on the student's samples; with an adversarial loss also the head's, which needs the real chunks."""
        samples = split_frames(latents_of(samples).detach(), samples)
        noisy, sigma_BK, noise = self.noised(samples)
        velocity = self.believe(self.network("fake_score"), memory, noisy, sigma_BK)
        loss = (velocity - (noise - latents_of(samples))).square().mean()
        if not self.adversarial.is_on:
            return loss
        assert isinstance(self.fake_score, ScoreWithHead)
        made_BF, sigma = self.fake_score.take_logits(), self._per_frame(sigma_BK).to(noise)
        noisy_real = split_frames((1 - sigma) * latents_of(real) + sigma * noise, real)
        critic = critic_loss(made_BF, self._logits(memory, noisy_real, sigma_BK))
        if self.training:
            self.log("train/critic_loss", critic.detach())
        return loss + self.adversarial.critic * critic

    def _logits(self, memory: MemoryView, noisy: Sequence[Chunk], sigma_BK: Tensor) -> Tensor:
        """logits_BF of the fake score's head."""
        assert isinstance(self.fake_score, ScoreWithHead)
        self.believe(self.network("fake_score"), memory, noisy, sigma_BK)
        return self.fake_score.take_logits()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        student_turn = self._roles["student"].is_due(self.global_step)
        with torch.set_grad_enabled(student_turn):
            memory, samples = self.sample(batch)
        if student_turn:
            student_loss = self.student_loss(memory, samples)
            if self.adversarial.is_on:
                mislead = self.adversarial_loss(memory, samples)
                self.log("train/generator_loss", mislead.detach())
                student_loss = student_loss + self.adversarial.student * mislead
            self.update("student", student_loss)
        loss = self.fake_score_loss(memory, samples, self.stream(batch))
        self.update("fake_score", loss)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/saturation", statistics(latent_sums(latents_of(samples), latents_of(self.stream(batch))))["saturation"].float())
        return loss.detach()

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # the same levels and noise at every validation: a smooth curve
            torch.manual_seed(batch_index)
            memory, samples = self.sample(batch)
            loss, fake_score_loss = self.student_loss(memory, samples), self.fake_score_loss(memory, samples, self.stream(batch))
        assert self._held_out is not None
        self._held_out.add_latents(latents_of(samples), latents_of(self.stream(batch)))
        self.log_dict({"val/loss": loss, "val/fake_score_loss": fake_score_loss}, sync_dist=True, batch_size=batch.latents_BFCHW.shape[0])
        return loss

    def _per_frame(self, sigma_BK: Tensor) -> Tensor:
        """Levels of chunks as [B, F, 1, 1, 1]."""
        return sigma_BK.repeat_interleave(self.chunk_frames, dim=1)[:, :, None, None, None]


def reference_alone(batch: Batch) -> MemoryView:
    """What pretraining sees beside a clip."""
    nothing = Chunk(batch.reference_BFCHW, batch.audio_BFAD[:, :1], batch.text_BNLD[:, 0])
    bank = NoMemory()
    return bank.read(bank.reset(reference_chunk(batch.reference_BFCHW, nothing)))

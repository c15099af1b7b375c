"""The self-forcing variant: train on memory that a model produced (FlowAct-R1, autoregressive adaptation). Legend: flowact/types.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import Corruption, GeneratedMemory, MemoryCorruptor, Offer, noised
from flowact.memory.structured import reference_chunk
from flowact.models.base import Denoiser
from flowact.sampling.window import WindowEngine, predict_velocity, split_frames
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.named import solver_of
from flowact.schedulers.staircase import Staircase
from flowact.stages.base import DenoiserStage
from flowact.stages.curves import is_logged
from flowact.stages.diffusion_forcing import ChunkwiseDiffusionForcing
from flowact.stages.frozen import Frozen
from flowact.stages.student_rollout import stream_from_truth
from flowact.types import Batch, Chunk, MemoryView

#: of the corruptors of all processes in a trainer's state
_CORRUPTORS = "flowact_corruptors"


@runtime_checkable
class KeepsAverage(Protocol):
    """A callback that keeps a moving average of the trained weights."""

    def applied(self) -> AbstractContextManager[None]:
        """Put the average in the trained weights' place for a while."""


class SelfForcing(ChunkwiseDiffusionForcing):
    """Diffusion forcing whose memory comes, with some probability, from a model instead of from the ground truth.

        history_hat = denoise(noise(history, sigma_r))        by the checkpoint of `init_from`, no gradient; or as the corruptor says
        loss as in diffusion forcing, in front of memory(history_hat); the target stays the real next chunk

    Not Self-Forcing of Huang et al. 2025, which rolls out and matches distributions.

    Args:
        denoiser: the trained network.
        corruptor: what happens to history before it is written to memory.
        options: the other arguments of `ChunkwiseDiffusionForcing`.

    Raises:
        UserError: from `setup`: no `init_from`, or a corruptor that this stage, its memory or its trainer has nothing for.
    """

    name = "self_forcing"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        levels: NoiseScheduler | None = None,
        *,
        corruptor: MemoryCorruptor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, memory, levels, **options)
        self.corruptor = corruptor or GeneratedMemory()
        self.intermediate = Frozen()
        self._corruption: tuple[list[Chunk], Corruption] | None = None  # of this step: the true history, and what became of it
        self._corrupted: Counter[str] = Counter()  # samples since the last log, by corruptor
        self._samples = 0

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
        if stage == "fit":
            self._check_corruptor()

    def _check_corruptor(self) -> None:
        name, corruptor = type(self.corruptor).__name__, self.corruptor
        if corruptor.least_history > self.memory.history_chunks:
            raise UserError(
                f"corruptor: {name} streams {corruptor.least_history} chunks of history, but this memory looks back "
                f"{self.memory.history_chunks}; set its chunks to {self.memory.history_chunks} or less, or give the memory more"
            )
        if "errors" in corruptor.needs and type(self).flow_matching is not DenoiserStage.flow_matching:
            raise UserError(
                f"corruptor: {name} keeps errors of predictions of the truth, and {type(self).__name__} trains on another target; "
                "use it in SelfForcing, or another corruptor here"
            )
        if "average" in corruptor.needs and self._average() is None:
            raise UserError(
                f"corruptor: {name} denoises by the moving average, but the trainer keeps none; add ExponentialMovingAverage to "
                "trainer.callbacks, or set `by` to checkpoint"
            )

    def _average(self) -> KeepsAverage | None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, KeepsAverage)), None)

    def on_fit_start(self) -> None:
        self.intermediate.to(self.denoiser, self.trainer.strategy)

    # --- memory

    def memory_of(self, batch: Batch) -> MemoryView:
        """Memory of corrupted history."""
        history = self.history(batch)
        self._corruption = None
        if not self.training or not history:
            return self.remember(batch, history)
        corruption = self.corruptor.corrupt(history, self.offer(batch))
        self._corruption = history, corruption
        return self.remember(batch, corruption.history)

    def offer(self, batch: Batch) -> Offer:
        """What a corruptor may ask for in this step."""
        trainer = self._trainer
        return Offer(
            checkpoint=partial(self.regenerate, batch),
            average=partial(self.regenerate_by_average, batch),
            rollout=partial(self.roll_out, batch),
            step=self.global_step,
            total_steps=1 if trainer is None else trainer.max_steps,
            shared=self.shared_generator("corruptor"),
        )

    @torch.no_grad()
    def regenerate(self, batch: Batch, history: Sequence[Chunk], sigma_B: Tensor, denoiser: Denoiser | None = None) -> list[Chunk]:
        """Noise history to sigma_B and let a denoiser, the intermediate checkpoint by default, denoise it in one evaluation, W chunks at a time."""
        denoiser = self.intermediate.network if denoiser is None else denoiser
        sigma = sigma_B.to(history[0].latents_BFCHW)[:, None, None, None, None]
        state = self.memory.reset(reference_chunk(batch.reference_BFCHW, history[0]))
        done: list[Chunk] = []
        for first in range(0, len(history), self.num_chunks):
            noisy = [noised(chunk, sigma_B) for chunk in history[first : first + self.num_chunks]]
            levels_BK = sigma_B[:, None].expand(-1, len(noisy))
            velocity = predict_velocity(denoiser, self.memory.read(state), noisy, levels_BK, visibility=self.visibility)
            made = [
                replace(chunk, latents_BFCHW=chunk.latents_BFCHW - sigma * run.latents_BFCHW)
                for chunk, run in zip(noisy, split_frames(velocity, noisy), strict=True)
            ]
            for chunk in made:
                state = self.memory.write(state, chunk)
            done += made
        return done

    def regenerate_by_average(self, batch: Batch, history: Sequence[Chunk], sigma_B: Tensor) -> list[Chunk]:
        """`regenerate` by the moving average of the network in training, which stands in its place meanwhile."""
        average = self._average()
        assert average is not None, "setup looked for it"
        with average.applied():
            return self.regenerate(batch, history, sigma_B, self.denoiser)

    @torch.no_grad()
    def roll_out(self, batch: Batch, history: Sequence[Chunk], num_chunks: int, micro_steps: int, shift: float) -> list[Chunk]:
        """History whose last chunks the network in training streams itself, each in its place.

        The first W - 1 of them stand on their stairs as noised truth. Behind the last one the stream's chunks enter with their conditions, as in a
        live stream, so that all history leaves the window finished; the W - 1 chunks that are in it then are forgotten.
        """
        earlier, streamed = list(history[: len(history) - num_chunks]), history[len(history) - num_chunks :]
        chunks = [*streamed, *self.stream(batch)[: self.num_chunks - 1]]
        staircase = Staircase(self.num_chunks, micro_steps, shift)
        engine = WindowEngine(self.denoiser, self.memory, staircase, solver=solver_of(self.solver), visibility=self.visibility, reuse_memory=False)
        memory = self.memory.reset(reference_chunk(batch.reference_BFCHW, history[0]))
        for chunk in earlier:
            memory = self.memory.write(memory, chunk)
        _, done = stream_from_truth(engine, memory, chunks, num_chunks)
        return [*earlier, *done]

    # --- what the corruptor learns, keeps and tells

    def velocity_error(self, batch: Batch, sigma_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DenoiserStage.velocity_error`; in training the corruptor may learn from it: x0_hat - x0 = -sigma (v_hat - v)."""
        error_BFCHW, clean, sigma_BF = super().velocity_error(batch, sigma_BK)
        if self.training and "errors" in self.corruptor.needs:
            self.corruptor.observe(-sigma_BF[:, :, None, None, None] * error_BFCHW.detach(), sigma_BK)
        return error_BFCHW, clean, sigma_BF

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        self._log_corruption(batch)
        return loss

    def _log_corruption(self, batch: Batch) -> None:
        """Log which share of samples each corruptor changed since the last time, and how far such memory is from the truth; of this process."""
        if self._corruption is not None:  # there was a history
            _, corruption = self._corruption
            self._corrupted[corruption.by] += int(corruption.chosen_B.sum())
            self._samples += len(corruption.chosen_B)
        if not is_logged(self.trainer, self.global_step + 1) or not self._samples:
            return
        self.log_dict({f"train/corrupted_{name}": self._corrupted[name] / self._samples for name in self.corruptor.names})
        self._corrupted.clear()
        self._samples = 0
        if self._corruption is not None and self._corruption[1].chosen_B.any():
            history, corruption = self._corruption
            true, other = (self.remember(batch, chunks).latents_BFCHW.float() for chunks in (history, corruption.history))
            self.log("train/memory_error", (other - true)[corruption.chosen_B.to(true.device)].square().mean().sqrt())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Stage.on_save_checkpoint`; what corruptors keep is a process's own."""
        super().on_save_checkpoint(checkpoint)
        if self.corruptor.has_state:
            checkpoint[_CORRUPTORS] = self._states(self.corruptor.state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Stage.on_load_checkpoint`.

        Raises:
            UserError: as `Stage.on_load_checkpoint`, another number of processes, or another corruptor.
        """
        super().on_load_checkpoint(checkpoint)
        states = checkpoint.get(_CORRUPTORS)
        if states is None or not self.corruptor.has_state:
            return
        trainer = self.trainer
        if len(states) != trainer.world_size:
            raise UserError(f"the run was saved by {len(states)} processes and resumes only with as many, now there are {trainer.world_size}.")
        try:
            self.corruptor.restore(states[trainer.global_rank])
        except (KeyError, ValueError) as error:
            raise UserError(f"the run was saved with another corruptor ({error}). Resume with its own recipe.") from error

    def _states(self, own: dict[str, Any]) -> list[Any]:
        """What each process's corruptor keeps, on the first process; elsewhere only its own. One by one, because buffers are large; all take part."""
        trainer, states = self.trainer, []
        for rank in range(trainer.world_size):
            box: list[Any] = [own]
            if trainer.world_size > 1:
                torch.distributed.broadcast_object_list(box, src=rank)
            states.append(box[0] if trainer.is_global_zero or rank == trainer.global_rank else None)
        return states

"""What every stage shares: the trained network, its optimizer and schedule, lineage, and where it starts from. Legend: flowact/types.py."""

from __future__ import annotations

import math
import os
import zlib
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from flowact.conditioning.dropout import ConditionDropout
from flowact.errors import UserError
from flowact.lora import LORA_WEIGHTS
from flowact.memory.base import MemoryBank
from flowact.memory.structured import reference_chunk
from flowact.models.adapters import Adapter, FullFinetune
from flowact.models.base import Denoiser
from flowact.sampling.window import gaussian, predict_velocity
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.named import SolverWord
from flowact.schedulers.solver import Solver
from flowact.stages.curves import LEVEL_BINS, HeldOutCurves, LevelRecord, bin_name, gradient_norm, is_logged, level_sums, partitioning_engine
from flowact.strategies import check_strategy, full_fp32_weights, step_was_skipped
from flowact.types import Batch, Chunk, MemoryView, Visibility

if TYPE_CHECKING:
    from flowact.stages.preview import PreviewClip, PreviewInput

#: key of the base's hashes in a trainer's state
_BASE = "flowact_base"
#: number of skipped steps in a trainer's state
_SKIPPED = "flowact_skipped"


@dataclass(frozen=True)
class AdamW:
    """Optimizer and schedule of one trained network: linear warm-up, then a cosine to `final_lr` of the peak at the trainer's last step.

    Attributes:
        lr: peak learning rate.
        betas: of the moments.
        weight_decay: on matrices; vectors (biases, norms) have none.
        warmup_steps: steps of the linear warm-up.
        final_lr: share of the peak at the end; 1 keeps the rate constant.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    final_lr: float = 0.1

    def build(self, module: nn.Module, apart: Collection[str] = ()) -> torch.optim.AdamW:
        """The optimizer over the trainable parameters of a module; those named by `apart` are in groups of their own, after the others."""
        trained = [(name in apart, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        groups = []
        for part in (False, True):
            own = [parameter for is_apart, parameter in trained if is_apart == part]
            groups.append({"params": [p for p in own if p.ndim > 1], "weight_decay": self.weight_decay})
            groups.append({"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0})
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr, betas=self.betas, fused=True)

    def rate(self, step: int, total_steps: int) -> float:
        """Share of the peak rate at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class Stage(pl.LightningModule):
    """A training stage: one page that reads like its algorithm box.

    Attributes:
        recipe: the resolved recipe; set by `flowact fit`, stored in every checkpoint.
        ancestors: checkpoints that the weights descend from, oldest first.
        num_skipped: training steps that changed nothing, because loss or gradient was not finite.
    """

    #: name in reports and checkpoints
    name: str
    #: file of the trained weights in a checkpoint folder
    weights_name = "denoiser.safetensors"
    #: patterns of weights that a stage adds to its parent's: they start as the network was made
    parent_may_lack: tuple[str, ...] = ()

    def __init__(self, optimizer: AdamW | None = None, adapter: Adapter | None = None) -> None:
        super().__init__()
        self.optimizer = optimizer or AdamW()
        self.adapter = adapter or FullFinetune()
        self.recipe: dict[str, Any] = {}
        self.ancestors: list[dict[str, Any]] = []
        self._parent_lineage: dict[str, Any] | None = None
        self._parent: dict[str, Any] | None = None
        self._is_adapted = False
        self.num_skipped = 0

    @abstractmethod
    def trained_module(self) -> nn.Module:
        """The network whose weights a checkpoint holds."""

    @property
    def num_updates(self) -> int:
        """How often the trained network was updated: in every training step that was not skipped, or in its turns if there are several networks."""
        return self.global_step - self.num_skipped

    @abstractmethod
    def lineage(self) -> dict[str, Any]:
        """What a checkpoint says about itself: stage, latent space, geometry, encoders, ancestors."""

    @property
    def autoencoder_folder(self) -> Path | None:
        """Folder of the autoencoder that belongs into a checkpoint, or None."""
        return None

    def documents(self) -> dict[str, str]:
        """Further files of a checkpoint folder: name -> text."""
        return {}

    def initialise_from(self, path: str | Path) -> None:
        """Take the weights of an earlier stage's checkpoint (its EMA where it has one); every key must match.

        What was taken is printed once, and stands in the lineage as part of the last ancestor.

        Raises:
            UserError: damaged checkpoint, other keys or shapes, or another latent space, chunk size, frame rate or encoder,
                or one that takes guidance scales.
        """
        from flowact.checkpoints import load_into, open_checkpoint

        checkpoint = open_checkpoint(Path(path))
        if "guidance_ranges" in checkpoint.lineage:
            raise UserError(f"{path} takes guidance scales as inputs, and no stage asks a parent or teacher for them; set init_from to its parent")
        self._parent_lineage, self._parent = checkpoint.lineage, checkpoint.identity
        report = load_into(self.trained_module(), checkpoint.weights(ema=True), allow_missing=self.parent_may_lack)
        own = {"stage": checkpoint.lineage.get("stage"), "step": checkpoint.lineage.get("step"), "weights_sha256": checkpoint.weights_sha256}
        own |= {name: checkpoint.lineage[name] for name in ("training_data", "teachers") if name in checkpoint.lineage}
        taken = {"moving_average": checkpoint.has_ema, "matched": len(report.matched), "left_as_made": list(report.missing)}
        self.ancestors = [*checkpoint.lineage.get("ancestors", []), own | taken]
        rank_zero_info(f"init_from={path}: {_told(self.ancestors)}")

    def attach_adapter(self) -> None:
        """Attach the adapter, once, to the weights of `init_from`; a resumed run takes these again.

        Raises:
            UserError: an adapter beside frozen weights, and no `init_from`; or as `initialise_from` and `Adapter.attach`.
        """
        if not self.adapter.keeps_base or self._is_adapted:
            return
        if self._parent is None:
            if not self.recipe.get("init_from"):
                raise UserError(
                    f"{type(self.adapter).__name__} trains beside the frozen weights of a checkpoint: set init_from to its folder, "
                    "or leave out model.init_args.adapter to train everything"
                )
            self.initialise_from(self.recipe["init_from"])
        self.adapter.attach(self.trained_module())
        self.weights_name = LORA_WEIGHTS
        self._is_adapted = True

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """What a checkpoint's file of weights holds, fp32 on the CPU. Every process calls it; empty on those of a rank above 0."""
        network = self.trained_module()
        names = self.adapter.stored_names(network)
        weights = full_fp32_weights(network, only=names.keys())
        return {names[name]: weight for name, weight in weights.items()} | self.adapter.constants(network) if weights else {}

    @property
    def base_lineage(self) -> dict[str, Any]:
        """The checkpoint whose weights stay as they are under an adapter, as an entry of the lineage; empty without one."""
        return {"base": self._parent} if self._is_adapted else {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Under an adapter the trainer's state holds what is trained; the rest comes from `init_from`."""
        checkpoint[_SKIPPED] = self.num_skipped
        if self._is_adapted:
            frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
            checkpoint["state_dict"] = {name: value for name, value in checkpoint.get("state_dict", {}).items() if name not in frozen}
            checkpoint[_BASE] = _hashes(self._parent)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`.

        Raises:
            UserError: `init_from` holds other weights than those that the run was trained beside.
        """
        self.num_skipped = checkpoint.get(_SKIPPED, 0)
        if not self._is_adapted:
            return
        if checkpoint.get(_BASE) != _hashes(self._parent):
            raise UserError(
                f"init_from={self.recipe.get('init_from')} does not hold the weights beside which this run was trained (sha256 differs): "
                "an adapter goes on only with them. Set init_from to where they are now."
            )
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters() if not parameter.requires_grad}
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] |= frozen

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log rate, number of updates and the gradient's norm before it is clipped; roles log their own."""
        if self.automatic_optimization and is_logged(self.trainer, self.global_step + 1):
            self.log_dict({"train/lr": optimizer.param_groups[0]["lr"], "train/updates": float(self.num_updates + 1)})
            if partitioning_engine(self.trainer) is None:
                self._log_norm(gradient_norm(self.trained_module()))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; then log the gradient's norm where only the engine knows it."""
        super().optimizer_step(*args, **kwargs)
        if is_logged(self.trainer, self.global_step + 1):
            engine = partitioning_engine(self.trainer)
            self._log_norm(engine.get_global_grad_norm() if engine is not None else None)

    def _log_norm(self, norm: Tensor | float | None) -> None:
        if norm is not None:
            self.log("train/grad_norm", float(norm))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After a step that was skipped the schedule stays where it is."""
        if step_was_skipped(self.trainer.optimizers[0]):
            self.num_skipped += 1
        else:
            super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self) -> Any:
        total_steps = self.trainer.max_steps
        if total_steps < 1:
            raise UserError(f"trainer.max_steps is {total_steps}; stages train by steps, set it to the number of optimizer steps")
        check_strategy(self.trainer.strategy)
        optimizer = self.optimizer.build(self.trained_module())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimizer.rate(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DenoiserStage(Stage):
    """A stage that trains a denoiser on windows of encoded clips.

    Args:
        denoiser: the trained network.
        memory: strategy that turns history into memory.
        levels: noise levels of the stream's chunks in training.
        chunk_frames: n, latent frames of a chunk.
        num_chunks: W, chunks of the stream.
        dropout: condition dropout for classifier-free guidance.
        visibility: who may attend to whom in the window; streams use the same.
        optimizer: optimizer and schedule.
        allow_lineage: names of lineage entries that may differ from the checkpoint named by `init_from`.
        adapter: what of the denoiser is trained; the default is all of it.
    """

    #: M of a checkpoint's streams, unless they are asked for another
    micro_steps: int = 1
    #: how a checkpoint's streams descend, unless they are asked for another way: a word, or a component
    solver: SolverWord | Solver = "euler"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank,
        levels: NoiseScheduler,
        chunk_frames: int = 3,
        num_chunks: int = 3,
        dropout: ConditionDropout | None = None,
        visibility: Visibility = Visibility(),
        optimizer: AdamW | None = None,
        allow_lineage: Sequence[str] = (),
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(optimizer, adapter)
        self.denoiser = denoiser
        self.memory = memory
        self.levels = levels
        self.chunk_frames = chunk_frames
        self.num_chunks = num_chunks
        self.dropout = dropout or ConditionDropout()
        self.visibility = visibility
        self.allow_lineage = tuple(allow_lineage)
        self._by_level: Tensor | float = 0.0
        self.drawn_levels = LevelRecord()
        self._held_out: HeldOutCurves | None = None

    @property
    def window_frames(self) -> int:
        """Latent frames of the data's window, after the history."""
        return self.num_chunks * self.chunk_frames

    def trained_module(self) -> Denoiser:
        """See `Stage.trained_module`."""
        return self.denoiser

    def lineage(self) -> dict[str, Any]:
        """See `Stage.lineage`."""
        data = self._data().lineage
        geometry = {"chunk_frames": self.chunk_frames, "num_chunks": self.num_chunks, "memory": type(self.memory).__name__}
        # with full visibility no stream is trained, and streams have the runtime's own geometry
        stream = {"stream_chunks": self.num_chunks, "micro_steps": self.micro_steps, "solver": self._named_solver()} if self.visibility.causal else {}
        return {"stage": self.name, **geometry, **stream, "ancestors": self.ancestors, **self.base_lineage, **data}

    def _named_solver(self) -> Any:
        """The solver as a checkpoint names it: a word, or the spec in the recipe."""
        if isinstance(self.solver, str):
            return self.solver
        spec = ((self.recipe.get("model") or {}).get("init_args") or {}).get("solver")
        return spec or {"class_path": type(self.solver).__name__}

    @property
    def autoencoder_folder(self) -> Path | None:
        """See `Stage.autoencoder_folder`."""
        return Path(self._data().conditions["autoencoder_path"])

    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def history_frames(self) -> int:
        """Latent frames of history that the stage needs before the stream."""
        return self.memory.history_chunks * self.chunk_frames

    def setup(self, stage: str) -> None:
        """Check that data, denoiser and parent checkpoint agree, before any long work starts, and attach the adapter."""
        from flowact.checkpoints import check_compatible

        data = self._data()
        conditions = data.conditions
        wanted = {
            "latent channels": (conditions["latent_shape"][0], self.denoiser.latent_channels, "denoiser.latent_channels"),
            "text width": (conditions["text_shape"][-1], self.denoiser.text_width, "denoiser.text_width"),
            "audio width": (conditions["audio_shape"][-1], self.denoiser.audio_width, "denoiser.audio_width"),
            "audio features per latent frame": (
                conditions["audio_shape"][0],
                self.denoiser.audio_per_latent or conditions["audio_shape"][0],
                "denoiser.audio_per_latent to the autoencoder's temporal stride",
            ),
            "stream frames": (data.window_frames, self.window_frames, "data.window_frames = num_chunks * chunk_frames"),
            "history frames": (data.history_frames, self.history_frames, "data.history_frames = memory.history_chunks * chunk_frames"),
        }
        if self.memory.chunk_frames not in (None, self.chunk_frames):
            raise UserError(f"memory.chunk_frames is {self.memory.chunk_frames}, the stage's is {self.chunk_frames}; set both to the same")
        wrong = [f"{name}: the data has {have}, the stage wants {want} (set {key})" for name, (have, want, key) in wanted.items() if have != want]
        if wrong:
            raise UserError(f"{type(self).__name__} does not fit its data: {'; '.join(wrong)}")
        if stage == "fit":
            self.attach_adapter()
        if self._parent_lineage is not None:
            check_compatible(self._parent_lineage, self.lineage(), allow=self.allow_lineage)

    def chunks(self, batch: Batch, first: int, count: int) -> list[Chunk]:
        """Consecutive chunks of a batch's windows; each has the caption in force at its middle frame."""
        samples = torch.arange(batch.latents_BFCHW.shape[0], device=batch.latents_BFCHW.device)
        chunks = []
        for k in range(count):
            start = first + k * self.chunk_frames
            end = start + self.chunk_frames
            caption_B = batch.text_index_BF[:, (start + end) // 2]
            chunks.append(Chunk(batch.latents_BFCHW[:, start:end], batch.audio_BFAD[:, start:end], batch.text_BNLD[samples, caption_B]))
        return chunks

    def history(self, batch: Batch) -> list[Chunk]:
        """The chunks before the stream, clean."""
        return self.chunks(batch, 0, self.memory.history_chunks)

    def stream(self, batch: Batch) -> list[Chunk]:
        """The stream's chunks, clean."""
        return self.chunks(batch, self.history_frames, self.num_chunks)

    @torch.no_grad()
    def remember(self, batch: Batch, history: Sequence[Chunk]) -> MemoryView:
        """Memory after history was written: the same `write` that the live stream uses, so train and test cannot differ."""
        like = self.stream(batch)[0]
        state = self.memory.reset(reference_chunk(batch.reference_BFCHW, like))
        for chunk in history:
            state = self.memory.write(state, chunk)
        return self.memory.read(state)

    def memory_of(self, batch: Batch) -> MemoryView:
        """Memory that the stream is trained in front of."""
        return self.remember(batch, self.history(batch))

    def flow_matching(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One flow matching evaluation on the stream.

        Returns:
            squared velocity error per frame error_BF, levels sigma_BF, and the mean loss.
        """
        sigma_BK = self.levels.sample(batch.latents_BFCHW.shape[0], self.num_chunks)
        error_BFCHW, _, sigma_BF = self.velocity_error(batch, sigma_BK)
        error_BF = self.frame_error(error_BFCHW.square(), batch)
        return error_BF, sigma_BF, error_BF.mean()

    def velocity_error(self, batch: Batch, sigma_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation on the stream, noised to sigma_BK.

        Returns:
            v - (eps - x0) of the stream, the stream x0 itself, and its levels sigma_BF. The network's estimate of x0 is x0 - sigma times the error.
        """
        stream = self.stream(batch)
        clean = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
        sigma_BK = sigma_BK.to(clean)
        sigma_BF = sigma_BK.repeat_interleave(self.chunk_frames, dim=1)
        noise = gaussian(clean)
        sigma = sigma_BF[:, :, None, None, None]
        noisy = (1 - sigma) * clean + sigma * noise
        runs = noisy.split(self.chunk_frames, dim=1)
        inputs = [replace(chunk, latents_BFCHW=run) for chunk, run in zip(stream, runs, strict=True)]
        drop = self.dropout.masks(clean.shape[0]) if self.training else None
        if drop is not None:
            drop = (drop[0].to(clean.device), drop[1].to(clean.device))
        velocity = predict_velocity(self.denoiser, self.memory_of(batch), inputs, sigma_BK, visibility=self.visibility, drop=drop)
        return velocity - (noise - clean), clean, sigma_BF

    def frame_error(self, squared_BFCHW: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of each of the stream's frames, error_BF."""
        return squared_BFCHW.mean(dim=(2, 3, 4))

    def shared_generator(self, purpose: str) -> torch.Generator | None:
        """Randomness of the run's seed, the number of the training batch and a purpose: the same on every process and in a resumed run.

        Whatever decides how many evaluations a step takes is drawn from it, because partitioned weights need as many on each process.
        Without a trainer it is None, torch's own generator.
        """
        if self._trainer is None:
            return None
        words = (int(os.environ.get("PL_GLOBAL_SEED", "0")), max(self.trainer.fit_loop.total_batch_idx, 0), zlib.crc32(purpose.encode()))
        return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        error_BF, sigma_BF, loss = self.flow_matching(batch)
        self.log("train/loss", loss, prog_bar=True)
        self.log_by_level(error_BF, sigma_BF)
        return loss

    def log_by_level(self, error_BF: Tensor, sigma_BF: Tensor) -> None:
        """Log the mean error per bin of noise levels over the steps since the last time, on this process; empty bins are left out."""
        self._by_level = level_sums(error_BF, sigma_BF) + self._by_level
        self.drawn_levels.add(error_BF, sigma_BF, self.chunk_frames)
        if is_logged(self.trainer, self.global_step + 1):
            means = {bin_name(low): total / count for (low, _), (total, count) in zip(LEVEL_BINS, self._by_level, strict=True) if count > 0}
            self.log_dict({f"train/{name}": mean for name, mean in means.items()})
            self._by_level = 0.0

    def on_validation_epoch_start(self) -> None:
        self._held_out = HeldOutCurves(self.levels, self.num_chunks)

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # the same levels and noise at every validation: a smooth curve
            torch.manual_seed(batch_index)
            error_BF, _, loss = self.flow_matching(batch)
            self.measure_held_out(batch, batch_index)
        self.log("val/loss", loss, sync_dist=True, batch_size=error_BF.shape[0])
        return loss

    def measure_held_out(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the curves by noise level and to the statistics of the estimated latents: the same measure in every stage."""
        assert self._held_out is not None
        size, trainer = batch.latents_BFCHW.shape[0], self.trainer
        sigma_BK = self._held_out.levels((batch_index * trainer.world_size + trainer.global_rank) * size, size)
        error_BFCHW, clean, sigma_BF = self.velocity_error(batch, sigma_BK)
        self._held_out.add_errors(self.frame_error(error_BFCHW.square(), batch), sigma_BF)
        self._held_out.add_latents(clean - sigma_BF[:, :, None, None, None] * error_BFCHW, clean)

    def on_validation_epoch_end(self) -> None:
        assert self._held_out is not None
        means = self._held_out.means(self.trainer.strategy)
        self.log_dict({f"val/{name}": mean for name, mean in means.items()})  # every process has the same

    def preview_clips(self, seconds: float, num_clips: int, inputs: Sequence[PreviewInput] = ()) -> list[PreviewClip]:
        """Short streamed clips of these inputs, or of the validation set, for the eye and the ear."""
        from flowact.stages.preview import stream_preview

        return stream_preview(self, seconds, num_clips, inputs)


def _told(ancestors: Sequence[Mapping[str, Any]]) -> str:
    """What a run starts from, for people; the last ancestor is the checkpoint whose weights it took."""
    *before, parent = ancestors
    after = " after " + ", ".join(f"{one.get('stage')} (step {one.get('step')})" for one in before) if before else ""
    kind = "moving average" if parent["moving_average"] else "trained weights, without a moving average"
    made = parent["left_as_made"]
    left = f"; {len(made)} that it lacks stay as they were made: {', '.join(made)}" if made else ", none left over on either side"
    return f"stage {parent['stage']}, step {parent['step']}{after}; {kind}, {parent['matched']} tensors taken{left}"


def _hashes(parent: dict[str, Any] | None) -> dict[str, Any]:
    """What tells one parent's weights from another's."""
    return {key: value for key, value in (parent or {}).items() if key.endswith("sha256")}

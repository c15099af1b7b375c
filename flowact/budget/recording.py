"""How often a stage's training step and its stream evaluate a denoiser, and on what: both run in earnest, with a denoiser that computes nothing.

So stages of plugins, teachers, scores and rollouts are counted as they are, and no stage has to describe itself. Legend: flowact/types.py.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowact.memory.structured import reference_chunk
from flowact.models.base import Denoiser
from flowact.sampling.window import WindowEngine
from flowact.stages.base import DenoiserStage
from flowact.stages.frozen import Frozen
from flowact.stages.roles import SeveralRoles
from flowact.types import BOXES, Batch, Chunk, ConditionTokens, MemoryFeatures, WindowLayout

#: training steps that are run; they draw what is random in a stage
STEPS = 16
#: steps of a stream that are averaged over once memory is full
STREAMED = 4
#: the recorded steps are the first of a training that is longer than any warm-up
_NEVER = 1 << 30


@dataclass(frozen=True)
class Evaluation:
    """One call of a network.

    Attributes:
        role: which network of the stage.
        layout: of the whole window; of memory alone where memory is encoded.
        kept: features of memory were handed in.
        gradient: a backward pass follows.
    """

    role: str
    layout: WindowLayout
    kept: bool
    gradient: bool

    @property
    def encodes_memory(self) -> bool:
        return not self.layout.num_stream_frames


class _Ledger(list[tuple["Recorder", WindowLayout, bool, bool]]):
    """Calls in order; copies of a network write into the same one."""

    def __deepcopy__(self, memo: Any) -> _Ledger:
        return self


class Recorder(Denoiser):
    """Notes what it is asked for and gives back latents of the right shape.

    Args:
        latent_channels: of the denoiser that it stands for; so are the others.
        text_width: likewise.
        audio_width: likewise.
        audio_per_latent: likewise.
        reuses_memory: likewise.
        takes_guidance: likewise.
    """

    audio_parameters = ("scale",)  # for stages that train sound apart

    def __init__(
        self,
        latent_channels: int,
        text_width: int,
        audio_width: int,
        audio_per_latent: int | None = None,
        reuses_memory: bool = True,
        takes_guidance: bool = False,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.text_width = text_width
        self.audio_width = audio_width
        self.audio_per_latent = audio_per_latent
        self.reuses_memory = reuses_memory
        self.takes_guidance = takes_guidance
        self.scale = nn.Parameter(torch.ones(1))  # something to train
        self.calls = _Ledger()

    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        """See `Denoiser.forward`."""
        self.calls.append((self, layout, memory is not None, torch.is_grad_enabled() and self.scale.requires_grad))
        return latents_BFCHW[:, -layout.num_stream_frames :] * self.scale

    def encode_memory(self, latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> MemoryFeatures:
        """See `Denoiser.encode_memory`: one token per segment, to be taken apart."""
        self.calls.append((self, layout, False, False))
        features = latents_BFCHW.new_zeros(latents_BFCHW.shape[0], len(layout.segments), 1, 1)
        lengths = (1,) * len(layout.segments) if layout.visibility.memory == "isolated" else ()
        return MemoryFeatures((features,), (features,), lengths=lengths)


class _Windows(pl.LightningDataModule):
    """The same window of noise in every step."""

    def __init__(self, network: Recorder, audio_per_latent: int, history_frames: int, window_frames: int) -> None:
        super().__init__()
        self.history_frames, self.window_frames, self.boxes = history_frames, window_frames, True
        latent, text = (network.latent_channels, 2, 2), (1, network.text_width)
        audio = (audio_per_latent, network.audio_width)
        self.conditions = {"latent_shape": latent, "text_shape": text, "audio_shape": audio, "autoencoder_path": ""}
        self.lineage: dict[str, Any] = {}
        frames = history_frames + window_frames
        latents, reference = torch.randn(1, frames, *latent), torch.randn(1, 1, *latent)
        captions = torch.randn(1, 1, *text)
        boxes, index = torch.zeros(1, frames, len(BOXES), 4), torch.zeros(1, frames, dtype=torch.long)
        self.batch = Batch(latents, reference, torch.randn(1, frames, *audio), captions, index, boxes_BFX4=boxes)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(_Endless(self.batch), batch_size=None)


class _Average(pl.Callback):
    """Stands where a recipe keeps its moving average, for stages that evaluate it: the recorder has nothing to average."""

    def applied(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Endless(torch.utils.data.IterableDataset[Batch]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


def record_training(stage: DenoiserStage, network: Recorder, audio_per_latent: int, data_frames: tuple[int, int]) -> dict[Evaluation, float]:
    """Evaluations of one training step on average, by running the stage's own steps.

    Args:
        stage: built with `network` as its denoiser.
        network: the recorder.
        audio_per_latent: audio features of a latent frame.
        data_frames: history and window frames that the data module is set to.

    Raises:
        UserError: the data's windows do not fit the stage.
    """
    frozen = {name: value for name, value in vars(stage).items() if isinstance(value, Frozen)}
    for holder in frozen.values():
        holder.copy_from(network)
    slowest = stage.accumulate * max(role.every for role in stage.roles().values()) if isinstance(stage, SeveralRoles) else 1
    steps = slowest * -(-STEPS // slowest)  # every role has its whole turns
    settings: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings |= {"max_steps": _NEVER, "max_epochs": 1, "limit_train_batches": steps, "limit_val_batches": 0}
    with torch.random.fork_rng(devices=[]), _silence():
        torch.manual_seed(0)
        trainer = pl.Trainer(accelerator="cpu", devices=1, callbacks=[_Average()], **settings)
        data = _Windows(network, audio_per_latent, *data_frames)
        network.calls.clear()
        trainer.fit(stage, datamodule=data)
    names = {id(module): name for name, module in stage.named_children() if isinstance(module, Recorder)}
    names |= {id(holder.network): name for name, holder in frozen.items()}
    return _averaged(network.calls, names, steps)


def record_stream(engine: WindowEngine, chunk_frames: int, audio_per_latent: int) -> dict[Evaluation, float]:
    """Evaluations for each chunk that leaves a stream whose memory is full, by running the window engine.

    Args:
        engine: with a recorder as its denoiser.
        chunk_frames: n.
        audio_per_latent: audio features of a latent frame.
    """
    network, bank, num_chunks = engine.denoiser, engine.bank, engine.staircase.num_chunks
    assert isinstance(network, Recorder)
    latents = torch.zeros(1, chunk_frames, network.latent_channels, 2, 2)
    audio, text = torch.zeros(1, chunk_frames, audio_per_latent, network.audio_width), torch.zeros(1, 1, network.text_width)
    chunk = Chunk(latents, audio, text)
    filling = bank.history_chunks + num_chunks
    with torch.no_grad():
        state = engine.start(reference_chunk(latents[:, :1], chunk), [chunk] * (num_chunks - 1))
        for step in range(filling + STREAMED):
            if step == filling:
                network.calls.clear()
            state, _ = engine.step(state, chunk)
    return _averaged(network.calls, {id(network): "denoiser"}, STREAMED)


def _averaged(calls: _Ledger, names: dict[int, str], steps: int) -> dict[Evaluation, float]:
    counted = Counter(Evaluation(names[id(network)], layout, kept, gradient) for network, layout, kept, gradient in calls)
    return {evaluation: count / steps for evaluation, count in counted.items()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Lightning says nothing of a training that is not one."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)

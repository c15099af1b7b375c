"""Short streamed clips, to watch and to hear, while training runs. T pixel frames, C = 3 colours, H W pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import nn

from flowact.callbacks.ema import moving_average
from flowact.errors import UserError
from flowact.strategies import is_partitioned
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE

if TYPE_CHECKING:
    from flowact.stages.base import DenoiserStage
    from flowact.stages.preview import PreviewClip

log = logging.getLogger(__name__)


class StreamPreview(Callback):
    """Stream clips with the averaged weights now and then, and write them to `media/` in the log folder.

    Each clip becomes an mp4 with sound and a contact sheet; sheet, sound and caption also go to TensorBoard. The stage provides
    `preview_clips(seconds, num_clips) -> list[PreviewClip]`. Clips of different steps start from the same random numbers, and
    training draws what it would have drawn without them.

    Args:
        every_n_steps: optimizer steps between previews.
        seconds: duration of a clip.
        num_clips: clips per preview.
        sheet_frames: pictures on a contact sheet.
        scale: whole number by which the video is enlarged.

    Raises:
        UserError: a number that is not positive, or a stage without `preview_clips`.
    """

    def __init__(self, every_n_steps: int, seconds: float = 4.0, num_clips: int = 2, sheet_frames: int = 8, scale: int = 1) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("seconds", seconds), ("num_clips", num_clips), ("sheet_frames", sheet_frames)):
            if value <= 0:
                raise UserError(f"{name} of StreamPreview is {value}; it is above 0.")
        self.every_n_steps = every_n_steps
        self.seconds = seconds
        self.num_clips = num_clips
        self.sheet_frames = sheet_frames
        self.scale = scale
        self._folder = Path()
        self._last_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not callable(getattr(pl_module, "preview_clips", None)):
            raise UserError(f"StreamPreview needs a stage with preview_clips(seconds, num_clips); {type(pl_module).__name__} has none.")
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "media"  # a collective operation, so not later
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        sharded = any(is_partitioned(parameter) for parameter in pl_module.parameters())
        if not (trainer.is_global_zero or sharded):
            return  # the others wait at the next reduction of gradients
        clips = self._stream(trainer, pl_module)
        if trainer.is_global_zero:
            try:
                self._write(trainer, clips, step)
            except OSError as error:
                log.warning("preview of step %d not written: %s", step, error)

    def _stream(self, trainer: Trainer, pl_module: LightningModule) -> list[PreviewClip]:
        average = moving_average(trainer)
        weights = average.applied() if average is not None and average.is_ready else nullcontext()
        with weights, _evaluating(pl_module), _generators_kept(), torch.no_grad(), trainer.precision_plugin.forward_context():
            return cast("DenoiserStage", pl_module).preview_clips(self.seconds, self.num_clips)

    def _write(self, trainer: Trainer, clips: Sequence[PreviewClip], step: int) -> None:
        from flowact.writers.mp4 import Mp4Writer

        self._folder.mkdir(parents=True, exist_ok=True)
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for index, clip in enumerate(clips):
            path = self._folder / f"step-{step:08d}-{index}.mp4"
            height, width = clip.frames_THWC.shape[1:3]
            with Mp4Writer(path, width, height, FRAMES_PER_SECOND, SAMPLE_RATE, scale=self.scale) as writer:
                writer.write(clip.frames_THWC, clip.samples)
            sheet_HWC = contact_sheet(clip.frames_THWC, self.sheet_frames)
            Image.fromarray(sheet_HWC).save(path.with_suffix(".png"))
            for board in boards:
                board.add_image(f"preview/{index}", sheet_HWC, step, dataformats="HWC")
                board.add_audio(f"preview/{index}", clip.samples[None], step, SAMPLE_RATE)
                board.add_text(f"preview/{index}", f"{clip.caption}\n\n{path}", step)


def contact_sheet(frames_THWC: np.ndarray, count: int) -> np.ndarray:
    """`count` frames from first to last, side by side: uint8 [H, count * W, C]."""
    picked = np.linspace(0, len(frames_THWC) - 1, min(count, len(frames_THWC))).round().astype(int)
    return np.concatenate([frames_THWC[t] for t in picked], axis=1)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Start torch's generators from a fixed seed and put them back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield

"""Short streamed clips, to watch and to hear, while training runs. T pixel frames, C = 3 colours, H W pixels."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import nn

from flowact.callbacks.boards import Boards
from flowact.callbacks.ema import moving_average
from flowact.callbacks.run_record import run_folder
from flowact.callbacks.throughput import Throughput
from flowact.errors import UserError
from flowact.stages.preview import PreviewInput
from flowact.strategies import is_partitioned
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE
from flowact.writers.sheet import contact_sheet as labelled_table

if TYPE_CHECKING:
    from flowact.stages.base import DenoiserStage
    from flowact.stages.preview import MemoryHistory, PreviewClip

log = logging.getLogger(__name__)


class StreamPreview(Callback):
    """Stream clips with the averaged weights now and then, and write them to `media/` in the log folder.

    Each clip becomes an mp4 with sound, a contact sheet, and a table of what memory held. All of it goes to the run's loggers too, as far as they
    have a place for it (TensorBoard, Weights & Biases, MLflow, Comet), and so do the means of `PreviewClip.statistics` as `preview/drift`,
    `preview/saturation` and `preview/motion`. The stage provides `preview_clips(seconds, num_clips) -> list[PreviewClip]`, with the inputs as a third
    argument where there are some. Clips of different steps start from the same random numbers, and training draws what it would have drawn without
    them.

    Args:
        every_n_steps: optimizer steps between previews.
        seconds: duration of a clip.
        num_clips: clips per preview, the first of the validation set.
        sheet_frames: pictures on a contact sheet.
        scale: whole number by which the video is enlarged.
        clips: pictures, sounds and prompts to stream in place of the validation set.
        memory_moments: at how many moments of a clip memory is decoded and shown; 0 shows none.

    Raises:
        UserError: a number that is not positive, a stage without `preview_clips`, or a file that is not there.
    """

    def __init__(
        self,
        every_n_steps: int,
        seconds: float = 4.0,
        num_clips: int = 2,
        sheet_frames: int = 8,
        scale: int = 1,
        clips: Sequence[PreviewInput] = (),
        memory_moments: int = 4,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("seconds", seconds), ("num_clips", num_clips), ("sheet_frames", sheet_frames)):
            if value <= 0:
                raise UserError(f"{name} of StreamPreview is {value}; it is above 0.")
        if memory_moments < 0:
            raise UserError(f"memory_moments of StreamPreview is {memory_moments}; it is 0 or more.")
        self.every_n_steps = every_n_steps
        self.seconds = seconds
        self.num_clips = num_clips
        self.sheet_frames = sheet_frames
        self.scale = scale
        self.clips = tuple(clips)
        self.memory_moments = memory_moments
        self._folder = Path()
        self._last_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not callable(getattr(pl_module, "preview_clips", None)):
            raise UserError(f"StreamPreview needs a stage with preview_clips(seconds, num_clips); {type(pl_module).__name__} has none.")
        for given in self.clips:
            given.check()
        self._folder = (run_folder(trainer) or Path(trainer.default_root_dir)) / "media"  # a collective operation, so not later
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
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.interrupted = True
        if trainer.is_global_zero:
            self._log(trainer, clips, step)
            try:
                self._write(trainer, clips, step)
            except OSError as error:
                log.warning("preview of step %d not written: %s", step, error)

    def _stream(self, trainer: Trainer, pl_module: LightningModule) -> list[PreviewClip]:
        average = moving_average(trainer)
        weights = average.applied() if average is not None and average.is_ready else nullcontext()
        with weights, _evaluating(pl_module), _generators_kept(), torch.no_grad(), trainer.precision_plugin.forward_context():
            inputs = (self.clips,) if self.clips else ()
            return cast("DenoiserStage", pl_module).preview_clips(self.seconds, self.num_clips, *inputs)

    def _log(self, trainer: Trainer, clips: Sequence[PreviewClip], step: int) -> None:
        """Log the means over clips, of those that every clip has."""
        found = [clip.statistics() for clip in clips]
        names = [name for name in found[0] if all(name in one for one in found)] if found else []
        means = {f"preview/{name}": statistics.fmean(one[name] for one in found) for name in names}
        trainer.callback_metrics.update({name: torch.tensor(mean) for name, mean in means.items()})  # for callbacks that watch a figure
        for logger in trainer.loggers:
            logger.log_metrics(means, step=step)

    def _write(self, trainer: Trainer, clips: Sequence[PreviewClip], step: int) -> None:
        from flowact.writers.mp4 import Mp4Writer

        self._folder.mkdir(parents=True, exist_ok=True)
        boards = Boards.of(trainer)
        for index, clip in enumerate(clips):
            path = self._folder / f"step-{step:08d}-{index}.mp4"
            height, width = clip.frames_THWC.shape[1:3]
            with Mp4Writer(path, width, height, FRAMES_PER_SECOND, SAMPLE_RATE, scale=self.scale) as writer:
                writer.write(clip.frames_THWC, clip.samples)
            sheet_HWC = contact_sheet(clip.frames_THWC, self.sheet_frames)
            Image.fromarray(sheet_HWC).save(path.with_suffix(".png"))
            boards.picture(f"preview/{index}", sheet_HWC, step)
            boards.film(f"preview/{index}/film", path, clip.frames_THWC, step)
            boards.sound(f"preview/{index}/sound", clip.samples, step)
            boards.text(f"preview/{index}/text", f"{clip.caption}\n\n{path}", step)
            if clip.memory is not None and self.memory_moments:
                table = memory_table(clip.memory, self.memory_moments)
                table.save(self._folder / f"memory-{step:08d}-{index}.png")
                boards.picture(f"memory/{index}", np.asarray(table), step)
        log.info("step %d: %d preview%s in %s", step, len(clips), "" if len(clips) == 1 else "s", self._folder)


def memory_table(memory: MemoryHistory, count: int) -> Image.Image:
    """What memory held at some moments of a clip, one to a row: RGB on white, with names at the edges."""
    rows, names = memory.pictures(count)
    sheet = labelled_table(rows, names)
    table = Image.new("RGB", sheet.size, "white")
    table.paste(sheet, mask=sheet)
    return table


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

"""Pictures, films, sound, text and histograms for whichever loggers a run has. T pixel frames, C = 3 colours, H W pixels."""

from __future__ import annotations

import io
import logging
import re
import wave
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE

log = logging.getLogger(__name__)

#: longer side of the films in TensorBoard, and how many frames of a video each of their pictures stands for
_FILM_PIXELS, _FILM_STRIDE = 256, 2


class Board:
    """Where one logger shows what is no number. What it has no place for it leaves out."""

    def picture(self, tag: str, picture_HWC: np.ndarray, step: int) -> None:
        """Show a uint8 RGB picture."""

    def film(self, tag: str, path: Path, frames_THWC: np.ndarray, step: int) -> None:
        """Show a film: an mp4 with sound, and its frames."""

    def sound(self, tag: str, samples: np.ndarray, step: int) -> None:
        """Play mono sound in [-1, 1] at 16 kHz."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Show Markdown."""

    def histogram(self, tag: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Show how often values fell between consecutive edges; there is one edge more than counts."""


class TensorBoard(Board):
    """TensorBoard's event file."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.writer: Any = logger.experiment

    def picture(self, tag: str, picture_HWC: np.ndarray, step: int) -> None:
        """See `Board.picture`."""
        self.writer.add_image(tag, picture_HWC, step, dataformats="HWC")

    def film(self, tag: str, path: Path, frames_THWC: np.ndarray, step: int) -> None:
        """See `Board.film`."""
        self.writer._get_file_writer().add_summary(film_summary(tag, frames_THWC), step)

    def sound(self, tag: str, samples: np.ndarray, step: int) -> None:
        """See `Board.sound`."""
        self.writer.add_audio(tag, samples[None], step, SAMPLE_RATE)

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Board.text`."""
        self.writer.add_text(tag, text, step)

    def histogram(self, tag: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """See `Board.histogram`."""
        middles = (edges[1:] + edges[:-1]) / 2
        self.writer.add_histogram_raw(
            tag,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float((counts * middles).sum()),
            sum_squares=float((counts * middles**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


class MediaMethods(Board):
    """A logger with `log_image`, `log_video`, `log_audio`, `log_text` as Lightning's for Weights & Biases has them; those it lacks are left out."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        if hasattr(self.logger, method):
            getattr(self.logger, method)(*args, **kwargs)

    def picture(self, tag: str, picture_HWC: np.ndarray, step: int) -> None:
        """See `Board.picture`."""
        self._call("log_image", tag, [picture_HWC], step)

    def film(self, tag: str, path: Path, frames_THWC: np.ndarray, step: int) -> None:
        """See `Board.film`."""
        self._call("log_video", tag, [str(path)], step)

    def sound(self, tag: str, samples: np.ndarray, step: int) -> None:
        """See `Board.sound`."""
        with TemporaryDirectory() as folder:
            path = _write_wave(Path(folder) / "sound.wav", samples)
            self._call("log_audio", tag, [str(path)], step)

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Board.text`."""
        self._call("log_text", tag, columns=["text"], data=[[text]], step=step)


class WeightsAndBiases(MediaMethods):
    """Weights & Biases, which has a histogram of its own."""

    def histogram(self, tag: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """See `Board.histogram`."""
        import wandb  # the logger has it

        self.logger.log_metrics({tag: wandb.Histogram(np_histogram=(counts, edges))}, step)


class MLFlow(Board):
    """MLflow: pictures with their step, all else as artifacts in `media/`."""

    def __init__(self, logger: MLFlowLogger) -> None:
        self.client: Any = logger.experiment
        self.run_id = logger.run_id

    def picture(self, tag: str, picture_HWC: np.ndarray, step: int) -> None:
        """See `Board.picture`."""
        self.client.log_image(self.run_id, picture_HWC, key=_plain_name(tag), step=step)

    def film(self, tag: str, path: Path, frames_THWC: np.ndarray, step: int) -> None:
        """See `Board.film`."""
        self.client.log_artifact(self.run_id, str(path), "media")

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Board.text`."""
        self.client.log_text(self.run_id, text, f"media/{_plain_name(tag).replace('/', '-')}-{step:08d}.md")


class Comet(Board):
    """Comet's experiment."""

    def __init__(self, logger: CometLogger) -> None:
        self.experiment: Any = logger.experiment

    def picture(self, tag: str, picture_HWC: np.ndarray, step: int) -> None:
        """See `Board.picture`."""
        self.experiment.log_image(Image.fromarray(picture_HWC), name=tag, step=step)

    def film(self, tag: str, path: Path, frames_THWC: np.ndarray, step: int) -> None:
        """See `Board.film`."""
        self.experiment.log_video(str(path), name=tag, step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Board.text`."""
        self.experiment.log_text(text, step=step, metadata={"tag": tag})

    def histogram(self, tag: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """See `Board.histogram`."""
        middles = (edges[1:] + edges[:-1]) / 2
        self.experiment.log_histogram_3d(np.repeat(middles, counts.astype(int)), name=tag, step=step)


def board_of(logger: Logger) -> Board | None:
    """Where a logger shows pictures; None for one of numbers alone, such as Lightning's CSV."""
    for kind, board in ((TensorBoardLogger, TensorBoard), (WandbLogger, WeightsAndBiases), (MLFlowLogger, MLFlow), (CometLogger, Comet)):
        if isinstance(logger, kind):
            return board(logger)  # type: ignore[arg-type, no-any-return]
    return MediaMethods(logger) if hasattr(logger, "log_image") else None


@dataclass(frozen=True)
class Boards:
    """All boards of a run. What a board fails to show is warned of and tried again with the next preview: no picture is worth a run.

    Args:
        boards: name of the logger -> its board.
    """

    boards: dict[str, Board]

    @classmethod
    def of(cls, trainer: Trainer) -> Boards:
        """Those of a trainer's loggers; none on processes other than the first."""
        boards: dict[str, Board] = {}
        for number, logger in enumerate(trainer.loggers if trainer.is_global_zero else ()):
            name = f"{type(logger).__name__} {number}"
            try:
                board = board_of(logger)
            except Exception as error:  # the same as in `_each`
                log.warning("%s shows no pictures: %s: %s", type(logger).__name__, type(error).__name__, error)
                continue
            if board is not None:
                boards[name] = board
        return cls(boards)

    def picture(self, tag: str, picture_HWC: np.ndarray, step: int) -> None:
        """See `Board.picture`."""
        self._each("picture", tag, picture_HWC, step)

    def film(self, tag: str, path: Path, frames_THWC: np.ndarray, step: int) -> None:
        """See `Board.film`."""
        self._each("film", tag, path, frames_THWC, step)

    def sound(self, tag: str, samples: np.ndarray, step: int) -> None:
        """See `Board.sound`."""
        self._each("sound", tag, samples, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Board.text`."""
        self._each("text", tag, text, step)

    def histogram(self, tag: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """See `Board.histogram`."""
        self._each("histogram", tag, counts, edges, step)

    def _each(self, kind: str, *values: Any) -> None:
        for name, board in self.boards.items():
            try:
                getattr(board, kind)(*values)
            except Exception as error:  # a service that is down, a disk that is full, a library that wants another one
                log.warning("%s shows no %s: %s", name.partition(" ")[0], kind, error)


def film_summary(tag: str, frames_THWC: np.ndarray) -> Any:
    """A film as TensorBoard plays it among its images: an animated GIF, which `add_video` would need moviepy for."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width = frames_THWC.shape[1:3]
    scale = _FILM_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    pictures = [Image.fromarray(frame).resize(size, way) for frame in frames_THWC[::_FILM_STRIDE]]
    data = io.BytesIO()
    duration = 1000 * _FILM_STRIDE // FRAMES_PER_SECOND
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    image = Summary.Image(height=size[1], width=size[0], colorspace=3, encoded_image_string=data.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _write_wave(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path


def _plain_name(tag: str) -> str:
    """A tag in the letters that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_./ -]", "_", tag)

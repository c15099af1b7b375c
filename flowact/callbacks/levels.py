"""Which noise levels training drew, and what the loss was at each. K chunks of the stream, N bins of levels."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from flowact.callbacks.boards import Boards
from flowact.callbacks.run_record import run_folder
from flowact.errors import UserError
from flowact.stages.curves import LevelRecord

log = logging.getLogger(__name__)


class NoiseLevels(Callback):
    """Show now and then which noise levels training drew since the last time, by place in the stream, and the mean loss at each.

    A picture goes to `media/` in the log folder and, with a histogram for each place of a chunk, to the run's loggers. Counts are those of all
    processes. Stages that draw no levels of their own for a denoising loss (a rollout's, such as distribution matching) have nothing to show.

    Args:
        every_n_steps: optimizer steps between two pictures; there is one at the end too.

    Raises:
        UserError: an interval below 1.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps of NoiseLevels is {every_n_steps}; it is at least 1.")
        self.every_n_steps = every_n_steps
        self._folder = Path()
        self._last_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = (run_folder(trainer) or Path(trainer.default_root_dir)) / "media"  # a collective operation, so not later
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step != self._last_step and step % self.every_n_steps == 0:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._last_step:
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every process calls it."""
        self._last_step = trainer.global_step
        record = getattr(pl_module, "drawn_levels", None)
        if not isinstance(record, LevelRecord) or record.sums_2KN is None:
            return
        counts_KN, errors_KN = trainer.strategy.reduce(record.take().to(trainer.strategy.root_device), reduce_op="sum").cpu().double().numpy()
        if not trainer.is_global_zero:
            return
        boards = Boards.of(trainer)
        edges = np.linspace(0.0, 1.0, counts_KN.shape[1] + 1)
        for chunk, counts_N in enumerate(counts_KN):
            boards.histogram(f"levels/chunk_{chunk}", counts_N, edges, trainer.global_step)
        picture = draw_levels(counts_KN, errors_KN, trainer.global_step)
        boards.picture("levels/drawn", np.asarray(picture), trainer.global_step)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            picture.save(self._folder / f"levels-{trainer.global_step:08d}.png")
        except OSError as error:
            log.warning("noise levels of step %d are not drawn: %s", trainer.global_step, error)


def draw_levels(counts_KN: np.ndarray, errors_KN: np.ndarray, step: int) -> Image.Image:
    """How often each level was drawn for each place in the stream, and the mean error there: an RGB picture.

    Args:
        counts_KN: latent frames with a level in the bin.
        errors_KN: sum of their errors.
        step: for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_chunks, num_bins = counts_KN.shape
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    drawn, loss = figure.subplots(1, 2)
    shares_KN = counts_KN / np.maximum(counts_KN.sum(axis=1, keepdims=True), 1)
    for chunk in range(num_chunks):
        colour, name = f"C{chunk}", f"chunk {chunk}"
        drawn.stairs(shares_KN[chunk], edges, color=colour, label=name, fill=False, linewidth=1.4)
        drawn.stairs(shares_KN[chunk], edges, color=colour, fill=True, alpha=0.15)
        known_N = counts_KN[chunk] > 0
        means = errors_KN[chunk][known_N] / counts_KN[chunk][known_N]
        loss.plot(middles[known_N], means, color=colour, marker="o", markersize=2.5, linewidth=0.9, alpha=0.7, label=name)
    total_N = counts_KN.sum(axis=0)
    known_N = total_N > 0
    loss.plot(middles[known_N], errors_KN.sum(axis=0)[known_N] / total_N[known_N], color="black", linewidth=1.6, label="all")
    for axes, title in ((drawn, f"share of frames by noise level, to step {step}"), (loss, "mean loss by noise level")):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("sigma", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return Image.open(buffer).convert("RGB")

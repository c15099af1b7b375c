"""Levels that training drew, by place in the stream, and the loss at each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Data, TinyStage

from flowact.callbacks import NoiseLevels
from flowact.callbacks.levels import draw_levels
from flowact.errors import UserError
from flowact.stages.curves import LevelRecord

#: level of each chunk
STAIRS = torch.tensor([0.02, 0.5, 1.0])


class Drawing(TinyStage):
    """Two samples a batch of three chunks of two frames, on fixed stairs; the error is the level's square."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn_levels = LevelRecord()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        sigma_BF = STAIRS.repeat_interleave(2).expand(2, -1)
        self.drawn_levels.add(sigma_BF.square(), sigma_BF, chunk_frames=2)
        return super().training_step(batch, batch_idx)


def fit(stage: TinyStage, folder: Path, steps: int) -> TensorBoardLogger:
    logger = TensorBoardLogger(folder)
    L.Trainer(
        accelerator="cpu", max_steps=steps, logger=logger, callbacks=[NoiseLevels(every_n_steps=2)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    ).fit(stage, datamodule=Data())  # fmt: skip
    return logger


def test_each_level_is_counted_where_it_was_drawn() -> None:
    record, error = LevelRecord(), torch.tensor([[1.0, 3.0, 5.0, float("nan")]])
    record.add(error, torch.tensor([[0.0, 0.049, 0.05, 1.0]]), chunk_frames=3)
    counts_KN, errors_KN = record.take()
    assert counts_KN.nonzero().tolist() == [[0, 0], [0, 1]]
    assert counts_KN[0, :2].tolist() == [2, 1]
    assert errors_KN[0, :2].tolist() == [4, 5]
    assert not record.take().any()  # begun anew


def test_histograms_by_place_and_a_picture_reach_the_log(tmp_path: Path) -> None:
    logger = fit(Drawing(), tmp_path, steps=5)
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0, "images": 0}).Reload()
    assert events.Tags()["histograms"] == [f"levels/chunk_{chunk}" for chunk in range(3)]
    for chunk, sigma in enumerate(STAIRS.tolist()):
        found = events.Histograms(f"levels/chunk_{chunk}")
        assert [event.step for event in found] == [2, 4, 5]
        assert [event.histogram_value.num for event in found] == [8, 8, 4]  # two samples, two frames, two steps; the rest at the end
        value = found[0].histogram_value
        assert value.bucket[min(int(sigma * 20), 19)] == 8
    assert [event.step for event in events.Images("levels/drawn")] == [2, 4, 5]
    assert sorted(path.name for path in Path(logger.log_dir, "media").iterdir()) == [f"levels-{step:08d}.png" for step in (2, 4, 5)]


def test_a_stage_without_levels_shows_nothing(tmp_path: Path) -> None:
    logger = fit(TinyStage(), tmp_path, steps=2)
    assert not Path(logger.log_dir, "media").exists()
    with pytest.raises(UserError, match="every_n_steps"):
        NoiseLevels(every_n_steps=0)


def test_the_picture_shows_every_chunk() -> None:
    counts, errors = np.ones((3, 20)), np.linspace(2, 1, 60).reshape(3, 20)
    picture: Any = draw_levels(counts, errors, 7)
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    assert not np.array_equal(np.asarray(picture), np.asarray(draw_levels(counts, errors * 0.5 + np.eye(3, 20), 7)))

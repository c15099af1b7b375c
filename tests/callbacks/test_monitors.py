from __future__ import annotations

import io
import logging
import random
import sys
from pathlib import Path
from typing import Any

import av
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tiny import Data, TinyStage

from flowact.callbacks import CheckpointFolder, ExponentialMovingAverage, StepProgress, StreamPreview, Throughput
from flowact.callbacks.preview import contact_sheet
from flowact.callbacks.randomness import seed_generators
from flowact.callbacks.throughput import batch_size
from flowact.errors import UserError
from flowact.stages.preview import PreviewClip
from flowact.types import Batch


def fit(stage: TinyStage, callbacks: list[L.Callback], *, max_steps: int = 6, logger: Any = False, **options: Any) -> L.Trainer:
    options = {"enable_progress_bar": False, "enable_checkpointing": any(isinstance(c, CheckpointFolder) for c in callbacks)} | options
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=max_steps, logger=logger, enable_model_summary=False, callbacks=callbacks, **options)
    trainer.fit(stage, datamodule=Data())
    return trainer


class Streaming(TinyStage):
    """Previews two seconds of its first weight, in noise."""

    seen: list[torch.Tensor]

    def preview_clips(self, seconds: float, num_clips: int) -> list[PreviewClip]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen = [*getattr(self, "seen", []), self.denoiser[0].weight.clone()]
        num_frames = round(25 * seconds)
        frames = (torch.rand(num_frames, 16, 24, 3) * 255).to(torch.uint8).numpy()
        samples = np.sin(np.arange(num_frames * 640) / 20).astype(np.float32)
        return [PreviewClip(frames, samples, f"clip {i}") for i in range(num_clips)]


# --- previews ---


def test_previews_are_films_with_sound_and_stand_in_the_log(tmp_path: Path) -> None:
    ema, logger = ExponentialMovingAverage(decay=0.9), TensorBoardLogger(tmp_path)
    stage = Streaming()
    fit(stage, [ema, StreamPreview(every_n_steps=3, seconds=0.4, num_clips=2)], logger=logger)
    media = Path(logger.log_dir) / "media"
    films = sorted(path.name for path in media.glob("*.mp4"))
    assert films == [f"step-{step:08d}-{i}.mp4" for step in (3, 6) for i in (0, 1)]
    with av.open(str(media / films[0])) as film:
        assert sum(1 for _ in film.decode(video=0)) == 10
        assert film.streams.audio
    with Image.open(media / "step-00000003-0.png") as sheet:
        assert sheet.size == (8 * 24, 16)
    logged = b"".join(path.read_bytes() for path in Path(logger.log_dir).glob("events*"))
    assert b"clip 1" in logged
    assert torch.equal(stage.seen[-1], ema.averages()["0.weight"])


def test_previews_do_not_change_training(tmp_path: Path) -> None:
    def train(preview: bool) -> TinyStage:
        L.seed_everything(1, verbose=False)
        stage = Streaming()
        fit(stage, [StreamPreview(every_n_steps=2, seconds=0.2, num_clips=1)] if preview else [], default_root_dir=tmp_path)
        return stage

    with_preview, without = train(True), train(False)
    assert with_preview.losses == without.losses
    assert torch.equal(with_preview.denoiser[0].weight, without.denoiser[0].weight)
    assert len(list((tmp_path / "media").glob("*.mp4"))) == 3


def test_a_stage_without_previews_is_refused() -> None:
    with pytest.raises(UserError, match="preview_clips"):
        fit(TinyStage(), [StreamPreview(every_n_steps=1)])
    with pytest.raises(UserError, match="seconds"):
        StreamPreview(every_n_steps=1, seconds=0.0)


def test_a_contact_sheet_goes_from_first_to_last_frame() -> None:
    frames = np.stack([np.full((2, 3, 3), t, np.uint8) for t in range(9)])
    assert contact_sheet(frames, 3)[0, ::3, 0].tolist() == [0, 4, 8]
    assert contact_sheet(frames[:2], 5)[0, ::3, 0].tolist() == [0, 1]


# --- throughput ---


def test_throughput_counts_samples_and_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(t) for t in range(1000))  # every look at the clock is a second after the one before
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    throughput, logger = Throughput(window=4, count_steps=0), CSVLogger(tmp_path)

    class Trainer:
        world_size, global_step, log_every_n_steps, loggers, sanity_checking = 2, 0, 4, [logger], False

    trainer: Any = Trainer()
    batch = Batch(torch.zeros(3, 5, 1, 1, 1), torch.zeros(3, 1, 1, 1, 1), torch.zeros(3, 5, 1, 1), torch.zeros(3, 1, 1, 1), torch.zeros(3, 5))
    stage: Any = None
    throughput.on_train_start(trainer, stage)
    for index in range(4):
        throughput.on_train_batch_start(trainer, stage, batch, index)
        trainer.global_step += 1
        throughput.on_train_batch_end(trainer, stage, None, batch, index)
    rates = throughput.rates()
    assert rates["throughput/steps_per_second"] == pytest.approx(1 / 2)
    assert rates["throughput/samples_per_second"] == pytest.approx(2 * 3 / 2)
    assert rates["throughput/latent_frames_per_second"] == pytest.approx(2 * 15 / 2)
    assert rates["throughput/data_wait_share"] == pytest.approx(1 / 2)
    assert rates["throughput/peak_memory_gib"] > 0
    logger.save()
    assert "throughput/samples_per_second" in Path(logger.log_dir, "metrics.csv").read_text()


def test_throughput_logs_at_the_interval(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(TinyStage(), [Throughput()], logger=logger, log_every_n_steps=2)
    lines = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert sum("throughput" in line for line in lines[:1]) == 1
    with pytest.raises(UserError, match="window"):
        Throughput(window=0)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(torch.zeros(4, 2), 4), ([torch.zeros(3), torch.zeros(3)], 3), ({"x": torch.zeros(2, 2)}, 2), (torch.tensor(1.0), 1), (object(), 1), ([], 1)],
)
def test_samples_of_any_batch(batch: Any, expected: int) -> None:
    assert batch_size(batch) == (expected, 0)


# --- progress ---


class Terminal(io.StringIO):
    def __init__(self, interactive: bool) -> None:
        super().__init__()
        self.interactive = interactive

    def isatty(self) -> bool:
        return self.interactive


@pytest.mark.parametrize(("steps", "percent", "lines"), [(10, 10.0, 10), (10, 50.0, 2), (3, 10.0, 3), (40, 25.0, 4)])
def test_plain_lines_come_every_so_often(monkeypatch: pytest.MonkeyPatch, steps: int, percent: float, lines: int) -> None:
    stream = Terminal(False)
    monkeypatch.setattr(sys, "stderr", stream)
    fit(TinyStage(), [StepProgress(name="tiny", every_percent=percent)], max_steps=steps, enable_progress_bar=True)
    printed = [line for line in stream.getvalue().splitlines() if line.startswith("tiny: ")]
    assert len(printed) == lines
    assert printed[-1].startswith(f"tiny: step {steps} of {steps}, loss ")
    assert printed[-1].endswith("0:00 left")


def test_a_terminal_gets_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(True)
    monkeypatch.setattr(sys, "stderr", stream)
    fit(TinyStage(), [StepProgress()], max_steps=5, enable_progress_bar=True)
    assert "TinyStage" in stream.getvalue()
    assert "5/5" in stream.getvalue()


class Validated(TinyStage):
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", batch.sum() * 0 + 0.25)


class BothData(Data):
    def val_dataloader(self) -> Any:
        return self.train_dataloader()


@pytest.mark.parametrize("interactive", [True, False])
def test_validation_is_seen_and_is_an_event(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, interactive: bool) -> None:
    stream = Terminal(interactive)
    monkeypatch.setattr(sys, "stderr", stream)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=5, callbacks=[StepProgress(name="tiny")], **options)
    with caplog.at_level(logging.INFO, "flowact"):
        trainer.fit(Validated(), datamodule=BothData())
        assert [record.getMessage() for record in caplog.records if record.name.startswith("flowact")] == ["step 5: val/loss 0.25"]
        trained = stream.getvalue()
        trainer.validate(Validated(), datamodule=BothData(), verbose=False)
    assert ("tiny, validation" in trained) == interactive
    assert ("tiny, validation" in stream.getvalue()[len(trained) :]) == interactive


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(False)
    monkeypatch.setattr(sys, "stderr", stream)
    fit(TinyStage(), [StepProgress(name="tiny")], enable_progress_bar=False)
    assert "tiny" not in stream.getvalue()
    with pytest.raises(UserError, match="every_percent"):
        StepProgress(every_percent=0)


# --- randomness ---


def test_generators_are_a_function_of_seed_stream_and_index() -> None:
    def draw(*place: int) -> tuple[float, float, float]:
        seed_generators(*place)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    places = [(seed, stream, index) for seed in range(4) for stream in range(4) for index in range(64)]
    for generator in range(3):
        assert len({draw(*place)[generator] for place in places}) == len(places)

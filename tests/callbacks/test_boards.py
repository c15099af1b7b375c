"""What is no number reaches every logger that has a place for it, and none of them can stop a run."""

from __future__ import annotations

import json
import logging
import wave
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Data, TinyStage

from flowact.callbacks import StreamPreview, Throughput
from flowact.callbacks.boards import Boards, board_of
from flowact.callbacks.preview import memory_table
from flowact.commands.loggers import PACKAGES, check_loggers
from flowact.errors import UserError
from flowact.memory import MemoryBank
from flowact.memory.entries import reference_chunk
from flowact.registry import components, instantiate
from flowact.stages.preview import MemoryHistory, PreviewClip
from flowact.types import Chunk


class Numbers(Logger):
    """A logger of numbers alone; `kinds` adds methods that take pictures and sound, as W&B's do."""

    name, version = "numbers", 0

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers |= metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Media(Numbers):
    """Takes everything, and looks into it while it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, int]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        assert images[0].dtype == np.uint8
        self.seen.append(("image", key, step))

    def log_video(self, key: str, videos: list[str], step: int) -> None:
        assert Path(videos[0]).stat().st_size > 0
        self.seen.append(("video", key, step))

    def log_audio(self, key: str, audios: list[str], step: int) -> None:
        with wave.open(audios[0]) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (16000, 10 * 640)
        self.seen.append(("audio", key, step))

    def log_text(self, key: str, columns: list[str], data: list[list[str]], step: int) -> None:
        assert "a clip" in data[0][0]
        self.seen.append(("text", key, step))


class Broken(Media):
    def log_image(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the service is down")


class Streaming(TinyStage):
    def preview_clips(self, seconds: float, num_clips: int) -> list[PreviewClip]:
        return [PreviewClip(np.zeros((10, 16, 16, 3), np.uint8), np.zeros(10 * 640, np.float32), "a clip", memory=history("StructuredMemory"))]


class Painter:
    """Decodes a latent to its first three channels, four times as large."""

    def decode_stream(self, latents_BFCHW: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, None]:
        return latents_BFCHW[:, :, :3].transpose(1, 2).repeat_interleave(4, -1).repeat_interleave(4, -2), None


def history(bank_name: str, **options: Any) -> MemoryHistory:
    """What a bank of this name held while three chunks were written, each of one colour."""
    bank: MemoryBank[Any] = instantiate({"class_path": bank_name, "init_args": options}, "memory")
    latents = torch.zeros(2, 3, 4, 8, 8)
    chunk = Chunk(latents, torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 6))
    state, views = bank.reset(reference_chunk(latents[:, :1], chunk)), []
    for value in range(3):
        state = bank.write(state, Chunk(latents + value / 2, chunk.audio_BFAD, chunk.text_BLD))
        views.append(bank.read(state))
    painter: Any = Painter()
    return MemoryHistory(tuple(views), 1, painter, 0.48)


def preview(loggers: list[Logger], folder: Path, *callbacks: L.Callback) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=4, logger=loggers, callbacks=[StreamPreview(every_n_steps=2), *callbacks], log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Streaming(), datamodule=Data())
    return trainer


def test_every_logger_gets_what_it_has_a_place_for(tmp_path: Path) -> None:
    media, numbers, csv, board = Media(), Numbers(), CSVLogger(tmp_path), TensorBoardLogger(tmp_path)
    preview([board, csv, media, numbers], tmp_path, Throughput())
    tags = {"image": ("preview/0", "memory/0"), "video": ("preview/0/film",), "audio": ("preview/0/sound",), "text": ("preview/0/text",)}
    assert sorted(media.seen) == sorted((kind, tag, step) for kind, own in tags.items() for tag in own for step in (2, 4))
    assert {"loss", "preview/drift", "throughput/steps_per_second"} <= media.numbers.keys()
    assert media.numbers == numbers.numbers
    assert board_of(csv) is None
    csv.save()
    assert "preview/drift" in Path(csv.log_dir, "metrics.csv").read_text()
    events = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"preview/0", "memory/0", "preview/0/film"}
    assert events.Tags()["audio"] == ["preview/0/sound"]


def test_a_service_that_is_down_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, media = Broken(), Media()
    with caplog.at_level(logging.WARNING):
        trainer = preview([broken, media], tmp_path)
    assert trainer.global_step == 4
    assert "Broken shows no picture: the service is down" in caplog.text
    assert ("video", "preview/0/film", 4) in broken.seen
    assert ("image", "memory/0", 4) in media.seen


def test_histograms_keep_their_counts(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = L.Trainer(logger=logger, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False)
    Boards.of(trainer).histogram("levels", np.array([1, 0, 3]), np.array([0.0, 0.5, 1.0, 1.5]), 7)
    logger.save()
    (event,) = EventAccumulator(logger.log_dir).Reload().Histograms("levels")
    assert event.step == 7
    assert list(event.histogram_value.bucket) == [1, 0, 3]
    assert event.histogram_value.num == 4


# --- memory ---


@pytest.mark.parametrize("name", [component.name for component in components("memory") if component.distribution == "flowact"])
def test_every_bank_can_be_seen(name: str) -> None:
    memory = history(name, **({"levels": (2,), "strides": (1,)} if name == "PackedMemory" else {}))
    rows, names = memory.pictures(2)
    assert list(rows) == ["0.5 s", "1.4 s"]
    assert names[0].startswith("reference ")
    assert all(len(row) == len(names) == memory.views[0].latents_BFCHW.shape[1] for row in rows.values())
    if len(names) > 1:
        assert names[-1] == "short -1"
        assert not np.array_equal(rows["0.5 s"][-1], rows["1.4 s"][-1])  # other chunks were written in between
    table = memory_table(memory, 2)
    assert table.mode == "RGB"
    assert table.width > 112 * len(names)


def test_without_moments_memory_is_not_shown(tmp_path: Path) -> None:
    media = Media()
    L.Trainer(
        accelerator="cpu", max_steps=2, logger=[media], callbacks=[StreamPreview(every_n_steps=2, memory_moments=0)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    ).fit(Streaming(), datamodule=Data())  # fmt: skip
    assert "preview/0" in [tag for _, tag, _ in media.seen]
    assert "memory/0" not in [tag for _, tag, _ in media.seen]
    with pytest.raises(UserError, match="memory_moments"):
        StreamPreview(every_n_steps=1, memory_moments=-1)


# --- other services ---


def test_weights_and_biases_gets_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'flowact[wandb]'")
    pytest.importorskip("soundfile", reason="pip install 'flowact[wandb]'")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    trainer = preview([logger], tmp_path, Throughput())
    Boards.of(trainer).histogram("levels", np.array([1, 3]), np.array([0.0, 0.5, 1.0]), 4)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert summary["levels"]["values"] == [1, 3]
    assert {"loss", "preview/drift", "throughput/steps_per_second"} <= summary.keys()
    found = {path.suffix for path in Path(logger.save_dir).rglob("media/**/*") if path.is_file()}
    assert {".png", ".mp4", ".wav", ".json"} <= found
    (picture, *_) = Path(logger.save_dir).rglob("media/images/memory/*.png")
    with Image.open(picture) as seen:
        assert seen.width > 112
    (text, *_) = Path(logger.save_dir).rglob("media/table/preview/0/*.json")
    assert "a clip" in json.loads(text.read_text())["data"][0][0]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowact.commands.loggers.find_spec", lambda package: None)
    spec = {"class_path": f"lightning.pytorch.loggers.{name}"}
    with pytest.raises(UserError, match=rf"trainer.logger: {name} needs .*pip install"):
        check_loggers({"trainer": {"logger": spec}})
    with pytest.raises(UserError, match=rf"trainer.logger\[1\]: {name} needs .*pip install"):
        check_loggers({"trainer": {"logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}, spec]}})
    with pytest.raises(UserError, match="Neptune"):
        check_loggers({"trainer": {"logger": {"class_path": "lightning.pytorch.loggers.NeptuneLogger"}}})


@pytest.mark.parametrize("logger", [None, True, False, {"class_path": "lightning.pytorch.loggers.CSVLogger"}, []])
def test_loggers_that_need_nothing_pass(logger: Any) -> None:
    check_loggers({"trainer": {"logger": logger}})
    check_loggers({})

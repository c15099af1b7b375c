"""What a preview says in numbers, and the film that TensorBoard plays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Data, TinyStage

from flowact.callbacks import StreamPreview, Throughput
from flowact.callbacks.boards import film_summary
from flowact.errors import UserError
from flowact.stages.preview import PreviewClip, PreviewInput

SOUND = np.zeros(10 * 640, np.float32)


def film(num_frames: int = 40, seed: int = 0) -> np.ndarray:
    """Noise around a colour, the same all along."""
    return np.random.default_rng(seed).integers(60, 200, (num_frames, 16, 16, 3), np.uint8)


def figures(frames: np.ndarray, truth: np.ndarray | None) -> dict[str, float]:
    return PreviewClip(frames, SOUND, "", truth).statistics()


def test_the_data_s_own_film_is_like_itself() -> None:
    found = figures(film(), film())
    assert found["saturation"] == found["motion"] == 1.0
    assert found["drift"] < 0.01


def test_drift_is_how_far_the_end_is_from_the_beginning() -> None:
    still = np.full((40, 8, 8, 3), 100, np.uint8)
    brighter = still.copy()
    brighter[20:] += 51  # mean colours move by 0.2, their spread stays 0
    assert figures(still, None) == {"drift": 0.0}
    assert figures(brighter, None)["drift"] == pytest.approx(0.1)


def test_stillness_and_greyness_are_seen() -> None:
    still = np.repeat(film(1), 40, axis=0)
    grey = film().mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)
    assert figures(still, film())["motion"] == 0.0
    assert figures(grey, film())["saturation"] == 0.0


def test_a_picture_tells_colours_but_no_motion() -> None:
    found = figures(film(), film()[:1])
    assert found["saturation"] == pytest.approx(1.0, abs=0.1)
    assert "motion" not in found


class Streaming(TinyStage):
    given: tuple[Any, ...] = ()

    def preview_clips(self, seconds: float, num_clips: int, *inputs: Any) -> list[PreviewClip]:
        self.given = inputs
        return [PreviewClip(film(10), SOUND, "a clip", film(10)) for _ in range(num_clips)]


def run(preview: StreamPreview, folder: Path, *others: L.Callback) -> tuple[Streaming, L.Trainer]:
    stage = Streaming()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=4, max_epochs=-1, logger=TensorBoardLogger(folder), callbacks=[*others, preview], log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Data())
    return stage, trainer


def test_tensorboard_has_the_curves_and_the_film(tmp_path: Path) -> None:
    _, trainer = run(StreamPreview(every_n_steps=2, num_clips=1), tmp_path)
    events = EventAccumulator(str(trainer.log_dir), {"images": 0, "scalars": 0})
    events.Reload()
    for name, expected in (("drift", figures(film(10), None)["drift"]), ("saturation", 1.0), ("motion", 1.0)):
        curve = events.Scalars(f"preview/{name}")
        assert [point.step for point in curve] == [2, 4]
        assert [point.value for point in curve] == pytest.approx([expected] * 2)
        assert float(trainer.callback_metrics[f"preview/{name}"]) == pytest.approx(expected)
    played = events.Images("preview/0/film")
    assert [image.step for image in played] == [2, 4]
    with Image.open(io.BytesIO(played[0].encoded_image_string)) as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 5
        assert picture.info["duration"] == 80  # 10 frames at 25 a second
        assert picture.size == (256, 256)


@pytest.mark.parametrize(("height", "width", "expected"), [(480, 832, (256, 148)), (32, 16, (128, 256))])
def test_a_film_has_the_shape_of_the_video(height: int, width: int, expected: tuple[int, int]) -> None:
    image = film_summary("film", np.zeros((3, height, width, 3), np.uint8)).value[0].image
    assert (image.width, image.height) == expected


def test_inputs_of_the_recipe_reach_the_stage(tmp_path: Path) -> None:
    for name in ("a.png", "a.wav"):
        (tmp_path / name).touch()
    given = PreviewInput(str(tmp_path / "a.png"), str(tmp_path / "a.wav"))
    stage, _ = run(StreamPreview(every_n_steps=4, clips=[given]), tmp_path)
    assert stage.given == ((given,),)
    with pytest.raises(UserError, match=r"audio of a preview is .*b.wav"):
        run(StreamPreview(every_n_steps=4, clips=[PreviewInput(given.reference, str(tmp_path / "b.wav"))]), tmp_path)


def test_a_preview_is_no_waiting_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(self: Streaming, seconds: float, num_clips: int) -> list[PreviewClip]:
        now[0] += 100.0
        return []

    def step(self: Streaming, batch: Any, batch_idx: int) -> Any:
        now[0] += 1.0
        return TinyStage.training_step(self, batch, batch_idx)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(Streaming, "preview_clips", slow)
    monkeypatch.setattr(Streaming, "training_step", step)
    speed = Throughput(count_steps=0)
    run(StreamPreview(every_n_steps=2), tmp_path, speed)
    assert speed.rates()["throughput/data_wait_share"] == 0.0
    assert speed.rates()["throughput/steps_per_second"] == 1.0

"""Overlays: lettering and logos move their own score, plain pictures none, and what can not be told is not said."""

from __future__ import annotations

import importlib.util
import types

import numpy as np
import pytest
from made_recording import broken, record, shot, whole
from PIL import Image, ImageDraw, ImageFont
from real_clips import real_clip

from data_tools.steps import overlays
from data_tools.steps.overlays import Overlays
from flowact.errors import UserError

SIZE = (180, 320)
SUBTITLE = ("The quick brown fox jumps", (40, 155), 14)
LOGO = ("TV5", (268, 6), 18)


def lettered(pictures, text, place, height):
    """White letters with a black outline."""
    found = []
    for picture in pictures:
        image = Image.fromarray(picture)
        font = ImageFont.load_default(height)
        ImageDraw.Draw(image).text(place, text, font=font, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
        found.append(np.asarray(image))
    return np.stack(found)


@pytest.fixture(scope="module")
def two_shots():
    return np.concatenate([shot(1, 48, size=SIZE), shot(2, 48, size=SIZE)])


def scores_of(folder, pictures):
    return Overlays().score(whole(record(folder, [Overlays()], pictures)))


def test_plain_pictures_hold_nothing(tmp_path, two_shots):
    assert scores_of(tmp_path, two_shots) == {"watermark": 0, "text": 0}


def test_a_subtitle_takes_its_share_of_the_width(tmp_path, two_shots):
    scores = scores_of(tmp_path, lettered(two_shots, *SUBTITLE))
    assert 0.3 < scores["text"] < 0.8
    assert "lettering seems to take" in broken(Overlays(max_text=0.2), scores)["text"]
    above = scores_of(tmp_path, lettered(two_shots, SUBTITLE[0], (40, 6), SUBTITLE[2]))
    assert above["text"] == pytest.approx(scores["text"], abs=0.15)


def test_lettering_in_the_middle_is_not_laid_over_the_border(tmp_path, two_shots):
    assert scores_of(tmp_path, lettered(two_shots, SUBTITLE[0], (40, 82), SUBTITLE[2]))["text"] == 0


def test_lettering_that_moves_is_not_laid_over(tmp_path):
    """A coach that drives by carries its letters with it."""
    pictures = shot(1, 48, size=SIZE)
    moving = np.concatenate([lettered(pictures[t : t + 1], SUBTITLE[0], (200 - 4 * t, 155), SUBTITLE[2]) for t in range(48)])
    assert scores_of(tmp_path, moving)["text"] == 0


@pytest.mark.parametrize("speed", [1, 4])
def test_a_logo_stays_while_the_picture_changes(tmp_path, two_shots, speed):
    pictures = two_shots if speed == 1 else shot(1, 96, size=SIZE, speed=speed)
    scores = scores_of(tmp_path, lettered(pictures, *LOGO))
    assert scores["watermark"] >= 0.04
    assert "a logo seems to take" in broken(Overlays(max_watermark=0.02), scores)["watermark"]
    assert scores_of(tmp_path, pictures)["watermark"] < 0.02


def test_in_one_still_shot_a_logo_can_not_be_told_and_nothing_is_rejected(tmp_path):
    scores = scores_of(tmp_path, lettered(shot(1, 48, size=SIZE, speed=0), *LOGO))
    assert scores["watermark"] is None
    assert broken(Overlays(max_watermark=0.0), scores) == {}


@pytest.mark.parametrize("size", [(16, 16), (2, 2), (64, 20)])
def test_small_pictures(tmp_path, size):
    assert scores_of(tmp_path, shot(1, 20, size=size))["text"] == 0


@pytest.mark.parametrize("name", ["langer", "single_face"])
def test_people_without_lettering(tmp_path, name):
    scores = Overlays().score(whole(record(tmp_path, [Overlays()], video=real_clip(name))))
    assert scores["text"] == 0
    assert not scores["watermark"]


def test_reading_takes_what_the_package_finds(tmp_path, two_shots, monkeypatch):
    """A stand-in for rapidocr: one box of a tenth of the picture, or none."""
    boxes = [np.array([[[0, 0], [32, 0], [32, 180], [0, 180]]]), None]

    class RapidOCR:
        def __init__(self, params):
            assert params["EngineConfig.onnxruntime.intra_op_num_threads"] == 1  # the build has a process for each core

        def __call__(self, picture_HWC, use_cls):
            assert picture_HWC.shape == (*SIZE, 3)
            return types.SimpleNamespace(boxes=boxes[0])

    monkeypatch.setattr(overlays, "_reader", overlays._reader.__wrapped__)
    monkeypatch.setattr(overlays, "need", lambda *_: types.SimpleNamespace(RapidOCR=RapidOCR))
    step = Overlays(ocr=True, max_ocr_text=0.05)
    scores = step.score(whole(record(tmp_path, [step], two_shots)))
    assert scores["ocr_text"] == pytest.approx(0.1, abs=1e-3)
    assert "lettering takes 10% of the picture" in broken(step, scores)["ocr_text"]
    boxes.reverse()
    assert step.score(whole(record(tmp_path, [step], two_shots)))["ocr_text"] == 0


def test_the_package_finds_a_subtitle(tmp_path, two_shots):
    pytest.importorskip("rapidocr", reason="needs rapidocr: pip install rapidocr onnxruntime")
    pytest.importorskip("onnxruntime")
    step = Overlays(ocr=True)
    plain, subtitled = (step.score(whole(record(tmp_path, [step], pictures))) for pictures in (two_shots, lettered(two_shots, *SUBTITLE)))
    assert plain["ocr_text"] < 0.01 < subtitled["ocr_text"] < 0.2


def test_reading_without_the_package_is_told_before_any_work():
    if importlib.util.find_spec("rapidocr") is not None:
        pytest.skip("rapidocr is installed, so nothing is missing")
    with pytest.raises(UserError, match=r"needs rapidocr, .*pip install rapidocr onnxruntime"):
        Overlays(ocr=True).check()
    Overlays().check()

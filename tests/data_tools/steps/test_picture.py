"""Sharpness and exposure: each fault moves its own score, and the size of the recording moves none."""

from __future__ import annotations

import numpy as np
import pytest
from made_recording import broken, record, shot, whole
from PIL import Image, ImageFilter

from data_tools.steps.picture import Exposure, Sharpness

TALL = (180, 240)


def filtered(pictures, change):
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])


def blurred(pictures, radius):
    return filtered(pictures, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def scores_of(folder, step, pictures):
    return step.score(whole(record(folder, [step], pictures)))


@pytest.fixture(scope="module")
def noisy():
    """Fine texture, as of hair and cloth."""
    fine = np.random.default_rng(0).normal(0, 12, (*TALL, 1))
    return np.clip(shot(1, 12, size=TALL) + fine, 0, 255).astype(np.uint8)


def test_the_more_it_is_blurred_the_lower_it_scores(tmp_path, noisy):
    found = [scores_of(tmp_path, Sharpness(), noisy if radius == 0 else blurred(noisy, radius))["sharpness"] for radius in (0, 0.7, 1.5, 3)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 10 * found[2] > 0
    step = Sharpness(min_sharpness=(found[0] + found[1]) / 2)
    assert broken(step, {"sharpness": found[0]}) == {}
    assert "blurred" in broken(step, {"sharpness": found[1]})["sharpness"]


def test_a_soft_background_does_not_count(tmp_path, noisy):
    background = blurred(noisy, 4)
    background[:, 50:130, 90:150] = noisy[:, 50:130, 90:150]
    whole_picture, part, nothing = (scores_of(tmp_path, Sharpness(), pictures)["sharpness"] for pictures in (noisy, background, blurred(noisy, 4)))
    assert part > 0.5 * whole_picture
    assert nothing < 0.05 * whole_picture


def test_one_blurred_frame_of_many_does_not_decide(tmp_path, noisy):
    moment = noisy.copy()
    moment[5:7] = blurred(noisy[5:7], 4)
    with_moment, without = (scores_of(tmp_path, Sharpness(every=1), pictures)["sharpness"] for pictures in (moment, noisy))
    assert with_moment == pytest.approx(without, rel=0.05)


def test_brightness_and_contrast_are_those_of_the_picture(tmp_path):
    halves = np.zeros((10, 64, 96, 3), np.uint8)
    halves[:, :, 48:] = 255
    found = scores_of(tmp_path, Exposure(), halves)
    assert found["luma"] == pytest.approx(0.5, abs=0.02)
    assert found["contrast"] == pytest.approx(0.5, abs=0.02)
    assert found["dark"] == pytest.approx(0.5, abs=0.03)
    assert found["bright"] == pytest.approx(0.5, abs=0.03)


def test_exposure_orders_dark_and_bright(tmp_path):
    pictures = shot(1, 10)
    dark, plain, bright = (scores_of(tmp_path, Exposure(), np.clip(pictures * factor, 0, 255).astype(np.uint8)) for factor in (0.1, 1.0, 3.0))
    assert dark["luma"] < plain["luma"] < bright["luma"]
    assert bright["bright"] > 0.2 > plain["bright"]
    assert "brightness is" in broken(Exposure(min_luma=0.2), dark)["luma"]
    assert "white" in broken(Exposure(max_bright=0.2), bright)["bright"]
    assert "black" in broken(Exposure(max_dark=-1), dark)["dark"]
    assert broken(Exposure(min_luma=0.2, max_luma=0.9, max_bright=0.2), plain) == {}


def test_a_picture_of_one_colour_is_rejected(tmp_path):
    grey = np.full((10, 64, 96, 3), 120, np.uint8)
    assert "contrast" in broken(Exposure(), scores_of(tmp_path, Exposure(), grey))
    assert broken(Exposure(min_contrast=None), scores_of(tmp_path, Exposure(), grey)) == {}


def test_values_hold_until_the_next_picture_that_is_looked_at(tmp_path):
    pictures = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 5)[:58, None, None, None] * np.ones((1, 32, 48, 3), np.uint8)
    recording = record(tmp_path, [Exposure(every=5)], pictures)
    np.testing.assert_allclose(recording.signals["Exposure/luma"] * 255, pictures[:, 0, 0, 0], atol=3)


def test_the_size_of_the_recording_does_not_matter(tmp_path):
    small = shot(1, 6, size=(96, 144), speed=0)
    large = filtered(small, lambda image: image.resize((576, 384), Image.Resampling.NEAREST))
    for name, value in scores_of(tmp_path, Exposure(), small).items():
        assert scores_of(tmp_path, Exposure(), large)[name] == pytest.approx(value, abs=0.01)

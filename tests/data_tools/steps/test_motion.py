"""Motion: stills score nothing, a moving camera its pixels, and a person who moves does not move the camera."""

from __future__ import annotations

import numpy as np
import pytest
from made_recording import broken, record, shot, whole

from data_tools.steps.motion import Motion

SIZE = (96, 144)  # looked at as it is


def scores_of(folder, pictures):
    return Motion().score(whole(record(folder, [Motion()], pictures)))


def smooth(frames, speed=0.0):
    """A texture without fine detail, so that a shift of part of a pixel is one."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pictures = [120 + 50 * np.sin(0.11 * (x - speed * t)) * np.cos(0.13 * y) + 30 * np.sin(0.07 * (x - speed * t) + 0.09 * y) for t in range(frames)]
    return np.repeat(np.stack(pictures)[..., None], 3, axis=3).astype(np.uint8)


def test_a_still_picture_scores_nothing_and_is_rejected_as_frozen(tmp_path):
    scores = scores_of(tmp_path, np.repeat(shot(1, 1, size=SIZE), 60, axis=0))
    assert scores["motion"] < 0.05
    assert scores["camera"] < 0.01
    assert scores["subject"] < 0.05
    assert scores["frozen"] > 0.9
    assert "stands still" in broken(Motion(), scores)["frozen"]


@pytest.mark.parametrize("speed", [0.5, 1.0, -1.5])
def test_a_shifting_picture_scores_its_pixels(tmp_path, speed):
    scores = scores_of(tmp_path, smooth(30, speed))
    assert scores["camera"] == pytest.approx(100 * abs(speed) / SIZE[0], rel=0.15)
    assert scores["shake"] < 0.2 * scores["camera"]
    assert scores["frozen"] == 0
    assert scores["subject"] < 0.3 * scores["motion"]  # the border moves as well
    assert broken(Motion(), scores) == {}
    assert "camera moves" in broken(Motion(max_camera=0.3), scores)["camera"]


def test_a_person_who_moves_in_the_middle_does_not_move_the_camera(tmp_path):
    pictures = smooth(30)
    pictures[:, 20:80, 50:94] = shot(2, 30, size=(60, 44), speed=2)
    scores = scores_of(tmp_path, pictures)
    assert scores["motion"] > 0.5
    assert scores["subject"] > 0.9 * scores["motion"]
    assert scores["camera"] < 0.05


def test_a_trembling_camera_shakes(tmp_path):
    wide = smooth(1)[0]
    random = np.random.default_rng(0)
    trembling = np.stack([np.roll(wide, (0, int(random.integers(-1, 2))), axis=(0, 1)) for _ in range(40)])
    steady = smooth(40, 1.0)
    assert scores_of(tmp_path, trembling)["shake"] > 5 * scores_of(tmp_path, steady)["shake"]
    assert "shakes" in broken(Motion(max_shake=0.1), scores_of(tmp_path, trembling))["shake"]


def test_repeated_frames_are_counted(tmp_path):
    """15 frames a second brought to 25 repeat two of five."""
    fifteen = shot(1, 30, size=SIZE, speed=2)
    shown = fifteen[np.arange(50) * 15 // 25]
    assert scores_of(tmp_path, shown)["frozen"] == pytest.approx(0.4, abs=0.03)


def test_bounds_on_motion(tmp_path):
    scores = scores_of(tmp_path, smooth(20, 1.0))
    assert "changes by" in broken(Motion(min_motion=100), scores)["motion"]
    assert "changes by" in broken(Motion(max_motion=0.1), scores)["motion"]


def test_a_single_frame_has_no_motion(tmp_path):
    scores = scores_of(tmp_path, shot(1, 1, size=SIZE))
    assert set(scores.values()) == {None}
    assert broken(Motion(min_motion=1), scores) == {}

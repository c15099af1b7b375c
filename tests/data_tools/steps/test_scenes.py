"""Scenes: hard cuts are found to the frame, fades and dissolves are left out, movement is no cut."""

from __future__ import annotations

import numpy as np
import pytest
from made_recording import record, shot, spans

from data_tools.footage import Block, View
from data_tools.steps.base import Span
from data_tools.steps.scenes import Scenes
from flowact.errors import UserError

BLACK = np.zeros((1, 64, 96, 3), np.uint8)


def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The first pictures dissolve into the others."""
    share = np.linspace(0, 1, len(a) + 2)[1:-1, None, None, None]
    return (a * (1 - share) + b * share).astype(np.uint8)


def test_hard_cuts_are_found_to_the_frame_and_their_borders_trimmed(tmp_path):
    pictures = np.concatenate([shot(1, 30), shot(2, 31), shot(3, 29)])
    recording = record(tmp_path, [Scenes()], pictures)
    assert spans(Scenes(), recording) == [(0, 26), (34, 57), (65, 90)]
    assert spans(Scenes(trim_frames=0), recording) == [(0, 30), (30, 61), (61, 90)]


def test_ends_of_the_recording_are_not_trimmed_nor_is_a_shot_without_cuts_touched(tmp_path):
    recording = record(tmp_path, [Scenes()], shot(1, 60, speed=3))
    assert spans(Scenes(), recording) == [(0, 60)]
    assert Scenes().cut(recording, []) == []


def test_a_shot_that_is_shorter_than_its_borders_vanishes(tmp_path):
    recording = record(tmp_path, [Scenes()], np.concatenate([shot(1, 30), shot(2, 6), shot(3, 30)]))
    assert spans(Scenes(), recording) == [(0, 26), (40, 66)]


def test_a_dissolve_is_left_out_as_a_whole(tmp_path):
    a, b = shot(1, 60, speed=0.2), shot(2, 60, speed=0.2)
    recording = record(tmp_path, [Scenes()], np.concatenate([a[:40], mix(a[40:56], b[:16]), b[16:]]))
    found = spans(Scenes(), recording)
    assert len(found) == 2
    (first, end), (start, last) = found
    assert (first, last) == (0, 100)
    assert 24 <= end <= 40 <= 56 <= start <= 72  # nothing of it is kept, and not more than half a second is lost on a side
    assert sum(last - first for first, last in spans(Scenes(fade_change=None), recording)) > sum(last - first for first, last in found)


def test_a_fade_through_black_is_left_out(tmp_path):
    a, b = shot(1, 55), shot(2, 55)
    black = BLACK.repeat(15, 0)
    recording = record(tmp_path, [Scenes()], np.concatenate([a[:40], mix(a[40:], black), black[:10], mix(black, b[:15]), b[15:]]))
    found = spans(Scenes(), recording)
    assert len(found) == 2
    assert found[0][0] == 0
    assert 24 <= found[0][1] <= 42
    assert 78 <= found[1][0] <= 96
    assert found[1][1] == recording.frames == 120


def test_blank_pictures_are_no_shot(tmp_path):
    recording = record(tmp_path, [Scenes()], np.concatenate([shot(1, 30), BLACK.repeat(20, 0), shot(1, 30)]))
    for first, end in spans(Scenes(), recording):
        assert end <= 30 or first >= 50
    assert spans(Scenes(), record(tmp_path, [Scenes()], BLACK.repeat(20, 0))) == []


def test_a_flash_counts_as_two_cuts_as_documented(tmp_path):
    pictures = shot(1, 60)
    pictures[30] = 255
    recording = record(tmp_path, [Scenes()], pictures)
    assert spans(Scenes(), recording) == [(0, 26), (35, 60)]


def test_thresholds_decide_what_a_cut_is(tmp_path):
    recording = record(tmp_path, [Scenes()], np.concatenate([shot(1, 30), shot(2, 30)]))
    assert len(spans(Scenes(), recording)) == 2
    assert spans(Scenes(min_content=255), recording) == [(0, 60)]
    assert spans(Scenes(threshold=1e9), recording) == [(0, 60)]


def test_spans_of_earlier_steps_are_kept_apart(tmp_path):
    recording = record(tmp_path, [Scenes()], np.concatenate([shot(1, 30), shot(2, 30)]))
    cut = Scenes().cut(recording, [Span(5, 20), Span(25, 50, track=2)])
    assert cut == [Span(5, 20), Span(25, 26, 2), Span(34, 50, 2)]


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_recordings_of_a_few_frames(tmp_path, frames):
    recording = record(tmp_path, [Scenes()], shot(1, frames))
    assert spans(Scenes(), recording) == [(0, frames)]


def test_impossible_arguments_are_refused():
    with pytest.raises(UserError, match="threshold 0"):
        Scenes(threshold=0)
    with pytest.raises(UserError, match="neighbours 0"):
        Scenes(neighbours=0)


def test_content_is_what_scenedetect_scores():
    detectors = pytest.importorskip("scenedetect.detectors")
    from scenedetect import FrameTimecode, StatsManager

    view, pictures = View(64), np.concatenate([shot(1, 6), shot(2, 6, speed=5)])
    watcher = Scenes().watcher(None, None)
    watcher.see(Block(0, 12, {view: pictures}))
    detector = detectors.ContentDetector()
    detector.stats_manager = statistics = StatsManager()
    statistics.register_metrics(detector.get_metrics())
    times = [FrameTimecode(number, 25.0) for number in range(12)]
    for time, picture in zip(times, pictures, strict=True):
        detector.process_frame(time, np.ascontiguousarray(picture[..., ::-1]))
    expected = [statistics.get_metrics(time, [detector.FRAME_SCORE_KEY])[0] for time in times[1:]]
    np.testing.assert_allclose(watcher.signals()["content"][1:], expected, rtol=1e-5)

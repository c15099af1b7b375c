"""Tracks: faces are linked by where they are, gaps are bridged as far as allowed, and there are as many lanes as people at once."""

from __future__ import annotations

import numpy as np
import pytest
from given_faces import face

from data_tools.steps.face_tracks import Tracks, runs


def follow(faces, frames, max_gap=5, min_track=3, median=1, every=1):
    tracks = Tracks(max_gap, min_track, median)
    for number in range(0, frames, every):
        tracks.add(number, faces(number))
    return tracks.signals(frames)


def left(signals, lane=0):
    return signals[f"boxes/{lane}"][:, 0, 0]


def test_one_face_is_one_lane_with_its_own_values():
    signals = follow(lambda t: [face(0.1 + 0.002 * t, 0.2, score=0.8, opening=0.01 * t, yaw=t)], 20)
    assert set(signals) == {"boxes/0", "mouth/0", "pose/0", "presence/0"}
    np.testing.assert_allclose(left(signals), 0.1 + 0.002 * np.arange(20), atol=1e-6)
    np.testing.assert_allclose(signals["mouth/0"], 0.01 * np.arange(20), atol=1e-6)
    np.testing.assert_allclose(signals["pose/0"][:, 0], np.arange(20))
    np.testing.assert_allclose(signals["presence/0"], 0.8, atol=1e-6)


def test_two_people_stay_apart_in_whatever_order_they_are_found():
    def faces(t):
        pair = [face(0.1 + 0.005 * t, 0.2), face(0.8 - 0.005 * t, 0.2)]
        return pair if t % 2 else pair[::-1]

    signals = follow(faces, 40)
    both = sorted((left(signals, 0).tolist(), left(signals, 1).tolist()))
    np.testing.assert_allclose(both[0], 0.1 + 0.005 * np.arange(40), atol=1e-6)
    np.testing.assert_allclose(both[1], 0.8 - 0.005 * np.arange(40), atol=1e-6)
    assert "boxes/2" not in signals


@pytest.mark.parametrize(("gap", "bridged"), [(4, True), (5, True), (6, False)])
def test_a_gap_is_bridged_up_to_its_bound_by_straight_lines(gap, bridged):
    lost = range(10, 10 + gap)
    signals = follow(lambda t: [] if t in lost else [face(0.1 + 0.004 * t, 0.2)], 30, max_gap=5)
    if bridged:
        np.testing.assert_allclose(left(signals), 0.1 + 0.004 * np.arange(30), atol=1e-6)
    else:
        assert np.isnan(left(signals)[list(lost)]).all()
        assert np.isfinite(left(signals)[:10]).all()
    assert (np.nan_to_num(signals["presence/0"][list(lost)]) == 0).all()  # what is bridged was not seen
    assert (signals["presence/0"][:10] == 1).all()


def test_what_is_seen_too_shortly_is_no_person():
    assert follow(lambda t: [face(0.1, 0.2)] if 5 <= t < 7 else [], 20, min_track=3) == {}
    assert "boxes/0" in follow(lambda t: [face(0.1, 0.2)] if 5 <= t < 8 else [], 20, min_track=3)


def test_people_who_never_meet_share_a_lane():
    signals = follow(lambda t: [face(0.1 if t < 20 else 0.7, 0.2)] if t < 18 or t >= 30 else [], 50)
    assert {name.partition("/")[2] for name in signals} == {"0"}
    assert left(signals)[0] == pytest.approx(0.1)
    assert left(signals)[-1] == pytest.approx(0.7)


def test_a_face_that_jumps_is_another():
    signals = follow(lambda t: [face(0.1 if t < 20 else 0.7, 0.2)], 40)
    assert {name.partition("/")[2] for name in signals} == {"0", "1"}  # the first may come back for a while


def test_between_pictures_that_are_looked_at_boxes_move_straight():
    signals = follow(lambda t: [face(0.1 + 0.004 * t, 0.2)], 31, every=5)
    np.testing.assert_allclose(left(signals), 0.1 + 0.004 * np.arange(31), atol=1e-6)
    assert (signals["presence/0"] == 1).all()


def test_the_median_takes_out_a_single_wrong_box():
    signals = follow(lambda t: [face(0.14 if t == 10 else 0.1, 0.2)], 20, median=3)
    np.testing.assert_allclose(left(signals), 0.1, atol=1e-6)


def test_runs():
    assert runs(np.array([])) == []
    assert runs(np.array([1, 1, 0, 2])) == [(0, 2, 1), (2, 3, 0), (3, 4, 2)]

"""FaceTracks: who is wanted, what is said of those who are not, and crops that show head and shoulders and lie in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from given_faces import HEIGHT, WIDTH, clips, face, tracked
from hypothesis import given, settings
from hypothesis import strategies as st
from made_recording import act, broken, record, spans, whole
from real_clips import need_mesh, real_clip

from data_tools.steps.base import Clip, Plan, Span
from data_tools.steps.detectors.mesh import MeshDetector
from data_tools.steps.detectors.sidecar import SidecarBoxes
from data_tools.steps.faces import ABOVE, BELOW, BESIDE, FaceTracks, head_and_shoulders, largest
from flowact.errors import UserError

LEFT, RIGHT = (lambda t: face(0.15, 0.3)), (lambda t: face(0.7, 0.25, 0.12, 0.3))


def seen(*people, frames=60):
    """Frame -> faces, of (who, first, end)."""
    return {t: [who(t) for who, first, end in people if first <= t < end] for t in range(frames)}


def verdicts(step, recording):
    return {(clip.plan.span.first, clip.plan.span.end, clip.plan.span.track): broken(step, step.score(clip)) for clip in clips(step, recording)}


# --- who is wanted ----------------------------------------------------------------------------------------------------------------------------------


def test_the_actor_is_followed_by_the_boxes_beside_the_recording(tmp_path):
    step = FaceTracks(SidecarBoxes())
    recording = record(tmp_path, [step], **act())
    assert spans(step, recording) == [(0, recording.frames)]
    clip = whole(recording)
    scores = step.score(clip)
    assert broken(step, scores) == {}
    assert scores["face_share"] == 1
    assert scores["num_people"] == 1
    assert scores["mouth_range"] > 0.05
    plan = step.apply(clip, scores)
    boxes_TX4 = act()["boxes_TX4"]
    np.testing.assert_allclose(recording.signals[plan.boxes], boxes_TX4, atol=1e-6)  # truth is not smoothed
    height_TX = boxes_TX4[..., 3] - boxes_TX4[..., 1]
    np.testing.assert_allclose(recording.signals[plan.mouth], height_TX[:, 1] / height_TX[:, 0], atol=1e-5)


def test_single_keeps_stretches_with_one_person_and_says_why_others_are_out(tmp_path):
    step, recording = tracked(tmp_path, seen((LEFT, 0, 60), (RIGHT, 30, 60)))
    found = {(first, end): why for (first, end, _), why in verdicts(step, recording).items()}
    assert set(found) == {(0, 30), (30, 60)}
    assert found[0, 30] == {}
    assert set(found[30, 60]) == {"num_people"}
    assert "two faces are seen" in found[30, 60]["num_people"]


def test_each_makes_a_clip_of_every_person(tmp_path):
    step, recording = tracked(tmp_path, seen((LEFT, 0, 60), (RIGHT, 30, 60)), people="each")
    assert verdicts(step, recording) == {(0, 60, 0): {}, (30, 60, 1): {}}
    crops = {}
    for clip in clips(step, recording):
        plan = step.apply(clip, step.score(clip))
        assert plan.boxes == f"FaceTracks/boxes/{plan.span.track}"
        crops[plan.span.track] = plan.crop
        assert plan.identity == ("recording-p1" if plan.span.track else "")  # empty is the source's
    assert crops[0][2] <= 0.7 * WIDTH  # the other's face is in neither
    assert crops[1][0] >= 0.25 * WIDTH


def test_one_takes_the_largest_whoever_else_is_there(tmp_path):
    step, recording = tracked(tmp_path, seen((LEFT, 0, 60), (RIGHT, 0, 60)), people="one")
    (clip,) = clips(step, recording)
    plan = step.apply(clip, step.score(clip))
    faces_T4 = recording.signals[plan.boxes][:, 0]
    np.testing.assert_allclose(faces_T4[0], [0.7, 0.25, 0.82, 0.55], atol=1e-6)
    assert broken(step, step.score(clip)) == {}


def test_passers_by_count_for_nothing(tmp_path):
    small = seen((LEFT, 0, 60), (lambda t: face(0.8, 0.3, 0.03, 0.08), 0, 60))
    assert verdicts(*tracked(tmp_path, small)) == {(0, 60, 0): {}}
    assert all("two faces" in why["num_people"] for why in verdicts(*tracked(tmp_path, small, background=0.1)).values())


def test_nobody_is_a_reason_and_no_crash(tmp_path):
    for people in ("single", "one", "each"):
        for detector_says in ({}, {3: [face(0.1, 0.2)]}):
            step, recording = tracked(tmp_path, detector_says, people=people)
            (clip,) = clips(step, recording)
            assert broken(step, step.score(clip)) == {"face_share": "no face is seen"}
            assert step.apply(clip, step.score(clip)) == clip.plan


def test_a_recording_about_which_the_detector_knows_nothing(tmp_path):
    step = FaceTracks(SidecarBoxes())
    recording = record(tmp_path, [step], act()["pictures_THWC"])  # no boxes beside it
    assert broken(step, step.score(whole(recording))) == {"face_share": "no face is seen"}


def test_a_short_loss_is_bridged_and_a_long_one_cuts(tmp_path):
    faces = seen((LEFT, 0, 20), (LEFT, 25, 60))
    step, recording = tracked(tmp_path, faces, max_gap=5)
    assert spans(step, recording) == [(0, 60)]
    scores = step.score(whole(recording))
    assert scores["occlusion"] == pytest.approx(5 / 60, abs=1e-3)
    step, recording = tracked(tmp_path, faces, max_gap=4)
    assert spans(step, recording) == [(0, 20), (20, 25), (25, 60)]


# --- how well it is seen ----------------------------------------------------------------------------------------------------------------------------


def test_scores_say_what_the_faces_are(tmp_path):
    faces = {t: [face(0.2, 0.3, 0.1, 0.2 + 0.1 * (t % 2), score=0.8, opening=0.02 * (t % 10), yaw=30.0)] for t in range(60)}
    step, recording = tracked(tmp_path, faces)
    scores = step.score(whole(recording))
    assert scores["face_px"] == pytest.approx(0.25 * HEIGHT, abs=0.1)
    assert scores["yaw"] == scores["yaw_median"] == 30
    assert scores["pitch"] == 0
    assert scores["occlusion"] == pytest.approx(0.2, abs=1e-3)
    assert scores["mouth_range"] == pytest.approx(0.18, abs=0.02)
    assert scores["centre_jitter"] > 0.1
    still = tracked(tmp_path, seen((LEFT, 0, 60)))
    assert still[0].score(whole(still[1]))["centre_jitter"] == 0


@pytest.mark.parametrize(
    ("argument", "bound", "score", "words"),
    [
        ("min_face_px", 30.0, "face_px", "pixels high"),
        ("max_yaw", 20.0, "yaw", "turned by 30 degrees"),
        ("max_occlusion", 0.1, "occlusion", "covered or lost by 20%"),
        ("min_mouth_range", 0.5, "mouth_range", "mouth opens by"),
    ],
)
def test_thresholds_reject_with_a_sentence(tmp_path, argument, bound, score, words):
    faces = {t: [face(0.2, 0.3, score=0.8, yaw=30.0)] for t in range(60)}
    step, recording = tracked(tmp_path, faces)
    assert broken(step, step.score(whole(recording))) == {}
    step, recording = tracked(tmp_path, faces, **{argument: bound})
    found = broken(step, step.score(whole(recording)))
    assert set(found) == {score}
    assert words in found[score]


def test_a_pose_that_is_unknown_rejects_nothing(tmp_path):
    step, recording = tracked(tmp_path, seen((LEFT, 0, 60)), max_yaw=10.0)
    scores = step.score(whole(recording))
    assert scores["yaw"] is None
    assert broken(step, scores) == {}


def test_faces_that_are_looked_for_in_every_fifth_picture(tmp_path):
    faces = {t: [face(0.1 + 0.005 * t, 0.3)] for t in range(0, 60, 5)}
    step, recording = tracked(tmp_path, faces, every=5)
    assert spans(step, recording) == [(0, 60)]
    np.testing.assert_allclose(recording.signals["FaceTracks/boxes/0"][:56, 0, 0], 0.1 + 0.005 * np.arange(56), atol=1e-6)
    assert (recording.signals["FaceTracks/presence/0"] == 1).all()


# --- crops ------------------------------------------------------------------------------------------------------------------------------------------

SHARES = st.floats(0, 0.9)
PICTURES = st.tuples(st.integers(64, 400), st.integers(64, 400))


@settings(max_examples=80, deadline=None)
@given(PICTURES, SHARES, SHARES, st.floats(0.05, 0.3), st.floats(0.5, 1.8), st.floats(0.8, 1.5))
def test_a_crop_lies_in_the_picture_and_holds_the_face_with_as_much_around_it_as_there_is(size, left, top, tall, aspect, margin):
    width, height = size
    box = np.array([left, top, min(left + tall, 1), min(top + tall, 1)])
    window = head_and_shoulders(np.tile(box, (5, 1)), size, aspect, margin)
    assert all(side % 2 == 0 for side in window)
    assert 0 <= window[0] < window[2] <= width
    assert 0 <= window[1] < window[3] <= height
    face_px = box * [width, height, width, height]
    tall_px = (face_px[3] - face_px[1]) * margin
    wanted = face_px + np.array([-BESIDE, -ABOVE, BESIDE, BELOW]) * tall_px
    inside = np.clip(wanted, 0, [width, height, width, height])
    got = np.array([window[2] - window[0], window[3] - window[1]])
    for axis in (0, 1):
        if got[axis] >= wanted[2 + axis] - wanted[axis]:  # there is room for all of it
            assert window[axis] <= inside[axis] + 2
            assert window[2 + axis] >= inside[2 + axis] - 2
        assert window[axis] <= face_px[2 + axis]
        assert window[2 + axis] >= face_px[axis]
    if min(got) > 20:
        assert got[0] / got[1] == pytest.approx(aspect, rel=0.15)


def test_a_crop_holds_the_face_in_all_frames(tmp_path):
    faces = {t: [face(0.3 + 0.1 * np.sin(t / 5), 0.35)] for t in range(60)}
    step, recording = tracked(tmp_path, faces)
    plan = step.apply(whole(recording), step.score(whole(recording)))
    boxes_T4 = recording.signals[plan.boxes][:, 0] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    left, top, right, bottom = plan.crop
    assert (boxes_T4[:, 0] >= left).all()
    assert (boxes_T4[:, 1] >= top).all()
    assert (boxes_T4[:, 2] <= right).all()
    assert (boxes_T4[:, 3] <= bottom).all()


def test_other_crops(tmp_path):
    for crop, expected in (("none", None), ("largest", (0, 0, HEIGHT, HEIGHT))):
        step, recording = tracked(tmp_path, seen((LEFT, 0, 60)), crop=crop)
        assert step.apply(whole(recording), step.score(whole(recording))).crop == expected
    assert largest(np.tile([0.45, 0.4, 0.55, 0.6], (3, 1)), (400, 200), 1.0) == (100, 0, 300, 200)
    assert largest(np.tile([0.45, 0.4, 0.55, 0.6], (3, 1)), (200, 400), 1.0) == (0, 100, 200, 300)


def test_impossible_arguments_are_refused():
    for arguments, words in (({"people": "two"}, "single, one, each"), ({"median": 4}, "odd"), ({"crop": "square"}, "face, largest, none")):
        with pytest.raises(UserError, match=words):
            FaceTracks(SidecarBoxes(), **arguments)


def test_a_hand_over_the_face_moves_the_occlusion_score(tmp_path):
    need_mesh()
    step = FaceTracks(MeshDetector(), max_occlusion=0.3)
    recording = record(tmp_path, [step], video=real_clip("langer"))
    hand, bare = (step.score(Clip(recording, Plan(Span(*frames)))) for frames in ((100, 140), (260, 400)))
    assert hand["face_share"] == bare["face_share"] == 1
    assert "covered or lost" in broken(step, hand)["occlusion"]
    assert broken(step, bare) == {}
    assert bare["occlusion"] < 0.05

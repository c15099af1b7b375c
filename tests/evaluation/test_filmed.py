"""Filmed people have no truth: what is measured of them agrees with what was done to the pictures, and what is not measured is said."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

from flowact.errors import UserError
from flowact.evaluation import Clip, Film, Judge, OnnxFaceEmbedder, measure_filmed
from flowact.evaluation.filmed import GRID_NOTE, face_region
from flowact.evaluation.judges import Panel

FRAMES, SIZE = 100, 32


def film(seed, shade):
    """A face (a patch of one colour) on a ground of another; its mouth is a bar whose brightness is the sound's."""
    generator = np.random.default_rng(seed)
    frames = np.full((FRAMES, SIZE, SIZE, 3), 60, np.uint8)
    frames[:, 8:24, 8:24] = shade
    mouth_T = generator.uniform(0, 1, FRAMES)
    frames[:, 18:21, 12:20] = (255 * mouth_T[:, None, None, None]).astype(np.uint8)
    boxes = np.tile(np.array([[[0.25, 0.25, 0.75, 0.75], [0.375, 0.56, 0.625, 0.66]]], np.float32), (FRAMES, 1, 1))
    return Film(frames, frames[0], boxes), mouth_T


FILMS = [film(0, (200, 150, 130))[0], film(1, (120, 80, 60))[0]]
PEOPLE = ("anna", "bob")


def clips(*generated, states=None):
    states_T = np.zeros(FRAMES, np.uint8) if states is None else states
    return [
        Clip(f"clip-{number}", frames, np.zeros((len(frames), 0), np.float32), states_T[: len(frames)], {"person": PEOPLE[number]})
        for number, frames in enumerate(generated)
    ]


class Reader(Judge):
    """Reads the bar, and tells faces by their colour's direction."""

    measures = ("identity", "lips")

    def embed(self, faces_NHWC):
        return faces_NHWC.astype(float).mean(axis=(1, 2)) - 60

    def mouth(self, frames_THWC):
        return frames_THWC[:, 19, 16, 0].astype(float)


def test_the_film_itself_is_what_is_right():
    measured = measure_filmed(clips(*(one.frames_THWC for one in FILMS)), FILMS, Reader())
    assert measured.lip_correlation == pytest.approx(1)
    assert measured.lip_lag_frames == 0
    assert abs(measured.lip_correlation_shuffled) < 0.3
    assert measured.motion_ratio == 1
    assert measured.identity_rank == 1
    assert measured.drift < 0.05
    assert measured.details["sharpness_ratio"] == 1
    assert measured.details["identity_by"] == "Reader"
    assert measured.details["skipped"].keys() == {"state_accuracy"}


def test_without_a_judge_lips_are_left_out_and_identity_is_told_to_be_weak():
    measured = measure_filmed(clips(*(one.frames_THWC for one in FILMS)), FILMS)
    numbers = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert numbers["lip_correlation"] is None
    assert numbers["state_accuracy"] is None
    assert "--judge" in numbers["details"]["skipped"]["lip_correlation"]
    assert numbers["details"]["identity_note"] == GRID_NOTE
    assert numbers["identity_rank"] == 1
    assert numbers["identity_error"] < 0.1


@pytest.mark.parametrize("judge", [None, Reader()])
def test_another_face_is_farther_and_ranks_last(judge):
    right = measure_filmed(clips(*(one.frames_THWC for one in FILMS)), FILMS, judge)
    swapped = measure_filmed(clips(FILMS[1].frames_THWC, FILMS[0].frames_THWC), FILMS, judge)
    assert swapped.identity_error > 2 * right.identity_error
    assert (right.identity_rank, swapped.identity_rank) == (1, 2)


def test_one_person_has_no_rank():
    measured = measure_filmed(clips(FILMS[0].frames_THWC), FILMS[:1])
    assert measured.to_json()["identity_rank"] is None
    assert "one person" in measured.details["skipped"]["identity_rank"]


def test_colours_that_run_away_are_drift_and_a_still_picture_has_no_motion():
    away = FILMS[0].frames_THWC.astype(float)
    away[..., 0] += np.linspace(0, 60, FRAMES)[:, None, None]
    steady, drifting = (measure_filmed(clips(frames), FILMS[:1]) for frames in (FILMS[0].frames_THWC, away.clip(0, 255).astype(np.uint8)))
    assert drifting.drift > steady.drift + 0.1
    assert drifting.details["drift_saturation"] > 0.1
    still = measure_filmed(clips(np.repeat(FILMS[0].frames_THWC[:1], FRAMES, axis=0)), FILMS[:1], Reader())
    assert still.motion_ratio == 0
    assert still.lip_correlation == 0, "a frozen mouth is a failure"
    assert still.details["lip_failures"] == 1


def test_late_lips_are_seen_late_and_silence_is_left_out():
    late = np.roll(FILMS[0].frames_THWC, 3, axis=0)
    assert measure_filmed(clips(late), FILMS[:1], Reader()).lip_lag_frames == 3
    silent = measure_filmed(clips(late, states=np.ones(FRAMES, np.uint8)), FILMS[:1], Reader())
    assert np.isnan(silent.lip_correlation)
    assert "nobody speaks" in silent.details["skipped"]["lip_correlation"]


def test_the_face_is_looked_at_where_it_is_known():
    assert face_region(FILMS[0].boxes_TX4, SIZE, SIZE) == (slice(5, 27), slice(5, 27))
    whole = (slice(0, SIZE), slice(0, SIZE))
    assert face_region(None, SIZE, SIZE) == whole
    assert face_region(np.full((3, 2, 4), np.nan, np.float32), SIZE, SIZE) == whole
    ground = FILMS[0].frames_THWC.copy()
    ground[:, :4] = 255  # a lamp above the head is no change of the person
    films = [Film(FILMS[0].frames_THWC, FILMS[0].reference_HWC, boxes) for boxes in (FILMS[0].boxes_TX4, None)]
    with_boxes, without = (measure_filmed(clips(ground), [one]).identity_error for one in films)
    assert without > with_boxes + 0.05


def test_several_judges_share_the_work():
    class Faces(Judge):
        measures = ("identity",)

        def embed(self, faces_NHWC):
            return Reader().embed(faces_NHWC)

    class Mouths(Judge):
        measures = ("lips",)

        def mouth(self, frames_THWC):
            return Reader().mouth(frames_THWC)

    shown = clips(FILMS[1].frames_THWC, FILMS[0].frames_THWC)
    both, one = (measure_filmed(shown, FILMS, judge) for judge in (Panel([Mouths(), Faces()]), Reader()))
    assert both.details["identity_by"] == "Faces"
    assert (both.identity_error, both.lip_correlation) == (one.identity_error, one.lip_correlation)
    with pytest.raises(UserError, match="Faces and Reader both measure identity"):
        Panel([Faces(), Reader()])


@pytest.fixture
def onnxruntime(monkeypatch):
    """Stands in for the library: a network whose embedding is the mean colour that it was given."""

    class Session:
        def __init__(self, path, providers):
            self.shape = [None, 3, 16, 16] if path.endswith("face.onnx") else ["N", "T", "H", "W"]

        def get_inputs(self):
            return [types.SimpleNamespace(name="data", shape=self.shape)]

        def run(self, _, feed):
            assert feed["data"].shape[1:] == (3, 16, 16)
            assert feed["data"].dtype == np.float32
            return [feed["data"].mean(axis=(2, 3))]

    module = types.ModuleType("onnxruntime")
    module.InferenceSession = Session
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


def test_a_network_of_faces_gets_pictures_in_its_size_range_and_order(onnxruntime, tmp_path):
    (tmp_path / "face.onnx").touch()
    faces = np.tile(np.array([255, 127, 0], np.uint8), (40, 20, 24, 1))
    rgb, bgr = (OnnxFaceEmbedder(str(tmp_path / "face.onnx"), colours=order).embed(faces) for order in ("rgb", "bgr"))
    np.testing.assert_allclose(rgb, np.tile([[1, -0.5 / 127.5, -1]], (40, 1)), atol=1e-5)
    np.testing.assert_allclose(bgr, rgb[:, ::-1])
    (tmp_path / "video.onnx").touch()
    with pytest.raises(UserError, match="fixed size"):
        OnnxFaceEmbedder(str(tmp_path / "video.onnx"))
    with pytest.raises(UserError, match="is not there"):
        OnnxFaceEmbedder(str(tmp_path / "absent.onnx"))

"""SidecarBoxes: what lies beside the clip is taken as it is, from the frame at which the recording begins; anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from data_tools.inputs import Source
from data_tools.steps.detectors import FirstOf
from data_tools.steps.detectors.base import FaceDetector, overlap
from data_tools.steps.detectors.sidecar import SidecarBoxes
from flowact.data.media import MediaError
from flowact.errors import UserError


def source(path, **more):
    return Source("a", "a.mp4", "a", sidecars={"boxes.npy": str(path)}, **more)


def boxes(frames=50):
    """A face that moves one hundredth a frame; its mouth is a fifth of its height."""
    left = 0.2 + 0.01 * np.arange(frames)[:, None]
    face = np.concatenate([left, left * 0 + 0.2, left + 0.2, left * 0 + 0.7], 1)
    mouth = np.concatenate([left + 0.05, left * 0 + 0.5, left + 0.15, left * 0 + 0.6], 1)
    return np.stack([face, mouth], 1).astype(np.float32)


def saved(path, array):
    np.save(path, array)
    return path


def test_rows_are_frames(tmp_path):
    reader = SidecarBoxes().open(source(saved(tmp_path / "a.npy", boxes())), None)
    (face,) = reader.read(7, None)
    np.testing.assert_array_equal(face.boxes_X4, boxes()[7])
    assert face.score == 1
    assert face.opening == pytest.approx(0.2)
    assert np.isnan(face.pose).all()


def test_a_recording_that_begins_later_reads_from_there(tmp_path):
    reader = SidecarBoxes().open(source(saved(tmp_path / "a.npy", boxes()), start_s=0.4), None)
    np.testing.assert_array_equal(reader.read(0, None)[0].boxes_X4, boxes()[10])


def test_unseen_and_missing_rows_are_nobody(tmp_path):
    array = boxes()
    array[3] = np.nan
    reader = SidecarBoxes().open(source(saved(tmp_path / "a.npy", array)), None)
    assert reader.read(3, None) == ()
    assert reader.read(50, None) == ()
    assert len(reader.read(4, None)) == 1


def test_without_a_file_it_has_nothing_to_say():
    assert SidecarBoxes().open(Source("a", "a.mp4", "a"), None) is None


@pytest.mark.parametrize("array", [np.zeros((5, 4), np.float32), np.zeros((5, 2, 4), np.int64), np.zeros((5, 3, 4), np.float32)])
def test_arrays_of_another_form_are_refused(tmp_path, array):
    with pytest.raises(MediaError, match=r"boxes are floats \(frames, 2, 4\)"):
        SidecarBoxes().open(source(saved(tmp_path / "a.npy", array)), None)


def test_what_is_no_array_is_refused_and_nothing_is_unpickled(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("a.npy", "b.npy", "missing.npy"):
        with pytest.raises(MediaError, match="can not be read as an array"):
            SidecarBoxes().open(source(tmp_path / name), None)


class Silent(FaceDetector):
    def open(self, source, footage):
        return None

    def check(self):
        raise UserError("Silent needs something")


def test_the_first_that_knows_something_reads(tmp_path):
    told = source(saved(tmp_path / "a.npy", boxes()))
    assert len(FirstOf([Silent(), SidecarBoxes()]).open(told, None).read(0, None)) == 1
    assert FirstOf([Silent()]).open(told, None) is None
    with pytest.raises(UserError, match="Silent needs something"):
        FirstOf([SidecarBoxes(), Silent()]).check()
    with pytest.raises(UserError, match="name at least one"):
        FirstOf([])


def test_overlap_is_a_share_of_both():
    a, b = np.array([0, 0, 2, 2.0]), np.array([1, 0, 3, 2.0])
    assert overlap(a, a) == 1
    assert overlap(a, b) == overlap(b, a) == pytest.approx(1 / 3)
    assert overlap(a, a + 5) == overlap(a, a * np.nan) == 0

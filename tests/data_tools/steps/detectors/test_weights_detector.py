"""WeightsDetector: YuNet's numbers become boxes; a file that is none of its weights is refused before any work."""

from __future__ import annotations

import numpy as np
import pytest

from data_tools.steps.detectors.weights import WeightsDetector, to_face
from flowact.errors import UserError

#: left, top, width, height; right eye, left eye, nose, right and left corner of the mouth; score
ROW = np.array([100, 50, 80, 100, 120, 85, 160, 85, 140, 105, 125, 125, 155, 125, 0.9], np.float32)


def test_boxes_are_shares_of_the_picture():
    found = to_face(ROW, 400, 200)
    np.testing.assert_allclose(found.boxes_X4[0], [100 / 400, 50 / 200, 180 / 400, 150 / 200])
    left, top, right, bottom = found.boxes_X4[1]
    assert (left, right) == (pytest.approx(125 / 400), pytest.approx(155 / 400))
    assert (top + bottom) / 2 == pytest.approx(125 / 200)
    assert found.score == pytest.approx(0.9)
    assert found.pose[2] == pytest.approx(0)
    assert np.isnan([found.opening, *found.pose[:2]]).all()  # it does not know


def test_a_head_tilted_clockwise_has_positive_roll():
    row = ROW.copy()
    row[7] += 40 * np.tan(np.radians(10))
    assert to_face(row, 400, 200).pose[2] == pytest.approx(10, abs=0.1)


def test_boxes_stay_in_the_picture():
    row = ROW.copy()
    row[0] = -30
    assert to_face(row, 400, 200).boxes_X4[0, 0] == 0


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no file; give YuNet"):
        WeightsDetector(str(tmp_path / "missing.onnx")).check()
    (tmp_path / "other.onnx").write_bytes(b"not a network")
    with pytest.raises(UserError, match="are no weights of YuNet"):
        WeightsDetector(str(tmp_path / "other.onnx")).check()
    with pytest.raises(UserError, match="every 0"):
        WeightsDetector("x.onnx", every=0)

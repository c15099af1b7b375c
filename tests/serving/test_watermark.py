"""The note in the picture."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.serving.watermark import NoWatermark, TextWatermark


@pytest.mark.parametrize("size", [(384, 384), (480, 832), (144, 192), (64, 64), (16, 16)])
@pytest.mark.parametrize("ground", [0, 120, 255])
def test_a_corner_is_marked_and_nothing_else(size, ground):
    frames = np.full((2, *size, 3), ground, np.uint8)
    marked = TextWatermark(*size).mark(frames)
    assert marked.shape == frames.shape
    assert (frames == ground).all()
    changed = (marked != frames).any(axis=(0, 3))
    assert changed.any()
    rows, columns = np.nonzero(changed)
    if min(size) >= 144:
        assert rows.min() > size[0] * 0.85
        assert columns.max() < size[1] * 0.5
    np.testing.assert_array_equal(marked[0], marked[1])


@pytest.mark.parametrize("ground", [0, 120, 255])
def test_the_text_stands_out_on_any_ground(ground):
    frames = np.full((1, 384, 384, 3), ground, np.uint8)
    marked = TextWatermark(384, 384).mark(frames)[0]
    box = marked[(marked != ground).any(axis=2)]
    assert int(box.max()) - int(np.median(box)) > 70


def test_none_leaves_the_picture():
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    assert NoWatermark().mark(frames) is frames

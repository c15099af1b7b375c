"""What a view shows does not depend on the other views, however colours are coded; small ones are scaled from one small copy."""

from __future__ import annotations

import av
import numpy as np
import pytest

from data_tools.footage import View, look
from data_tools.media import looking

VIEWS = (View(64), View(96, "gray"), View(32, "gray", 2), View(200))


def written(path, pixel_format, codec="libx264", size=(480, 320)):
    """Coloured waves that drift."""
    y, x = np.mgrid[: size[1], : size[0]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for t in range(9):
            waves = [128 + 90 * np.sin(0.02 * (k + 1) * (x - 3 * t) + 0.03 * k * y) for k in range(3)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("coded", ["libx264 yuv420p", "mjpeg yuvj420p", "libx264 yuv444p", "libx264 yuv420p10le", "ffv1 bgr0"])
def test_together_is_as_alone(tmp_path, coded):
    codec, pixel_format = coded.split()
    path = written(tmp_path / "a.mkv", pixel_format, codec)
    (together,) = look(path, VIEWS)
    for view in VIEWS:
        (alone,) = look(path, (view,))
        assert together.pictures[view].shape == alone.pictures[view].shape
        assert together.count == alone.count == 9
        np.testing.assert_array_equal(together.pictures[view], alone.pictures[view])


def test_a_small_view_shows_what_a_large_one_does(tmp_path):
    """Scaled twice is nearly scaled once."""
    path = written(tmp_path / "a.mkv", "yuv420p")
    views = (View(64, "gray"), View(320, "gray"))
    (block,) = look(path, views)
    small, large = (block.pictures[view].astype(float) for view in views)
    means = large.reshape(9, 64, 5, 96, 5).mean(axis=(2, 4))
    assert np.abs(small - means).mean() < 1.5


def test_the_small_copy_is_used_where_it_is_worth_it(tmp_path, monkeypatch):
    made = []
    original = looking._Sketch.frame.fget
    monkeypatch.setattr(looking._Sketch, "frame", property(lambda self: made.append(original(self)) or made[-1]))
    list(look(written(tmp_path / "a.mkv", "yuv420p"), VIEWS))
    assert {(frame.width, frame.height) for frame in made} == {(192, 128)}
    made.clear()
    list(look(written(tmp_path / "b.mkv", "yuv420p", size=(120, 80)), VIEWS))
    assert {(frame.width, frame.height) for frame in made} == {(120, 80)}  # as small already
    made.clear()
    list(look(tmp_path / "a.mkv", (View(200), View())))
    assert made == []


@pytest.mark.parametrize("coded", ["libx264 yuv420p", "mjpeg yuvj420p", "libx264 yuv444p"])
def test_colours_are_those_of_the_picture(tmp_path, coded):
    codec, pixel_format = coded.split()
    path = written(tmp_path / "a.mkv", pixel_format, codec)
    (small,), (large,) = look(path, (View(160),)), look(path, (View(),))
    pictures, whole = small.pictures[View(160)].astype(float), large.pictures[View()].astype(float)
    assert np.abs(pictures.mean((0, 1, 2)) - whole.mean((0, 1, 2))).max() < 0.5
    blocks = whole.reshape(9, 160, 2, 240, 2, 3).mean((2, 4))
    assert np.abs(pictures - blocks).mean() < 3

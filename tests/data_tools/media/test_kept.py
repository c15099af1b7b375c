"""Frames held from one decoding are those of another."""

from __future__ import annotations

import numpy as np
import pytest
from media_zoo import Zoo

from data_tools.footage import FootageError, Kept, look, read_clip

FILMS = ["constant.mp4", "variable.mp4", "ntsc.mp4", "turned90.mp4", "two-way.mp4", "edit-list.mp4", "begins-late.mkv", "odd-sides.mp4", "slow.mp4"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("kept"))


def looked_at(path, room: int, **options) -> tuple[Kept, int]:
    kept = Kept(room)
    frames = sum(block.count for block in look(path, (), keep=kept, **options))
    return kept, frames


def pixels(path, first: int, count: int, **options) -> np.ndarray:
    return np.stack([frame.to_ndarray() for frame in read_clip(path, first, count, crop=(4, 4, 52, 44), size=(40, 32), **options)])


@pytest.mark.parametrize("name", FILMS)
def test_a_clip_of_held_frames_is_the_clip(zoo, name):
    path = zoo.film(name).path
    kept, frames = looked_at(path, 1 << 28)
    assert kept.whole
    assert frames > 20
    for first, count in ((0, frames), (7, 9), (frames - 1, 1)):
        assert (pixels(path, first, count, kept=kept) == pixels(path, first, count)).all()


def test_a_recording_that_begins_within_a_file(zoo):
    path = zoo.film("constant.mp4").path
    kept, frames = looked_at(path, 1 << 28, start_s=0.4, end_s=1.2)
    assert frames == 20
    assert (pixels(path, 3, 10, start_s=0.4, kept=kept) == pixels(path, 3, 10, start_s=0.4)).all()


def test_without_room_nothing_is_held_and_the_file_is_read(zoo):
    path = zoo.film("constant.mp4").path
    for room in (0, 20_000):
        kept, _ = looked_at(path, room)
        assert not kept.whole
        assert list(kept.frames(0, 10)) == []
        assert (pixels(path, 2, 5, kept=kept) == pixels(path, 2, 5)).all()


def test_frames_beyond_the_end_are_an_error_either_way(zoo):
    path = zoo.film("constant.mp4").path
    kept, frames = looked_at(path, 1 << 28)
    for options in ({"kept": kept}, {}):
        with pytest.raises(FootageError, match="it ends after"):
            pixels(path, frames - 3, 5, **options)

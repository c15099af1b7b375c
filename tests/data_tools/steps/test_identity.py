"""Identity: people are named as told, tracks of one recording apart, and whoever shares a recording shares a split."""

from __future__ import annotations

import doctest

import pytest
from given_faces import face, tracked

from data_tools.steps import identity
from data_tools.steps.base import Clip, Plan, Span
from data_tools.steps.identity import Identity, folder_of_id
from flowact.errors import UserError


def named(folder, who, people="each", **source):
    """Identity in the plan of each clip of a recording with two people."""
    both = {t: [face(0.1, 0.3), face(0.7, 0.3)] for t in range(40)}
    faces, recording = tracked(folder, both, 40, people=people)
    recording = type(recording)(**{**vars(recording), "source": type(recording.source)(**{**vars(recording.source), **source})})
    step, found = Identity(who), {}
    for span in faces.cut(recording, [Span(0, 40)]):
        clip = Clip(recording, Plan(span))
        clip = Clip(recording, faces.apply(clip, faces.score(clip)))
        found[span.track] = step.apply(clip, step.score(clip)).identity
    return found


@pytest.mark.parametrize(("who", "name"), [("source", "Anna"), ("folder", "show--anna"), ("file", "show--anna--01")])
def test_people_are_named_as_told_and_tracks_apart(tmp_path, who, name):
    assert named(tmp_path, who, id="show--anna--01", identity="Anna") == {0: name, 1: f"{name}-p1"}


def test_where_one_is_wanted_the_number_of_the_track_is_no_name(tmp_path):
    assert set(named(tmp_path, "source", people="one", identity="Anna").values()) == {"Anna"}


def test_clips_of_one_recording_are_one_group():
    step = Identity()
    scores = {key: {"source": "x", "folder": "x", "file": file} for key, file in (("a-1", "a"), ("b-1", "b"), ("a-2", "a"))}
    assert step.groups(scores) == [["a-1", "a-2"]]


def test_paths_too_long_for_an_id_are_no_folder():
    assert doctest.testmod(identity).failed == 0
    assert folder_of_id("a" * 30 + "--" + "b" * 29) == "a" * 30 + "--" + "b" * 29


def test_other_words_are_refused():
    with pytest.raises(UserError, match="source, folder, file"):
        Identity("face")

from __future__ import annotations

import json

import numpy as np
import pytest
from heard_clips import clip_of, judged

from data_tools.annotations import AnnotationError
from data_tools.steps.base import Clip, Span
from data_tools.steps.labels import Labels
from flowact.errors import UserError
from flowact.types import STATES

SPEAK, LISTEN, THINK, IDLE = STATES
SAMPLES = np.zeros(100 * 640, np.float32)
TABLE = "start,end,label,caption\n0,1,speaking,she talks\n1,2,listening,\n3,4,thinking,she frowns\n"


def clip(folder, name: str = "", text: str | bytes = b"", *, span: Span | None = None, source=None, **plan) -> Clip:
    """A clip of four seconds with one file beside it."""
    sidecars = {}
    if name:
        path = folder / f"take.{name}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        sidecars[name] = str(path)
    return clip_of(folder, SAMPLES, span=span, source={"sidecars": sidecars, **(source or {})}, **plan)


def states_of(step: Labels, clip: Clip) -> list[tuple[int, int, str]]:
    return list(step.apply(clip, step.score(clip)).states)


def test_a_table_gives_states_and_captions(tmp_path):
    scores, plan, _ = judged(Labels(), clip(tmp_path, "csv", TABLE))
    assert plan.states == ((0, 25, SPEAK), (25, 50, LISTEN), (50, 75, IDLE), (75, 100, THINK))
    assert plan.captions == ((0, 25, SPEAK, "she talks"), (25, 50, LISTEN, ""), (50, 75, IDLE, ""), (75, 100, THINK, "she frowns"))
    assert scores == {"labelled": 0.75, "captioned": 0.5, "file": "csv"}


def test_a_clip_has_the_labels_of_its_frames(tmp_path):
    part = clip(tmp_path, "csv", TABLE, span=Span(20, 80))
    assert states_of(Labels(), part) == [(0, 5, SPEAK), (5, 30, LISTEN), (30, 55, IDLE), (55, 60, THINK)]


def test_a_part_of_a_file_has_the_labels_of_its_time(tmp_path):
    part = clip(tmp_path, "csv", "start,end,label\n10,12,speaking\n12,300,listening\n", source={"start_s": 11.0, "end_s": 15.0})
    assert states_of(Labels(), part) == [(0, 25, SPEAK), (25, 100, LISTEN)]


def test_what_synth_wrote_is_exact(tmp_path):
    states_T = np.repeat(np.array([3, 0, 1, 2], np.uint8), [10, 40, 30, 20])
    np.save(tmp_path / "take.states.npy", states_T)
    captions = [[0, 60, IDLE, "rests"], [60, 100, SPEAK, "talks"]]
    (tmp_path / "take.json").write_text(json.dumps({"captions": captions}))
    beside = {suffix: str(tmp_path / f"take.{suffix}") for suffix in ("states.npy", "json")}
    _, plan, _ = judged(Labels(min_labelled=1.0), clip(tmp_path, source={"sidecars": beside}))
    assert plan.states == ((0, 10, IDLE), (10, 50, SPEAK), (50, 80, LISTEN), (80, 100, THINK))
    assert plan.captions[0] == (0, 10, IDLE, "rests")
    assert [text for *_, text in plan.captions] == ["rests", "rests", "rests", "talks", "talks"]
    # the metadata alone tells both
    _, plan, _ = judged(Labels(formats=["json"]), clip(tmp_path, source={"sidecars": beside}))
    assert plan.states == ((0, 60, IDLE), (60, 100, SPEAK))


def test_other_peoples_json_is_left_alone(tmp_path):
    for text in ('{"captions": ["a man talks"]}', '{"captions": {"en": "x"}}', "[]"):
        scores, plan, _ = judged(Labels(), clip(tmp_path, "json", text, states=((0, 100, SPEAK),)))
        assert scores["file"] is None
        assert plan.states == ((0, 100, SPEAK),)


def test_a_mapping_tells_what_other_names_mean(tmp_path):
    step = Labels(mapping={"Redet": SPEAK, "nickt": LISTEN, "?": ""})
    found = states_of(step, clip(tmp_path, "csv", "start,end,label\n0,1,redet\n1,2,NICKT\n2,3,?\n3,4,Thinking\n"))
    assert found == [(0, 25, SPEAK), (25, 50, LISTEN), (50, 75, IDLE), (75, 100, THINK)]


def test_a_name_without_meaning_is_told_with_its_cure(tmp_path):
    with pytest.raises(AnnotationError, match=r"no state is called 'speakin'. Did you mean speaking.* Labels.mapping: \{\"speakin\": speaking\}"):
        Labels().score(clip(tmp_path, "csv", "start,end,label\n0,1,speakin\n"))


def test_labels_of_another_recording_are_told(tmp_path):
    with pytest.raises(AnnotationError, match=r"go on to 9.0 s, and the recording ends at 4.0 s"):
        Labels().score(clip(tmp_path, "csv", "start,end,label\n0,9,speaking\n"))
    assert states_of(Labels(), clip(tmp_path, "csv", "start,end,label\n0,4.9,speaking\n")) == [(0, 100, SPEAK)]


def test_labels_that_overlap_are_told(tmp_path):
    with pytest.raises(AnnotationError, match="overlap"):
        Labels().score(clip(tmp_path, "csv", "start,end,label\n0,2,speaking\n1,3,idle\n"))


def test_tiers_are_chosen_by_name_and_a_single_one_by_itself(tmp_path):
    table = "start,end,label,tier\n0,4,speaking,mouth\n0,4,idle,hands\n"
    with pytest.raises(AnnotationError, match=r"tiers 'hands', 'mouth', .*Labels.state_tiers"):
        Labels().score(clip(tmp_path, "csv", table))
    assert states_of(Labels(state_tiers=["mouth"]), clip(tmp_path, "csv", table)) == [(0, 100, SPEAK)]
    assert states_of(Labels(), clip(tmp_path, "csv", table.splitlines()[0] + "\n0,4,speaking,mouth\n")) == [(0, 100, SPEAK)]


def test_subtitles_hold_states_or_captions_or_what_is_said(tmp_path):
    labels = clip(tmp_path, "srt", "1\n00:00:00,000 --> 00:00:04,000\nspeaking\n")
    assert states_of(Labels(), labels) == [(0, 100, SPEAK)]
    words = clip(tmp_path, "srt", "1\n00:00:00,000 --> 00:00:02,000\nGood morning!\n", states=((0, 100, SPEAK),))
    with pytest.raises(AnnotationError, match=r"Labels\.subtitles: ignore"):
        Labels().score(words)
    assert judged(Labels(subtitles="ignore"), words)[1] == words.plan
    plan = judged(Labels(subtitles="captions"), words)[1]
    assert plan.captions == ((0, 50, SPEAK, "Good morning!"), (50, 100, SPEAK, ""))
    assert plan.states == words.plan.states


@pytest.mark.parametrize("place", ["{parent}/take.csv", "take.csv", "id-7.csv"])
def test_a_folder_of_annotations(tmp_path, place):
    recordings, annotations = tmp_path / "anna", tmp_path / "annotations"
    recordings.mkdir()
    path = annotations / place.format(parent="anna")
    path.parent.mkdir(parents=True)
    path.write_text(TABLE)
    step = Labels(folder=str(annotations))
    step.check()
    found = clip(recordings, source={"id": "id-7"})
    assert states_of(step, found)[0] == (0, 25, SPEAK)
    before = step.version
    path.write_text(TABLE.replace("speaking", "thinking"))
    assert step.version != before
    assert states_of(step, found)[0] == (0, 25, THINK)


def test_without_labels_nothing_changes_and_a_share_can_be_asked_for(tmp_path):
    bare = clip(tmp_path, states=((0, 100, LISTEN),))
    scores, plan, broken = judged(Labels(), bare)
    assert scores == {"labelled": 0.0, "captioned": 0.0, "file": None}
    assert plan == bare.plan
    assert not broken
    assert judged(Labels(min_labelled=0.5), bare)[2] == ["0% of the frames have a label, must be at least 50%"]


def test_gaps_are_what_is_wanted(tmp_path):
    found = states_of(Labels(gaps=LISTEN), clip(tmp_path, "csv", "start,end,label\n1,2,speaking\n"))
    assert found == [(0, 25, LISTEN), (25, 50, SPEAK), (50, 100, LISTEN)]


@pytest.mark.parametrize("array", [np.zeros((4, 2), np.uint8), np.zeros(100, np.float32), np.full(100, 9, np.uint8)])
def test_arrays_that_hold_no_states(tmp_path, array):
    np.save(tmp_path / "take.states.npy", array)
    with pytest.raises(AnnotationError, match="states are numbers from 0 to 3"):
        Labels().score(clip(tmp_path, source={"sidecars": {"states.npy": str(tmp_path / "take.states.npy")}}))


WRONG = [
    ({"formats": ["textgrid"]}, "Did you mean TextGrid"),
    ({"mapping": {"a": "talking"}}, "'talking'"),
    ({"gaps": ""}, "''"),
    ({"subtitles": "x"}, "subtitles"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        Labels(**arguments)


def test_a_folder_that_is_not_there_is_told_before_any_work(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        Labels(folder=str(tmp_path / "no")).check()

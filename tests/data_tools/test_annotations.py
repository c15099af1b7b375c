from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.annotations import AnnotationError, Label, frame_runs, read_annotations

LABELS = [Label(0.0, 1.25, "speaking", "states"), Label(1.25, 2.0, 'says "no" ! and [2]: 3 <x>', "states"), Label(2.5, 3.0, "nickt", "states")]


def textgrid(labels, *, long: bool, end: float = 4.0) -> str:
    """Both formats as Praat writes them: every instant belongs to an interval, quotes are doubled."""
    tiers = list(dict.fromkeys(label.tier for label in labels))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    head = [f"xmin = 0 \nxmax = {end} \ntiers? <exists> \nsize = {len(tiers)} \nitem []: "]
    lines += head if long else ["0", str(end), "<exists>", str(len(tiers))]
    for number, tier in enumerate(tiers, 1):
        intervals, last = [], 0.0
        for label in [label for label in labels if label.tier == tier]:
            intervals += [(last, label.start_s, "")] if label.start_s > last else []
            intervals.append((label.start_s, label.end_s, label.text.replace('"', '""')))
            last = label.end_s
        intervals += [(last, end, "")] if last < end else []
        quoted = tier.replace('"', '""')
        if long:
            lines.append(f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{quoted}" ')
            lines.append(f"        xmin = 0 \n        xmax = {end} ")
            lines.append(f"        intervals: size = {len(intervals)} ")
            for i, (a, b, text) in enumerate(intervals, 1):
                lines.append(f'        intervals [{i}]:\n            xmin = {a} \n            xmax = {b} \n            text = "{text}" ')
        else:
            lines += ['"IntervalTier"', f'"{quoted}"', "0", str(end), str(len(intervals))]
            lines += [f'{a}\n{b}\n"{text}"' for a, b, text in intervals]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# --- Praat ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", [True, False], ids=["long", "short"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_both_textgrid_formats_in_every_encoding_of_praat(tmp_path, long, encoding):
    assert read_annotations(write(tmp_path / "a.TextGrid", textgrid(LABELS, long=long), encoding)) == tuple(LABELS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.text('aä"!<>[]:0 1\n.', min_size=1).filter(str.strip)), min_size=1, max_size=8))
def test_the_two_formats_of_praat_say_the_same(tmp_path, entries):
    labels, now = [], 0.0
    for length, pause, text in entries:
        start = round(now + pause / 10, 3)
        now = round(start + length / 10, 3)
        labels.append(Label(start, now, text, "b"))
    for long in (True, False):
        assert read_annotations(write(tmp_path / "a.TextGrid", textgrid(labels, long=long, end=1000.0))) == tuple(
            replace(label, text=" ".join(label.text.split())) for label in labels
        )


def test_points_have_no_duration_and_tiers_keep_their_names(tmp_path):
    text = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n4\n<exists>\n2\n"TextTier"\n"clicks"\n0\n4\n2\n1\n"x"\n2\n"y"\n'
    text += '"IntervalTier"\n"the ""states"""\n0\n4\n1\n0\n4\n"idle"\n'
    assert read_annotations(write(tmp_path / "a.TextGrid", text)) == (Label(0, 4, "idle", 'the "states"'),)


# --- ELAN -----------------------------------------------------------------------------------------------------------------------------------------

EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" FORMAT="3.0" VERSION="3.0">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="file:///secret.mp4" MIME_TYPE="video/mp4"/></HEADER>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="ts4"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="states">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2"><ANNOTATION_VALUE>zuh\u00f6ren</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3"><ANNOTATION_VALUE>speaking</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="gloss" PARENT_REF="states" TIER_ID="captions">
    <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3" ANNOTATION_REF="a2"><ANNOTATION_VALUE>she talks &amp; smiles</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
  </TIER>
</ANNOTATION_DOCUMENT>
"""  # noqa: E501


def test_elan_tiers_and_those_that_depend_on_them(tmp_path):
    assert read_annotations(write(tmp_path / "a.eaf", EAF)) == (
        Label(1.25, 2.0, "she talks & smiles", "captions"),
        Label(0.0, 1.25, "zuhören", "states"),
        Label(1.25, 2.0, "speaking", "states"),
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('TIME_SLOT_REF2="ts3"', 'TIME_SLOT_REF2="ts4"', "has no times"),
        ('ANNOTATION_REF="a2"', 'ANNOTATION_REF="a3"', "circle"),
        ("<ANNOTATION_DOCUMENT", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><ANNOTATION_DOCUMENT', "entities"),
        ("</ANNOTATION_DOCUMENT>", "", "can not be read as eaf"),
        ('TIME_VALUE="1250"', 'TIME_VALUE="soon"', "can not be read as eaf"),
    ],
)
def test_elan_files_that_can_not_be_used(tmp_path, old, new, reason):
    assert old in EAF
    with pytest.raises(AnnotationError, match=reason):
        read_annotations(write(tmp_path / "a.eaf", EAF.replace(old, new)))


# --- tables ---------------------------------------------------------------------------------------------------------------------------------------

TABLE = (Label(0.0, 1.5, "speaking", "states"), Label(61.5, 62.0, "idle, or not", "states"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'start,end,label\n0,1.5,speaking\n1:01.5,62,"idle, or not"\n'),
        ("b.csv", "Onset;Offset;State\n0,0;1,5;speaking\n0:01:01,5;62;idle, or not\n"),
        ("c.tsv", "note\tstart_s\tend_s\tlabel\nx\t0\t1.5\tspeaking\ny\t61.5\t62\tidle, or not\n"),
        ("d.csv", '0,1.5,speaking\r\n61.5,62,"idle, or not"\r\n'),
        ("e.csv", "\ufeffstart,end,label,tier\n0,1.5,speaking,states\n2,3,,states\n61.5,62,\"idle, or not\",\n"),
    ],
)
def test_tables_of_labels(tmp_path, name, text):
    assert read_annotations(write(tmp_path / name, text)) == TABLE


def test_a_table_of_states_and_captions(tmp_path):
    path = write(tmp_path / "a.csv", "start,end,label,caption\n0,1,speaking,she talks\n1,2,idle,\n")
    assert read_annotations(path) == (Label(0, 1, "she talks", "captions"), Label(0, 1, "speaking", "states"), Label(1, 2, "idle", "states"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("start,stopp,label\n0,1,a\n", "no column 'end'. Known: label, start, stopp"),
        ("start,end,mood\n0,1,a\n", "no column 'label'"),
        ("start,end,label\n0,soon,a\n", ":2: end is 'soon'"),
        ("start,end,label\n2,1,a\n", "'a' lasts from 2 to 1 s"),
        ("start,end,label\n-1,1,a\n", "begins at 0 or later"),
        ("start,end,label\n0,nan,a\n", "lasts from"),
        ("start,end,label\n0,2,a\n1,3,b\n", "'a' .* and 'b' .* overlap in the tier 'states'"),
    ],
)
def test_tables_that_can_not_be_used(tmp_path, text, reason):
    with pytest.raises(AnnotationError, match=reason):
        read_annotations(write(tmp_path / "a.csv", text))


# --- subtitles ------------------------------------------------------------------------------------------------------------------------------------

CUES = (Label(0.5, 1.25, "speaking", "subtitles"), Label(3661.0, 3662.0, "she listens & nods", "subtitles"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.srt", "1\n00:00:00,500 --> 00:00:01,250\nspeaking\n\n2\n01:01:01,000 --> 01:01:02,000\nshe <i>listens</i>\n{\\an8}& nods\n"),
        ("a.srt", "\ufeff1\r\n00:00:00,500 --> 00:00:01,250\r\nspeaking\r\n\r\n\r\n2\r\n01:01:01,000 --> 01:01:02,000\r\nshe listens & nods\r\n\r\n"),
        (
            "a.vtt",
            "WEBVTT\n\nNOTE made by hand\n\nSTYLE\n::cue {}\n\n00:00.500 --> 00:01.250 align:start\nspeaking\n\n"
            "last\n01:01:01.000 --> 01:01:02.000\n<v Anna>she listens\n&amp; nods\n",
        ),
    ],
)
def test_subtitles(tmp_path, name, text):
    assert read_annotations(write(tmp_path / name, text)) == CUES


def test_subtitles_without_times(tmp_path):
    with pytest.raises(AnnotationError, match="'soon --> later' are no times"):
        read_annotations(write(tmp_path / "a.srt", "1\nsoon --> later\nspeaking\n"))


# --- all of them ----------------------------------------------------------------------------------------------------------------------------------


CUE = "WEBVTT\n\n00:00.5 --> 00:01.0\nx\n"


@pytest.mark.parametrize(
    ("name", "text"), [("a.TextGrid", textgrid(LABELS, long=True)), ("b.TextGrid", textgrid(LABELS, long=False)), ("a.eaf", EAF), ("a.vtt", CUE)]
)
def test_a_file_that_was_cut_anywhere_is_read_or_refused_by_its_name(tmp_path, name, text):
    read_annotations(write(tmp_path / name, text))
    for end in range(0, len(text), 7):
        path = write(tmp_path / name, text[:end])
        with contextlib.suppress(AnnotationError):
            read_annotations(path)
    if name != "a.vtt":
        with pytest.raises(AnnotationError, match=name):
            read_annotations(write(tmp_path / name, text[: len(text) // 2]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([("a.TextGrid", textgrid(LABELS, long=False)), ("a.eaf", EAF), ("a.csv", "start,end,label\n0,1,a\n1,2,b\n"), ("a.vtt", CUE)]),
    st.floats(0, 1),
    st.integers(0, 30),
    st.sampled_from(["", '"', "9" * 400, "1e999", "nan", "-1", "\x00", "<", "&", ",", ":", "\n\n", "-->", "\u2028"]),
)
def test_a_damaged_file_is_read_or_refused(tmp_path, file, where, cut, put):
    name, text = file
    place = int(where * len(text))
    with contextlib.suppress(AnnotationError):
        read_annotations(write(tmp_path / name, text[:place] + put + text[place + cut :]))


def test_a_number_that_is_no_count_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="can not be read as TextGrid"):
        read_annotations(write(tmp_path / "a.TextGrid", textgrid(LABELS, long=False).replace("<exists>\n1", "<exists>\n1e999")))


NO_FILES = [("a.csv", b"start,end,label\n0,1,\xff\n"), ("a.TextGrid", b"\xff\xfe\x00"), ("a.xlsx", b""), ("b.csv", None)]


@pytest.mark.parametrize(("name", "data"), NO_FILES)
def test_no_text_no_format_no_file(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationError):
        read_annotations(tmp_path / name)


def test_runs_are_cut_to_the_frames_and_rounded_without_overlap():
    labels = [Label(0.0, 1.03, "a", ""), Label(1.0, 2.0, "b", ""), Label(2.0, 2.01, "c", ""), Label(3.0, 9.0, "d", "")]
    assert frame_runs(labels, 0.0, 100) == [(0, 26, "a"), (26, 50, "b"), (75, 100, "d")]
    assert frame_runs(labels, 1.0, 60) == [(0, 1, "a"), (1, 25, "b"), (50, 60, "d")]
    assert frame_runs(labels, 20.0, 60) == []

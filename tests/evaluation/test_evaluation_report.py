"""The report is one whole file that holds every number it was given."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flowact.evaluation import METRIC_NAMES, measure, report
from flowact.evaluation.pictures import contact_sheet, identity_sheet, middle_of_longest_run, states_sheet
from flowact.evaluation.report import DETAILS, METRICS, Media, write_report

VOID = {"meta", "source", "img", "br"}


class Page(HTMLParser):
    """Refuses unbalanced tags and collects attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def numbers(clips, block):
    """metrics.json of an invented run, each number different."""
    noise = np.random.default_rng(0)
    blurred = [replace(c, frames_THWC=(c.frames_THWC * 0.8 + noise.integers(0, 40, c.frames_THWC.shape)).astype(np.uint8)) for c in clips]
    late = [replace(c, frames_THWC=np.roll(c.frames_THWC, 2, axis=0)) for c in blurred]
    stages = {"distillation": measure(late, block).to_json(), "pretraining": measure(blurred, block).to_json()}
    return {
        "truth": measure(clips, block).to_json(),
        "stages": stages,
        "stream": {"ttff_seconds": 0.217, "frames_per_second": 158.3, "evaluations_per_chunk": 3, "duration_seconds": 61.4},
        "seconds": {"render": 12.3, "train pretraining": 754.0, "evaluate": 9000.0},
    }


def test_every_number_is_in_the_report_and_the_page_is_whole(tmp_path, numbers):
    path = write_report(
        tmp_path, numbers, Media(title="A <talking> block", facts={"torch": "9.9.9"}, commands=[("Again", "flowact fit --config a.yaml && x")])
    )
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    for measured in [numbers["truth"], *numbers["stages"].values()]:
        for name in METRIC_NAMES:
            assert report.number(measured[name], METRICS[name].digits) in page.text, name
        for recall in measured["details"]["state_recall"].values():
            assert f"{report.number(100 * recall, 1)} %" in page.text
        for name, explanation in DETAILS.items():
            assert report.number(measured["details"][name], explanation.digits) in page.text, name
    for shown in ("0.217 s", "158.3", "61.4 s", "12.3 s", "12 min 34 s", "2 h 30 min", "9.9.9", "A <talking> block", "&& x"):
        assert shown in page.text, shown
    assert json.loads(re.search(r'<script type="application/json" id="metrics">(.*?)</script>', html, re.DOTALL)[1]) == numbers
    assert not list(tmp_path.glob("*.part"))


def test_every_metric_is_explained(tmp_path, numbers):
    text = Page(write_report(tmp_path, numbers).read_text(encoding="utf-8")).text
    assert set(METRICS) == set(METRIC_NAMES)
    for explanation in METRICS.values():
        assert explanation.text in text


def test_nothing_is_fetched_from_elsewhere(tmp_path, numbers):
    page = Page(write_report(tmp_path, numbers, Media(training={"pretraining": ([1, 2, 3], [1.0, 0.5, 0.4])})).read_text(encoding="utf-8"))
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset", "href", "poster")]
    assert len(sources) == 10  # five plots in two dresses
    for source in sources:
        assert source.startswith("data:image/png;base64,")


def test_stages_stand_in_training_order_and_the_better_one_is_marked(numbers):
    stages = report.in_training_order({"mine": {}, **numbers["stages"]})
    assert list(stages) == ["pretraining", "distillation", "mine"]
    rows = {row["name"]: row["cells"] for row in report.table(METRICS, numbers["stages"], numbers["truth"])}
    assert rows["pretraining"]["lip_correlation"]["best"]
    assert not rows["distillation"]["lip_correlation"]["best"]
    assert rows["distillation"]["lip_lag_frames"]["text"] == "2"


def test_a_number_that_does_not_exist_is_a_dash_and_zero_has_no_sign():
    assert report.number(None) == "–"
    assert report.number(float("nan")) == "–"
    assert report.number(-0.0004, 3) == "0.000"
    assert report.number(-0.04, 2) == "−0.04"


def test_states_that_are_missed_say_so():
    switches = {"idle": {"switches": 3, "missed": 1, "median_frames": 4.0}, "thinking": {"switches": 2, "missed": 2, "median_frames": None}}
    (row,) = report.state_table({"mine": {"state_recall": {"idle": 0.75, "thinking": 0.0}, "switches": switches}})
    assert row["cells"] == [
        {"text": "–", "note": ""},
        {"text": "–", "note": ""},
        {"text": "0.0 %", "note": "mostly not seen, 2 of 2 missed"},
        {"text": "75.0 %", "note": "after 4 frames, 1 of 3 missed"},
    ]


def test_small_videos_travel_inside_and_large_ones_are_linked(tmp_path, monkeypatch, numbers):
    folder = tmp_path / "run"
    (folder / "media").mkdir(parents=True)
    small, large = folder / "small.mp4", folder / "media" / "a large one.mp4"
    small.write_bytes(b"x" * 10)
    large.write_bytes(b"x" * 100)
    monkeypatch.setattr(report, "INLINE_BYTES", 50)
    page = Page(write_report(folder, numbers, Media(hero=small, videos={"long": large})).read_text(encoding="utf-8"))
    sources = [value for tag, name, value in page.attributes if tag == "source" and name == "src"]
    assert sources == ["data:video/mp4;base64,eHh4eHh4eHh4eA==", "media/a%20large%20one.mp4"]
    with pytest.raises(ValueError, match="not a video"):
        write_report(folder, numbers, Media(hero=folder / "small.gif"))


def test_an_empty_run_still_gives_a_page(tmp_path):
    page = Page(write_report(tmp_path / "new", {}).read_text(encoding="utf-8"))
    assert "FlowAct report" in page.text


def test_text_from_outside_cannot_become_markup(tmp_path):
    bad = "</script><script>alert(1)</script>"
    html = write_report(tmp_path, {"stages": {bad: {"drift": 0.1, "details": {}}}, "stream": {"x": bad}}, Media(title=bad)).read_text(
        encoding="utf-8"
    )
    assert "<script>alert" not in html
    Page(html)


def test_contact_sheet_shows_each_frame_where_it_belongs():
    red, blue = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet({"one": [red, None], "two": [None, blue]}, ["left", "right"], cell=32)
    pixels = np.asarray(sheet)
    reds = np.argwhere((pixels == [255, 0, 0, 255]).all(-1))
    blues = np.argwhere((pixels == [0, 0, 255, 255]).all(-1))
    assert len(reds) == len(blues) == 32 * 32
    assert (reds.max(0) < blues.min(0)).all()
    with pytest.raises(ValueError, match="2 pictures for 1 labels"):
        contact_sheet({"one": [red, red]}, ["left"])
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet({"one": [None]}, ["left"])


def test_sheets_of_clips(clips):
    assert states_sheet(clips, num_clips=3, cell=16).height > 3 * 16
    references = {clip.key: clip.frames_THWC[0] for clip in clips}
    wide = identity_sheet(clips, references, seconds=(0, 5, 10, 12, 20), cell=16)
    narrow = identity_sheet(clips, references, seconds=(0,), cell=16)
    assert wide.width - narrow.width == 3 * (16 + 4)  # 5, 10 and 12 s; 20 s lies beyond the clips
    assert middle_of_longest_run(np.array([1, 0, 1, 1, 1, 0], bool)) == 3
    assert middle_of_longest_run(np.zeros(3, bool)) is None


def test_pictures_are_png(tmp_path, numbers):
    image = Image.new("RGB", (3, 2), "red")
    file = tmp_path / "a.png"
    image.save(file)
    page = Page(write_report(tmp_path, numbers, Media(pictures={"made": image, "stored": file})).read_text(encoding="utf-8"))
    assert "made" in page.text
    uris = [value for tag, name, value in page.attributes if tag == "img" and name == "src"][:2]
    for uri in uris:
        assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (3, 2)


def test_style_braces_balance():
    template = (report.Path(report.__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", template, re.DOTALL)[1]
    assert style.count("{") == style.count("}")
    assert "http" not in style

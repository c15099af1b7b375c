"""The report: numbers that add up, a page that nobody can write into, files that are whole at any moment."""

from __future__ import annotations

import doctest
import io
import json
import os
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
from clip_folder import tone, write_clip, write_folder, write_video
from made_dataset import contents, run_killed

from data_tools.building.accounts import funnel as build_funnel
from data_tools.building.ledger import ClipRecord, Ledger, SourceRecord
from data_tools.cli import main
from data_tools.inputs import Source
from data_tools.reporting import charts, views, wording
from data_tools.reporting.contents import Place, choose, collect
from data_tools.reporting.decisions import Threshold, decide, recipe_steps
from data_tools.reporting.histograms import histogram
from data_tools.reporting.muxing import mux
from data_tools.reporting.page import write_report
from data_tools.steps.base import Plan, Rejection, Rule, Span
from flowact.data.media import encode_sound, encode_video
from flowact.data.schema import read_dataset
from flowact.errors import UserError

VOID = ("meta", "img", "source", "br", "link", "input", "hr")
STEPS = ("Container", "Voice", "Sharpness")
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def made_clips(count: int, seed: int = 0) -> list[ClipRecord]:
    """Clips that went down three steps, some unreadable; values lie on thresholds now and then."""
    rng = np.random.default_rng(seed)
    clips = []
    for number in range(count):
        key, source = f"clip-{number:06d}", f"source-{number // 4}"
        if number % 17 == 3:
            rejection = Rejection("Reading", f"broken {EVIL}", "readable", "not-media", "is")
            clips.append(ClipRecord(f"{source}-{number}", source, None, rejection=rejection))
            continue
        share = round(float(rng.uniform()), 1)
        sharp = None if number % 13 == 5 else float(rng.lognormal(5, 1))
        found = {
            "Container": ({"fps": 25, "sound": True}, (Rule("sound", True, "is", True, True),)),
            "Voice": ({"share": share}, (Rule.at_least("share", share, 0.3), Rule.at_most("share", share, 0.9))),
            "Sharpness": ({"sharpness": sharp}, (Rule.at_least("sharpness", sharp, 60.0),)),
        }
        scores, rules, rejection = {}, {}, None
        for step, (values, held) in found.items():
            scores[step], rules[step] = values, tuple(rule for rule in held if rule is not None)
            broken = next((rule for rule in rules[step] if not rule.kept), None)
            if broken is not None:
                rejection = Rejection(step, f"{broken.score} is {broken.value}", broken.score, broken.value, broken.relation, broken.bound)
                break
        clips.append(ClipRecord(key, source, Plan(Span(0, 41)), scores, rules, rejection))
    return clips


def made_sources(clips: list[ClipRecord]) -> list[SourceRecord]:
    names = dict.fromkeys(clip.source for clip in clips)
    return [SourceRecord(Source(name, f"/gone/{name}.mp4", "anna"), "1 1", "0" * 64, 0, 200, 0.5) for name in names]


def test_every_clip_is_in_the_funnel_once() -> None:
    clips = made_clips(400)
    decisions = decide(clips, made_sources(clips), STEPS, {"Voice": 1.5})
    assert decisions.clips == 400 == decisions.kept + sum(row.out for row in decisions.funnel)
    assert 0 < decisions.kept < 400
    for row, later in zip(decisions.funnel, decisions.funnel[1:]):
        assert later.reached == row.reached - row.out
    assert all(row.out == sum(reason.clips for reason in row.reasons) for row in decisions.funnel)
    recipe = SimpleNamespace(chain=[SimpleNamespace(name=name) for name in STEPS])
    printed = {step: (reached, out) for step, reached, out in build_funnel(recipe, clips)}
    assert all(printed[row.step] == (row.reached, row.out) for row in decisions.funnel)


def test_steps_that_the_recipe_does_not_name_are_counted_too() -> None:
    clips = made_clips(60)
    decisions = decide(clips, made_sources(clips), (), {})
    assert {row.step for row in decisions.funnel} == {"Reading", *STEPS, "Making"}
    assert decisions.kept + sum(row.out for row in decisions.funnel) == 60


def test_a_score_counts_every_clip_that_reached_it_and_its_sides_agree_with_the_verdicts() -> None:
    clips = made_clips(500)
    decisions = decide(clips, made_sources(clips), STEPS, {})
    reached = {row.step: row.reached for row in decisions.funnel}
    out = {row.step: row.out for row in decisions.funnel}
    scores = {(score.step, score.name): score for score in decisions.scores}
    assert set(scores) == {("Container", "fps"), ("Container", "sound"), ("Voice", "share"), ("Sharpness", "sharpness")}
    for (step, _), score in scores.items():
        assert score.reached == reached[step]
        found = histogram(score.kept, score.broken, score.thresholds)
        assert found.kept.sum() == len(score.kept)
        assert found.broken.sum() == len(score.broken)
        for rule in score.thresholds:
            assert rule.kept + rule.broken == score.reached
    share, sharp = scores["Voice", "share"], scores["Sharpness", "sharpness"]
    assert share.num_broken == share.out == out["Voice"] > 0
    assert sharp.words["not measured"][0] > 0
    assert sharp.num_broken == out["Sharpness"] > 0


@pytest.mark.parametrize("seed", range(8))
def test_no_bar_is_on_both_sides_of_a_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal(0, 10, 300).round(1), rng.integers(0, 9, 300).astype(float), rng.lognormal(3, 2, 300), np.full(20, 0.25)][seed % 4]
    for relation in ("at least", "at most"):
        bound = float(rng.choice(values))
        keeps = values >= bound if relation == "at least" else values <= bound
        found = histogram(values[keeps], values[~keeps], [Threshold(relation, bound, 0, 0)])
        assert not (found.kept & found.broken).any(), "a bar holds both"
        assert (found.kept > 0).any()
        first, last = np.flatnonzero(found.kept)[[0, -1]]
        assert not found.broken[first : last + 1].any(), "a bar of clips that break the rule lies among those that keep it"
        assert np.all(np.diff(found.edges) > 0)


def test_nearest_clips_are_nearest() -> None:
    clips = made_clips(300)
    decisions = decide(clips, made_sources(clips), STEPS, {}, near=5)
    by_key = {clip.key: clip for clip in clips}
    sharp = next(score for score in decisions.scores if score.name == "sharpness")
    (rule,) = sharp.thresholds
    assert [near.value for near in rule.near_broken] == sorted(sharp.broken, key=lambda value: abs(value - rule.bound))[:5]
    assert len({by_key[near.key].source for near in rule.near_broken}) > 1
    assert [near.value for near in rule.near_kept] == sorted(sharp.kept, key=lambda value: abs(value - rule.bound))[:5]
    assert all(by_key[near.key].rejection is None for near in rule.near_kept)
    assert all(by_key[near.key].scores["Sharpness"]["sharpness"] == near.value for near in (*rule.near_kept, *rule.near_broken))


def test_of_equally_near_clips_those_of_different_recordings_come_first() -> None:
    held = {"Voice": (Rule.at_least("share", 0.0, 0.3),)}
    rejection = Rejection("Voice", "silent", "share", 0.0, "at least", 0.3)
    clips = [ClipRecord(f"k{i}", f"s{i // 3}", Plan(Span(0, 41)), {"Voice": {"share": 0.0}}, held, rejection) for i in range(9)]  # type: ignore[arg-type]
    (score,) = decide(clips, made_sources(clips), ["Voice"], {}, near=3).scores
    assert [near.key for near in score.thresholds[0].near_broken] == ["k0", "k3", "k6"]


def test_a_clip_that_is_out_because_of_another_stands_beside_it(tmp_path: Path) -> None:
    out = Rejection("Duplicates", "shows and sounds like k0, which is kept", "bits", 3, "at most", 10)
    clips = [ClipRecord("k0", "s0", Plan(Span(0, 41))), ClipRecord("k1", "s1", Plan(Span(0, 41)), {"Duplicates": {"hash": "ab"}}, rejection=out)]
    (pair,) = decide(clips, made_sources(clips), ["Duplicates"], {}).pairs
    assert (pair.key, pair.other) == ("k1", "k0")
    fill_ledger(tmp_path, clips, made_sources(clips))
    page = Page(write_report(tmp_path, tmp_path / "report").path)
    check(page, tmp_path / "report")
    assert "pairs" in page.ids


@pytest.mark.parametrize("module", [charts, views, wording])
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# --- pages ------------------------------------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements of a page, and what it opens."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.opened: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.opened += [str(values[name]) for name in ("src", "href", "poster", "data", "action") if name in values]
        self.ids += [str(values["id"])] if "id" in values else []
        self.handlers += [name for name in values if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"line {self.getpos()[0]}: </{tag}> closes another element"

    @property
    def media(self) -> set[str]:
        return {address for address in self.opened if not address.startswith("#")}


def write_evil_dataset(root: Path) -> Path:
    """Packed clips whose texts would break out of a page that does not escape them."""
    for number in range(4):
        path = write_clip(root / "clips", f"c{number}", identity=f"p{number}{EVIL if number == 1 else ''}", truth=False)
        metadata = json.loads(path.with_suffix(".json").read_bytes())
        metadata["captions"][0]["text"] = EVIL
        metadata["source"] |= {"license": EVIL, "consent": "</style>" + EVIL}
        path.with_suffix(".json").write_text(json.dumps(metadata))
    assert main(["pack", str(root / "clips"), "--out", str(root / "shards"), "--name", EVIL]) == 0
    return root / "shards"


def fill_ledger(root: Path, clips: list[ClipRecord], sources: list[SourceRecord]) -> None:
    ledger = Ledger(root)
    for record in sources:
        ledger.add_source(record.source, record.stamp, record.sha256, 0, {"frames": record.frames}, record.seconds, [])
    ledger.replace_clips(clips)
    ledger.close()


def check(page: Page, folder: Path) -> None:
    """What holds for every page: one script, ours; nothing from elsewhere; every link leads somewhere."""
    assert page.tags.count("script") == 1
    assert not page.open
    assert not page.handlers
    assert not [address for address in page.opened if re.match(r"(?i)\w+:|//", address)]
    assert all((folder / address).is_file() for address in page.media)
    assert {address[1:] for address in page.opened if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_a_page_of_shards_alone_is_whole_and_escapes_every_text(tmp_path: Path) -> None:
    root = write_evil_dataset(tmp_path)
    assert main(["report", str(root)]) == 0
    page = Page(root / "report" / "index.html")
    check(page, root / "report")
    assert page.tags.count("video") == 4
    assert "img" in page.tags
    assert "&lt;script&gt;alert(1)" in page.text
    assert not {"funnel", "thresholds", "cost"} & set(page.ids)
    assert {"behaviour", "people", "shards", "rights", "clips"} <= set(page.ids)


def test_a_page_of_a_ledger_alone_escapes_and_says_what_is_not_there(tmp_path: Path) -> None:
    clips = made_clips(80)
    fill_ledger(tmp_path, clips, made_sources(clips))
    written = write_report(tmp_path, tmp_path / "report")
    page = Page(written.path)
    check(page, tmp_path / "report")
    assert {"funnel", "thresholds", "Voice-share", "Sharpness-sharpness"} <= set(page.ids)
    assert "moved or changed since" in page.text
    assert "Nothing has been packed yet" in page.text
    assert "&lt;script&gt;" in page.text
    assert (written.clips, written.kept) == (80, sum(clip.rejection is None for clip in clips))


def test_the_page_does_not_grow_with_the_clips(tmp_path: Path) -> None:
    sizes = []
    for count in (500, 3000):
        clips = made_clips(count)
        fill_ledger(tmp_path / str(count), clips, made_sources(clips))
        sizes.append(write_report(tmp_path / str(count), tmp_path / str(count) / "report").path.stat().st_size)
    assert sizes[1] < 1.5 * sizes[0], "six times the clips, the same page besides its numbers and up to a hundred unreadable files"


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    root = write_evil_dataset(tmp_path)
    write_report(root, tmp_path / "one")
    write_report(root, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    before = contents(tmp_path / "one")
    write_report(root, tmp_path / "one")
    assert contents(tmp_path / "one") == before


def test_a_killed_report_leaves_the_old_one_whole(tmp_path: Path) -> None:
    root = write_evil_dataset(tmp_path)
    out = root / "report"
    arguments = ["report", str(root), "--films", "2"]
    assert main(arguments) == 0
    old = Page(out / "index.html")
    assert main(["edit", str(root), "relabel", "c0", "--state", "listening", "--frames", "0:5"]) == 0
    arguments[-1] = "4"
    killed, call = True, 0
    while killed:
        call += 1
        killed = run_killed(arguments, call)
        page = Page(out / "index.html")
        check(page, out)
        assert page.text == old.text or page.tags.count("video") == 4
    assert call > 3
    assert page.text != old.text
    assert {f"media/{path.name}" for path in (out / "media").iterdir()} == page.media


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    root = write_evil_dataset(tmp_path)
    (tmp_path / "site" / "media").mkdir(parents=True)
    (tmp_path / "site" / "media" / "logo.png").write_bytes(b"logo")
    write_report(root, tmp_path / "site", films=1)
    assert (tmp_path / "site" / "media" / "logo.png").read_bytes() == b"logo"
    (tmp_path / "site" / "index.html").write_text("<h1>mine</h1>")
    assert main(["report", str(root), "--out", str(tmp_path / "site")]) == 2
    assert (tmp_path / "site" / "index.html").read_text() == "<h1>mine</h1>"


def test_what_is_no_dataset_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        write_report(tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()
    assert main(["report", str(tmp_path / "nowhere")]) == 2


def test_clips_in_which_nobody_speaks_are_counted_where_it_was_listened_for(tmp_path: Path) -> None:
    for number in range(3):
        path = write_clip(tmp_path / "clips", f"c{number}", truth=False)
        metadata = json.loads(path.with_suffix(".json").read_bytes())
        if number == 0:
            metadata["speech"] = [{"start_s": 0.0, "end_s": 0.42, "who": "self"}, {"start_s": 0.42, "end_s": 0.84, "who": "other"}]
        if number < 2:
            metadata["scores"] = {"Voice": {"share": 0.5 if number == 0 else 0.0}}
        path.with_suffix(".json").write_text(json.dumps(metadata))
    assert main(["pack", str(tmp_path / "clips"), "--out", str(tmp_path / "shards")]) == 0
    found = collect(tmp_path / "shards", read_dataset(tmp_path / "shards"))
    assert sorted(share for split in found.splits.values() for share in split.speech) == [0.0, 0.5]


def test_what_is_left_of_an_offset_is_what_was_not_moved(tmp_path: Path) -> None:
    for number, (offset, shift) in enumerate([(3, 3), (-2, 0), (0, 0)]):
        path = write_clip(tmp_path / "clips", f"c{number}", truth=False)
        metadata = json.loads(path.with_suffix(".json").read_bytes())
        metadata["sync"] = {"offset_frames": offset, "confidence": 0.9, "shift": shift, "method": "opening"}
        path.with_suffix(".json").write_text(json.dumps(metadata))
    assert main(["pack", str(tmp_path / "clips"), "--out", str(tmp_path / "shards")]) == 0
    found = collect(tmp_path / "shards", read_dataset(tmp_path / "shards"))
    assert sorted(offset for split in found.splits.values() for offset in split.offsets_before) == [-2, 0, 3]
    assert sorted(offset for split in found.splits.values() for offset in split.offsets_after) == [-2, 0, 0]
    assert "off the mouth" in write_report(tmp_path / "shards", tmp_path / "report", films=0).findings[0]


def test_every_clip_has_one_place_and_films_show_every_split_and_many_people() -> None:
    places = [Place("train", "000000", f"t{i}", f"p{i % 3}") for i in range(30)] + [Place("val", "000000", f"v{i}", "q") for i in range(5)]
    chosen = choose(places, 8)
    assert len(set(chosen)) == 8
    assert sum(place.split == "val" for place in chosen) == 2
    assert {place.identity for place in chosen} == {"p0", "p1", "p2", "q"}
    assert choose(places[:30], 99) == sorted(places[:30], key=lambda place: (int(place.key[1:]) // 3, int(place.key[1:])))
    assert choose(places, 0) == []


# --- a build ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small build: kept clips, short ones, a broken file."""
    folder = tmp_path_factory.mktemp("built")
    for number, seconds in enumerate((2.0, 2.4, 1.4)):
        write_video(folder / "in" / f"p{number}.mp4", fps=25, seconds=seconds)
    (folder / "in" / "broken.mp4").write_bytes(b"no video" * 100)
    recipe = {"Container": "{}", "Length": "{min_seconds: 1.8, max_seconds: 4}"}
    steps = "".join(f"  {name}: {arguments}\n" for name, arguments in recipe.items())
    (folder / "build.yaml").write_text(f"name: tiny\ninput: {folder / 'in'}\nsteps:\n{steps}output: {{size: 32, val_fraction: 0.4}}\n")
    assert main(["build", str(folder / "build.yaml"), "--out", str(folder / "data"), "-j", "1"]) == 0
    return folder / "data"


def test_a_build_shows_kept_and_rejected_clips(built: Path) -> None:
    written = write_report(built, built / "report")
    page = Page(written.path)
    check(page, built / "report")
    assert (written.recordings, written.clips, written.kept) == (4, 4, 2)
    assert recipe_steps(built) == ["Container", "Length"]
    section = page.text.partition('id="Length-seconds"')[2].partition("</article>")[0]
    assert section.count("<img") == 3, "two kept clips from the shards, and one rejected from its recording"
    assert "no picture" not in section
    assert all(key in section for key in ("p0-000000", "p1-000000", "p2-000000"))
    assert page.tags.count("video") == 2


def test_a_recording_that_is_gone_is_stated(built: Path, tmp_path: Path) -> None:
    source = built.parent / "in" / "p2.mp4"
    data, times = source.read_bytes(), source.stat()
    source.unlink()
    try:
        page = Page(write_report(built, tmp_path / "report").path)
    finally:
        source.write_bytes(data)
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    section = page.text.partition('id="Length-seconds"')[2].partition("</article>")[0]
    assert section.count("<img") == 2
    assert "no picture: its recording was moved or changed since" in section


# --- picture and sound ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_a_film_has_every_frame_and_every_sample(pixels: str) -> None:
    frames = 53
    pictures = np.zeros((frames, 32, 32, 3), np.uint8) + (4 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    samples = tone(frames, start=1.0)
    data = mux(encode_video(pictures, crf=1, pixel_format=pixels), encode_sound(samples), "film")
    assert data == mux(encode_video(pictures, crf=1, pixel_format=pixels), encode_sound(samples), "film")
    with av.open(io.BytesIO(data)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, sound.codec_context.name) == ("h264", "yuv420p", "aac")
        assert video.duration * video.time_base == sound.duration * sound.time_base == Fraction(frames, 25)
        assert sound.duration * sound.time_base * 16_000 == frames * 640
        levels = [round(float(frame.to_ndarray(format="rgb24").mean()) / 4) for frame in container.decode(video=0)]
    assert levels == list(range(frames))
    with av.open(io.BytesIO(data)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert 0 <= len(heard) - frames * 640 < 1024
    assert np.corrcoef(heard[: frames * 640], samples)[0, 1] > 0.99


def test_a_film_copies_the_stored_picture() -> None:
    video = encode_video(np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8))
    data = mux(video, encode_sound(tone(9)), "film")

    def packets(mp4: bytes) -> list[bytes]:
        with av.open(io.BytesIO(mp4)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    assert packets(data) == packets(video)


def test_a_folder_of_clips_is_reported_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", clips=2)
    assert main(["pack", str(tmp_path / "clips"), "--out", str(tmp_path / "shards")]) == 0
    written = write_report(tmp_path / "shards", tmp_path / "out", films=0)
    page = Page(written.path)
    check(page, tmp_path / "out")
    assert "video" not in page.tags
    assert written.clips == 2

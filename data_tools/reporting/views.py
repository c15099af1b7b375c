"""The sections of the page as records that the template writes out: numbers of `decisions` and `contents` with their charts and pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from data_tools.reporting import charts
from data_tools.reporting.charts import STATE_COLOURS
from data_tools.reporting.contents import Contents, Place, quantiles
from data_tools.reporting.decisions import Decisions, FunnelRow, Near, Score, Threshold
from data_tools.reporting.histograms import histogram
from data_tools.reporting.media import Film, Shown
from data_tools.reporting.wording import number_text, plain_text
from flowact.data.schema import from_entries, parse_captions
from flowact.types import FRAMES_PER_SECOND, STATES

SPLIT_COLOURS = {"train": "#0072b2", "val": "#e69f00"}
MOST_PEOPLE = 50
MOST_BARS = 160
MOST_ROWS = 100
#: pixels up to which a film is shown with its pixels as they are
TINY = 128


@dataclass(frozen=True)
class Picture:
    """A clip near a threshold."""

    key: str
    value: str
    shown: Shown


@dataclass(frozen=True)
class PairView:
    """A clip that is out beside the one that is the reason."""

    step: str
    reason: str
    out: Picture
    other: Picture


@dataclass(frozen=True)
class RuleView:
    """A threshold in words, with the clips nearest to it."""

    text: str
    kept: int
    broken: int
    near_kept: tuple[Picture, ...]
    near_broken: tuple[Picture, ...]


@dataclass(frozen=True)
class ScoreView:
    """A score's chart and its thresholds. `came`: clips that came to its step; whole recordings have scores in the ledger only where they are out."""

    anchor: str
    step: str
    name: str
    reached: int
    came: int
    out: int
    broken: int
    chart: Markup | None
    words: tuple[tuple[str, int, int], ...]
    rules: tuple[RuleView, ...]
    spread: str


@dataclass(frozen=True)
class FunnelView:
    """A step's line in the funnel."""

    row: FunnelRow
    anchor: str
    reached_share: float
    out_share: float
    lost: str
    cost: str
    cost_share: float


@dataclass(frozen=True)
class PersonView:
    """A person's line."""

    name: str
    clips: int
    seconds: tuple[str, ...]
    total: str
    bar: Markup


@dataclass(frozen=True)
class SplitView:
    """A split's column in tables."""

    name: str
    colour: str
    clips: int
    hours: str
    people: int
    shards: int
    megabytes: str
    states: Markup
    shard_chart: Markup | None
    shard_text: str


@dataclass(frozen=True)
class FilmView:
    """A clip with picture and sound."""

    film: Film
    seconds: str
    license: str
    consent: str
    captions: tuple[tuple[str, str, str, str], ...]
    strip: Markup
    curves: Markup | None
    duration: float
    aspect: str
    tiny: bool


def slug(*names: str) -> str:
    """An anchor that any name gives."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "_", name) for name in names)


def hours_text(frames: float, fps: int = FRAMES_PER_SECOND) -> str:
    """A length as a person says it.

    >>> hours_text(25 * 42), hours_text(25 * 600), hours_text(25 * 7200)
    ('42 s', '10 min', '2 h')
    """
    return seconds_text(frames / fps)


def seconds_text(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 90:
        return f"{number_text(seconds)} s"
    return f"{number_text(seconds / 60)} min" if seconds < 5400 else f"{number_text(seconds / 3600)} h"


# --- the build --------------------------------------------------------------------------------------------------------------------------------------


def funnel_views(decisions: Decisions) -> list[FunnelView]:
    """Steps that something reached; those that neither reject nor cost anything are left out, and so is everything behind the last clip."""
    most = max(decisions.clips, 1)
    dearest = max((row.seconds or 0.0 for row in decisions.funnel), default=0.0) or 1.0
    charted = {score.step: slug(score.step, score.name) for score in reversed(decisions.scores) if score.thresholds}
    return [
        FunnelView(
            row,
            charted.get(row.step, ""),
            row.reached / most * 100,
            row.out / most * 100,
            hours_text(row.frames_out) if row.frames_out else "",
            seconds_text(row.seconds) if row.seconds else "",
            (row.seconds or 0.0) / dearest * 100,
        )
        for row in decisions.funnel
        if row.reached and (row.out or row.seconds is not None or row.step in charted)
    ]


def score_views(decisions: Decisions, thumbnail: Callable[[str], Shown], examples: int) -> list[ScoreView]:
    """Charts of scores; pictures for those thresholds that break most, as many as `examples` allow."""
    scores, came = decisions.scores, {row.step: row.reached for row in decisions.funnel}
    rules = sorted(((rule.broken, score, rule) for score in scores for rule in score.thresholds if rule.near_broken), key=lambda entry: -entry[0])
    shown = {id(rule) for _, _, rule in rules[: max(examples // 2, 1)]} if examples else set()
    each = min(max(examples // (2 * len(shown)), 1), 4) if shown else 0
    views = []
    for score in scores:
        chart, spread = None, ""
        if len(score.kept) + len(score.broken):
            found = histogram(score.kept, score.broken, score.thresholds)
            ruled = bool(score.thresholds)
            chart = charts.histogram_svg(found, score.thresholds, _chart_title(score), split=ruled)
            low, middle, high = quantiles(np.concatenate([score.kept, score.broken]))
            spread = f"{plain_text(low)} to {plain_text(high)}, half of them below {plain_text(middle)}"
        words = tuple((word, kept, broken) for word, (kept, broken) in score.words.items())
        views.append(
            ScoreView(
                slug(score.step, score.name),
                score.step,
                score.name,
                score.reached,
                came[score.step],
                score.out,
                score.num_broken,
                chart,
                words,
                tuple(_rule_view(rule, thumbnail, each if id(rule) in shown else 0) for rule in score.thresholds),
                spread,
            )
        )
    return views


def pair_views(decisions: Decisions, thumbnail: Callable[[str], Shown], count: int) -> list[PairView]:
    """Clips beside those that took them out."""
    return [
        PairView(pair.step, pair.reason, Picture(pair.key, "", thumbnail(pair.key)), Picture(pair.other, "", thumbnail(pair.other)))
        for pair in decisions.pairs[:count]
    ]


def _chart_title(score: Score) -> str:
    rules = " and ".join(rule.text for rule in score.thresholds)
    if not rules:
        return f"{score.step}.{score.name} of {score.reached} clips"
    return f"{score.step}.{score.name} must be {rules}: {score.reached - score.num_broken} clips keep it, {score.num_broken} break it"


def _rule_view(rule: Threshold, thumbnail: Callable[[str], Shown], each: int) -> RuleView:
    def shown(near: Sequence[Near]) -> tuple[Picture, ...]:
        return tuple(Picture(entry.key, plain_text(entry.value), thumbnail(entry.key)) for entry in near[:each])

    return RuleView(rule.text, rule.kept, rule.broken, shown(rule.near_kept), shown(rule.near_broken))


# --- the dataset ------------------------------------------------------------------------------------------------------------------------------------


def split_views(contents: Contents, fps: int) -> list[SplitView]:
    """A column for each split."""
    views = []
    for name, split in sorted(contents.splits.items()):
        sizes, colour = [size / 1e6 for size in split.shards.values()], SPLIT_COLOURS.get(name, charts.OTHER_COLOUR)
        low, middle, high = map(number_text, quantiles(sizes))
        named = [(f"{shard}: {number_text(size / 1e6)} MB", size) for shard, size in split.shards.items()]
        states = {state: split.frames_of_state[state] for state in ordered_states(split.frames_of_state)}
        views.append(
            SplitView(
                name,
                colour,
                split.clips,
                hours_text(split.frames, fps),
                len(split.frames_of_identity),
                len(split.shards),
                number_text(split.num_bytes / 1e6),
                charts.shares(states, STATE_COLOURS, f"states of {name}"),
                charts.bars_svg(_thinned(named), f"sizes of {len(sizes)} shards of {name}", colour),
                f"{low} to {high} MB, half of them below {middle} MB" if len(sizes) > 1 else f"{low} MB",
            )
        )
    return views


def _thinned(values: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """So many that each can be seen: the largest of neighbours stands for them."""
    step = -(-len(values) // MOST_BARS)
    return [max(values[i : i + step], key=lambda entry: entry[1]) for i in range(0, len(values), step)]


def ordered_states(counts: Mapping[str, Any]) -> list[str]:
    """States in the order of the project, then others by name."""
    return [*(state for state in STATES if counts.get(state)), *sorted(name for name in counts if name not in STATES)]


def people_views(contents: Contents, fps: int) -> tuple[list[PersonView], str]:
    """The people with most footage, by split; and a line about the rest."""
    frames, clips = contents.total("frames_of_identity"), contents.total("clips_of_identity")
    ranked = sorted(frames, key=lambda name: (-frames[name], name))
    most = frames[ranked[0]] if ranked else 1
    names = sorted(contents.splits)
    views = []
    for name in ranked[:MOST_PEOPLE]:
        counts = [contents.splits[split].frames_of_identity[name] for split in names]
        bar = "".join(
            f'<i style="width:{count / most * 100:.2f}%;background:{SPLIT_COLOURS.get(split, charts.OTHER_COLOUR)}"></i>'
            for split, count in zip(names, counts)
            if count
        )
        by_split = tuple(hours_text(count, fps) if count else "" for count in counts)
        views.append(PersonView(name, clips[name], by_split, hours_text(frames[name], fps), Markup(bar)))
    rest = ranked[MOST_PEOPLE:]
    text = f"{len(rest)} more people have {hours_text(sum(frames[name] for name in rest), fps)} together." if rest else ""
    return views, text


def offset_charts(contents: Contents) -> tuple[Markup, Markup, str] | None:
    """Offsets before and after correction, and their shares within a frame; None where none was measured."""
    before = np.array([offset for split in contents.splits.values() for offset in split.offsets_before], float)
    after = np.array([offset for split in contents.splits.values() for offset in split.offsets_after], float)
    if not len(before):
        return None
    reach = min(before.min(), after.min()), max(before.max(), after.max())
    drawn = [
        charts.histogram_svg(histogram(values, np.zeros(0), reach=reach), (), f"offset of the sound in frames, {name} correction", split=False)
        for name, values in (("before", before), ("after", after))
    ]
    text = f"within one frame: {np.mean(np.abs(before) <= 1):.0%} of {len(before)} clips before, {np.mean(np.abs(after) <= 1):.0%} after"
    return drawn[0], drawn[1], text


def speech_chart(contents: Contents) -> tuple[Markup, str] | None:
    """Share of each clip in which the person speaks; None where nobody says."""
    values = np.array([share for split in contents.splits.values() for share in split.speech], float)
    if not len(values):
        return None
    chart = charts.histogram_svg(histogram(values, np.zeros(0), bins=20), (), f"share of speech in {len(values)} clips", split=False)
    return chart, f"on average {values.mean():.0%} of a clip, {int((values == 0).sum())} of {len(values)} clips without speech"


def length_chart(contents: Contents) -> Markup:
    """How long clips are."""
    values = np.array([seconds for split in contents.splits.values() for seconds in split.seconds], float)
    return charts.histogram_svg(histogram(values, np.zeros(0), bins=24), (), f"seconds of {len(values)} clips", split=False)


def counted(counts: Counter[str]) -> list[tuple[str, int]]:
    """Names with their counts, the commonest first; rare ones together at the end."""
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = ranked[MOST_ROWS:]
    return [*ranked[:MOST_ROWS], *([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])]


def film_view(found: Film, fps: int) -> FilmView:
    """A clip with its strip, curves and captions."""
    metadata = found.metadata
    captions = parse_captions(metadata, found.place.where)
    frames = metadata["frames"]
    ends = [int(end) for end in [*captions.starts[1:], frames]]
    curve = None
    if found.peaks_N2 is not None:
        what = "sound" if found.mouth_T is None else "sound, and opening of the mouth"
        curve = charts.curves_svg(found.peaks_N2, found.mouth_T, f"{what} over {frames / fps:.1f} seconds")
    source = metadata.get("source") or {}
    width, height = (max(int(metadata.get(side) or 1), 1) for side in ("width", "height"))
    return FilmView(
        found,
        f"{frames / fps:.1f} s",
        str(source.get("license") or "unknown"),
        str(source.get("consent") or "unknown"),
        tuple(
            (f"{first / fps:.1f}", f"{end / fps:.1f}", state, text)
            for first, end, state, text in zip(captions.starts, ends, captions.states, captions.texts)
        ),
        charts.strip(_states(metadata, found.place.where), frames, fps),
        curve,
        frames / fps,
        f"{width} / {height}",
        height <= TINY,
    )


@dataclass(frozen=True)
class TimelineView:
    """A clip's states over time."""

    key: str
    split: str
    identity: str
    seconds: str
    strip: Markup


def timeline(place: Place, metadata: Mapping[str, Any], fps: int) -> TimelineView:
    """States of a clip from its metadata."""
    frames = metadata["frames"]
    return TimelineView(place.key, place.split, place.identity, f"{frames / fps:.1f} s", charts.strip(_states(metadata, place.where), frames, fps))


def _states(metadata: Mapping[str, Any], where: str) -> list[tuple[int, int, str]]:
    """Runs of states; those of the captions where the clip does not list them."""
    stored = [(first, end, state) for first, end, state in from_entries("states", metadata)]
    captions = parse_captions(metadata, where)
    ends = [*captions.starts[1:], metadata["frames"]]
    return stored or [(int(first), int(end), state) for first, end, state in zip(captions.starts, ends, captions.states)]

"""The page of a report: everything is collected, drawn and laid out, then put in place of the last one at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_tools.building.ledger import LEDGER_FILE, WORK_FOLDER, ClipRecord, Ledger, SourceRecord
from data_tools.reporting import charts, views
from data_tools.reporting.advice import advise
from data_tools.reporting.contents import Contents, choose, collect
from data_tools.reporting.decisions import Decisions, decide, recipe_steps
from data_tools.reporting.media import MediaFolder, Shards, Thumbnails, film
from data_tools.reporting.wording import number_text
from data_tools.workplace import locked, progress
from flowact.data.schema import DATASET_FILE, DatasetInfo, read_dataset, write_atomically
from flowact.data.shards import split_folders
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND

PAGE_FILE = "index.html"
TIMELINES = 24


@dataclass(frozen=True)
class Written:
    """What a report came to, for those who called it."""

    path: Path
    recordings: int
    clips: int
    kept: int
    seconds: float
    findings: tuple[str, ...]


@dataclass(frozen=True)
class _Built:
    """What the ledger holds."""

    decisions: Decisions
    clips: dict[str, ClipRecord]
    sources: dict[str, SourceRecord]


def write_report(root: Path, out: Path, examples: int = 60, films: int = 12) -> Written:
    """Write OUT/index.html and OUT/media. The same dataset gives the same bytes.

    Args:
        root: of the dataset.
        out: folder of the report.
        examples: pictures of clips near thresholds, at most.
        films: clips with sound, at most.

    Raises:
        UserError: neither shards nor a ledger there, or a damaged shard.
    """
    info = read_dataset(root) if (root / DATASET_FILE).is_file() else None
    has_shards = info is not None and bool(split_folders(root))
    built = _read_ledger(root) if (root / WORK_FOLDER / LEDGER_FILE).is_file() else None
    if built is None and not has_shards:
        raise UserError(f"{root} holds neither {DATASET_FILE} with shards nor {WORK_FOLDER}/{LEDGER_FILE}: give the folder of a dataset")
    contents = collect(root, info) if has_shards and info is not None else None
    with locked(out):
        media = MediaFolder(out)
        context = _context(root, info, built, contents, media, examples, films)
        write_atomically(out / PAGE_FILE, render(context).encode())
        media.finish()
    fps = info.fps if info else FRAMES_PER_SECOND
    decisions = built.decisions if built else None
    frames = contents.frames if contents else decisions.kept_frames if decisions else 0
    return Written(
        out / PAGE_FILE,
        decisions.recordings if decisions else 0,
        decisions.clips if decisions else contents.clips if contents else 0,
        contents.clips if contents else decisions.kept if decisions else 0,
        frames / fps,
        tuple(advice.text for advice in context["advice"]),
    )


def _read_ledger(root: Path) -> _Built | None:
    ledger = Ledger.open(root)
    try:
        clips, sources = ledger.clips(), ledger.sources()
        decisions = decide(clips, sources, recipe_steps(root), ledger.spent())
    finally:
        ledger.close()
    if not clips:
        return None
    return _Built(decisions, {clip.key: clip for clip in clips}, {record.source.id: record for record in sources})


def _context(
    root: Path, info: DatasetInfo | None, built: _Built | None, contents: Contents | None, media: MediaFolder, examples: int, films: int
) -> dict[str, Any]:
    fps = info.fps if info else FRAMES_PER_SECOND
    shards = Shards(root)
    context: dict[str, Any] = {
        "name": info.name if info else root.resolve().name,
        "folder": root.resolve().name,
        "fps": fps,
        "decisions": built.decisions if built else None,
        "contents": contents,
        "advice": advise(built.decisions if built else None, contents, info),
        "state_colours": charts.STATE_COLOURS,
        "number": number_text,
        "hours": lambda frames: views.hours_text(frames, fps),
        "seconds_text": views.seconds_text,
    }
    context |= _build_sections(root, built, shards, media, examples)
    context |= _shard_sections(contents, shards, media, info, films)
    context["tiles"] = _tiles(built.decisions if built else None, contents, fps)
    return context


def _build_sections(root: Path, built: _Built | None, shards: Shards, media: MediaFolder, examples: int) -> dict[str, Any]:
    if built is None:
        return {"funnel": [], "deciding": [], "passing": [], "free": [], "pairs": []}
    thumbnails = Thumbnails(root, built.clips, built.sources, shards, media)
    found = views.score_views(built.decisions, thumbnails.of, examples)
    return {
        "funnel": views.funnel_views(built.decisions),
        "deciding": [view for view in found if view.rules and view.broken],
        "passing": [view for view in found if view.rules and not view.broken],
        "pairs": views.pair_views(built.decisions, thumbnails.of, examples // 8),
        "free": [view for view in found if not view.rules and view.chart],
    }


def _shard_sections(contents: Contents | None, shards: Shards, media: MediaFolder, info: DatasetInfo | None, films: int) -> dict[str, Any]:
    if contents is None or info is None:
        return {"splits": [], "films": [], "timelines": []}
    chosen = choose(contents.places, films)
    shown = [views.film_view(film(place, shards, media, info.sample_rate), info.fps) for place in progress(chosen, len(chosen), "report", "films")]
    others = choose([place for place in contents.places if place not in set(chosen)], TIMELINES)
    people, rest = views.people_views(contents, info.fps)
    return {
        "splits": views.split_views(contents, info.fps),
        "films": shown,
        "timelines": [views.timeline(place, shards.metadata(f"{place.split}/{place.shard}", place.key), info.fps) for place in others],
        "people": people,
        "people_rest": rest,
        "offsets": views.offset_charts(contents),
        "speech": views.speech_chart(contents),
        "lengths": views.length_chart(contents),
        "sizes": views.counted(contents.total("sizes")),
        "licenses": views.counted(contents.total("licenses")),
        "consents": views.counted(contents.total("consents")),
        "states": views.ordered_states(contents.total("frames_of_state")),
    }


def _tiles(decisions: Decisions | None, contents: Contents | None, fps: int) -> list[tuple[str, str, str]]:
    """(number, what, note) of the top of the page."""
    tiles = []
    if decisions is not None:
        tiles.append((number_text(decisions.recordings, 6), "recordings", views.hours_text(decisions.recording_frames, fps)))
        share = decisions.kept / max(decisions.clips, 1)
        tiles.append((f"{share:.0%}", "of clips kept", f"{number_text(decisions.kept, 6)} of {number_text(decisions.clips, 6)}"))
    if contents is not None:
        splits = ", ".join(f"{number_text(split.clips, 6)} {name}" for name, split in sorted(contents.splits.items()))
        tiles.append((number_text(contents.clips, 6), "clips in shards", splits))
        tiles.append((views.hours_text(contents.frames, fps), "to train and validate on", f"{number_text(contents.frames, 6)} frames"))
        tiles.append((number_text(len(contents.people), 6), "people", ""))
        size = sum(split.num_bytes for split in contents.splits.values())
        tiles.append((f"{number_text(size / 1e6)} MB" if size < 1e9 else f"{number_text(size / 1e9)} GB", "in shards", ""))
    elif decisions is not None:
        tiles.append((views.hours_text(decisions.kept_frames, fps), "kept", "not packed yet"))
    return tiles


def render(context: dict[str, Any]) -> str:
    """The page as HTML: style and script are in it, so that it opens anywhere."""
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    own = {name: Markup((folder / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(**context, **own)

"""The report: one HTML file that shows a run to a person, with nothing to fetch from elsewhere.

It is made of plain data: the numbers of `metrics.json` and some media. What is not given has no section.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from flowact.evaluation import plots
from flowact.evaluation.measurement import plain
from flowact.types import STATES

#: a video up to this size travels inside the page, a larger one is linked
INLINE_BYTES = 8 * 1024 * 1024
VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}
STAGE_ORDER = ("pretraining", "diffusion_forcing", "audio_motion", "self_forcing", "distillation", "distribution_matching")
STAGE_STORIES = {
    "pretraining": "learns to make whole windows of video at once; it cannot stream yet",
    "diffusion_forcing": "learns to go on from what it has made, chunk after chunk",
    "audio_motion": "learns to follow the sound with mouth and body",
    "self_forcing": "practises on its own output, so that small mistakes do not grow",
    "distillation": "learns to do in few evaluations what took many",
    "distribution_matching": "is corrected on what it makes, by a teacher that judges the whole clip",
}

TRUTHS = {
    "pixels": "the real clip itself: no model can do better",
    "autoencoder": "the real clip put through the same autoencoder: the best that any model before this decoder can reach",
}


@dataclass(frozen=True)
class Explanation:
    """How a number is called, what it says and how it is drawn.

    Attributes:
        label: name for people.
        text: what it means, for someone who has never heard of it.
        better: which way is good: "higher", "lower", towards "one" or towards "zero".
        digits: decimals shown.
        full: value of a full bar; None: the largest of the column.
        interval: name of its confidence interval in `details`, if it has one.
    """

    label: str
    text: str
    better: Literal["higher", "lower", "one", "zero"]
    digits: int = 3
    full: float | None = None
    interval: str | None = None

    @property
    def aim(self) -> str:
        return {"higher": "higher is better", "lower": "lower is better", "one": "1 is right", "zero": "0 is right"}[self.better]


METRICS: dict[str, Explanation] = {
    "lip_correlation": Explanation(
        "Lip sync",
        "Does the mouth open when the sound says so? The mouth is measured in every frame and correlated with the mouth that the speech "
        "asks for, while the character speaks. 1 is exact, 0 is unrelated. A mouth that never moves counts as 0.",
        "higher",
        full=1,
        interval="lip_correlation_interval",
    ),
    "lip_correlation_shuffled": Explanation(
        "Lip sync by chance",
        "The same mouths against other people's speech. It should be near 0: what lip sync has above this was learnt from the sound.",
        "zero",
        full=1,
    ),
    "lip_lag_frames": Explanation(
        "Lip lag", "By how many frames of 40 ms the mouth comes after the sound, found by shifting one against the other.", "zero", digits=0, full=5
    ),
    "identity_error": Explanation(
        "Identity error",
        "How far skin, hair and clothes have moved from the reference picture's colours in the last two seconds of the stream; 0.01 is "
        "barely visible, 0.3 is someone else.",
        "lower",
        interval="identity_error_interval",
    ),
    "identity_rank": Explanation(
        "Identity rank",
        "Of all the characters in the test, which place does the right one take by likeness at the end of the stream? 1: every character is "
        "most like itself.",
        "lower",
        digits=2,
    ),
    "state_accuracy": Explanation(
        "State accuracy",
        "Share of frames in which the character is seen to do what it was told: speaking, listening, thinking or idle. A change of state "
        "takes a moment, so truth itself is below 1.",
        "higher",
        full=1,
        interval="state_accuracy_interval",
    ),
    "drift": Explanation(
        "Drift",
        "How much worse (or other) the picture is in the last 15 % of the stream than in the first 15 %: the larger of the changes of "
        "identity error and of picture residual.",
        "lower",
    ),
    "motion_ratio": Explanation(
        "Motion", "How much moves from frame to frame, compared with truth. Read it beside drift: a still picture would not drift.", "one", digits=2
    ),
}

DETAILS: dict[str, Explanation] = {
    "lip_failures": Explanation(
        "Frozen mouths", "Clips whose mouth never moves or cannot be found; each counts as 0 in lip sync.", "lower", digits=0
    ),
    "mouth_amplitude_ratio": Explanation("Mouth amplitude", "How far the mouth moves while speaking, compared with truth.", "one"),
    "closed_mouth_leak": Explanation("Open while quiet", "How open the mouth stays when it should be shut; 1 is as open as in speech.", "zero"),
    "residual": Explanation(
        "Residual", "Distance of a frame to the nearest picture that the character can make: blur, noise, broken parts.", "lower"
    ),
    "sharpness_ratio": Explanation("Sharpness", "Fine detail compared with truth; below 1 is blurred, above 1 is noisy.", "one"),
    "pose_frechet": Explanation(
        "Pose distance", "Frechet distance between the poses seen and the true ones: does it move in the same ways.", "lower"
    ),
    "drift_identity": Explanation("Drift of identity", "The drift of the identity error alone.", "lower"),
    "drift_residual": Explanation("Drift of residual", "The drift of the residual alone.", "lower"),
    "unreadable": Explanation("Unreadable frames", "Share of frames in which no identity could be measured.", "lower"),
}


@dataclass(frozen=True)
class Media:
    """Everything in a report that is not in `metrics.json`. Each part may be missing.

    Attributes:
        title: headline.
        summary: one sentence of what this is.
        hero: the video on top.
        videos: caption -> video file.
        pictures: caption -> contact sheet, as picture or file.
        training: stage -> (steps, losses).
        commands: (what it does, command line), in order.
        facts: what ran where: versions, machine (see `describe_machine`).
        seconds_per_step: stage -> seconds of wall time per training step.
    """

    title: str = "FlowAct report"
    summary: str = "A talking character, streamed chunk by chunk and measured against its exact truth."
    hero: Path | None = None
    videos: Mapping[str, Path] = field(default_factory=dict)
    pictures: Mapping[str, Image.Image | Path] = field(default_factory=dict)
    training: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)


def write_report(folder: str | Path, metrics: Mapping[str, Any], media: Media | None = None) -> Path:
    """Write `folder/report.html`, whole or not at all.

    Args:
        folder: an existing or new folder.
        metrics: the content of `metrics.json`: {"truth": M, "stages": {name: M}, "stream": {...}, "seconds": {step: seconds}}.
        media: videos, pictures, training curves, commands.

    Returns:
        Path of the report. Every number of `metrics` is also inside it as JSON, in the element with the id "metrics".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    partial = path.with_suffix(".html.part")
    partial.write_text(render_report(metrics, media or Media(), folder), encoding="utf-8")
    os.replace(partial, path)
    return path


def render_report(metrics: Mapping[str, Any], media: Media, folder: Path) -> str:
    """The report as HTML text; videos too large for it are linked relative to `folder`."""
    stages = in_training_order(metrics.get("stages", {}))
    truth = metrics.get("truth") or {}
    measured = {"truth": truth, **stages} if truth else stages
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=media.title,
        summary=media.summary,
        hero=video(media.hero, folder) if media.hero else None,
        tiles=headline(metrics, stages, truth),
        metrics=METRICS,
        rows=table(METRICS, measured, truth),
        stories={stage: STAGE_STORIES[stage] for stage in stages if stage in STAGE_STORIES},
        bought=bought(stages),
        details=DETAILS,
        detail_rows=table(DETAILS, details_of(measured), truth.get("details") or {}),
        states=STATES,
        state_rows=state_table(details_of(measured)),
        plots=pictures_of(metrics, stages, truth, media),
        pictures=[(caption, picture(image)) for caption, image in media.pictures.items()],
        videos=[(caption, video(path, folder)) for caption, path in media.videos.items()],
        stream=stream_facts(metrics.get("stream") or {}),
        timings=timings(metrics.get("seconds") or {}),
        seconds_per_step=[(name, number(value, 3)) for name, value in media.seconds_per_step.items()],
        commands=media.commands,
        facts=media.facts,
        num_clips=measured_clips(stages, truth),
        truth_text=TRUTHS[(truth.get("details") or {}).get("through", "pixels")] if truth else "",
        # without "<" nothing in it can end the element
        raw=Markup(json.dumps(plain(metrics, 9), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")),
        colours={name: plots.stage_colour(index) for index, name in enumerate(stages)},
    )


def in_training_order(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Known stages in the order in which they are trained, then the others as given."""
    rank = {name: index for index, name in enumerate(STAGE_ORDER)}
    return dict(sorted(stages.items(), key=lambda item: rank.get(item[0], len(rank))))


def details_of(stages: Mapping[str, Any]) -> dict[str, Any]:
    """The `details` of each measurement, empty where it has none."""
    return {name: measured.get("details") or {} for name, measured in stages.items()}


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for people; a dash for one that does not exist."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def table(explanations: Mapping[str, Explanation], rows: Mapping[str, Mapping[str, Any]], truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of cells {text, share (of the bar), tick (truth on the bar), best, interval}; rows without any of the numbers are left out."""
    kept = {name: row for name, row in rows.items() if any(key in row for key in explanations)}
    columns = {key: {name: row.get(key) for name, row in kept.items()} for key in explanations}
    cells: dict[str, dict[str, Any]] = {name: {} for name in kept}
    for key, column in columns.items():
        explanation = explanations[key]
        sizes = {name: abs(value) for name, value in column.items() if value is not None}
        full = max([explanation.full or 0, *sizes.values()], default=0) or 1
        best = best_of({name: value for name, value in column.items() if name != "truth" and value is not None}, explanation)
        for name, value in column.items():
            interval = (kept[name].get("details") or {}).get(explanation.interval) if explanation.interval else None
            cells[name][key] = {
                "text": number(value, explanation.digits),
                "share": round(100 * sizes.get(name, 0) / full, 1),
                "tick": None if truth.get(key) is None else round(100 * min(1, abs(truth[key]) / full), 1),
                "best": name in best,
                "interval": " … ".join(number(end, explanation.digits) for end in interval) if interval and None not in interval else "",
            }
    return [{"name": name, "cells": row} for name, row in cells.items()]


def state_table(details: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one text per state: share of its frames that are seen, frames until it is seen, switches missed."""
    rows = []
    for name, found in details.items():
        recall, switches = found.get("state_recall") or {}, found.get("switches") or {}
        cells = []
        for state in STATES:
            text = f"{number(100 * recall[state], 1)} %" if state in recall else "–"
            note = ""
            if state in switches:
                switch = switches[state]
                late = switch["median_frames"]
                note = "mostly not seen" if late is None else f"after {number(late, 0)} frames"
                note += f", {switch['missed']} of {switch['switches']} missed" if switch["missed"] else ""
            cells.append({"text": text, "note": note})
        if recall:
            rows.append({"name": name, "cells": cells})
    return rows


def best_of(column: Mapping[str, float], explanation: Explanation) -> set[str]:
    """Names with the best value as it is shown; none if all are equal."""
    distance: dict[str, Callable[[float], float]] = {"higher": lambda x: -x, "lower": lambda x: x, "one": lambda x: abs(x - 1), "zero": abs}
    scores = {name: round(distance[explanation.better](value), explanation.digits) for name, value in column.items()}
    best = {name for name, score in scores.items() if score == min(scores.values())}
    return best if len(best) < len(scores) else set()


def headline(metrics: Mapping[str, Any], stages: Mapping[str, Any], truth: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers on top: of the last stage and of the stream."""
    tiles = []
    if stages:
        name, last = list(stages.items())[-1]
        for key in ("lip_correlation", "identity_rank", "state_accuracy", "drift"):
            if last.get(key) is not None:
                ceiling = f"truth {number(truth[key], METRICS[key].digits)}" if truth.get(key) is not None else METRICS[key].aim
                tiles.append(
                    {"value": number(last[key], METRICS[key].digits), "label": METRICS[key].label, "note": f"{name.replace('_', ' ')}; {ceiling}"}
                )
    stream = metrics.get("stream") or {}
    if stream.get("frames_per_second") is not None:
        rate = stream["frames_per_second"]
        tiles.append({"value": number(rate, 1), "label": "frames a second", "note": f"{number(rate / plots.FRAMES_PER_SECOND, 1)} times real time"})
    if stream.get("ttff_seconds") is not None:
        tiles.append({"value": f"{number(stream['ttff_seconds'], 2)} s", "label": "to the first frame", "note": "from the first sound"})
    return tiles


def bought(stages: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each stage changed against the one before it, in shown digits, where it changed by a visible amount."""
    sentences = []
    for before, after in pairwise(stages):
        changes = []
        for key in ("lip_correlation", "identity_error", "state_accuracy", "drift", "motion_ratio"):
            old, new = stages[before].get(key), stages[after].get(key)
            digits = METRICS[key].digits
            if old is not None and new is not None and number(old, digits) != number(new, digits):
                changes.append(f"{METRICS[key].label.lower()} {number(old, digits)} → {number(new, digits)}")
        sentences.append({"stage": after, "before": before, "changes": "; ".join(changes) or "no visible change"})
    return sentences


def stream_facts(stream: Mapping[str, Any]) -> list[dict[str, str]]:
    """The stream's speed, explained; unknown entries as they are."""
    known = {
        "ttff_seconds": ("Time to first frame", "s", 3, "from the moment the first sound is there to the first frame that depends on it"),
        "frames_per_second": ("Frames a second", "", 1, f"{plots.FRAMES_PER_SECOND} are needed for real time"),
        "evaluations_per_chunk": ("Evaluations per chunk (NFE)", "", 0, "passes of the network for each chunk of video"),
        "duration_seconds": ("Streamed", "s", 1, "length of the video"),
    }
    facts = []
    for key, value in stream.items():
        label, unit, digits, note = known.get(key, (key.replace("_", " "), "", 3, ""))
        shown = f"{number(value, digits)} {unit}".strip() if isinstance(value, int | float) else str(value)
        facts.append({"label": label, "value": shown, "note": note})
    return facts


def timings(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Wall time of each step with its share of the longest."""
    longest = max(seconds.values(), default=0) or 1
    rows = [{"name": name, "text": duration(value), "share": round(100 * value / longest, 1)} for name, value in seconds.items()]
    return [*rows, {"name": "total", "text": duration(sum(seconds.values())), "share": None}] if len(rows) > 1 else rows


def duration(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def measured_clips(stages: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    """What the numbers were measured on, in words; empty if unknown."""
    for measured in [*list(stages.values())[::-1], truth]:
        details = measured.get("details") or {}
        if details.get("num_clips") and details.get("num_frames"):
            length = duration(details["num_frames"] / details.get("frames_per_second", plots.FRAMES_PER_SECOND))
            return f"{details['num_clips']} clips of {details.get('num_identities', '?')} characters that the model never saw, {length} of video"
    return ""


def pictures_of(metrics: Mapping[str, Any], stages: Mapping[str, Any], truth: Mapping[str, Any], media: Media) -> list[dict[str, Any]]:
    """The plots for which there are numbers: {title, text, light, dark}, the two as data URIs."""
    details = {name: found for name, found in details_of(stages).items() if found}
    truth_details = truth.get("details") or {}
    examples = {name: found["example"] for name, found in details.items() if found.get("example")}
    # one clip in all rows: a stage that was measured on other clips has no place in the comparison
    examples = {name: example for name, example in examples.items() if example["key"] == list(examples.values())[-1]["key"]}
    wanted: list[tuple[str, str, Callable[[plots.Theme], Figure]]] = []
    if examples:
        key = next(iter(examples.values()))["key"]
        wanted.append(
            ("The mouth", f"One clip ({key}): grey is what the speech asks for, the line is what the video shows.", plots.mouth_curves(examples))
        )
    lags = {name: found["lag_curve"] for name, found in details.items() if found.get("lag_curve")}
    if lags:
        text = "Lip sync with the video shifted against the sound. A sharp peak at 0 means in time."
        wanted.append(("In time?", text, plots.lag_curves(lags, truth_details.get("lag_curve"))))
    by_second = {name: found["curves"] for name, found in details.items() if found.get("curves")}
    if by_second:
        text = "Every second of the stream, mean over clips. A flat line is a stream that could go on; dashes are truth."
        wanted.append(("Does it hold?", text, plots.drift_curves(by_second, truth_details.get("curves"))))
    if examples:
        wanted.append(("Does it do what it is told?", f"The states asked for in {key} and what is seen.", plots.state_strips(examples)))
    if media.training:
        wanted.append(("Training", "Loss by step; faint is each logged value, strong a running mean.", plots.training_curves(media.training)))
    return [
        {"title": title, "text": text, "light": png_uri(plots.draw(plot, plots.LIGHT)), "dark": png_uri(plots.draw(plot, plots.DARK))}
        for title, text, plot in wanted
    ]


def png_uri(data: bytes) -> str:
    """PNG bytes as data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def picture(image: Image.Image | Path) -> str:
    """A picture, or a picture file, as data URI (PNG)."""
    if isinstance(image, Path):
        with Image.open(image) as opened:
            return picture(opened.copy())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return png_uri(buffer.getvalue())


def video(path: Path, folder: Path) -> dict[str, Any]:
    """{source, type, linked}: inside the page up to `INLINE_BYTES`, else a link relative to `folder`.

    Raises:
        ValueError: a kind of file that browsers do not play.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEO_TYPES:
        raise ValueError(f"{path.name} is not a video for a web page; known: {', '.join(VIDEO_TYPES)}")
    media_type = VIDEO_TYPES[path.suffix.lower()]
    if path.stat().st_size <= INLINE_BYTES:
        return {"source": f"data:{media_type};base64," + base64.b64encode(path.read_bytes()).decode("ascii"), "type": media_type, "linked": False}
    return {"source": quote(os.path.relpath(path, folder).replace(os.sep, "/")), "type": media_type, "linked": True}


def describe_machine(packages: Sequence[str] = ("flowact", "torch", "lightning", "deepspeed", "webdataset", "numpy", "av")) -> dict[str, str]:
    """What ran where, for the report's last section: operating system, processor, accelerator, versions. No names of people or hosts."""
    import psutil
    import torch

    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts

"""Behaviour states and captions that somebody wrote down: beside the recording, or in a folder of annotations.

Axes: T frames at 25 a second.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from data_tools.annotations import FORMATS, SUBTITLES, AnnotationError, Label, frame_runs, read_annotations
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Plan, Rule, Step, json_hash
from data_tools.steps.captions import DEFAULT_STATE, caption_runs
from data_tools.steps.states import named_runs
from flowact.data.schema import from_entries
from flowact.errors import UserError, did_you_mean
from flowact.types import FRAMES_PER_SECOND, STATES

TextRun = tuple[int, int, str]
SLACK_S = 1.0  # by which labels may go on after the recording


@dataclass(frozen=True)
class Said:
    """What is written about a recording: runs of its frames, None where there is nothing of the kind."""

    states: Sequence[TextRun] | None = None
    captions: Sequence[TextRun] | None = None
    file: str = ""


@final
class Labels(Step):
    """States and captions from what lies beside the recording (or in `folder`), over those that were found by rules: put it behind `States`.

    Read are KEY.states.npy and KEY.json as `flowact-data synth` and `pack` write them, Praat's KEY.TextGrid, ELAN's KEY.eaf, tables KEY.csv and
    KEY.tsv with the columns start, end, label, and subtitles KEY.srt and KEY.vtt; for states and for captions the first that has some. Times count
    from the file's beginning. A recording is rejected for labels of one tier that overlap, that have no meaning here, or that go on after its end.

    Args:
        folder: holds KEY.TextGrid and so on, in folders as the recordings are, or flat; empty looks beside the recordings only.
        formats: which files to look at, in this order: states.npy, json, TextGrid, eaf, csv, tsv, srt, vtt.
        mapping: other names of states -> ours, such as {talks: speaking, nods: listening}; '' leaves out what has the name. Case does not matter.
        state_tiers: names of tiers (of columns, in a table) that hold states; the first that is there counts. A file with a single tier needs none.
        caption_tiers: likewise of captions, which tell what is seen.
        subtitles: whether subtitles hold 'states' or 'captions'; 'ignore' leaves out transcripts of what is said.
        gaps: state of frames without a label.
        min_labelled: share of the clip's frames that have a state label; None takes clips without labels too.
    """

    thresholds = ("min_labelled",)

    def __init__(
        self,
        folder: str = "",
        formats: list[str] | None = None,
        mapping: dict[str, str] | None = None,
        state_tiers: list[str] | None = None,
        caption_tiers: list[str] | None = None,
        subtitles: Literal["states", "captions", "ignore"] = "states",
        gaps: str = DEFAULT_STATE,
        min_labelled: float | None = None,
    ) -> None:
        self.folder = Path(folder) if folder else None
        self.formats = ALL_FORMATS if formats is None else tuple(formats)
        for name in self.formats:
            if name not in ALL_FORMATS:
                raise UserError(f"Labels: formats: {name!r} is none.{did_you_mean(name, ALL_FORMATS)}")
        for state in (gaps, *(state for state in (mapping or {}).values() if state)):
            if state not in STATES:
                raise UserError(f"Labels: {state!r} is no state of ours.{did_you_mean(state, STATES)}")
        if subtitles not in ("states", "captions", "ignore"):
            raise UserError(f"Labels: subtitles {subtitles!r} must be states, captions or ignore")
        self.mapping = {**{state: state for state in STATES}, **{name.casefold(): state for name, state in (mapping or {}).items()}}
        self.state_tiers = ["states", "state", "behaviour", "behavior"] if state_tiers is None else list(state_tiers)
        self.caption_tiers = ["captions", "caption", "prompts"] if caption_tiers is None else list(caption_tiers)
        (self.state_tiers if subtitles == "states" else self.caption_tiers if subtitles == "captions" else []).append(SUBTITLES)
        self.subtitles, self.gaps, self.min_labelled = subtitles, gaps, min_labelled

    @property
    def version(self) -> int:  # type: ignore[override]  # what lies in the folder decides the scores like an argument
        files = sorted(path for path in self.folder.rglob("*") if path.is_file()) if self.folder and self.folder.is_dir() else []
        return int(json_hash([1, [(str(path.relative_to(self.folder or path)), *_stamp(path)[1:]) for path in files]])[:8], 16)

    def check(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"Labels: there is no folder {self.folder}; give the one with the annotations, or leave it out to look beside the videos")

    # --- scores -------------------------------------------------------------------------------------------------------------------------------------

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        said = self.read(clip)
        frames = [sum(end - first for first, end, _ in _inside(runs or (), clip)) for runs in (said.states, said.captions)]
        labelled, captioned = (round(count / max(clip.frames, 1), 4) for count in frames)
        return {"labelled": labelled, "captioned": captioned, "file": said.file or None}

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (Rule.at_least("labelled", scores["labelled"], self.min_labelled),)

    def explain(self, rule: Rule) -> str:
        return f"{rule.value:.0%} of the frames have a label, must be at least {rule.bound:.0%}"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        said, plan = self.read(clip), clip.plan
        if said.states is not None:
            found = caption_runs((), _inside(said.states, clip), clip.frames)
            states = tuple((first, end, state or self.gaps) for first, end, _, state in found)
            plan = clip.with_plan(states=_joined(states))
        if said.captions is not None:
            plan = Clip(clip.recording, plan).with_plan(captions=caption_runs(plan.states, _inside(said.captions, clip), clip.frames))
        return plan

    # --- what is written ----------------------------------------------------------------------------------------------------------------------------

    def read(self, clip: Clip) -> Said:
        """What is written about the clip's recording, in its frames.

        Raises:
            AnnotationError: a file that can not be used; names what to change.
        """
        said = Said()
        for name, path in self._files(clip.recording.source):
            if said.states is not None and said.captions is not None:
                break
            found = self._read(name, path, clip)
            states = found.states if said.states is None else said.states
            said = Said(states, found.captions if said.captions is None else said.captions, said.file or (name if states or found.captions else ""))
        return said

    def _files(self, source: Source) -> Iterator[tuple[str, Path]]:
        address = Path(source.address)
        stems = (Path(address.parent.name, address.stem), Path(address.stem), Path(source.id))
        for name in self.formats:
            found = [Path(source.sidecars[name])] if name in source.sidecars else []
            for path in [*found, *(self.folder / f"{stem}.{name}" for stem in stems if self.folder is not None)]:
                if path.is_file():
                    yield name, path
                    break

    def _read(self, name: str, path: Path, clip: Clip) -> Said:
        start_s, frames = clip.recording.source.start_s or 0.0, clip.recording.frames
        if name == "states.npy":
            return Said(states=_cut(_states_of(path), round(start_s * FRAMES_PER_SECOND), frames))
        if name == "json":
            states, captions = _runs_of(path)
            first = round(start_s * FRAMES_PER_SECOND)
            return Said(states and _cut(self._named(states, path), first, frames), captions and _cut(captions, first, frames))
        labels = _labels(*_stamp(path))
        self._check_length(labels, path, clip)
        tiers = {label.tier: [other for other in labels if other.tier == label.tier] for label in labels}
        states_tier = next((tier for tier in self.state_tiers if tier in tiers), None)
        captions_tier = next((tier for tier in self.caption_tiers if tier in tiers), None)
        rest = [tier for tier in tiers if tier not in (captions_tier, SUBTITLES)]
        if states_tier is None and len(rest) == 1:
            states_tier = rest[0]
        if states_tier is None and captions_tier is None and rest:
            raise AnnotationError(
                f"{path} has the tiers {', '.join(map(repr, rest))}, and none is named {' or '.join(self.state_tiers)};"
                f" name the one that counts in the recipe: Labels.state_tiers: [{json.dumps(rest[0])}]"
            )
        states = None if states_tier is None else self._named(frame_runs(tiers[states_tier], start_s, frames), path)
        return Said(states, None if captions_tier is None else frame_runs(tiers[captions_tier], start_s, frames))

    def _named(self, runs: Sequence[TextRun], path: Path) -> list[TextRun]:
        """Runs with our names of states."""
        unknown = sorted({text for _, _, text in runs if text.casefold() not in self.mapping})
        if unknown:
            hint = did_you_mean(unknown[0], self.mapping) if len(unknown) == 1 else f" Ours are {', '.join(STATES)}."
            subtitles = " If it is a transcript: Labels.subtitles: ignore." if path.suffix.lower() in (".srt", ".vtt") else ""
            raise AnnotationError(
                f"{path}: no state is called {', '.join(repr(text[:40]) for text in unknown[:5])}.{hint}"
                f" Say what it means in the recipe: Labels.mapping: {{{json.dumps(unknown[0][:40], ensure_ascii=False)}: speaking}}.{subtitles}"
            )
        return [(first, end, self.mapping[text.casefold()]) for first, end, text in runs if self.mapping[text.casefold()]]

    def _check_length(self, labels: Sequence[Label], path: Path, clip: Clip) -> None:
        source, seconds = clip.recording.source, clip.recording.frames / FRAMES_PER_SECOND
        last = max((label.end_s for label in labels), default=0.0)
        if source.start_s is None and source.end_s is None and last > seconds + SLACK_S:
            raise AnnotationError(
                f"{path}: its labels go on to {last:.1f} s, and the recording ends at {seconds:.1f} s; it seems to belong to another recording,"
                " or its times are not in seconds"
            )


ALL_FORMATS = ("states.npy", *FORMATS, "json")


def _inside(runs: Sequence[TextRun], clip: Clip) -> list[TextRun]:
    """Runs of the recording's frames, in the clip's."""
    return _cut(runs, clip.plan.span.first, clip.frames)


def _cut(runs: Sequence[TextRun], first: int, frames: int) -> list[TextRun]:
    moved = [(max(a - first, 0), min(b - first, frames), text) for a, b, text in runs]
    return [run for run in moved if run[1] > run[0]]


def _joined(runs: Sequence[TextRun]) -> tuple[TextRun, ...]:
    """Neighbours of one state as one run."""
    joined: list[TextRun] = []
    for first, end, state in runs:
        if joined and joined[-1][2] == state:
            first = joined.pop()[0]
        joined.append((first, end, state))
    return tuple(joined)


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _labels(path: Path, size: int, changed: int) -> tuple[Label, ...]:
    """Once a file, not once a clip."""
    return read_annotations(path)


def _states_of(path: Path) -> list[TextRun]:
    try:
        states_T = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AnnotationError(f"{path} can not be read as an array ({error}); write it with numpy.save, or remove it") from error
    if states_T.ndim != 1 or states_T.dtype.kind not in "iu" or not ((states_T >= 0) & (states_T < len(STATES))).all():
        raise AnnotationError(
            f"{path} holds {states_T.dtype} {states_T.shape}; states are numbers from 0 to {len(STATES) - 1}, one a frame at 25 a second"
        )
    return list(named_runs(states_T))


def _runs_of(path: Path) -> tuple[list[TextRun] | None, list[TextRun] | None]:
    """States and captions of a clip's metadata, as `synth`, `pack` and `build` write them; None for what is not there."""
    try:
        values: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} can not be read as JSON ({error}); correct or remove it") from error
    try:
        captions = from_entries("captions", values)
    except (AttributeError, KeyError, TypeError):
        return None, None  # other people's JSON may hold anything
    ours = [int, int, str, str]
    if not captions or not all([type(part) for part in entry] == ours for entry in captions):
        return None, None
    return [run[:3] for run in captions], [(first, end, text) for first, end, _, text in captions if text]

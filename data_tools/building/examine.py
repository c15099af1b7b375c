"""One recording down the steps: looked at once, listened to, cut, scored and judged. Runs in a worker; all that it needs comes with the task.

What it measures lies in `work/recordings/HASH/`, a file for each step, under a hash of the file's bytes and of the step's arguments: only what
changed is measured again. Scores come back to the build, which keeps them in the ledger.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.building.ledger import PREVIOUS_FOLDER, RECORDINGS_FOLDER, WORK_FOLDER, ClipRecord, Finding
from data_tools.building.making import Item, Maker, uri_of
from data_tools.building.recipe import BuildRecipe, read_recipe
from data_tools.footage import Footage, Kept, View, look, survey, write_sound
from data_tools.inputs import Source, fetch
from data_tools.steps.base import Clip, Plan, Recording, Rejection, Rule, Soundtrack, Span, Step, Watcher, json_hash
from flowact.data.media import MediaError
from flowact.data.schema import write_atomically
from flowact.data.shards import ShardWriter, file_sha256

#: what a file can not give is found by reading it, not by a step; reports call it so
READING = "Reading"
#: of a shard of clips that were made on the way
MADE_BYTES = 256 << 20
#: sidecars that decide what is seen and heard; the others decide what is said about it
MEDIA_SIDECARS = ("wav", "other.wav", "boxes.npy")


@dataclass(frozen=True)
class Task:
    """A recording to examine.

    Attributes:
        source: where it is.
        sha256: of its bytes, where they are known not to have changed.
        known: hash -> scores that the ledger holds.
        held: hashes of clips that shards hold already.
    """

    source: Source
    sha256: str | None
    known: Mapping[str, Any]
    held: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Examined:
    """What came out.

    Attributes:
        source: of the task.
        sha256: of the file; empty where it could not be read.
        folder: name of the folder below `work/recordings` with signals and sound; empty where it was not decoded.
        frames: at 25 a second; 0 where it was not decoded.
        facts: what the container holds, plain values.
        clips: kept and rejected, in the order of their frames.
        findings: scores that were not known before.
        seconds: of work.
        made: hashes of clips that were made on the way, see `Examiner`.
    """

    source: Source
    sha256: str
    folder: str
    frames: int
    facts: dict[str, Any]
    clips: tuple[ClipRecord, ...]
    findings: tuple[Finding, ...]
    seconds: float
    made: tuple[str, ...] = ()


class Examiner:
    """Examines recordings of one build.

    Decoding is most of the work. So where a recording's frames fit into `keep_bytes`, clips that pass are made at once, from frames that are decoded
    already, and laid where the packer looks for clips of earlier shards. They are the same bytes as those that are made later.

    Args:
        recipe: of the build.
        out: folder of the dataset.
        score_only: judge, but reject nothing.
        keep_bytes: of decoded frames; 0 makes nothing.
    """

    def __init__(self, recipe: BuildRecipe, out: Path, score_only: bool = False, keep_bytes: int = 0) -> None:
        self.recipe = recipe
        self.out = out
        self.score_only = score_only
        self.keep_bytes = keep_bytes
        self.measured = {step.name: recipe.measured_hash(step.name) for step in recipe.chain}

    def examine(self, task: Task) -> Examined:
        """Everything about one recording. A file that can not be read is a rejected recording, not an error."""
        start, source = time.perf_counter(), task.source
        sha256, folder, frames, facts = task.sha256 or "", "", 0, {}
        clips: list[ClipRecord] = []
        findings: list[Finding] = []
        made: list[str] = []
        kept = Kept(self.keep_bytes)
        try:
            with fetch(source, self.out / WORK_FOLDER) as files:
                local = replace(source, address=str(files.video), sidecars={suffix: str(path) for suffix, path in files.sidecars.items()})
                sha256 = sha256 or file_sha256(files.video)
                footage = survey(files.video, count=False)
                facts = footage.to_json()
                surveyed = self._survey(local, footage)
                if surveyed.rejection is not None:
                    clips.append(surveyed)
                else:
                    sidecars = {suffix: file_sha256(Path(path)) for suffix, path in sorted(local.sidecars.items())}
                    folder = self._media_hash(source, sha256, sidecars)
                    recording = self._record(local, footage, self.out / WORK_FOLDER / RECORDINGS_FOLDER / folder, kept)
                    frames = recording.frames
                    said = json_hash([sidecars, source.identity, source.caption, source.license, source.consent, dict(source.metadata)])
                    spans, emptied = self._cut(recording)
                    for span in spans:
                        record, found = self._judge(recording, span, surveyed, [folder, said], task.known)
                        clips.append(record)
                        findings += found
                    if kept.whole:
                        made = self._make(task, clips, files.video, (sha256, folder, footage.width, footage.height), kept)
                    if not spans:
                        clips.append(replace(surveyed, rejection=Rejection(emptied, "no stretch of it is left", "spans", 0, "at least", 1)))
        except MediaError as error:
            code = getattr(error, "code", "unreadable")
            clips = [_whole_recording(source, Rejection(READING, str(error), "readable", code, "is", "readable"))]
        return Examined(source, sha256, folder, frames, facts, tuple(clips), tuple(findings), time.perf_counter() - start, tuple(made))

    # --- before decoding ----------------------------------------------------------------------------------------------------------------------------

    def _survey(self, source: Source, footage: Footage) -> ClipRecord:
        """The whole recording, judged by what its container holds."""
        scores: dict[str, Mapping[str, Any]] = {}
        rules: dict[str, tuple[Rule, ...]] = {}
        rejection = None
        for step in self.recipe.chain:
            found = step.survey(source, footage)
            if found and rejection is None:
                scores[step.name] = found
                rules[step.name] = _kept_rules(step, found)
                rejection = None if self.score_only else _rejection(step, rules[step.name])
        return ClipRecord(source.id, source.id, None, scores, rules, rejection)

    def _media_hash(self, source: Source, sha256: str, sidecars: Mapping[str, str]) -> str:
        media = {suffix: sidecars[suffix] for suffix in MEDIA_SIDECARS if suffix in sidecars}
        return json_hash([sha256, source.start_s, source.end_s, self.recipe.tracks, media])

    # --- looking and listening ----------------------------------------------------------------------------------------------------------------------

    def _record(self, source: Source, footage: Footage, folder: Path, kept: Kept) -> Recording:
        folder.mkdir(parents=True, exist_ok=True)
        watchers: dict[str, Watcher] = {}
        for step in self.recipe.chain:
            watcher = None if self._signal_file(folder, step).is_file() else step.watcher(source, footage)
            if watcher is not None:
                watchers[step.name] = watcher
        record = folder / "record.json"
        if watchers or not record.is_file():
            views = tuple(dict.fromkeys(view for watcher in watchers.values() for view in watcher.views))
            frames = self._look(source, views, list(watchers.values()), kept)
            write_atomically(record, json.dumps({"frames": frames}).encode())
        else:
            frames = json.loads(record.read_bytes())["frames"]
        self._write_sound(source, footage, folder, frames)
        sound = Soundtrack(folder / "sound.wav")
        other = Soundtrack(folder / "other.wav") if (folder / "other.wav").is_file() else None
        signals: dict[str, np.ndarray] = {}
        for step in self.recipe.chain:
            path = self._signal_file(folder, step)
            if not path.is_file():
                seen = watchers[step.name].signals() if step.name in watchers else {}
                _save(path, {**seen, **step.listen(sound, other)})
            with np.load(path, allow_pickle=False) as stored:
                signals.update({f"{step.name}/{name.replace('|', '/')}": stored[name] for name in stored.files})
        return Recording(source, footage, frames, footage.width, footage.height, sound, other, signals)

    def _signal_file(self, folder: Path, step: Step) -> Path:
        return folder / f"{step.name}-{self.measured[step.name]}.npz"

    def _look(self, source: Source, views: Sequence[View], watchers: Sequence[Watcher], kept: Kept) -> int:
        frames = 0
        for block in look(Path(source.address), views, start_s=source.start_s or 0.0, end_s=source.end_s, keep=kept):
            for watcher in watchers:
                watcher.see(block)
            frames = block.first + block.count
        return frames

    def _write_sound(self, source: Source, footage: Footage, folder: Path, frames: int) -> None:
        sound, other = folder / "sound.wav", folder / "other.wav"
        if sound.is_file():
            return
        start = source.start_s or 0.0
        if "other.wav" in source.sidecars:
            write_sound(Path(source.sidecars["other.wav"]), other, frames=frames, start_s=start)
        if "wav" in source.sidecars:
            write_sound(Path(source.sidecars["wav"]), sound, frames=frames, start_s=start)
        else:
            second = None if self.recipe.tracks == "mix" or other.is_file() else other
            write_sound(Path(source.address), sound, frames=frames, start_s=start, tracks=self.recipe.tracks, other=second, silence=True)

    # --- clips --------------------------------------------------------------------------------------------------------------------------------------

    def _make(
        self, task: Task, clips: Sequence[ClipRecord], video: Path, about: tuple[str, str, int, int], kept: Kept
    ) -> list[str]:
        """Make the clips that passed and that no shard holds; what can not be made is left to the maker's own turn, which says why."""
        maker, uri = Maker(self.recipe, self.out), uri_of(task.source, self.recipe.inputs)
        items = [Item(clip, task.source, uri, *about, "") for clip in clips if clip.rejection is None and clip.plan is not None]
        hashes = [maker.hash(item) for item in items]
        folder = self.out / WORK_FOLDER / PREVIOUS_FOLDER / MADE_FOLDER.format(task.source.id)
        shutil.rmtree(folder, ignore_errors=True)
        made = []
        with ShardWriter(folder, max_bytes=MADE_BYTES) as writer:
            for item, hash_ in zip(items, hashes):
                if hash_ not in task.held:
                    try:
                        members = maker.members(item, video, kept)
                    except MediaError:
                        continue
                    writer.write(item.record.key, members, item.plan.span.frames)
                    made.append(hash_)
            writer.close()
        return made

    def _cut(self, recording: Recording) -> tuple[list[Span], str]:
        """Spans that may become clips; where there are none, the step that left none."""
        spans, emptied = [Span(0, recording.frames)], ""
        for step in self.recipe.chain:
            spans = step.cut(recording, spans)
            emptied = emptied or ("" if spans else step.name)
        return sorted(spans, key=lambda span: (span.first, span.track)), emptied

    def _judge(
        self, recording: Recording, span: Span, surveyed: ClipRecord, content: Sequence[str], known: Mapping[str, Any]
    ) -> tuple[ClipRecord, list[Finding]]:
        key = clip_key(recording.source.id, span)
        clip = Clip(recording, Plan(span))
        scores, rules = dict(surveyed.scores), dict(surveyed.rules)
        findings = []
        for step in self.recipe.chain:
            plan = clip.plan
            signals = [self.measured[name.partition("/")[0]] for name in (plan.boxes, plan.mouth) if name]
            hash_ = json_hash([self.measured[step.name], plan.to_json(), signals, *content])
            start = time.perf_counter()
            if hash_ in known:
                found = known[hash_]
            else:
                # what the ledger will give back next time, so that the first build judges the same values
                found = json.loads(json.dumps(_finite(step.score(clip)), default=_plain))
                findings.append(Finding(step.name, hash_, found, time.perf_counter() - start))
            if found:
                scores[step.name] = found
                rules[step.name] = _kept_rules(step, found)
                rejection = _rejection(step, rules[step.name])
                if rejection is not None and not self.score_only:
                    return ClipRecord(key, recording.source.id, clip.plan, scores, rules, rejection), findings
            clip = Clip(recording, step.apply(replace(clip, scores=scores), found), scores)
        return ClipRecord(key, recording.source.id, clip.plan, scores, rules), findings


MADE_FOLDER = "made-{}"


def _whole_recording(source: Source, rejection: Rejection) -> ClipRecord:
    return ClipRecord(source.id, source.id, None, rejection=rejection)


def clip_key(source: str, span: Span) -> str:
    """A clip's key says where it comes from, so it does not change when other clips come or go."""
    return f"{source}-{span.first:06d}" + (f"-p{span.track}" if span.track else "")


def remove_stale(out: Path, folders: Sequence[str]) -> None:
    """Remove signals and sound of recordings that are no longer part of the dataset."""
    root, wanted = out / WORK_FOLDER / RECORDINGS_FOLDER, set(folders)
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.name not in wanted:
            shutil.rmtree(folder)


def remove_parts(out: Path) -> None:
    """Remove files that a killed build had begun."""
    for part in (out / WORK_FOLDER / RECORDINGS_FOLDER).glob("*/.*.part"):
        part.unlink()


def stamp_of(source: Source) -> str:
    """Size and time of change of a local file, so that one that has not changed is not hashed again; empty for a remote one."""
    try:
        status = os.stat(source.address)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _kept_rules(step: Step, scores: Mapping[str, Any]) -> tuple[Rule, ...]:
    return tuple(rule for rule in step.judge(scores) if rule is not None)


def _rejection(step: Step, rules: Sequence[Rule]) -> Rejection | None:
    broken = next((rule for rule in rules if not rule.kept), None)
    if broken is None:
        return None
    return Rejection(step.name, step.explain(broken), broken.score, broken.value, broken.relation, broken.bound)


def _save(path: Path, signals: Mapping[str, np.ndarray]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name.replace("/", "|"): values for name, values in signals.items()})
    os.replace(part, path)


def _finite(value: Any) -> Any:
    """Values with None where a number is not finite: JSON has no other word for it."""
    if isinstance(value, Mapping):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, (float, np.floating)) and not np.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Numbers of numpy as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a score must be plain, got {type(value).__name__}")


# --- in the workers ---------------------------------------------------------------------------------------------------------------------------------

_examiner: Examiner | None = None


def start(recipe_file: Path, out: Path, score_only: bool, keep_bytes: int, plugins: Sequence[str], trusted: Sequence[str]) -> None:
    """Prepare a worker: it reads the recipe that the build wrote down."""
    global _examiner
    from flowact import registry

    registry.trust(*trusted)
    for file in plugins:
        registry.load_plugin_file(file)
    _examiner = Examiner(read_recipe(recipe_file)[0], out, score_only, keep_bytes)


def run(task: Task) -> Examined:
    """Examine one recording in a worker that was started."""
    assert _examiner is not None  # set by start
    return _examiner.examine(task)

"""What a person should know before training on a dataset, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_tools.reporting.contents import Contents
from data_tools.reporting.decisions import Decisions
from data_tools.reporting.wording import number_text
from flowact.data.rights import UNKNOWN
from flowact.data.schema import DatasetInfo, SplitBy
from flowact.types import FIRST_STREAMED_FRAME, STATES

#: seconds of a person below which a model learns little of them
THIN_SECONDS = 10.0
#: share of all frames from which one state leaves too little of the others
DOMINANT = 0.9
#: share of one person among several
MOSTLY_ONE = 0.5
#: share of the clips that reach a step
HARSH = 0.5
#: frames of offset that a viewer notices
NOTICED = 1


@dataclass(frozen=True)
class Advice:
    """One finding.

    Attributes:
        text: what was found.
        fix: what to do.
        anchor: of the section that shows it.
        serious: whether a training run would suffer, or may not be done at all.
    """

    text: str
    fix: str
    anchor: str
    serious: bool = False


def advise(decisions: Decisions | None, contents: Contents | None, info: DatasetInfo | None) -> list[Advice]:
    """All findings, the serious ones first."""
    found: list[Advice] = []
    if contents is not None and info is not None:
        found += [*_rights(contents), *_splits(contents, info.split_by), *_people(contents, info.fps)]
        found += [*_behaviour(contents), *_shapes(contents, info.fps), *_sync(contents)]
    if decisions is not None:
        found += _build(decisions, contents)
    return sorted(found, key=lambda advice: not advice.serious)


def _rights(contents: Contents) -> Iterator[Advice]:
    for name, counts in (("licence", contents.total("licenses")), ("consent", contents.total("consents"))):
        if counts[UNKNOWN]:
            what = "no licence" if name == "licence" else "no consent of the person shown"
            word = name.replace("licence", "license")
            fix = f"say it in the input's table (column '{word}'), or in the recipe's Rights step; until then the clips should not be passed on"
            yield Advice(f"{number_text(counts[UNKNOWN], 6)} of {_clips(contents.clips)} state {what}.", fix, "rights", serious=True)


def _splits(contents: Contents, split_by: SplitBy) -> Iterator[Advice]:
    if "val" not in contents.splits:
        fix = "flowact-data split DATASET --val-fraction 0.05; without it nothing tells learning from learning by heart"
        yield Advice("There is no val split.", fix, "people", serious=True)
    homes: dict[str, int] = {}
    for split in contents.splits.values():
        for name in split.frames_of_identity:
            homes[name] = homes.get(name, 0) + 1
    shared = sorted(name for name, count in homes.items() if count > 1)
    if shared and split_by == "person":
        text = f"{len(shared)} people are in more than one split ({_some(shared)}): what val measures is not new."
        yield Advice(text, "flowact-data split DATASET", "people", serious=True)


def _people(contents: Contents, fps: int) -> Iterator[Advice]:
    frames = contents.total("frames_of_identity")
    thin = [name for name, count in frames.items() if count < THIN_SECONDS * fps]
    if thin and len(frames) > 1:
        text = f"{len(thin)} of {len(frames)} people have less than {THIN_SECONDS:g} s: {_some(sorted(thin))}."
        yield Advice(text, "a reference picture and a window of one person need more; record more, or join names of the same person", "people")
    name, most = max(frames.items(), key=lambda entry: entry[1])
    if len(frames) > 2 and most > MOSTLY_ONE * contents.frames:
        fix = "the model will draw others like them; record more of the others"
        yield Advice(f"{name} has {most / contents.frames:.0%} of all frames.", fix, "people")


def _behaviour(contents: Contents) -> Iterator[Advice]:
    frames = contents.total("frames_of_state")
    total = sum(frames.values()) or 1
    state, most = max(frames.items(), key=lambda entry: entry[1], default=("", 0))
    missing = [name for name in STATES if not frames[name]]
    if most >= DOMINANT * total:
        text = f"{most / total:.0%} of all frames are {state}."
        yield Advice(text, "a model can not learn to change between states that it never sees; add recordings of conversations", "behaviour")
    elif missing:
        yield Advice(f"Nobody is {' or '.join(missing)}.", "such prompts will mean nothing to the model", "behaviour")
    spoken = [share for split in contents.splits.values() for share in split.speech]
    if spoken and sum(spoken) / len(spoken) < 0.05:
        yield Advice("Almost nobody speaks.", "check the sound of a few clips below; a wrong track, or a threshold of Voice", "sound", serious=True)


def _shapes(contents: Contents, fps: int) -> Iterator[Advice]:
    sizes = contents.total("sizes")
    if len(sizes) > 1:
        yield Advice(f"Pictures have {len(sizes)} sizes.", "set output.size in the recipe, or train with buckets", "shards")
    excluded = sum(split.excluded for split in contents.splits.values())
    if excluded:
        yield Advice(f"{_clips(excluded)} are excluded in dataset.yaml and counted here.", "readers skip them", "shards")
    short = sum(seconds * fps <= FIRST_STREAMED_FRAME for split in contents.splits.values() for seconds in split.seconds)
    if short:
        yield Advice(f"{_clips(short)} have a single frame.", "they hold no motion; reject them with Length.min_seconds", "shards")


def _sync(contents: Contents) -> Iterator[Advice]:
    off = sum(abs(offset) > NOTICED for split in contents.splits.values() for offset in split.offsets_after)
    if off:
        text = f"In {_clips(off)} the sound is still more than {NOTICED} frame off the mouth."
        yield Advice(text, "let the recipe's Sync step correct it, or reject by max_offset", "sync", serious=True)


def _build(decisions: Decisions, contents: Contents | None) -> Iterator[Advice]:
    for row in decisions.funnel:
        if row.out and row.out >= HARSH * row.reached and row.reached >= 4:
            what = row.reasons[0].rule
            text = f"{row.step} takes out {row.out} of the {row.reached} clips that reach it, mostly by: {what}."
            yield Advice(text, "look at the clips nearest to the threshold; a changed threshold measures nothing again", "funnel")
    if any(score.num_broken for score in decisions.scores) and not any(score.out for score in decisions.scores):
        yield Advice("Clips were scored and judged, but none was rejected.", "build without --score-only to let the thresholds decide", "thresholds")
    if contents is None:
        yield Advice("Nothing has been packed yet: this is what a dry run found.", "build without --dry-run", "funnel")
    elif contents.clips != decisions.packed:
        text = f"The shards hold {_clips(contents.clips)}, the last build packed {decisions.packed}."
        yield Advice(text, "the dataset was edited since it was built, or the last build was a dry run; numbers of the build are of then", "funnel")


def _clips(count: int) -> str:
    return f"{number_text(count, 6)} clip{'' if count == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""What the clips of a training set may be used for, as their metadata states it: counted when training starts, kept in every checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowact.data.schema import from_entries
from flowact.data.split import Split
from flowact.types import FRAMES_PER_SECOND

#: what is counted for a clip that does not state its licence or consent
UNKNOWN = "unknown"
#: words that mean that nothing is known
_NOTHING = ("", UNKNOWN, "none", "n/a", "?")
_NAMES = ("license", "consent")


@dataclass(frozen=True)
class TrainingData:
    """One data set that a stage was trained on.

    Attributes:
        name: of the data set.
        clips: that were trained on.
        seconds: of video.
        people: different identities.
        licenses: licence as stated, or "unknown" -> clips.
        consents: consent of the people shown, likewise.
        states: behaviour states that are in it.
        character: class of the synthetic character that was rendered; None for people who were filmed.
    """

    name: str
    clips: int
    seconds: float
    people: int
    licenses: dict[str, int] = field(default_factory=dict)
    consents: dict[str, int] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    character: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a lineage."""
        return {**vars(self), "states": list(self.states)}


def stated(metadata: Mapping[str, Any], name: str) -> str:
    """What a clip's source says about `license` or `consent`; 'unknown' where it says nothing."""
    source = metadata.get("source")
    return (known(str((source or {}).get(name) or "")) if isinstance(source, Mapping | None) else None) or UNKNOWN


def known(text: str | None) -> str | None:
    """What somebody wrote about a right, on one line; None for the words that say nothing."""
    line = " ".join((text or "").split())
    return None if line.casefold() in _NOTHING else line


def count_rights(split: Split) -> TrainingData:
    """Read the metadata of all clips of a split, those that are trained on.

    Raises:
        UserError: metadata that can not be read.
    """
    counts = {right: Counter[str]() for right in _NAMES}
    people, states, frames = set[str](), set[str](), 0
    for clip in split.clips:
        metadata, _ = split.metadata(clip)
        for right in _NAMES:
            counts[right][stated(metadata, right)] += 1
        people.add(metadata["identity"])
        states.update(str(entry[2]) for entry in from_entries("captions", metadata))
        frames += clip.frames
    licenses, consents = (dict(sorted(counts[right].items())) for right in _NAMES)
    fps = split.info.fps if split.info else FRAMES_PER_SECOND
    name = split.info.name if split.info else split.root.name
    character = str(split.info.character["class_path"]).rpartition(".")[2] if split.info and split.info.character else None
    return TrainingData(name, len(split), round(frames / fps, 2), len(people), licenses, consents, tuple(sorted(states)), character)


def trained_on(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything that the weights of a checkpoint descend from, oldest stage first.

    Teachers stand before the stage that they judged, LoRAs after what they were merged into.

    Returns:
        One entry a stage: `stage`, `step`, and `training_data`, a list of `TrainingData.as_dict()`; None where the checkpoint does not say, as those
        that were written before this was kept, or weights of another library.
    """
    found: list[dict[str, Any]] = []
    for stage in [*lineage.get("ancestors", ()), lineage]:
        own = {"stage": stage.get("stage"), "step": stage.get("step"), "training_data": stage.get("training_data")}
        found += [entry for entry in [*stage.get("teachers", ()), own, *stage.get("added", ())] if entry not in found]
    return found


def total(sets: Iterable[Mapping[str, Any]], right: str) -> dict[str, int]:
    """Clips by licence (`licenses`) or consent (`consents`) over several sets; a set that several stages saw counts once."""
    once: dict[str, Mapping[str, Any]] = {}
    for entry in sets:
        once.setdefault(json.dumps(entry, sort_keys=True), entry)
    counts = Counter[str]()
    for entry in once.values():
        counts.update({str(text): int(number) for text, number in (entry.get(right) or {}).items()})
    return dict(sorted(counts.items()))


def silent(sets: Sequence[TrainingData]) -> str:
    """What is told once when training starts on clips that state no licence or consent; empty where all do."""
    clips = sum(entry.clips for entry in sets)
    missing = {"licence": sum(entry.licenses.get(UNKNOWN, 0) for entry in sets), "consent": sum(entry.consents.get(UNKNOWN, 0) for entry in sets)}
    parts = [f"{number} of {clips} clips state no {word}" for word, number in missing.items() if number]
    if not parts:
        return ""
    return f"data: {' and '.join(parts)}; the checkpoint and the card of an export will say so (flowact-data doctor names the clips)"

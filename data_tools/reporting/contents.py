"""What lies in the shards of a dataset, as numbers, in one pass over the clips' metadata. Nothing is drawn here."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.manifest import Clip, read_clips
from flowact.data.schema import DatasetInfo, from_entries, parse_captions

#: the step that listens for speech
LISTENER = "Voice"


@dataclass
class SplitContents:
    """Numbers of one split; frames at the dataset's rate."""

    clips: int = 0
    excluded: int = 0
    frames: int = 0
    frames_of_identity: Counter[str] = field(default_factory=Counter)
    clips_of_identity: Counter[str] = field(default_factory=Counter)
    frames_of_state: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    consents: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    #: share of each clip in which the person speaks; only of clips that say so
    speech: array[float] = field(default_factory=lambda: array("d"))
    #: offsets of the sound in frames as they were measured, and what is left after the sound was moved
    offsets_before: array[int] = field(default_factory=lambda: array("l"))
    offsets_after: array[int] = field(default_factory=lambda: array("l"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    shards: dict[str, int] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(self.shards.values())


@dataclass(frozen=True)
class Place:
    """Where a clip lies: enough to open it again."""

    split: str
    shard: str
    key: str
    identity: str

    @property
    def where(self) -> str:
        return f"{self.split}/{self.shard}/{self.key}"


@dataclass(frozen=True)
class Contents:
    """All splits of a dataset, and where every clip lies, in the order of a hash of its key: a random order that is always the same."""

    splits: dict[str, SplitContents]
    places: tuple[Place, ...]

    @property
    def clips(self) -> int:
        return sum(split.clips for split in self.splits.values())

    @property
    def frames(self) -> int:
        return sum(split.frames for split in self.splits.values())

    @property
    def people(self) -> set[str]:
        return {name for split in self.splits.values() for name in split.frames_of_identity}

    def total(self, name: str) -> Counter[str]:
        """A counter of all splits together."""
        total = Counter[str]()
        for split in self.splits.values():
            total.update(getattr(split, name))
        return total


def collect(root: Path, info: DatasetInfo) -> Contents:
    """Read the metadata of every clip.

    Raises:
        UserError: a shard without index, or damaged.
    """
    splits: dict[str, SplitContents] = {}
    places = []
    for clip in read_clips(root):
        split = splits.setdefault(clip.split, SplitContents())
        _count(split, clip, info.fps)
        places.append(Place(clip.split, clip.shard, clip.key, str(clip.metadata["identity"])))
    for name, split in splits.items():
        split.shards = {path.name: path.stat().st_size for path in sorted((root / name).glob("*.tar"))}
    return Contents(splits, tuple(sorted(places, key=lambda place: hashlib.sha256(place.key.encode()).digest())))


def _count(split: SplitContents, clip: Clip, fps: int) -> None:
    metadata, identity = clip.metadata, str(clip.metadata["identity"])
    split.clips += 1
    split.excluded += clip.excluded
    split.frames += clip.frames
    split.frames_of_identity[identity] += clip.frames
    split.clips_of_identity[identity] += 1
    split.licenses[clip.source("license")] += 1
    split.consents[clip.source("consent")] += 1
    split.sizes[f"{metadata.get('width', '?')} x {metadata.get('height', '?')}"] += 1
    split.seconds.append(clip.frames / fps)
    for first, end, state in state_runs(clip):
        split.frames_of_state[state] += end - first
    if "speech" in metadata or LISTENER in (metadata.get("scores") or {}):  # metadata holds no empty lists
        spoken = sum(end - start for start, end, *who in from_entries("speech", metadata) if who in ([], ["self"]))
        split.speech.append(min(spoken * fps / clip.frames, 1.0))
    sync = metadata.get("sync") or {}
    if sync.get("offset_frames") is not None:
        split.offsets_before.append(round(sync["offset_frames"]))
        split.offsets_after.append(round(sync["offset_frames"] - (sync.get("shift") or 0)))


def state_runs(clip: Clip) -> Iterator[tuple[int, int, str]]:
    """First frame, end and state of each caption."""
    captions = parse_captions(clip.metadata, clip.where)
    for state, first, end in zip(captions.states, captions.starts, [*captions.starts[1:], clip.frames]):
        yield int(first), int(end), state


def choose(places: Sequence[Place], count: int) -> list[Place]:
    """Clips to show: every split, and as many different people as there can be.

    Args:
        places: in random order.
        count: how many.
    """
    splits = sorted({place.split for place in places})
    chosen: list[Place] = []
    for number, split in enumerate(splits):
        of_split = [place for place in places if place.split == split]
        # the first split (train) takes what the others leave; each other one gets a quarter, at least one
        room = count - len(chosen) if number == len(splits) - 1 else max(count - max(count // 4, 1) * (len(splits) - 1), 1)
        seen: Counter[str] = Counter()
        ranked = []
        for place in of_split:
            ranked.append((seen[place.identity], place))
            seen[place.identity] += 1
        chosen += [place for _, place in sorted(ranked, key=lambda entry: entry[0])[:room]]
    return chosen[:count]


def quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Smallest, middle and largest."""
    array_ = np.asarray(values)
    return float(array_.min()), float(np.median(array_)), float(array_.max())

"""Several data sets as one: each has its weight, and all must mean the same by their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from flowact.data.columns import split_folder
from flowact.data.filters import Condition
from flowact.data.foreign import check_names
from flowact.data.order import Mix, WindowOrder
from flowact.data.pipeline import Window
from flowact.data.shards import Split
from flowact.errors import UserError


@dataclass(frozen=True)
class Source:
    """One data set of several.

    Args:
        folder: folder of shards or brace string, e.g. DIR/shards/train.
        weight: what of an epoch comes from this set, in proportion to the weights of the others. Without any weights each set gives all it has.
        columns: folder with the encoded columns; the default is `columns` beside the split.
        where: conditions that its clips must fulfil, beside those for all sets.
        keys: names of members in shards made elsewhere, our suffix -> theirs, e.g. {mp4: video.mp4, txt: caption.txt}.
    """

    folder: str
    weight: float | None = None
    columns: str | None = None
    where: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in self.where:
            Condition.parse(text)
        check_names(self.keys)


#: what an argument for a split may be: one folder, or several sets
Sources = str | list[str | Source]


def sources_of(spec: Sources | None, name: str) -> tuple[Source, ...]:
    """The data sets that an argument names.

    Args:
        spec: a folder, or a list of folders and sources; None for none.
        name: of the argument, for messages.

    Raises:
        UserError: an empty list, or weights for some of them only.
    """
    if spec is None:
        return ()
    sources = (Source(spec),) if isinstance(spec, str) else tuple(Source(each) if isinstance(each, str) else each for each in spec)
    if not sources:
        raise UserError(f"{name} is an empty list; name a folder of shards, or a list of them")
    bare = [source.folder for source in sources if source.weight is None]
    if bare and len(bare) < len(sources):
        raise UserError(f"{name}: {', '.join(bare)} has no weight and others have; give every set a weight, or none")
    return sources


class Clips(Protocol):
    """Windows of the clips of one split.

    Attributes:
        split: the clips.
        sizes: size of each clip's pictures, in words.
        facts: what data sets that are mixed have in common.
    """

    split: Split

    @property
    def sizes(self) -> Sequence[str]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def read(self, window: Window) -> Any: ...


OpenClips = TypeVar("OpenClips", bound=Clips)


class MixedClips(Generic[OpenClips]):
    """Clips of one or several sets under common numbers, set after set.

    Args:
        parts: clips of each set.
        weights: of each set; None for as much as it has.

    Raises:
        UserError: sets that do not mean the same.
    """

    def __init__(self, parts: Sequence[OpenClips], weights: Sequence[float] | None = None) -> None:
        self.parts = tuple(parts)
        check_agreement({str(part.split.folder): part.facts for part in parts})
        counts = [len(part.split) for part in parts]
        self._first = np.cumsum([0, *counts])
        first_shard = np.cumsum([0, *(len(part.split.shards) for part in parts)])
        self.shard_of_clip = np.asarray(
            [first + clip.shard for part, first in zip(parts, first_shard.tolist()) for clip in part.split.clips], dtype=np.int64
        )
        sizes = [size for part in parts for size in part.sizes]
        buckets = sorted(set(sizes))
        self.mix = Mix(
            np.repeat(np.arange(len(counts)), counts),
            np.asarray([buckets.index(size) for size in sizes], dtype=np.int64),
            _names([part.split for part in parts]),
            tuple(buckets),
            None if weights is None else tuple(weights),
        )

    def __len__(self) -> int:
        return len(self.shard_of_clip)

    def read(self, window: Window) -> Any:
        """The window from the set that its clip belongs to."""
        number = int(np.searchsorted(self._first, window.clip, side="right")) - 1
        return self.parts[number].read(Window(window.clip - int(self._first[number]), window.visit))


def check_agreement(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse data sets whose features and rates do not mean the same.

    Args:
        facts: folder -> name -> value; a name that one of two sets lacks is not compared.

    Raises:
        UserError: names the sets and everything in which they differ.
    """
    (first, ours), *others = facts.items()
    for folder, theirs in others:
        differing = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        if differing:
            lines = "; ".join(f"{name} is {_plain(theirs[name])}, there it is {_plain(ours[name])}" for name in differing)
            encoders = all(name.endswith("column") for name in differing)
            fix = "encode both with one encoder" if encoders else "bring both to one form (flowact-data build)"
            raise UserError(f"{folder} can not be mixed with {first}: {lines}; {fix}")


def told(order: WindowOrder, step_samples: int) -> str:
    """What is said once of a mix: what each set and each size of pictures gives to an epoch."""
    mix, total, lines = order.mix, order.num_samples, []
    if len(mix.sets) > 1:
        own = np.bincount(mix.set_of_clip, minlength=len(mix.sets)) * order.windows_per_clip
        for name, given, has in zip(mix.sets, order.set_windows.tolist(), own.tolist()):
            repeats = ": it is smaller than its weight asks for, so its clips come more often than others" if given > has else ""
            lines.append(f"{name}: {given} of {total} windows of an epoch ({given / total:.1%}), {given / has:.2f} times its own {has}{repeats}")
    if len(mix.buckets) > 1:
        for name, given in zip(mix.buckets, order.bucket_windows.tolist()):
            lines.append(f"{name}: {given} windows, {given // step_samples} steps of {step_samples} an epoch")
    return "\n".join(f"data: {line}" for line in lines)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _names(splits: Sequence[Split]) -> tuple[str, ...]:
    """A short name for each set: that of its dataset.yaml or folder, its whole folder where two have the same."""
    names = [split.info.name if split.info else split_folder(str(split.folder)).parent.name or str(split.folder) for split in splits]
    return tuple(name if names.count(name) == 1 else str(split.folder) for name, split in zip(names, splits))

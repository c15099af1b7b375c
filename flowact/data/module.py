"""What data modules of windows share: splits that are opened when they are needed, and a loader for each."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from flowact.data.filters import Condition, filter_split
from flowact.data.foreign import check_names
from flowact.data.mixing import MixedClips, OpenClips, Source, Sources, sources_of, told
from flowact.data.pipeline import ShardLoader, WindowSource
from flowact.data.rights import TrainingData, count_rights, silent
from flowact.data.shards import Split, open_split
from flowact.errors import UserError

# Lightning can not know that the length counts batches of the process, workers included
warnings.filterwarnings("ignore", message=".*IterableDataset. has `__len__` defined.*")


class WindowDataModule(pl.LightningDataModule, ABC, Generic[OpenClips]):
    """What data modules share: two splits, opened when they are needed, and a loader for each. Their arguments are the subclass's.

    Attributes:
        train: folder of the first training set.
        val: folder of the first validation set; None for no validation.
        sources: data sets of each split.
    """

    batch_size: int
    num_workers: int
    seed: int
    windows_per_clip: int
    shards_in_flight: int
    limit_clips: int | None
    _collate: Callable[[list[Any]], Any]

    def __init__(self, train: Sources, val: Sources | None, where: Sequence[str], keys: Mapping[str, str] | None) -> None:
        super().__init__()
        self.sources = {"train": sources_of(train, "train"), "val": sources_of(val, "val")}
        self.train = self.sources["train"][0].folder
        self.val = self.sources["val"][0].folder if self.sources["val"] else None
        self.where = {"train": [Condition.parse(text) for text in where], "val": []}  # validation is the same whatever is trained on
        self.keys = check_names(keys or {})
        self._clips: dict[str, MixedClips[OpenClips]] = {}
        self._training: ShardLoader | None = None
        self._trained_on: list[TrainingData] | None = None

    @abstractmethod
    def _open(self, name: str, source: Source, split: Split) -> OpenClips:
        """Check the clips of a set that the split `name` takes."""

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a trainer's stage needs."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("val",)}.get(stage or "", ("train", "val"))
        for name in wanted:
            if self.sources[name] and name not in self._clips:
                weights = [source.weight for source in self.sources[name] if source.weight is not None]
                parts = [self._open(name, source, self._chosen(name, source)) for source in self.sources[name]]
                self._clips[name] = MixedClips(parts, weights or None)

    def _chosen(self, name: str, source: Source) -> Split:
        """The clips of a set that fulfil all conditions, the first ones where they are limited."""
        whole = open_split(source.folder, {**self.keys, **source.keys})
        split, removed = filter_split(whole, [*self.where[name], *map(Condition.parse, source.where)])
        if removed:
            rank_zero_info(f"data: {split.folder}: {len(split)} of {len(whole)} clips fulfil all conditions; {'; '.join(map(str, removed))}")
        return first_clips(split, self.limit_clips)

    @property
    def training_data(self) -> list[TrainingData]:
        """Licence and consent of the clips of each training set, from their metadata; empty until the sets are opened."""
        if self._trained_on is None and "train" in self._clips:
            self._trained_on = [count_rights(part.split) for part in self._clips["train"].parts]
            if unstated := silent(self._trained_on):
                rank_zero_info(unstated)
        return self._trained_on or []

    @property
    def _rights(self) -> dict[str, Any]:
        """`training_data` as a lineage has it; nothing until the sets are opened."""
        return {"training_data": [entry.as_dict() for entry in self.training_data]} if "train" in self._clips else {}

    def train_dataloader(self) -> ShardLoader:
        """Shuffled windows of the training sets, `windows_per_clip` a clip and epoch."""
        self.setup("fit")
        self._training = self.loader("train", *_place(self.trainer))
        text = told(self._training.source.order, self._training.source.step_samples)
        if text:
            rank_zero_info(text)
        return self._training

    def val_dataloader(self) -> ShardLoader | list[Any]:
        """The same windows of the validation sets every time."""
        if self.val is None:
            return []
        self.setup("validate")
        return self.loader("val", *_place(self.trainer))

    def loader(self, split: Literal["train", "val"], rank: int = 0, world_size: int = 1) -> ShardLoader:
        """The loader of one process, for use without a Trainer too (after `setup`)."""
        clips = self._clips[split]
        batch_size = self.batch_size
        if split == "val":  # a small val split is worth more than a full batch
            fewest = min(np.bincount(clips.mix.bucket_of_clip).tolist()) * self.windows_per_clip
            batch_size = min(batch_size, max(fewest // world_size, 1))
        source = WindowSource(
            clips.shard_of_clip,
            windows_per_clip=self.windows_per_clip,
            batch_size=batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            shuffle=split == "train",
            shards_in_flight=self.shards_in_flight,
            mix=clips.mix,
        )
        return ShardLoader(source, clips.read, self._collate, self.num_workers)

    def counters(self) -> dict[str, float]:
        """How far training has come in each of several data sets: windows taken, and how often that is all of its own. Empty with one set."""
        if self._training is None or len(self._clips["train"].mix.sets) == 1:
            return {}
        state, clips = self._training.state_dict(), self._clips["train"]
        own = np.bincount(clips.mix.set_of_clip) * self.windows_per_clip
        figures: dict[str, float] = {}
        for name, taken, has in zip(clips.mix.sets, self._training.source.seen(state["epoch"], state["position"]).tolist(), own.tolist()):
            figures |= {f"data/{name}/windows": float(taken), f"data/{name}/epochs": taken / has}
        return figures


def first_clips(split: Split, limit: int | None) -> Split:
    """The split with its first clips alone; all of them without a limit."""
    if limit is None:
        return split
    if limit < 1:
        raise UserError(f"limit_clips is {limit}; it is at least 1, or null for all clips")
    return split.only(split.clips[:limit])


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

"""What data modules of windows share: splits that are opened when they are needed, and a loader for each."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar

import lightning.pytorch as pl

from flowact.data.pipeline import ShardLoader, Window, WindowSource
from flowact.data.shards import Split
from flowact.errors import UserError

# Lightning can not know that the length counts batches of the process, workers included
warnings.filterwarnings("ignore", message=".*IterableDataset. has `__len__` defined.*")


class Clips(Protocol):
    """Windows of the clips of one split."""

    split: Split

    def read(self, window: Window) -> Any: ...


OpenClips = TypeVar("OpenClips", bound=Clips)


class WindowDataModule(pl.LightningDataModule, ABC, Generic[OpenClips]):
    """What data modules share: two splits, opened when they are needed, and a loader for each. Their arguments are the subclass's."""

    train: str
    val: str | None
    batch_size: int
    num_workers: int
    seed: int
    windows_per_clip: int
    shards_in_flight: int
    _collate: Callable[[list[Any]], Any]

    def __init__(self) -> None:
        super().__init__()
        self._clips: dict[str, OpenClips] = {}

    @abstractmethod
    def _open(self, name: str, spec: str) -> OpenClips:
        """Open the split `name` and check its clips."""

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a trainer's stage needs."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("val",)}.get(stage or "", ("train", "val"))
        for name in wanted:
            spec = {"train": self.train, "val": self.val}[name]
            if spec is not None and name not in self._clips:
                self._clips[name] = self._open(name, spec)

    def train_dataloader(self) -> ShardLoader:
        """Shuffled windows of the train split, `windows_per_clip` a clip and epoch."""
        self.setup("fit")
        return self.loader("train", *_place(self.trainer))

    def val_dataloader(self) -> ShardLoader | list[Any]:
        """The same windows of the val split every time."""
        if self.val is None:
            return []
        self.setup("validate")
        return self.loader("val", *_place(self.trainer))

    def loader(self, split: Literal["train", "val"], rank: int = 0, world_size: int = 1) -> ShardLoader:
        """The loader of one process, for use without a Trainer too (after `setup`)."""
        clips = self._clips[split]
        return _loader(clips.split, clips.read, self._collate, self, split, rank, world_size)


def _loader(
    clips: Split,
    read: Callable[[Window], Any],
    collate: Callable[[list[Any]], Any],
    module: WindowDataModule[Any],
    split: str,
    rank: int,
    world_size: int,
) -> ShardLoader:
    batch_size = module.batch_size
    if split == "val":  # a small val split is worth more than a full batch
        batch_size = min(batch_size, max(len(clips) * module.windows_per_clip // world_size, 1))
    source = WindowSource(
        [clip.shard for clip in clips.clips],
        windows_per_clip=module.windows_per_clip,
        batch_size=batch_size,
        seed=module.seed,
        rank=rank,
        world_size=world_size,
        shuffle=split == "train",
        shards_in_flight=module.shards_in_flight,
    )
    return ShardLoader(source, read, collate, module.num_workers)


def first_clips(split: Split, limit: int | None) -> Split:
    """The split with its first clips alone; all of them without a limit."""
    if limit is None:
        return split
    if limit < 1:
        raise UserError(f"limit_clips is {limit}; it is at least 1, or null for all clips")
    return split.only(split.clips[:limit])


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

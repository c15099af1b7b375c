"""Clips into shards. The shards are a function of the clips and the layout alone; what is on disk already only spares work.

Clips of a batch (those that one build added) never share a shard with another batch, so a later build leaves earlier shards as they are. Inside
a batch clips are ordered by the hash of their keys. Shards that no longer fit are set aside in `work/previous`, where clips that are still wanted
are taken from, byte by byte, until the new shards are complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data_tools.building.ledger import PREVIOUS_FOLDER, WORK_FOLDER
from data_tools.building.making import Item, Made
from data_tools.workplace import remove_unfinished
from flowact.data.schema import COLUMNS_FOLDER, write_atomically
from flowact.data.shards import ShardError, ShardReader, ShardWriter, decode, encode_json, sample_bytes


@dataclass(frozen=True)
class Wanted:
    """A clip that belongs into the dataset.

    Attributes:
        item: how to make it.
        made: hash of all that decides its bytes.
        batch: of its recording.
    """

    item: Item
    made: str
    batch: int

    @property
    def key(self) -> str:
        return self.item.record.key


@dataclass(frozen=True)
class Layout:
    """How clips are spread over shards."""

    max_bytes: int
    max_clips: int | None
    min_shards: int


def in_order(clips: Sequence[Wanted]) -> list[Wanted]:
    """Batch after batch, inside a batch by the hash of the key: neighbours in a shard come from everywhere."""
    return sorted(clips, key=lambda clip: (clip.batch, hashlib.sha256(clip.key.encode()).digest()))


class Packer:
    """Packs the splits of one dataset.

    Args:
        out: folder of the dataset.
        layout: of the shards.
        make: makes clips, results in the order of its items; called with those that no shard holds.
    """

    def __init__(self, out: Path, layout: Layout, make: Callable[[Sequence[Item]], Iterator[Made]]) -> None:
        self.out = out
        self.layout = layout
        self.make = make
        self._previous = out / WORK_FOLDER / PREVIOUS_FOLDER

    def missing(self, split: str, clips: Sequence[Wanted]) -> list[Wanted]:
        """Those of `clips` (in order) that are in no shard on disk, so would be made."""
        held = {made for path in (self.out / split).glob("*.tar") for made in _held(path)} | set(self._set_aside())
        return [clip for clip in clips if clip.made not in held]

    def pack(self, split: str, clips: Sequence[Wanted], failed: Callable[[Wanted, str], None]) -> Iterator[Wanted]:
        """Bring a split's folder to hold exactly these clips, in this order.

        Yields:
            each clip as it becomes part of a shard or turns out to be impossible (then `failed` was called with the reason).
        """
        folder = self.out / split
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        for index in folder.glob("*.json"):
            if not index.with_suffix(".tar").is_file():
                index.unlink()  # its tar was set aside before a build was killed
        finished, position = self._finished(folder, clips)
        yield from clips[:position]
        rest = clips[position:]
        if not rest:
            self.put_aside(folder, finished)
            return
        # the last finished shard is right only if the next clip would not have gone into it as well
        cached = self._set_aside()
        fresh = self._samples(rest, cached, split)
        head = next(fresh)
        while head[1].members is None:
            failed(head[0], head[1].reason)
            yield head[0]
            following = next(fresh, None)
            if following is None:
                self.put_aside(folder, finished)
                return
            head = following
        per_shard = self._per_shard(clips)
        batch = head[0].batch
        if finished and clips[position - 1].batch == batch and self._fits(folder, finished - 1, head[1], per_shard[batch]):
            last = ShardReader(self._path(folder, finished - 1))
            finished -= 1
            redone = clips[position - len(last.entries) : position]
        else:
            redone = []
        self.put_aside(folder, finished)
        again = self._samples(redone, self._set_aside(), split) if redone else iter(())
        done = {clip.key for clip in redone}
        samples = _chain(again, head, fresh)
        number = finished
        for batch, group in groupby(samples, key=lambda pair: pair[0].batch):
            with ShardWriter(folder, max_bytes=self.layout.max_bytes, max_samples=per_shard[batch], first=number) as writer:
                for wanted, made in group:
                    if made.members is None:
                        failed(wanted, made.reason)
                    else:
                        writer.write(wanted.key, made.members, made.frames)
                    if wanted.key not in done:
                        yield wanted
                writer.close()
                number = writer.number

    def finish(self) -> None:
        """All splits are packed: drop what was set aside."""
        shutil.rmtree(self._previous, ignore_errors=True)

    # --- shards on disk -----------------------------------------------------------------------------------------------------------------------------

    def _finished(self, folder: Path, clips: Sequence[Wanted]) -> tuple[int, int]:
        """Shards at the beginning that hold exactly the clips wanted there, and how many clips these are."""
        position, number = 0, 0
        while (path := self._path(folder, number)).is_file():
            held = _held(path)
            expected = clips[position : position + len(held)]
            if not held or held != [clip.made for clip in expected] or len({clip.batch for clip in expected}) > 1:
                break
            position, number = position + len(held), number + 1
        return number, position

    def _fits(self, folder: Path, number: int, made: Made, max_clips: int | None) -> bool:
        """Whether a shard that was closed has room for one sample more."""
        index = ShardReader(self._path(folder, number)).index
        assert made.members is not None
        size = sample_bytes(map(len, made.members.values()))
        return index.num_bytes + size <= self.layout.max_bytes and len(index.samples) != max_clips

    def _per_shard(self, clips: Sequence[Wanted]) -> dict[int, int | None]:
        counts: dict[int, int] = {}
        for clip in clips:
            counts[clip.batch] = counts.get(clip.batch, 0) + 1
        bound = self.layout.max_clips
        if self.layout.min_shards == 1:
            return dict.fromkeys(counts, bound)
        spread = {batch: max(count // self.layout.min_shards, 1) for batch, count in counts.items()}
        return {batch: min(count, bound) if bound else count for batch, count in spread.items()}

    def put_aside(self, folder: Path, first: int = 0) -> None:
        """Move shards from a number on out of the dataset, so that at every moment each clip lies whole in one of the two places."""
        target = self._previous / folder.name
        for path in sorted(folder.glob("*.tar"), reverse=True):
            if int(path.stem) >= first:
                for column in self.out.glob(f"{COLUMNS_FOLDER}/*/{folder.name}/{path.stem}.json"):
                    column.unlink()  # its features are of other clips from now on
                    column.with_suffix(".tar").unlink(missing_ok=True)
                index = path.with_suffix(".json").read_bytes()
                target.mkdir(parents=True, exist_ok=True)
                name = f"{path.stem}-{hashlib.sha256(index).hexdigest()[:12]}"
                write_atomically(target / f"{name}.json", index)
                os.replace(path, target / f"{name}.tar")
                path.with_suffix(".json").unlink()

    def _set_aside(self) -> dict[str, tuple[ShardReader, int]]:
        """Made hash -> where the sample lies among the shards that were set aside; a damaged shard holds nothing that can be used again."""
        found: dict[str, tuple[ShardReader, int]] = {}
        for path in sorted(self._previous.glob("*/*.tar")):
            try:
                reader = ShardReader(path)
                reader.verify()
            except ShardError:
                continue
            found.update({made: (reader, number) for number, made in enumerate(_held(path))})
        return found

    def _path(self, folder: Path, number: int) -> Path:
        path = folder / f"{number:06d}.tar"
        return path if path.with_suffix(".json").is_file() else path.with_suffix(".missing")

    def _samples(
        self, clips: Sequence[Wanted], cached: Mapping[str, tuple[ShardReader, int]], split: str
    ) -> Iterator[tuple[Wanted, Made]]:
        """Samples in order: taken from shards that were set aside where they hold them, else made."""
        fresh = self.make([clip.item for clip in clips if clip.made not in cached])
        for clip in clips:
            if clip.made not in cached:
                yield clip, next(fresh)
                continue
            reader, number = cached[clip.made]
            entry = reader.entries[number]
            members = {suffix: reader.read(number, suffix) for suffix in entry.members}
            metadata = {**decode("json", members["json"], clip.key), "split": split}
            yield clip, Made(clip.key, {**members, "json": encode_json(metadata)}, entry.frames)


def _chain(
    again: Iterator[tuple[Wanted, Made]], head: tuple[Wanted, Made], rest: Iterator[tuple[Wanted, Made]]
) -> Iterator[tuple[Wanted, Made]]:
    yield from again
    yield head
    yield from rest


def _held(path: Path) -> list[str]:
    """Made hash of every sample of a shard; an empty text for one that no build made, nothing for a shard that is damaged."""
    hashes = []
    try:
        reader = ShardReader(path)
        for number, entry in enumerate(reader.entries):
            metadata = decode("json", reader.read(number, "json"), entry.key) if "json" in entry.members else {}
            hashes.append((metadata.get("tool") or {}).get("plan") or "")
    except ShardError:
        return []
    return hashes

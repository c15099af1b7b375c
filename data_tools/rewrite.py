"""Changing a dataset that is there: new shards are written aside and checked, then swapped in; killed anywhere, nothing is lost.

A change has one moment at which it counts: when its `commit.json` is written. A run that was stopped before it leaves the dataset as it was and what
it wrote is dropped; one that was stopped after it is finished by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.card import CARD_FILE, is_ours, write_card
from data_tools.manifest import MANIFEST_FILE, SHARD_LIST, STATS_FILE, import_pyarrow, write_manifest, write_shard_lists, write_stats
from data_tools.workplace import check_room, progress
from flowact.data.schema import (
    COLUMNS_FOLDER,
    DATASET_FILE,
    DatasetInfo,
    read_dataset,
    split_column_folder_name,
    sync_folder,
    write_atomically,
    write_dataset,
)
from flowact.data.shards import ShardReader, ShardWriter, sample_bytes, split_folders
from flowact.errors import UserError

CHANGE_FOLDER = Path("work", "change")
CHANGES_FILE = Path("work", "changes.json")
COMMIT_FILE = "commit.json"
_UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Taken:
    """A sample of a new shard: one of an old shard, with changes.

    Attributes:
        path: tar that holds it.
        number: of the sample in it.
        key: in the new shard.
        changes: members that are not taken as they are.
    """

    path: Path
    number: int
    key: str
    changes: Mapping[str, bytes] = field(default_factory=dict)

    def members(self, shard: ShardReader) -> dict[str, bytes]:
        """Checked bytes of all members."""
        kept = set(shard.entries[self.number].members) - set(self.changes)
        return {**{suffix: shard.read(self.number, suffix) for suffix in kept}, **self.changes}


@dataclass(frozen=True)
class Rewriting:
    """What changes in a dataset.

    Attributes:
        request: plain values that say what was asked for; a stopped run is recognised by it.
        shards: 'train/000003' -> samples that it holds from now on; shards that are not named stay as they are.
        removed: shards that are no more, and are not in `shards`.
        stale: 'text' -> keys whose entries in that column no longer describe the clip; their column shards are dropped.
    """

    request: dict[str, Any]
    shards: Mapping[str, Sequence[Taken]]
    removed: Sequence[str] = ()
    stale: Mapping[str, frozenset[str]] = field(default_factory=dict)


def bytes_of(shard: ShardReader, taken: Taken) -> int:
    """What a sample takes in a tar."""
    sizes = (len(taken.changes[name]) if name in taken.changes else place[1] for name, place in shard.entries[taken.number].members.items())
    return sample_bytes(sizes)


def write_shard(folder: Path, number: int, samples: Sequence[Taken], drop: Sequence[str] = ()) -> Path:
    """Write a shard of a given number, whole or not at all, and check it; members in `drop` are left out."""
    readers: dict[Path, ShardReader] = {}
    with ShardWriter(folder, max_bytes=_UNBOUNDED, first=number) as writer:
        for taken in samples:
            if taken.path not in readers:
                readers[taken.path] = ShardReader(taken.path)
            shard = readers[taken.path]
            members = {suffix: data for suffix, data in taken.members(shard).items() if suffix not in drop}
            writer.write(taken.key, members, shard.entries[taken.number].frames)
    path = folder / f"{number:06d}.tar"
    ShardReader(path).verify()
    return path


def finish_stopped_change(root: Path) -> dict[str, Any] | None:
    """Finish or undo what a stopped run left; call it first, with the dataset locked.

    Returns:
        the request of the change that was finished, None when there was none.
    """
    folder = root / CHANGE_FOLDER
    commit = folder / COMMIT_FILE
    request = None
    if commit.is_file():
        request = json.loads(commit.read_bytes())["request"]
        _apply(root)
    elif folder.exists():
        shutil.rmtree(folder)
    return request


def encode_again(column: str, root: Path) -> str:
    """What to tell about a column that misses shards."""
    kind = column.partition("-")[0]
    return f"column {column} misses shards now; finish it with the command that made it: flowact-data encode {kind} {root} ..."


def is_stopped(root: Path) -> bool:
    """Whether a change that counts was stopped before it was finished."""
    return (root / CHANGE_FOLDER / COMMIT_FILE).is_file()


def rewrite(root: Path, change: Rewriting) -> list[str]:
    """Carry out a change; the dataset must be locked and no change stopped.

    Returns:
        names of columns that miss shards from now on, so must be encoded again in part.

    Raises:
        UserError: no room, a damaged shard or column, nothing left, or a record that can not be made again.
    """
    if (root / MANIFEST_FILE).is_file():
        import_pyarrow()
    if change.shards:
        readers = _readers(change)
        size = sum(bytes_of(readers[taken.path], taken) for samples in change.shards.values() for taken in samples)
        check_room(root, 1.05 * size, f"writing {len(change.shards)} shards anew")
    info = read_dataset(root)
    folder = root / CHANGE_FOLDER
    new = folder / "new"
    new.mkdir(parents=True)
    written = [f"{name}{suffix}" for name in sorted(change.shards) for suffix in (".tar", ".json")]
    removed = [f"{name}{suffix}" for name in sorted(change.removed) for suffix in (".json", ".tar")]
    for name, samples in progress(sorted(change.shards.items()), len(change.shards), "write", "shards"):
        split, _, stem = name.partition("/")
        write_shard(new / split, int(stem), samples)
    incomplete = []
    for column in _columns(root):
        made, dropped, whole = _rewrite_column(root, new, column, change)
        written, removed = written + made, removed + dropped
        if not whole:
            incomplete.append(column)
    info = _describe(root, info, change, incomplete)
    write_dataset(new, info)
    changes = json.loads((root / CHANGES_FILE).read_bytes()) if (root / CHANGES_FILE).is_file() else []
    (new / CHANGES_FILE).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(new / CHANGES_FILE, (json.dumps([*changes, change.request], indent=1, ensure_ascii=False) + "\n").encode())
    commit = {"request": change.request, "replace": [*written, CHANGES_FILE.as_posix(), DATASET_FILE], "remove": removed}
    write_atomically(folder / COMMIT_FILE, (json.dumps(commit, indent=1, ensure_ascii=False) + "\n").encode())
    _apply(root)
    return incomplete


def refresh_records(root: Path) -> None:
    """Write the records again that lie beside the shards already."""
    if (root / MANIFEST_FILE).is_file():
        write_manifest(root)
    if (root / STATS_FILE).is_file():
        write_stats(root)
    lists = sorted(root.glob(SHARD_LIST.format(split="*")))
    if lists:
        kept = write_shard_lists(root)
        for path in set(lists) - set(kept):
            path.unlink()
    if is_ours(root / CARD_FILE):
        write_card(root)


def _apply(root: Path) -> None:
    """Swap in what is staged. May be called again after it was stopped anywhere."""
    folder = root / CHANGE_FOLDER
    commit = json.loads((folder / COMMIT_FILE).read_bytes())
    touched = set()
    for name in commit["replace"]:
        source, target = folder / "new" / name, root / name
        if source.is_file():  # else it was moved before the stop
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        touched.add(target.parent)
    for name in commit["remove"]:
        (root / name).unlink(missing_ok=True)
        touched.add((root / name).parent)
    for parent in sorted(touched):
        if parent.is_dir():
            sync_folder(parent)
            if not any(parent.iterdir()):
                parent.rmdir()  # a split without clips is none
    refresh_records(root)
    shutil.rmtree(folder / "new", ignore_errors=True)
    (folder / COMMIT_FILE).unlink()  # last: until then the next run knows what was asked for
    folder.rmdir()


def _readers(change: Rewriting) -> dict[Path, ShardReader]:
    return {path: ShardReader(path) for path in sorted({taken.path for samples in change.shards.values() for taken in samples})}


def _columns(root: Path) -> list[str]:
    folder = root / COLUMNS_FOLDER
    return sorted(path.name for path in folder.iterdir() if split_column_folder_name(path.name)) if folder.is_dir() else []


def _rewrite_column(root: Path, new: Path, column: str, change: Rewriting) -> tuple[list[str], list[str], bool]:
    """(files written, files dropped, whether no shard is missing) of a column under a change."""
    folder = root / COLUMNS_FOLDER / column
    stale = change.stale.get(column.partition("-")[0], frozenset())
    made: list[str] = []
    dropped: list[str] = []
    whole = True
    for name, samples in sorted(change.shards.items()):
        split, _, stem = name.partition("/")
        taken = [replace(sample, path=folder / sample.path.parent.name / sample.path.name, changes={}) for sample in samples]
        target = f"{COLUMNS_FOLDER}/{column}/{name}"
        available = all(path.with_suffix(".json").is_file() for path in {sample.path for sample in taken})
        if not available or any(sample.key in stale for sample in samples):
            dropped += [f"{target}.json", f"{target}.tar"]
            whole = False
            continue
        _check_keys(taken, samples)
        write_shard(new / COLUMNS_FOLDER / column / split, int(stem), taken)
        made += [f"{target}.tar", f"{target}.json"]
    dropped += [f"{COLUMNS_FOLDER}/{column}/{name}{suffix}" for name in sorted(change.removed) for suffix in (".json", ".tar")]
    present = {f"{path.parent.name}/{path.stem}" for split in split_folders(root) for path in split.glob("*.tar")}
    untouched = present - {*change.shards, *change.removed}
    return made, dropped, whole and all((folder / f"{name}.json").is_file() for name in untouched)


def _check_keys(taken: Sequence[Taken], samples: Sequence[Taken]) -> None:
    for column_path, shard_path in {(a.path, b.path) for a, b in zip(taken, samples)}:
        if ShardReader(column_path).index.keys != ShardReader(shard_path).index.keys:
            column = column_path.parents[1]
            raise UserError(f"column shard {column_path} holds other clips than {shard_path}; delete the column {column} and encode again")


def _describe(root: Path, info: DatasetInfo, change: Rewriting, incomplete: Sequence[str]) -> DatasetInfo:
    """dataset.yaml after a change."""
    counts: dict[str, dict[str, int]] = {}
    touched = {*change.shards, *change.removed}
    readers = _readers(change)
    sizes = {name: [readers[taken.path].entries[taken.number].frames for taken in samples] for name, samples in change.shards.items()}
    excluded = set(info.exclude)
    for folder in split_folders(root):
        for path in sorted(folder.glob("*.tar")):
            name = f"{folder.name}/{path.stem}"
            if name not in touched:
                try:
                    sizes[name] = [entry.frames for entry in ShardReader(path).entries]
                except UserError:
                    if name not in excluded:
                        raise
                    sizes[name] = []  # excluded because it is damaged: stays as it is
    for name, frames in sorted(sizes.items()):
        split = counts.setdefault(name.partition("/")[0], {"shards": 0, "samples": 0, "frames": 0})
        split["shards"] += 1
        split["samples"] += len(frames)
        split["frames"] += sum(frames)
    if not counts.get("train"):
        raise UserError(f"{root}: nothing would be left to train on; delete the folder if that is meant")
    columns = tuple(name for name in info.columns if name not in incomplete)
    return replace(info, splits=counts, columns=columns, exclude=moved_exclusions(info.exclude, change))


def moved_exclusions(exclude: Sequence[str], change: Rewriting) -> tuple[str, ...]:
    """`exclude` after a change: what names an untouched shard stays, clips that were moved are named where they are now."""
    touched, readers = {*change.shards, *change.removed}, _readers(change)
    whole = set(exclude)
    kept = [entry for entry in exclude if "/".join(entry.split("/")[:2]) not in touched]
    for name, samples in sorted(change.shards.items()):
        hit = []
        for taken in samples:
            old = f"{taken.path.parent.name}/{taken.path.stem}"
            old_key = readers[taken.path].entries[taken.number].key
            if old in whole or f"{old}/{old_key}" in whole:
                hit.append(taken.key)
        kept += [name] if hit and len(hit) == len(samples) else [f"{name}/{key}" for key in hit]
    return tuple(kept)

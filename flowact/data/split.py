"""A split: the clips of a folder of shards, without those that dataset.yaml excludes."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowact.data.foreign import RenamedShard, check_names, completed
from flowact.data.members import ShardError, decode
from flowact.data.reader import Shard, ShardReader, open_shard
from flowact.data.schema import COLUMNS_FOLDER, DATASET_FILE, DatasetInfo, check_metadata, read_dataset
from flowact.errors import UserError

#: where a change of a dataset is noted while its shards are swapped in
CHANGE_FOLDER = Path("work", "change")
COMMIT_FILE = "commit.json"


@dataclass(frozen=True)
class ClipRef:
    """A clip of a split: shard and sample by number, its key and its pixel frames."""

    shard: int
    sample: int
    key: str
    frames: int


class Split:
    """Clips of one split, in shard order.

    Args:
        folder: DIR/train.
        shards: readers, in order.
        clips: what can be read.
        info: the dataset, None where there is no dataset.yaml (foreign shards).

    Attributes:
        root: the dataset's folder.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], clips: Sequence[ClipRef], info: DatasetInfo | None) -> None:
        self.folder = folder
        self.root = folder.parent
        self.name = folder.name
        self.shards = list(shards)
        self.clips = list(clips)
        self.info = info

    def __len__(self) -> int:
        return len(self.clips)

    def only(self, clips: Sequence[ClipRef]) -> Split:
        """The same split with these clips alone."""
        chosen = copy.copy(self)
        chosen.clips = list(clips)
        return chosen

    @property
    def indexed(self) -> bool:
        return all(isinstance(getattr(shard, "shard", shard), ShardReader) for shard in self.shards)

    def where(self, clip: ClipRef) -> str:
        """'train/000003/KEY': how a clip is named in messages and in `exclude`."""
        return f"{self.name}/{self.shards[clip.shard].path.stem}/{clip.key}"

    def listed(self, clips: Sequence[ClipRef]) -> str:
        """The first few of these clips, as they are written into `exclude`."""
        return ", ".join(f"'{self.where(clip)}'" for clip in clips[:5]) + (", ..." if len(clips) > 5 else "")

    def read(self, clip: ClipRef, suffix: str) -> bytes:
        """Checked bytes of a member."""
        return self.shards[clip.shard].read(clip.sample, suffix)

    def decode(self, clip: ClipRef, suffix: str) -> Any:
        """A member as JSON value, text, array, or bytes."""
        return decode(suffix, self.read(clip, suffix), self.where(clip))

    def members(self, clip: ClipRef) -> Collection[str]:
        """Suffixes of a clip's members."""
        return self.shards[clip.shard].entries[clip.sample].members

    def metadata(self, clip: ClipRef) -> tuple[dict[str, Any], list[str]]:
        """A clip's KEY.json, and the names of what was added because shards that were made elsewhere do not state it.

        Raises:
            UserError: missing or wrong entries.
        """
        members, where, added = self.members(clip), self.where(clip), list[str]()
        metadata = self.decode(clip, "json") if "json" in members or self.info else None
        if self.info is None:
            metadata, added = completed(metadata, clip.key, clip.frames, self.decode(clip, "txt") if "txt" in members else "")
        return check_metadata(metadata, where), added

    def column(self, folder: Path) -> Split:
        """The same clips in a column: same shard numbers, keys and order.

        Raises:
            UserError: shards missing, or keys in another order: the column was made from other shards.
        """
        shards: list[Shard] = []
        for shard in self.shards:
            path = Path(folder) / self.name / shard.path.name
            if not path.with_suffix(".json").is_file():
                raise UserError(f"column {Path(folder).name} has no {self.name}/{path.name}; finish it with: flowact-data encode all {self.root}")
            reader = ShardReader(path)
            if reader.index.keys != tuple(entry.key for entry in shard.entries):
                raise UserError(
                    f"column shard {path} holds other clips than {shard.path}; the shards were repacked: delete the column and encode again"
                )
            shards.append(reader)
        return Split(Path(folder) / self.name, shards, self.clips, self.info)


def open_split(spec: str | Path, keys: Mapping[str, str] | None = None) -> Split:
    """The clips of a split.

    Args:
        spec: a folder with shards ('DIR/shards/train') or a brace string ('DIR/shards/train/{000000..000003}.tar').
        keys: our suffix -> that of shards made elsewhere.

    Raises:
        UserError: nothing there, a remote address, damaged shards, or a change of the dataset that was stopped halfway.
    """
    _check_whole((Path(spec).parent if str(spec).endswith(".tar") else Path(spec)).parent)
    paths, folder = _shard_paths(str(spec))
    info = read_dataset(folder.parent) if (folder.parent / DATASET_FILE).is_file() else None
    expected = info.splits.get(folder.name, {}).get("shards") if info else None
    if Path(spec) == folder and expected is not None and expected != len(paths):
        raise ShardError(
            f"{folder} holds {len(paths)} shards, {DATASET_FILE} says {expected}; copy the missing ones again, or correct {DATASET_FILE}"
        )
    exclude = set(info.exclude) if info else set()
    paths = [path for path in paths if f"{folder.name}/{path.stem}" not in exclude]  # not even opened, they may be damaged
    unindexed = [path for path in paths if not path.with_suffix(".json").is_file()]
    if unindexed:
        warnings.warn(
            f"{len(unindexed)} of {len(paths)} shards in {folder} have no index: they are read from front to back into memory, damage goes unseen. "
            f"Make indexes with: flowact-data index {folder}",
            stacklevel=2,
        )
    shards: list[Shard] = [open_shard(path) for path in paths]
    if keys:
        names = check_names(keys)
        shards = [RenamedShard(shard, names) for shard in shards]
    clips = [
        ClipRef(number, sample, entry.key, entry.frames)
        for number, shard in enumerate(shards)
        for sample, entry in enumerate(shard.entries)
        if f"{folder.name}/{shard.path.stem}/{entry.key}" not in exclude
    ]
    if not clips:
        raise UserError(f"{spec}: no clips in {len(shards)} shards, with {len(exclude)} entries in exclude of {DATASET_FILE}")
    return Split(folder, shards, clips, info)


def _check_whole(root: Path) -> None:
    """Refuse a dataset in which some shards are changed and others not yet; `flowact-data edit` and `split` note what they are about to swap."""
    folder = root / CHANGE_FOLDER
    try:
        commit = json.loads((folder / COMMIT_FILE).read_bytes())
        halfway = any((folder / "new" / name).is_file() for name in commit["replace"]) or any((root / name).exists() for name in commit["remove"])
        verb, *operation = commit["request"]["verb"].split()
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{folder / COMMIT_FILE} is damaged ({error!r}), and what it describes is unfinished; copy {root} again") from error
    if halfway:
        wanted = {name: value for name, value in commit["request"].items() if name != "verb" and value is not None}
        command = " ".join(["flowact-data", verb, str(root), *operation, "..."])
        raise ShardError(
            f"{root} is halfway through a change that was stopped: some shards are new, others old. Run the command again, it goes on where it was: "
            f"{command} ({', '.join(f'{name}: {value}' for name, value in wanted.items())})"
        )


def split_folders(root: Path | str) -> list[Path]:
    """Folders of a dataset that hold shards: train, val, ..."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and path.name != COLUMNS_FOLDER and any(path.glob("*.tar")))


def iterate_samples(split: Split) -> Iterator[tuple[ClipRef, dict[str, bytes]]]:
    """Every clip of a split with all its members, in order."""
    for clip in split.clips:
        yield clip, {suffix: split.read(clip, suffix) for suffix in split.shards[clip.shard].entries[clip.sample].members}


def _shard_paths(spec: str) -> tuple[list[Path], Path]:
    if re.match(r"[a-z0-9+]+:", spec, re.IGNORECASE):
        raise UserError(f"shards are read from local paths, got {spec!r}; copy or mount them first ('pipe:' and addresses are never run or opened)")
    match = re.search(r"\{(\d+)\.\.(\d+)\}", spec)
    if match or spec.endswith(".tar"):
        if match:
            first, last = int(match[1]), int(match[2])
            if last - first >= 1_000_000:
                raise UserError(f"{spec!r} names {last - first + 1} shards; at most a million")
            paths = [Path(f"{spec[: match.start()]}{number:0{len(match[1])}d}{spec[match.end() :]}") for number in range(first, last + 1)]
        else:
            paths = [Path(spec)]
        missing = [path for path in paths if not path.is_file()]
        if not paths or missing:
            raise UserError(f"{spec!r}: {len(missing)} of {len(paths)} shards are missing{f', the first is {missing[0]}' if missing else ''}")
        return paths, paths[0].parent
    folder = Path(spec)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        near = [str(path) for path in split_folders(folder)] if folder.is_dir() else []
        near = near or ([str(path) for path in split_folders(folder.parent)] if folder.parent.is_dir() else [])
        raise UserError(f"{spec!r} is no folder with shards (*.tar).{f' Did you mean {chr(44).join(near)}?' if near else ''}")
    orphans = sorted(path for path in folder.glob("*.json") if not path.with_suffix(".tar").is_file())
    if orphans:
        raise ShardError(
            f"shard {orphans[0].with_suffix('.tar')} is missing, its index is there ({len(orphans)} such); copy it again or remove the index"
        )
    return paths, folder

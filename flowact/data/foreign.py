"""Shards that were made elsewhere: other names for members, and less metadata than ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowact.data.index import IndexEntry
from flowact.data.members import ShardError, is_pickled, lacking
from flowact.data.reader import Shard
from flowact.data.schema import COLUMN_MEMBERS, MEMBERS, OPTIONAL_MEMBERS, to_entries
from flowact.errors import UserError, did_you_mean

OUR_MEMBERS = (*MEMBERS, *OPTIONAL_MEMBERS, *(suffix for members in COLUMN_MEMBERS.values() for suffix in members))
#: state of a caption that comes without one
UNKNOWN_STATE = "unknown"


def check_names(keys: Mapping[str, str]) -> dict[str, str]:
    """A map from our suffixes to those of other shards, if it can be one.

    Raises:
        UserError: a suffix that we have not, or one whose members are pickles.
    """
    for ours, theirs in keys.items():
        if ours not in OUR_MEMBERS:
            raise UserError(f"keys: there is no member {ours!r}; on the left stand our names, on the right theirs.{did_you_mean(ours, OUR_MEMBERS)}")
        if is_pickled(theirs):
            raise UserError(f"keys: {ours}: {lacking(ours, [theirs])}")
    return dict(keys)


class RenamedShard:
    """A shard whose members are known by our names.

    Args:
        shard: as it is.
        keys: our suffix -> theirs; what is not named keeps its name.
    """

    def __init__(self, shard: Shard, keys: Mapping[str, str]) -> None:
        self.shard = shard
        self.path: Path = shard.path
        self._keys = dict(keys)
        self.entries: Sequence[IndexEntry] = [replace(entry, members=self._renamed(entry)) for entry in shard.entries]

    def _renamed(self, entry: IndexEntry) -> dict[str, tuple[int, int, int]]:
        found = {ours: entry.members[theirs] for ours, theirs in self._keys.items() if theirs in entry.members}
        return {**{name: place for name, place in entry.members.items() if name not in self._keys and name not in self._keys.values()}, **found}

    def read(self, sample: int, suffix: str) -> bytes:
        """Checked bytes of a member by our name."""
        theirs = self._keys.get(suffix, suffix)
        entry = self.shard.entries[sample]
        if theirs not in entry.members:
            renamed = f" (.{theirs} by `keys`)" if theirs != suffix else ""
            raise ShardError(f"shard {self.path}, sample {entry.key}: no member .{suffix}{renamed}; {lacking(suffix, entry.members)}")
        return self.shard.read(sample, theirs)


def completed(metadata: Any, key: str, frames: int, text: str) -> tuple[dict[str, Any], list[str]]:
    """Metadata of a clip with what readers rely on, and the names of what was added.

    A clip without identity is a person of its own; one without captions has its whole text as the only one.

    Args:
        metadata: what KEY.json holds; None where there is none.
        key: of the clip.
        frames: of the clip, by its index.
        text: what KEY.txt holds; empty where there is none.
    """
    stated = metadata if isinstance(metadata, dict) else {}
    length = stated.get("frames", frames)
    captions = to_entries("captions", [(0, length, UNKNOWN_STATE, text.strip())])
    known = {"key": key, "frames": frames, "identity": key, "captions": captions}
    return {**known, **stated}, [name for name in ("identity", "captions") if name not in stated]

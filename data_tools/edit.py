"""`flowact-data edit DATASET delete | relabel | rename-identity`: change clips of a dataset; only the shards concerned are written anew.

The columns follow. A stopped run loses nothing; run the same command again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.manifest import open_indexed
from data_tools.rewrite import Rewriting, Taken, encode_again, finish_stopped_change, rewrite
from data_tools.workplace import locked
from flowact.data.schema import DatasetInfo, check_metadata, from_entries, read_dataset, to_entries
from flowact.data.shards import ShardReader, decode, encode_array, encode_json, split_folders
from flowact.errors import UserError, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data edit`."""
    parser.add_argument("dataset", type=Path, help="folder of a dataset")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    operations = parser.add_subparsers(dest="operation", metavar="delete|relabel|rename-identity", required=True)
    delete = operations.add_parser("delete", help="remove clips, in the columns too", allow_abbrev=False)
    delete.add_argument("keys", nargs="+", metavar="KEY", help="of clips")
    relabel = operations.add_parser("relabel", help="another state or caption for a clip, or for some frames of it", allow_abbrev=False)
    relabel.add_argument("key", metavar="KEY", help="of the clip")
    relabel.add_argument("--state", help="behaviour state")
    relabel.add_argument("--caption", help="text")
    relabel.add_argument("--frames", metavar="FIRST:END", help="frames FIRST up to, not including, END (default: all)")
    rename = operations.add_parser("rename-identity", help="another name for a person", allow_abbrev=False)
    rename.add_argument("old", metavar="OLD", help="name that clips have")
    rename.add_argument("new", metavar="NEW", help="name that they get; the same person as an existing one of that name")


def run(args: argparse.Namespace) -> int:
    """Carry out one operation.

    Raises:
        UserError: no such clip, person or state, or nothing left to train on.
    """
    read_dataset(args.dataset)
    request = {name: value for name, value in vars(args).items() if name in _REQUEST[args.operation]}
    request = {"verb": f"edit {args.operation}", **dict(sorted(request.items()))}
    with locked(args.dataset):
        finished = finish_stopped_change(args.dataset)
        if finished == request:
            _report(args, {"clips": None, "shards": None, "encode_again": _missing(args.dataset)}, "finished what a stopped run had begun")
            return 0
        places = find_all(args.dataset)
        change, clips = _PLANS[args.operation](args, places, read_dataset(args.dataset), request)
        again = rewrite(args.dataset, change)
    text = f"{clips} clips changed, {len(change.shards)} shards written"
    _report(args, {"clips": clips, "shards": len(change.shards), "encode_again": again}, text)
    return 0


@dataclass(frozen=True)
class Place:
    """Where a clip lies."""

    shard: ShardReader
    number: int

    @property
    def name(self) -> str:
        """Of its shard: 'train/000003'."""
        return f"{self.shard.path.parent.name}/{self.shard.path.stem}"

    @property
    def key(self) -> str:
        return self.shard.entries[self.number].key

    def metadata(self) -> dict[str, Any]:
        """Its KEY.json."""
        where = f"{self.name}/{self.key}"
        return check_metadata(decode("json", self.shard.read(self.number, "json"), where), where)


def find_all(root: Path) -> list[Place]:
    """Every clip of a dataset in order; a shard that is excluded because it is damaged is left out.

    Raises:
        UserError: a shard without index, a damaged one, or a key that occurs twice.
    """
    exclude, seen, places = set(read_dataset(root).exclude), dict[str, str](), []
    for folder in split_folders(root):
        for path in sorted(folder.glob("*.tar")):
            try:
                shard = open_indexed(path)
            except UserError:
                if f"{folder.name}/{path.stem}" in exclude:
                    continue
                raise
            for number, entry in enumerate(shard.entries):
                place = Place(shard, number)
                if entry.key in seen:
                    raise UserError(f"key {entry.key!r} is in {seen[entry.key]} and in {place.name}; keys are unique in a dataset: exclude one shard")
                seen[entry.key] = place.name
                places.append(place)
    return places


def replaced(places: Sequence[Place], edit: Callable[[Place], dict[str, bytes] | None], names: set[str]) -> dict[str, list[Taken]]:
    """The shards of some names anew.

    Args:
        places: every clip.
        edit: members of a clip that change, none for a clip that stays as it is, None for one that goes.
        names: of shards.
    """
    shards: dict[str, list[Taken]] = {name: [] for name in sorted(names)}
    for place in places:
        if place.name in shards and (changes := edit(place)) is not None:
            shards[place.name].append(Taken(place.shard.path, place.number, place.key, changes))
    return shards


def close_gaps(shards: dict[str, list[Taken]], names: Sequence[str], whole: Callable[[str], list[Taken]]) -> None:
    """Keep the numbers of each split without gap: its last shard takes the number of one that was emptied.

    Args:
        shards: those that are written anew; changed in place, an empty one is no more.
        names: of all shards.
        whole: samples of a shard that is not among `shards`.
    """
    for split in {name.partition("/")[0] for name in names}:
        own = [name for name in names if name.startswith(f"{split}/")]
        empty = sorted(name for name in own if shards.get(name) == [])
        filled = sorted(set(own) - set(empty))
        while empty and filled and filled[-1] > empty[0]:
            last, gap = filled.pop(), empty.pop(0)
            shards[gap] = shards[last] if last in shards else whole(last)
            shards[last] = []
            empty, filled = sorted([*empty, last]), sorted([*filled, gap])


def relabelled(captions: Sequence[Sequence[Any]], first: int, end: int, state: str | None, text: str | None) -> list[list[Any]]:
    """Captions with another state or text in frames first..end; neighbours that say the same become one."""
    pieces: list[list[Any]] = []
    for start, stop, old_state, old_text in captions:
        for a, b in ((start, min(stop, first)), (max(start, first), min(stop, end)), (max(start, end), stop)):
            if a >= b:
                continue
            inside = first <= a < end
            said = [state if inside and state is not None else old_state, text if inside and text is not None else old_text]
            if pieces and pieces[-1][2:] == said:
                pieces[-1][1] = b
            else:
                pieces.append([a, b, *said])
    return pieces


def segments(states_T: np.ndarray, names: Sequence[str]) -> list[list[Any]]:
    """Per-frame states as [first, end, state]."""
    changes = [0, *(np.flatnonzero(np.diff(states_T)) + 1).tolist(), len(states_T)]
    return [[first, end, names[states_T[first]]] for first, end in pairwise(changes)]


_REQUEST = {"delete": ("keys",), "relabel": ("key", "state", "caption", "frames"), "rename-identity": ("old", "new")}


def _delete(args: argparse.Namespace, places: Sequence[Place], info: DatasetInfo, request: dict[str, Any]) -> tuple[Rewriting, int]:
    gone = {_find(places, key).key for key in args.keys}
    touched = {place.name for place in places if place.key in gone}
    shards = replaced(places, lambda place: None if place.key in gone else {}, touched)
    names = list(dict.fromkeys(place.name for place in places))
    close_gaps(shards, names, lambda name: replaced(places, lambda _: {}, {name})[name])
    removed = tuple(name for name in names if shards.get(name) == [])
    return Rewriting(request, {name: samples for name, samples in shards.items() if samples}, removed), len(gone)


def _relabel(args: argparse.Namespace, places: Sequence[Place], info: DatasetInfo, request: dict[str, Any]) -> tuple[Rewriting, int]:
    if args.state is None and args.caption is None:
        raise UserError("relabel changes nothing; give --state, --caption or both")
    if args.state is not None and args.state not in info.states:
        known = ", ".join(info.states)
        raise UserError(f"--state {args.state!r} is no state of this dataset, which has {known}.{did_you_mean(args.state, info.states)}")
    place = _find(places, args.key)
    metadata = place.metadata()
    first, end = _frames(args.frames, metadata["frames"])
    before = from_entries("captions", metadata)
    captions = relabelled(before, first, end, args.state, args.caption)
    states_T = decode("states.npy", place.shard.read(place.number, "states.npy"), place.key).copy()
    if args.state is not None:
        states_T[first:end] = info.states.index(args.state)
    texts = [entry[3] for entry in captions]
    if "states" in metadata:
        metadata["states"] = to_entries("states", segments(states_T, info.states))
    changes = {
        "json": encode_json({**metadata, "captions": to_entries("captions", captions)}),
        "states.npy": encode_array(states_T),
        "txt": " ".join(dict.fromkeys(texts)).encode(),
    }
    if encode_json(place.metadata()) == changes["json"] and place.shard.read(place.number, "states.npy") == changes["states.npy"]:
        raise UserError(f"clip {args.key} says so already; nothing to change")
    shards = replaced(places, lambda other: changes if other.key == args.key else {}, {place.name})
    spoken = frozenset([args.key]) if texts != [entry[3] for entry in before] else frozenset()
    return Rewriting(request, shards, stale={"text": spoken}), 1


def _rename(args: argparse.Namespace, places: Sequence[Place], info: DatasetInfo, request: dict[str, Any]) -> tuple[Rewriting, int]:
    if args.old == args.new or not args.new.strip():
        raise UserError(f"NEW is {args.new!r}, OLD {args.old!r}; give another name, not an empty one")
    people: dict[str, set[str]] = defaultdict(set)
    metadata = {}
    for place in places:
        entry = place.metadata()
        people[entry["identity"]].add(place.name.partition("/")[0])
        if entry["identity"] == args.old:
            metadata[place.key] = entry
    if not metadata:
        raise UserError(f"nobody is called {args.old!r}.{did_you_mean(args.old, people)}")
    if args.new in people and people[args.new] != people[args.old]:
        splits = f"{args.old!r} is in {' and '.join(sorted(people[args.old]))}, {args.new!r} in {' and '.join(sorted(people[args.new]))}"
        raise UserError(f"{splits}, and one person is in one split only; bring them together first with: flowact-data split {args.dataset}")
    touched = {place.name for place in places if place.key in metadata}

    def edit(place: Place) -> dict[str, bytes]:
        return {"json": encode_json({**metadata[place.key], "identity": args.new})} if place.key in metadata else {}

    return Rewriting(request, replaced(places, edit, touched)), len(metadata)


_PLANS = {"delete": _delete, "relabel": _relabel, "rename-identity": _rename}


def _find(places: Sequence[Place], key: str) -> Place:
    for place in places:
        if place.key == key:
            return place
    raise UserError(f"no clip has the key {key!r}.{did_you_mean(key, [place.key for place in places])}")


def _frames(text: str | None, frames: int) -> tuple[int, int]:
    if text is None:
        return 0, frames
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end) <= frames):
        raise UserError(f"--frames {text!r} should be FIRST:END with 0 <= FIRST < END <= {frames}, the clip's frames")
    return int(first), int(end)


def _missing(root: Path) -> list[str]:
    info = read_dataset(root)
    folder = root / "columns"
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in info.columns) if folder.is_dir() else []


def _report(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.dataset}: {text}")
    for column in result["encode_again"]:
        print(encode_again(column, args.dataset))

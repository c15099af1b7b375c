"""`flowact-data split DATASET`: assign people to train and val, and write the shards anew; the columns move along.

People who are in one recording belong together, so neither a person nor a recording is in two splits. A dataset of one character holds
recordings out instead (`split_by` in its dataset.yaml). By hash, the place of a group does not depend on who else is there: clips that are added
later move none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.building.splits import join
from data_tools.edit import Place, find_all
from data_tools.rewrite import Rewriting, Taken, bytes_of, encode_again, finish_stopped_change, rewrite
from data_tools.workplace import locked
from flowact.data.schema import DATASET_FILE, SplitBy, read_dataset
from flowact.data.shards import END, encode_json
from flowact.errors import UserError, did_you_mean

SPLITS = ("train", "val")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data split`."""
    parser.add_argument("dataset", type=Path, help="folder of a dataset")
    parser.add_argument("--val-identities", metavar="A,B", help="people of the val split; who shares a recording with them comes along")
    parser.add_argument("--val-fraction", type=float, default=0.05, help="share of people in val when chosen by hash (default: %(default)s)")
    parser.add_argument("--shard-mb", type=float, default=256.0, help="a shard is never larger, in MiB (default: %(default)s)")
    parser.add_argument("--shard-clips", type=int, default=None, help="clips of a shard at most")
    parser.add_argument("--dry-run", action="store_true", help="only show who would be where")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Assign and write.

    Raises:
        UserError: an unknown name, an impossible number, nobody left to train on, or a group that also lies in a third split.
    """
    if not 0 <= args.val_fraction < 1:
        raise UserError(f"--val-fraction {args.val_fraction}: a share of people, 0 up to (not including) 1")
    if args.shard_mb <= 0 or (args.shard_clips is not None and args.shard_clips < 1):
        raise UserError(f"--shard-mb {args.shard_mb}, --shard-clips {args.shard_clips}: a shard needs room for a clip; use positive numbers")
    by = read_dataset(args.dataset).split_by
    names = sorted(filter(None, args.val_identities.split(","))) if args.val_identities is not None else None
    request = {"verb": "split", "val_identities": names, "val_fraction": args.val_fraction if names is None else None}
    if names is not None and by != "person":
        raise UserError(f"--val-identities: {args.dataset} holds recordings out, not people (split_by in its {DATASET_FILE}); use --val-fraction")
    request |= {"shard_mb": args.shard_mb, "shard_clips": args.shard_clips}
    with locked(args.dataset):
        if not args.dry_run:
            finish_stopped_change(args.dataset)  # the plan below is empty when it was this one
        places = find_all(args.dataset)
        metadata = {place.key: place.metadata() for place in places}
        unit = {key: unit_of(entry, by) for key, entry in metadata.items()}
        split_of = assign(metadata.values(), names, args.val_fraction, by)
        moves = [place for place in places if place.shard.path.parent.name != split_of[unit[place.key]]]
        _check_other_splits(places, metadata, by)
        again: list[str] = []
        if moves and not args.dry_run:
            shards = _layout(places, metadata, {key: split_of[name] for key, name in unit.items()}, round(args.shard_mb * 2**20), args.shard_clips)
            removed = {place.name for place in places} - set(shards)
            again = rewrite(args.dataset, Rewriting(request, shards, tuple(sorted(removed))))
    _report(args, split_of, Counter(split_of[name] for name in unit.values()), len(moves), again)
    return 0


def assign(
    clips: Iterable[Mapping[str, Any]], val_identities: Sequence[str] | None, val_fraction: float, by: SplitBy = "person"
) -> dict[str, str]:
    """Person (or recording) -> 'train' or 'val', the same for all people who share recordings.

    Args:
        clips: metadata of every clip.
        val_identities: people of val, or None to choose by hash.
        val_fraction: share of groups in val when chosen by hash.
        by: what is assigned.

    Raises:
        UserError: an unknown name, or nobody left to train on.
    """
    groups = groups_of(clips, by)
    identities = sorted(groups)
    if val_identities is not None:
        unknown = [name for name in val_identities if name not in groups]
        if unknown:
            raise UserError(f"--val-identities: nobody is called {unknown[0]!r}.{did_you_mean(unknown[0], identities)}")
        chosen = {groups[name] for name in val_identities}
    else:
        place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in set(groups.values())}
        chosen = {name for name in place if place[name] < val_fraction}
        if val_fraction > 0 and not chosen and len(place) > 1:
            chosen = {min(place, key=lambda name: place[name])}
    if chosen == set(groups.values()):
        raise UserError(f"all {len(identities)} people would be in val, nobody is left to train on; name fewer, or lower --val-fraction")
    return {identity: "val" if groups[identity] in chosen else "train" for identity in identities}


def recording_of(metadata: Mapping[str, Any]) -> str | None:
    """What tells a clip's recording from others: hash of its bytes, else its path; None where neither is stated.

    A bare file name tells nothing: people have folders of their own with a take1.mp4 in each.
    """
    source = metadata.get("source") or {}
    uri = source.get("uri") or ""
    return source.get("sha256") or (uri if "/" in uri else None)


def unit_of(metadata: Mapping[str, Any], by: SplitBy) -> str:
    """The person of a clip, or its recording; a clip that tells of none is a recording of its own."""
    return metadata["identity"] if by == "person" else recording_of(metadata) or metadata["key"]


def groups_of(clips: Iterable[Mapping[str, Any]], by: SplitBy = "person") -> dict[str, str]:
    """Person (or recording) -> name of its group, which is its first: people are grouped when a chain of shared recordings connects them."""
    people: set[str] = set()
    shared: dict[str, list[str]] = {}
    for metadata in clips:
        identity, recording = unit_of(metadata, by), recording_of(metadata)
        people.add(identity)
        if recording is not None:
            shared.setdefault(recording, []).append(identity)
    return {identity: min(group) for group in join(list(shared.values()), sorted(people)) for identity in group}


def _layout(
    places: Sequence[Place], metadata: Mapping[str, dict[str, Any]], split_of: Mapping[str, str], max_bytes: int, max_clips: int | None
) -> dict[str, list[Taken]]:
    """Clips (key -> split) of train and val in shards: in the order of the hash of their keys, as full as a shard may be."""
    shards: dict[str, list[Taken]] = {}
    number, size = dict.fromkeys(SPLITS, -1), dict.fromkeys(SPLITS, 0)
    for place in sorted(places, key=lambda place: hashlib.sha256(place.key.encode()).digest()):
        entry = metadata[place.key]
        old, split = place.shard.path.parent.name, split_of[place.key]
        if old not in SPLITS:
            continue
        changes = {"json": encode_json({**entry, "split": split})} if entry.get("split", old) != split else {}
        taken = Taken(place.shard.path, place.number, place.key, changes)
        room = bytes_of(place.shard, taken)
        full = number[split] < 0 or size[split] + room + END > max_bytes or len(shards[f"{split}/{number[split]:06d}"]) == max_clips
        if full:
            number[split], size[split] = number[split] + 1, 0
        shards.setdefault(f"{split}/{number[split]:06d}", []).append(taken)
        size[split] += room
    return shards


def _check_other_splits(places: Sequence[Place], metadata: Mapping[str, dict[str, Any]], by: SplitBy) -> None:
    """Clips of a third split (test) stay where they are, so their people must be in no other."""
    groups = groups_of(metadata.values(), by)
    where: dict[str, set[str]] = {}
    for place in places:
        where.setdefault(groups[unit_of(metadata[place.key], by)], set()).add(place.shard.path.parent.name)
    for group, splits in sorted(where.items()):
        if splits - set(SPLITS) and splits & set(SPLITS):
            names = " and ".join(sorted(splits))
            raise UserError(f"{group!r} and who shares recordings are in {names}; only train and val are assigned: delete some clips first")


def _report(args: argparse.Namespace, split_of: Mapping[str, str], clips: Mapping[str, int], moved: int, again: Sequence[str]) -> None:
    if args.json:
        print(json.dumps({"split_of": split_of, "clips": dict(sorted(clips.items())), "moved": moved, "encode_again": list(again)}))
        return
    for split in SPLITS:
        people = sorted(name for name, chosen in split_of.items() if chosen == split)
        print(f"{split}: {clips.get(split, 0)} clips of {len(people)} people: {', '.join(people[:8])}{' ...' if len(people) > 8 else ''}")
    print(f"{moved} clips {'would move' if args.dry_run else 'moved'}" if moved else "nothing to move: the split is already so")
    for column in again:
        print(encode_again(column, args.dataset))

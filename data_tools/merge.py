"""`flowact-data merge A B --out C`: several datasets become one. Shards keep their clips and their order; a stopped run goes on where it was."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_tools.card import write_card
from data_tools.edit import Place, find_all
from data_tools.manifest import write_shard_lists, write_stats
from data_tools.rewrite import Rewriting, Taken, is_stopped, moved_exclusions, write_shard
from data_tools.workplace import check_room, claim, locked, progress, remove_unfinished
from flowact.data.schema import COLUMN_FILE, COLUMNS_FOLDER, DatasetInfo, check_key, read_column, read_dataset, write_atomically, write_dataset
from flowact.data.shards import ShardReader, encode_json
from flowact.errors import UserError

RECORD_FILE = "merge.json"


@dataclass(frozen=True)
class Input:
    """A dataset to merge.

    Attributes:
        root: its folder.
        info: its dataset.yaml.
        label: what its keys and people are prefixed with, if they are.
        places: its clips in order.
        metadata: key -> KEY.json.
    """

    root: Path
    info: DatasetInfo
    label: str
    places: tuple[Place, ...]
    metadata: Mapping[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data merge`."""
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET", help="folders of two or more datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new dataset; one begun with the same datasets is continued")
    parser.add_argument("--name", help="of the new dataset (default: the names joined by +)")
    people = parser.add_mutually_exclusive_group()
    people.add_argument("--prefix-identities", action="store_true", help="people of equal names in two datasets are different people")
    people.add_argument("--same-identities", action="store_true", help="people of equal names in two datasets are the same people")
    parser.add_argument("--prefix-keys", action="store_true", help="put the dataset's name before every key")
    parser.add_argument("--drop", action="append", metavar="MEMBER", default=[], help="a member that not all have, e.g. truth.npy; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Merge what is missing.

    Raises:
        UserError: datasets that do not go together, or a folder of another merge.
    """
    if len(args.datasets) < 2:
        raise UserError(f"one dataset, {args.datasets[0]}; merge takes two or more")
    for root in args.datasets:
        read_dataset(root)
        if is_stopped(root):
            raise UserError(f"a change of {root} was stopped; finish it first: run its command again")
        if args.out.resolve() in (root.resolve(), *root.resolve().parents):
            raise UserError(f"--out {args.out} is or holds the dataset {root}; give a new folder")
    inputs = _read_inputs(args.datasets)
    _check_formats(inputs)
    _check_members(inputs, args.drop)
    _check_people(inputs, args.prefix_identities, args.same_identities)
    shards, origin = _plan(inputs, args)
    columns, left_out = _common_columns(inputs)
    record = {
        "kind": "flowact-merge",
        "schema": 1,
        "sources_sha256": [_hash_shards(source) for source in inputs],
        "labels": [source.label for source in inputs],
        "prefix_identities": args.prefix_identities,
        "prefix_keys": args.prefix_keys,
        "drop": sorted(args.drop),
        "columns": columns,
    }
    with locked(args.out):
        (args.out / f"{RECORD_FILE}.part").unlink(missing_ok=True)  # of a run that was killed at once
        claim(args.out, RECORD_FILE, record)
        check_room(args.out, 1.02 * _missing_bytes(args.out, inputs, origin, columns), f"merging {len(inputs)} datasets")
        for name in {name.partition("/")[0] for name in shards}:
            for folder in (args.out / name, *(args.out / COLUMNS_FOLDER / column / name for column in columns)):
                folder.mkdir(parents=True, exist_ok=True)
                remove_unfinished(folder)
        for name, samples in progress(sorted(shards.items()), len(shards), "merge", "shards"):
            _write(args.out, name, samples, args.drop)
            for column in columns:
                root = origin[name].parents[1]
                taken = [replace(t, path=root / COLUMNS_FOLDER / column / t.path.parent.name / t.path.name, changes={}) for t in samples]
                _write(args.out / COLUMNS_FOLDER / column, name, taken, ())
        for column in columns:
            _copy_column_files(inputs[0].root / COLUMNS_FOLDER / column, args.out / COLUMNS_FOLDER / column)
        info = _describe(inputs, shards, columns, args)
        write_dataset(args.out, info)
        write_stats(args.out)
        write_shard_lists(args.out)
        write_card(args.out)
    _report(args, info, left_out)
    return 0


def _read_inputs(roots: Sequence[Path]) -> list[Input]:
    infos = [read_dataset(root) for root in roots]
    inputs = []
    for number, (root, info) in enumerate(zip(roots, infos)):
        label = info.name if [other.name for other in infos].count(info.name) == 1 else f"{info.name}{number + 1}"
        places = tuple(find_all(root))
        inputs.append(Input(root, info, label, places, {place.key: place.metadata() for place in places}))
    return inputs


def _check_formats(inputs: Sequence[Input]) -> None:
    first = inputs[0]
    for source in inputs[1:]:
        for name in ("fps", "sample_rate", "states", "character"):
            a, b = getattr(first.info, name), getattr(source.info, name)
            if a != b:
                raise UserError(f"{first.root} has {name} {a!r}, {source.root} {b!r}; datasets that are merged agree in it: make one of them again")


def _check_members(inputs: Sequence[Input], drop: Sequence[str]) -> None:
    """Every sample of a dataset has the same members, so members that some lack are dropped by name or not at all."""
    held = [{suffix for place in source.places for suffix in place.shard.entries[place.number].members} for source in inputs]
    for suffix in sorted(set.union(*held) - set(drop)):
        lacking = [source.root for source, members in zip(inputs, held) if suffix not in members]
        if lacking:
            raise UserError(f"clips of {lacking[0]} have no member .{suffix}, others have it; leave it out with --drop {suffix}")


def _check_people(inputs: Sequence[Input], prefix: bool, same: bool) -> None:
    """No person and no recording may end up in two splits, and equal names are asked about."""
    if not prefix:
        homes: dict[str, dict[str, Path]] = {}
        for source in inputs:
            for place in source.places:
                homes.setdefault(source.metadata[place.key]["identity"], {}).setdefault(place.name.partition("/")[0], source.root)
        people = [{entry["identity"] for entry in source.metadata.values()} for source in inputs]
        shared = sorted(name for name in homes if sum(name in names for names in people) > 1)
        if shared and not same:
            raise UserError(
                f"{len(shared)} people have one name in two datasets, e.g. {shared[0]!r}; say --same-identities if they are the same people, "
                "--prefix-identities if not"
            )
        for name in shared:
            if len(homes[name]) > 1:
                places = " and ".join(f"{split} of {root}" for split, root in sorted(homes[name].items()))
                raise UserError(f"{name!r} is in {places}; a person is in one split only: move them first with flowact-data split")
    recordings: dict[str, tuple[str, Path]] = {}
    for source in inputs:
        for place in source.places:
            recording, split = (source.metadata[place.key].get("source") or {}).get("sha256"), place.name.partition("/")[0]
            old = recordings.setdefault(recording, (split, source.root)) if recording else (split, source.root)
            if old[0] != split:
                uri = source.metadata[place.key]["source"].get("uri")
                both = f"{old[0]} of {old[1]} and in {split} of {source.root}"
                raise UserError(f"the recording {uri!r} is in {both}; move its people with flowact-data split")


def _plan(inputs: Sequence[Input], args: argparse.Namespace) -> tuple[dict[str, list[Taken]], dict[str, Path]]:
    """(new shard -> its samples, new shard -> tar it comes from): shards of the first dataset, then of the next."""
    shards: dict[str, list[Taken]] = {}
    origin: dict[str, Path] = {}
    numbers: dict[str, int] = {}
    keys: dict[str, Path] = {}
    for source in inputs:
        named: dict[str, str] = {}
        for place in source.places:
            if place.name not in named:
                split = place.name.partition("/")[0]
                named[place.name] = f"{split}/{numbers.setdefault(split, 0):06d}"
                numbers[split] += 1
                origin[named[place.name]] = place.shard.path
            metadata = dict(source.metadata[place.key])
            key = check_key(f"{_slug(source.label)}-{place.key}") if args.prefix_keys else place.key
            if key in keys:
                raise UserError(
                    f"key {key!r} is in {keys[key]} and in {source.root}; if it is one clip, delete it in one of them (flowact-data edit), "
                    "else give --prefix-keys"
                )
            keys[key] = source.root
            changed = {**metadata, "key": key}
            if args.prefix_identities:
                changed["identity"] = f"{source.label}-{metadata['identity']}"
            changes = {"json": encode_json(changed)} if changed != metadata else {}
            shards.setdefault(named[place.name], []).append(Taken(place.shard.path, place.number, key, changes))
    return shards, origin


def _common_columns(inputs: Sequence[Input]) -> tuple[list[str], list[str]]:
    """(columns that every dataset has whole and from the same encoder, the others)."""
    every = sorted({name for source in inputs for name in source.info.columns})
    common = []
    for name in every:
        if all(name in source.info.columns and _is_whole(source, name) for source in inputs):
            infos = [read_column(source.root / COLUMNS_FOLDER / name) for source in inputs]
            if all(info == infos[0] for info in infos):
                common.append(name)
    return common, [name for name in every if name not in common]


def _is_whole(source: Input, column: str) -> bool:
    for path in sorted({place.shard.path for place in source.places}):
        held = source.root / COLUMNS_FOLDER / column / path.parent.name / path.name
        if not held.with_suffix(".json").is_file() or ShardReader(held).index.keys != ShardReader(path).index.keys:
            return False
    return True


def _write(out: Path, name: str, samples: Sequence[Taken], drop: Sequence[str]) -> None:
    split, _, stem = name.partition("/")
    if not (out / f"{name}.json").is_file():
        write_shard(out / split, int(stem), samples, drop)


def _copy_column_files(source: Path, target: Path) -> None:
    """What lies beside a column's splits: the autoencoder, then column.yaml, which says that it is complete."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not any(path.glob("*.tar"))):
        part = target / f"{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        if not (target / folder.name).exists():
            shutil.copytree(folder, part)
            part.replace(target / folder.name)
    write_atomically(target / COLUMN_FILE, (source / COLUMN_FILE).read_bytes())


def _describe(inputs: Sequence[Input], shards: Mapping[str, Sequence[Taken]], columns: Sequence[str], args: argparse.Namespace) -> DatasetInfo:
    counts: dict[str, dict[str, int]] = {}
    exclude: list[str] = []
    for name in sorted(shards):
        entries = ShardReader(args.out / f"{name}.tar").entries
        split = counts.setdefault(name.partition("/")[0], {"shards": 0, "samples": 0, "frames": 0})
        split["shards"] += 1
        split["samples"] += len(entries)
        split["frames"] += sum(entry.frames for entry in entries)
    for source in inputs:
        own = {name: samples for name, samples in shards.items() if samples[0].path.parents[1] == source.root}
        moved = moved_exclusions(source.info.exclude, Rewriting({}, own, tuple(place.name for place in source.places)))
        exclude += [entry for entry in moved if "/".join(entry.split("/")[:2]) in own]  # the rest names shards that were too damaged to merge
    name = args.name or "+".join(source.label for source in inputs)
    return replace(inputs[0].info, name=name, splits=counts, columns=tuple(columns), exclude=tuple(exclude))


def _hash_shards(source: Input) -> str:
    digest = hashlib.sha256()
    for path in sorted({place.shard.path for place in source.places}):
        digest.update(f"{path.parent.name}/{path.name} {ShardReader(path).index.sha256}\n".encode())
    return digest.hexdigest()


def _missing_bytes(out: Path, inputs: Sequence[Input], origin: Mapping[str, Path], columns: Sequence[str]) -> int:
    total = 0
    for name, path in origin.items():
        if not (out / f"{name}.json").is_file():
            held = [path.parents[1] / COLUMNS_FOLDER / column / path.parent.name / path.name for column in columns]
            total += sum(file.stat().st_size for file in (path, *held))
    return total


def _slug(text: str) -> str:
    """A name as part of a key."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in text)
    return plain if plain == text else f"{plain[:32]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _report(args: argparse.Namespace, info: DatasetInfo, left_out: Sequence[str]) -> None:
    if args.json:
        print(json.dumps({"out": str(args.out), "name": info.name, "splits": info.splits, "columns": list(info.columns), "left_out": list(left_out)}))
        return
    for name, counts in info.splits.items():
        print(f"{name}: {counts['samples']} clips in {counts['shards']} shards")
    for column in left_out:
        kind = column.partition("-")[0]
        print(f"column {column} is not in all of them, or not whole; make it anew with: flowact-data encode {kind} {args.out} ...")

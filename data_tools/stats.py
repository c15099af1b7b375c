"""`flowact-data stats DATASET`: clips, hours, identities, share of states, sizes."""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.card import CARD_FILE, is_ours, write_card
from data_tools.manifest import stated, write_manifest, write_shard_lists, write_stats
from data_tools.workplace import progress, show_table
from flowact.data.schema import DATASET_FILE, parse_captions, read_dataset
from flowact.data.shards import Split, open_split, split_folders
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data stats`."""
    parser.add_argument("dataset", type=Path, help="folder of a dataset, or of one split")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="write manifest.parquet, stats.json, lists of shards and README.md beside the shards")


def run(args: argparse.Namespace) -> int:
    """Print the numbers."""
    if args.write:
        read_dataset(args.dataset)
        write_manifest(args.dataset)
        write_stats(args.dataset)
        write_shard_lists(args.dataset)
        if (args.dataset / CARD_FILE).exists() and not is_ours(args.dataset / CARD_FILE):
            warnings.warn(f"{args.dataset / CARD_FILE} is your own and stays as it is; remove it to get the dataset card", stacklevel=2)
        else:
            write_card(args.dataset)
    found = {split.name: describe(split) for split in open_all(args.dataset)}
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    names = {
        "clips": "clips",
        "shards": "shards",
        "megabytes": "size, MB",
        "hours": "hours",
        "seconds_shortest": "shortest clip, s",
        "seconds_longest": "longest clip, s",
        "identities": "identities",
        "captions": "different captions",
    }
    splits = list(found.values())
    rows = [(label, *(split[name] for split in splits)) for name, label in names.items()]
    states = sorted({state for split in splits for state in split["states"]})
    rows += [(f"share {state}", *(f"{split['states'].get(state, 0):.0%}" for split in splits)) for state in states]
    licenses = sorted({text for split in splits for text in split["licenses"]})
    rows += [(f"license: {text}", *(split["licenses"].get(text, 0) for split in splits)) for text in licenses]
    consents = sorted({text for split in splits for text in split["consents"]})
    rows += [(f"consent: {text}", *(split["consents"].get(text, 0) for split in splits)) for text in consents]
    sizes = sorted({text for split in splits for text in split["sizes"]})
    rows += [(f"picture {text}", *(split["sizes"].get(text, 0) for split in splits)) for text in sizes]
    show_table(str(args.dataset), ("", *found), rows)
    shared = shared_identities(found)
    if shared and not ((args.dataset / DATASET_FILE).is_file() and read_dataset(args.dataset).split_by == "recording"):
        print(f"people in more than one split: {', '.join(shared[:5])}{' ...' if len(shared) > 5 else ''}")
    return 0


def open_all(folder: Path) -> list[Split]:
    """Splits of a dataset's folder, or the one split.

    Raises:
        UserError: no shards there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of a dataset, or of one split")
    if any(folder.glob("*.tar")):
        return [open_split(folder)]
    folders = split_folders(folder)
    if not folders:
        raise UserError(f"{folder} has no shards: neither *.tar nor train/*.tar, val/*.tar")
    return [open_split(path) for path in folders]


def describe(split: Split) -> dict[str, Any]:
    """Numbers of a split, as plain values."""
    fps = split.info.fps if split.info else FRAMES_PER_SECOND
    frames: list[int] = []
    states, licenses, consents, sizes, people = (Counter[str]() for _ in range(5))
    captions: set[str] = set()
    for clip in progress(split.clips, len(split), f"stats {split.name}", "clips"):
        metadata = split.decode(clip, "json")
        frames.append(clip.frames)
        people[str(metadata.get("identity", "unknown"))] += clip.frames
        licenses[stated(metadata, "license")] += 1
        consents[stated(metadata, "consent")] += 1
        sizes[f"{metadata.get('width', '?')}x{metadata.get('height', '?')}"] += 1
        parsed = parse_captions(metadata, split.where(clip))
        ends = np.append(parsed.starts[1:], clip.frames)
        for state, start, end in zip(parsed.states, parsed.starts, ends):
            states[state] += int(end - start)
        captions.update(parsed.texts)
    total = sum(frames)
    return {
        "clips": len(split),
        "shards": len(split.shards),
        "megabytes": round(sum(shard.path.stat().st_size for shard in split.shards) / 1e6, 2),
        "frames": total,
        "hours": round(total / fps / 3600, 3),
        "seconds_shortest": round(min(frames) / fps, 2),
        "seconds_longest": round(max(frames) / fps, 2),
        "identities": len(people),
        "seconds_of_identity": {name: round(count / fps, 2) for name, count in sorted(people.items())},
        "captions": len(captions),
        "states": {state: count / total for state, count in sorted(states.items())},
        "licenses": dict(sorted(licenses.items())),
        "consents": dict(sorted(consents.items())),
        "sizes": dict(sorted(sizes.items())),
    }


def shared_identities(found: dict[str, dict[str, Any]]) -> list[str]:
    """People that occur in more than one split."""
    counts = Counter(name for split in found.values() for name in split["seconds_of_identity"])
    return sorted(name for name, count in counts.items() if count > 1)

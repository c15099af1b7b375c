"""`flowact-data index FOLDER`: indexes for shards that came without, so that they can be read by position and checked."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.workplace import locked, progress
from flowact.data.schema import write_atomically
from flowact.data.shards import build_index
from flowact.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data index`."""
    parser.add_argument("folder", type=Path, help="folder of .tar shards")
    parser.add_argument("--force", action="store_true", help="make indexes again that are there: what the tars hold now counts as right")


def run(args: argparse.Namespace) -> int:
    """Write the missing indexes."""
    shards = sorted(args.folder.glob("*.tar")) if args.folder.is_dir() else []
    if not shards:
        raise UserError(f"{args.folder} is no folder with shards (*.tar)")
    missing = [path for path in shards if args.force or not path.with_suffix(".json").exists()]
    with locked(args.folder):
        for path in progress(missing, len(missing), "index", "shards"):
            write_atomically(path.with_suffix(".json"), build_index(path).to_bytes())
    print(f"{args.folder}: {len(missing)} indexes written, {len(shards) - len(missing)} were there")
    return 0

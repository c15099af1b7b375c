"""`flowact-data status DATASET`: how far a build is, what it keeps, and what each step took."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.building.accounts import funnel
from data_tools.building.engine import FINISHED, RECIPE_FILE
from data_tools.building.ledger import WORK_FOLDER, Ledger
from data_tools.building.recipe import read_recipe
from data_tools.workplace import locked, show_table
from flowact.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data status`."""
    parser.add_argument("dataset", type=Path, help="folder that `flowact-data build` makes or made")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the state; 1 when there is something left to do.

    Raises:
        UserError: no ledger there.
    """
    found = status(args.dataset)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(args.dataset, found)
    return int(found["state"] != FINISHED)


def status(dataset: Path) -> dict[str, Any]:
    """What is known of a build, as plain values."""
    ledger = Ledger.open(dataset)
    try:
        clips, sources, spent = ledger.clips(), ledger.sources(), ledger.spent()
        state, examined = ledger.fact("state") or "not begun", ledger.fact("examined")
    finally:
        ledger.close()
    recipe, _ = read_recipe(dataset / WORK_FOLDER / RECIPE_FILE)
    rejected = sum(clip.rejection is not None for clip in clips)
    return {
        "state": state,
        "running": _is_locked(dataset),
        "recordings": {"known": len(sources), "examined": examined, "seconds": round(sum(record.seconds for record in sources), 1)},
        "clips": {"all": len(clips), "kept": len(clips) - rejected, "packed": sum(bool(clip.shard) for clip in clips), "out": rejected},
        "steps": [
            {"step": name, "reached": reached, "out": out, "score_seconds": round(spent.get(name, 0.0), 2)}
            for name, reached, out in funnel(recipe, clips)
        ],
    }


def _is_locked(dataset: Path) -> bool:
    try:
        with locked(dataset):
            return False
    except UserError:
        return True


def _print(dataset: Path, found: dict[str, Any]) -> None:
    recordings, clips = found["recordings"], found["clips"]
    running = "running now" if found["running"] else "not running"
    print(f"{dataset}: {found['state']}, {running}; {recordings['examined'] or 0} recordings examined, {recordings['seconds']} s of work in all")
    if found["state"] != FINISHED and not found["running"]:
        print("go on with the command that began it; what is done is kept")
    rows = [(row["step"], row["reached"], row["out"] or "", row["score_seconds"] or "") for row in found["steps"] if row["reached"]]
    if rows:
        show_table("clips of the last whole look", ("step", "reached it", "out", "seconds for scores"), [*rows, ("kept", clips["kept"], "", "")])

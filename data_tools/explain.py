"""`flowact-data explain DATASET KEY`: a clip's or recording's whole life: what each step found, which rule it was held to, and what became of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.building.ledger import ClipRecord, Ledger, SourceRecord
from flowact.errors import UserError, did_you_mean
from flowact.types import FRAMES_PER_SECOND

#: entries of a plan that are told, where they say something
_TOLD = ("crop", "shift", "identity", "license", "consent", "lufs", "states", "captions", "speech")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data explain`."""
    parser.add_argument("dataset", type=Path, help="folder that `flowact-data build` made")
    parser.add_argument("key", help="key of a clip, kept or rejected, or id of a recording, as the build, the report or rejected.parquet name it")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what the ledger knows.

    Raises:
        UserError: no ledger, or nothing of that name in it (with the nearest names).
    """
    ledger = Ledger.open(args.dataset)
    try:
        sources = {record.source.id: record for record in ledger.sources()}
        clip = ledger.clip(args.key)
        clips = [clip] if clip is not None else ledger.clips(source=args.key)
        if not clips:
            known = [*ledger.keys(), *sources]
            raise UserError(f"{args.dataset} knows no clip or recording {args.key!r}.{did_you_mean(args.key, known)}")
    finally:
        ledger.close()
    if args.json:
        print(json.dumps([as_plain(clip, sources.get(clip.source)) for clip in clips], indent=1))
        return 0
    for clip in clips:
        print("\n".join(life(clip, sources.get(clip.source))))
    return 0


def as_plain(clip: ClipRecord, record: SourceRecord | None) -> dict[str, Any]:
    """All that is known of a clip, as JSON holds it."""
    return {
        "key": clip.key,
        "recording": None if record is None else {"id": record.source.id, "address": record.source.address, "sha256": record.sha256},
        "kept": clip.rejection is None,
        "rejection": None if clip.rejection is None else vars(clip.rejection),
        "scores": clip.scores,
        "rules": {step: [vars(rule) for rule in rules] for step, rules in clip.rules.items()},
        "plan": None if clip.plan is None else clip.plan.to_json(),
        "split": clip.split,
        "shard": clip.shard,
    }


def life(clip: ClipRecord, record: SourceRecord | None) -> Iterator[str]:
    """Lines about a clip, from its recording to its shard."""
    yield f"{clip.key}: {verdict(clip)}"
    if record is not None:
        yield f"  recording   {record.source.address}" + (f" (sha256 {record.sha256[:16]}...)" if record.sha256 else "")
    if clip.plan is not None:
        span = clip.plan.span
        seconds = f"{span.first / FRAMES_PER_SECOND:.2f} s to {span.end / FRAMES_PER_SECOND:.2f} s"
        person = f", person {span.track}" if span.track else ""
        yield f"  frames      {span.first} to {span.end} at {FRAMES_PER_SECOND} a second ({seconds}){person}"
    for step, scores in clip.scores.items():
        yield f"  {step:<11} {', '.join(f'{name} {brief(value)}' for name, value in scores.items())}"
        for rule in clip.rules.get(step, ()):
            yield f"  {'':<11} {'kept' if rule.kept else 'OUT'}: {rule.score} {brief(rule.value)}, {rule.relation} {brief(rule.bound)}"
    if clip.rejection is not None:
        yield f"  out         {clip.rejection.step}: {clip.rejection.reason}"
        return
    if clip.plan is not None:
        plan: Mapping[str, Any] = clip.plan.to_json()
        said = [f"{name} {brief(plan[name])}" for name in _TOLD if plan[name] not in (None, "", [], 0)]
        yield f"  plan        {'; '.join(said) or 'the whole picture, as it is'}"


def verdict(clip: ClipRecord) -> str:
    """Where it is, or that it is out."""
    if clip.rejection is not None:
        return f"out, by {clip.rejection.step}"
    return f"kept, in {clip.shard}" if clip.shard else "kept, not packed yet"


def brief(value: Any) -> str:
    """A score in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = json.dumps(value) if isinstance(value, list | dict) else "unknown" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(value)} entries)"

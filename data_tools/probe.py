"""`flowact-data probe FILE`: what a media file holds, and whether it can be packed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_tools.footage import survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data probe`."""
    parser.add_argument("file", type=Path, help="a video or sound file")
    parser.add_argument("--fast", action="store_true", help="believe the container, decode nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when the file can not be packed."""
    footage = survey(args.file, count=not args.fast)
    if args.json:
        print(json.dumps({"file": str(args.file), **footage.to_json()}, indent=1))
        return 1 if footage.problems else 0
    print(f"{args.file}: {footage.container}, {footage.seconds:g} s")
    if footage.codec:
        rate = "variable rate, on average " if footage.variable_rate else ""
        counted = "" if footage.decoded_frames is None else f", {footage.decoded_frames} frames decode"
        claimed = f" of {footage.claimed_frames} claimed" if counted and footage.claimed_frames else ""
        turned = f", shown turned by {footage.rotation} degrees" if footage.rotation else ""
        print(f"  picture  {footage.codec} {footage.width}x{footage.height}, {rate}{footage.fps:g} frames a second{counted}{claimed}{turned}")
    if footage.audio_codec:
        offset = f", begins {footage.audio_offset_seconds:+.3f} s from the picture" if footage.audio_offset_seconds else ""
        print(f"  sound    {footage.audio_codec}, {footage.channels} channels at {footage.sample_rate} Hz{offset}")
    for problem in footage.problems:
        print(f"  problem  {problem}")
    return 1 if footage.problems else 0

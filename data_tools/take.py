"""`flowact-data take SHARDS --out DIR`: a clip's sound, picture and timed prompts as files, ready for `flowact generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowact.data import decode_sound, encode_sound, open_split, parse_captions
from flowact.data.schema import check_metadata, from_entries
from flowact.data.shards import ClipRef, Split
from flowact.errors import UserError, did_you_mean
from flowact.planning.base import TimedPrompt
from flowact.planning.prompts import save_prompts
from flowact.types import FIRST_STREAMED_FRAME, FRAMES_PER_SECOND, SAMPLES_PER_FRAME, STATES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data take`."""
    parser.add_argument("shards", help="a split's folder, for example DIR/shards/val")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for speech.wav, reference.png, prompts.yaml and clip.mp4")
    parser.add_argument("--key", metavar="KEY", help="which clip (default: the one that shows most of every state)")


def run(args: argparse.Namespace) -> int:
    """Write the files."""
    split = open_split(args.shards)
    clip = find(split, args.key) if args.key else most_varied(split)
    where = split.where(clip)
    captions = parse_captions(check_metadata(split.decode(clip, "json"), where), where)
    sound = decode_sound(split.decode(clip, "wav"), where)[FIRST_STREAMED_FRAME * SAMPLES_PER_FRAME :]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "speech.wav").write_bytes(encode_sound(sound))
    (args.out / "reference.png").write_bytes(split.decode(clip, "ref.png"))
    (args.out / "clip.mp4").write_bytes(split.decode(clip, "mp4"))
    save_prompts(args.out / "prompts.yaml", prompts(from_entries("captions", split.decode(clip, "json"))))
    print(f"{args.out}: {clip.key}, {len(sound) / 16_000:.2f} s, {len(captions.texts)} prompts")
    return 0


def prompts(captions: Sequence[tuple[Any, ...]]) -> list[TimedPrompt]:
    """Captions [first frame, end, state, text] as timed prompts of the stream."""
    moved: dict[float, TimedPrompt] = {}
    for first, end, state, text in captions:
        if end > FIRST_STREAMED_FRAME:
            start = max(first - FIRST_STREAMED_FRAME, 0) / FRAMES_PER_SECOND
            moved[start] = TimedPrompt(start, state, text)
    return list(moved.values())


def find(split: Split, key: str) -> ClipRef:
    """The clip with a key.

    Raises:
        UserError: there is none, with the nearest keys.
    """
    for clip in split.clips:
        if clip.key == key:
            return clip
    raise UserError(f"{split.folder} has no clip '{key}'.{did_you_mean(key, [clip.key for clip in split.clips])}")


def most_varied(split: Split) -> ClipRef:
    """The clip whose rarest state among speaking, listening and thinking lasts longest; the first clip where states are not known."""

    def rarest(clip: ClipRef) -> int:
        states_T = split.decode(clip, "states.npy")
        return int(np.bincount(states_T, minlength=len(STATES))[:3].min())

    return max(split.clips, key=rarest)

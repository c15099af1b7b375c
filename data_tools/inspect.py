"""`flowact-data inspect SHARDS --out sheet.png` or `--out film.mp4`: clips as a picture, or as a film with sound.

With `--latents` the frames are decoded from the cached latents, so it shows what the model is trained on; a film shows them beside the stored ones.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_tools.footage import encode_clip
from data_tools.reporting.decoded import DecodedLatents
from data_tools.reporting.drawing import Story, read_story
from data_tools.reporting.muxing import mux
from data_tools.reporting.sheet import draw_row, stack
from data_tools.reporting.watching import canvas_size, film_frames
from data_tools.stats import open_all
from data_tools.take import find
from data_tools.workplace import progress
from flowact.data.media import decode_video, encode_sound
from flowact.data.schema import write_atomically
from flowact.data.shards import ClipRef, Split, open_split
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE

ROWS = 8
FILM_CRF = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data inspect`."""
    parser.add_argument("shards", help="a split's folder, one .tar, or the dataset's folder (then its first split)")
    parser.add_argument("--out", type=Path, required=True, help="what to write: a picture (.png), or a film with sound (.mp4)")
    parser.add_argument("--clips", type=int, help=f"clips, evenly spread (default: {ROWS} in a picture, 1 in a film)")
    parser.add_argument("--key", action="append", metavar="KEY", help="this clip; may be given several times")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip in a picture, evenly spread (default: %(default)s)")
    parser.add_argument("--scale", type=int, default=None, help="height of a frame of a picture in pixels (default: at least 96)")
    parser.add_argument("--column", metavar="NAME", help="latents, or the name of a latents column: show it decoded; in a film beside the stored")
    parser.add_argument("--latents", action="store_const", dest="column", const="latents", help="the same as --column latents")
    parser.add_argument("--plain", action="store_true", help="film: one clip exactly as it is stored, with its sound; nothing is drawn on it")


def run(args: argparse.Namespace) -> int:
    """Draw the sheet, or make the film."""
    kind = args.out.suffix.lower()
    if kind not in (".png", ".mp4"):
        raise UserError(f"--out {args.out}: give a file that ends in .png for a picture, or in .mp4 for a film")
    clips = args.clips if args.clips is not None else ROWS if kind == ".png" else 1
    if clips < 1 or args.frames < 1:
        raise UserError(f"--clips {clips} --frames {args.frames}: both must be at least 1")
    if args.plain and (kind != ".mp4" or args.column or clips > 1 or len(args.key or ()) > 1):
        raise UserError("--plain copies one clip into a film (.mp4); leave out --column, --latents and further clips")
    path = Path(args.shards)
    split = open_all(path)[0] if path.is_dir() else open_split(args.shards)
    chosen = [find(split, key) for key in args.key] if args.key else spread(split, clips)
    latents = DecodedLatents(split, args.column) if args.column else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".png":
        sheet(split, chosen, latents, args)
    elif args.plain:
        write_atomically(args.out, mux(split.read(chosen[0], "mp4"), split.read(chosen[0], "wav"), split.where(chosen[0]), _rate(split)))
    else:
        write_atomically(args.out, film(split, chosen, latents))
    print(f"{args.out}: {len(chosen)} of {len(split)} clips of {split.folder}{f', decoded from {latents.name}' if latents else ''}")
    return 0


def spread(split: Split, count: int) -> list[ClipRef]:
    """Clips evenly spread over a split, the first one first."""
    return [split.clips[i] for i in np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int))]


def sheet(split: Split, chosen: Sequence[ClipRef], latents: DecodedLatents | None, args: argparse.Namespace) -> None:
    """Write the contact sheet."""
    rows = []
    for clip in progress(chosen, len(chosen), "inspect", "clips"):
        frames_THWC = latents.frames(clip) if latents else decode_video(split.read(clip, "mp4"), split.where(clip))
        rows.append(draw_row(frames_THWC, read_story(split, clip), args.frames, args.scale))
    stack(rows).save(args.out)


def film(split: Split, chosen: Sequence[ClipRef], latents: DecodedLatents | None) -> bytes:
    """Clips one after another as an mp4: T frames and T times the samples of a frame for each.

    Args:
        split: of the clips.
        chosen: to show.
        latents: to show beside the stored picture; None shows the stored one alone.
    """
    stories = [read_story(split, clip) for clip in chosen]
    for story in stories:
        if story.lacking:
            what = f"lacks {story.lacking}" if story.lacking > 0 else f"has {-story.lacking} too many"
            warnings.warn(f"{story.where}: the sound {what} samples for {story.frames} frames; in the film it is filled up or cut", stacklevel=2)
    shapes = [_shape(story, split, clip) for story, clip in zip(stories, chosen)]
    size = canvas_size(shapes, 1 if latents is None else 2)
    frames = _all_frames(split, list(zip(chosen, stories)), latents, size)
    video = encode_clip(frames, split.info.fps if split.info else FRAMES_PER_SECOND, crf=FILM_CRF, preset="veryfast")
    sound = encode_sound(np.concatenate([story.samples_S for story in stories]), _rate(split))
    return mux(video, sound, str(split.folder), _rate(split))


def _all_frames(
    split: Split, chosen: Sequence[tuple[ClipRef, Story]], latents: DecodedLatents | None, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    for clip, story in progress(chosen, len(chosen), "inspect", "clips"):
        panels = [("stored", decode_video(split.read(clip, "mp4"), story.where, count=clip.frames))]
        if latents is not None:
            panels.append((f"from {latents.name}", latents.frames(clip)))
        yield from film_frames(panels, story, size)


def _shape(story: Story, split: Split, clip: ClipRef) -> tuple[int, int]:
    """Height and width of a clip's picture; the first frame tells where the metadata does not."""
    height, width = story.metadata.get("height"), story.metadata.get("width")
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    first = decode_video(split.read(clip, "mp4"), story.where, count=1)
    return first.shape[1], first.shape[2]


def _rate(split: Split) -> int:
    return split.info.sample_rate if split.info else SAMPLE_RATE

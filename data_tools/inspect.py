"""`flowact-data inspect SHARDS --out sheet.png`: clips as a picture: frames, captions by state, loudness and, where it is known, the mouth.

With `--column latents` the frames are decoded from the cached latents, so it shows what the model is trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_tools.stats import open_all
from data_tools.workplace import progress
from flowact import registry
from flowact.data.media import decode_sound, decode_video
from flowact.data.schema import COLUMNS_FOLDER, parse_captions, read_column
from flowact.data.shards import ClipRef, Split, open_split
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME

STATE_COLOURS = {"speaking": (214, 96, 77), "listening": (67, 147, 195), "thinking": (230, 171, 2), "idle": (150, 150, 150)}
INK, PAPER, CURVE, MOUTH = (30, 30, 30), (255, 255, 255), (120, 120, 120), (178, 24, 43)
MARGIN, TEXT_HEIGHT, STRIP_HEIGHT = 6, 14, 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data inspect`."""
    parser.add_argument("shards", help="a split's folder, one .tar, or the dataset's folder (then its first split)")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png)")
    parser.add_argument("--clips", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip, evenly spread (default: %(default)s)")
    parser.add_argument("--scale", type=int, default=None, help="height of a frame in pixels (default: at least 96)")
    parser.add_argument("--column", metavar="NAME", help="latents, or the name of a latents column: show the decoded latents instead of the video")


def run(args: argparse.Namespace) -> int:
    """Draw the sheet."""
    if args.clips < 1 or args.frames < 1:
        raise UserError(f"--clips {args.clips} --frames {args.frames}: both must be at least 1")
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: give a file that ends in .png")
    path = Path(args.shards)
    split = open_all(path)[0] if path.is_dir() else open_split(args.shards)
    chosen = [split.clips[i] for i in np.unique(np.linspace(0, len(split) - 1, min(args.clips, len(split))).round().astype(int))]
    latents = _Latents(split, args.column) if args.column else None
    rows = [_draw(split, clip, args, latents) for clip in progress(chosen, len(chosen), "inspect", "clips")]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out)
    print(f"{args.out}: {len(rows)} of {len(split)} clips of {split.folder}{f', decoded from {latents.name}' if latents else ''}")
    return 0


class _Latents:
    """Decodes a split's cached latents."""

    def __init__(self, split: Split, name: str) -> None:
        from flowact.autoencoders import load_autoencoder

        root = split.root / COLUMNS_FOLDER
        folders = sorted(path for path in root.glob("latents-*") if path.is_dir() and name in ("latents", path.name))
        if len(folders) != 1:
            present = ", ".join(path.name for path in root.glob("latents-*")) or "none"
            raise UserError(f"--column {name}: {len(folders)} columns of {root} fit; there: {present}")
        self.name = folders[0].name
        self.info = read_column(folders[0])
        self.column = split.column(folders[0])
        self.autoencoder = load_autoencoder(folders[0] / "autoencoder")

    def frames(self, clip: ClipRef) -> np.ndarray:
        """uint8 (T, H, W, 3)."""
        import torch

        latents = torch.from_numpy(self.column.decode(clip, "latents.npy").astype(np.float32))[None]
        with torch.inference_mode():
            frames_CTHW = self.autoencoder.decode(latents)[0]
        return ((frames_CTHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def _draw(split: Split, clip: ClipRef, args: argparse.Namespace, latents: _Latents | None) -> Image.Image:
    where = split.where(clip)
    metadata = split.decode(clip, "json")
    frames = latents.frames(clip) if latents else decode_video(split.read(clip, "mp4"), where)
    shown = np.linspace(0, len(frames) - 1, min(args.frames, len(frames))).round().astype(int)
    height = args.scale or max(96, frames.shape[1])
    width = round(frames.shape[2] * height / frames.shape[1])
    total = MARGIN + args.frames * (width + MARGIN)
    row = Image.new("RGB", (total, 2 * TEXT_HEIGHT + height + STRIP_HEIGHT + 3 * MARGIN), PAPER)
    pen = ImageDraw.Draw(row)
    source = metadata.get("source") or {}
    pen.text((MARGIN, 0), f"{where}   {metadata.get('identity')}   {len(frames) / FRAMES_PER_SECOND:.1f} s   {source.get('license', '')}", fill=INK)
    for column, number in enumerate(shown):
        picture = Image.fromarray(frames[number]).resize((width, height), Image.Resampling.NEAREST)
        row.paste(picture, (MARGIN + column * (width + MARGIN), TEXT_HEIGHT))
    _draw_strip(pen, split, clip, metadata, total, TEXT_HEIGHT + height + MARGIN)
    return row


def _draw_strip(pen: ImageDraw.ImageDraw, split: Split, clip: ClipRef, metadata: dict[str, Any], width: int, top: int) -> None:
    """States as a coloured band with captions, loudness as bars, the true mouth as a line."""
    where = split.where(clip)
    across = width - 2 * MARGIN
    captions = parse_captions(metadata, where)
    ends = np.append(captions.starts[1:], clip.frames)
    bottom = top + STRIP_HEIGHT
    for start, end, state, text in zip(captions.starts, ends, captions.states, captions.texts):
        left, right = MARGIN + start / clip.frames * across, MARGIN + end / clip.frames * across
        pen.rectangle((left, bottom + 1, right, bottom + TEXT_HEIGHT), fill=STATE_COLOURS.get(state, CURVE))
        words = text
        while words and pen.textlength(words) > right - left - 4:
            words = words[:-1]
        pen.text((left + 2, bottom + 1), words, fill=PAPER)
    samples = decode_sound(split.read(clip, "wav"), where, SAMPLE_RATE).astype(np.float32) / 2**15
    level = np.sqrt(np.square(samples[: clip.frames * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)).mean(axis=1))
    _draw_curve(pen, level / max(float(level.max()), 1e-6), (MARGIN, top, across, STRIP_HEIGHT), CURVE, bars=True)
    mouth = _mouth(split, clip, metadata)
    if mouth is not None:
        _draw_curve(pen, mouth / max(float(mouth.max()), 1e-6), (MARGIN, top, across, STRIP_HEIGHT), MOUTH)


def _mouth(split: Split, clip: ClipRef, metadata: dict[str, Any]) -> np.ndarray | None:
    if not metadata.get("character") or "truth.npy" not in split.shards[clip.shard].entries[clip.sample].members:
        return None
    return registry.instantiate(metadata["character"], "characters").mouth_area(split.decode(clip, "truth.npy"))


def _draw_curve(
    pen: ImageDraw.ImageDraw, values: np.ndarray, box: tuple[int, int, int, int], colour: tuple[int, int, int], bars: bool = False
) -> None:
    left, top, width, height = box
    x = left + np.arange(len(values)) / max(len(values) - 1, 1) * width
    y = top + height - np.clip(values, 0, 1) * (height - 2)
    if bars:
        for a, b in zip(x, y):
            pen.line((a, top + height, a, b), fill=colour)
    else:
        pen.line(list(zip(x.tolist(), y.tolist())), fill=colour, width=2)

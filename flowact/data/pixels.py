"""Windows of pixel frames, for training an autoencoder. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flowact.data.cache import WorkerCache
from flowact.data.columns import rates
from flowact.data.media import decode_video
from flowact.data.pipeline import Window
from flowact.data.shards import ClipRef, Split
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, FrameBatch


class PixelClips:
    """Windows of pixel frames. Decoded clips are kept as uint8 while they fit; beyond that only the window is decoded.

    Args:
        split: the clips.
        num_frames: pixel frames of a window.
        cache: decoded clips kept in memory.

    Attributes:
        sizes: size of each clip's pictures, in words; windows of one size only may share a batch.

    Raises:
        UserError: a clip shorter than the window.
    """

    def __init__(self, split: Split, num_frames: int, cache: WorkerCache[np.ndarray]) -> None:
        self.split = split
        self.num_frames = num_frames
        self.fps = split.info.fps if split.info else FRAMES_PER_SECOND
        self._cache = cache
        self._frame_bytes = 0
        short = [clip for clip in split.clips if clip.frames < num_frames]
        if short:
            shortest = min(clip.frames for clip in short)
            raise UserError(
                f"{len(short)} of {len(split)} clips in {split.folder} have fewer than num_frames={num_frames} frames, the shortest {shortest}; "
                f"lower num_frames, or exclude them in dataset.yaml: [{split.listed(short)}]"
            )
        self.sizes = [self._size(clip) for clip in split.clips]

    def _size(self, clip: ClipRef) -> str:
        metadata = self.split.decode(clip, "json") if "json" in self.split.members(clip) else None
        if not isinstance(metadata, dict) or "width" not in metadata or "height" not in metadata:
            return "unstated pixels"
        return f"{metadata['width']}x{metadata['height']} pixels"

    @property
    def facts(self) -> dict[str, Any]:
        """What data sets that are mixed have in common."""
        return rates(self.split)

    def read(self, window: Window) -> tuple[np.ndarray, str]:
        """uint8 frames (T, H, W, 3) and the key with the first frame."""
        clip, cache = self.split.clips[window.clip], self._cache.here
        place = (str(self.split.folder), clip.shard, clip.sample)
        first = int(window.generator().integers(clip.frames - self.num_frames + 1))
        frames = cache.get(place)
        if frames is None:
            video, where = self.split.read(clip, "mp4"), self.split.where(clip)
            if not cache.has_room(self._frame_bytes * clip.frames):
                return decode_video(video, where, first=first, count=self.num_frames, fps=self.fps), f"{clip.key}@{first}"
            frames = decode_video(video, where, count=clip.frames, fps=self.fps)
            self._frame_bytes = max(self._frame_bytes, frames[0].nbytes)  # known from the first clip on
            cache.put(place, frames, frames.nbytes)
        return frames[first : first + self.num_frames], f"{clip.key}@{first}"


def collate_frames(samples: Sequence[tuple[np.ndarray, str]]) -> FrameBatch:
    """A batch of pixel windows in [-1, 1].

    Raises:
        UserError: clips of different picture size.
    """
    shapes = {frames.shape[1:3]: key for frames, key in samples}
    if len(shapes) > 1:
        raise UserError(f"clips differ in size: {', '.join(f'{key} is {w}x{h}' for (h, w), key in shapes.items())}; pack them at one --size")
    frames_BTHWC = torch.from_numpy(np.stack([frames for frames, _ in samples]))
    return FrameBatch(frames_BTHWC.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0).contiguous(), tuple(key for _, key in samples))

"""Windows of pixel frames, for training an autoencoder. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import get_worker_info

from flowact.data.media import decode_video
from flowact.data.pipeline import ByteCache, Window
from flowact.data.shards import Split
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, FrameBatch


class PixelClips:
    """Windows of pixel frames. Decoded clips are kept as uint8 while they fit; beyond that only the window is decoded.

    Args:
        split: the clips.
        num_frames: pixel frames of a window.
        cache_bytes: decoded clips kept in memory.

    Raises:
        UserError: a clip shorter than the window.
    """

    def __init__(self, split: Split, num_frames: int, cache_bytes: int) -> None:
        self.split = split
        self.num_frames = num_frames
        self.fps = split.info.fps if split.info else FRAMES_PER_SECOND
        self._cache_bytes = cache_bytes
        self._cache: ByteCache[np.ndarray] | None = None
        self._frame_bytes = 0
        short = [clip for clip in split.clips if clip.frames < num_frames]
        if short:
            shortest = min(clip.frames for clip in short)
            raise UserError(
                f"{len(short)} of {len(split)} clips in {split.folder} have fewer than num_frames={num_frames} frames, the shortest {shortest}; "
                f"lower num_frames, or exclude them in dataset.yaml: [{split.listed(short)}]"
            )

    def read(self, window: Window) -> tuple[np.ndarray, str]:
        """uint8 frames (T, H, W, 3) and the key with the first frame."""
        if self._cache is None:
            worker = get_worker_info()
            self._cache = ByteCache(self._cache_bytes // (worker.num_workers if worker else 1))
        clip = self.split.clips[window.clip]
        first = int(window.generator().integers(clip.frames - self.num_frames + 1))
        frames = self._cache.get(window.clip)
        if frames is None:
            video, where = self.split.read(clip, "mp4"), self.split.where(clip)
            if not self._cache.has_room(self._frame_bytes * clip.frames):
                return decode_video(video, where, first=first, count=self.num_frames, fps=self.fps), f"{clip.key}@{first}"
            frames = decode_video(video, where, count=clip.frames, fps=self.fps)
            self._frame_bytes = frames[0].nbytes  # known from the first clip on
            self._cache.put(window.clip, frames, frames.nbytes)
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

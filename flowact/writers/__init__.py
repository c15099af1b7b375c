"""Frames and sound to files. Importing this loads no media library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowact.writers.base import VideoWriter
from flowact.writers.frames import FrameFolderWriter

if TYPE_CHECKING:
    from flowact.writers.mp4 import Mp4Writer

__all__ = ["FrameFolderWriter", "Mp4Writer", "VideoWriter"]


def __getattr__(name: str) -> Any:
    if name == "Mp4Writer":  # the only name that needs FFmpeg
        from flowact.writers.mp4 import Mp4Writer

        return Mp4Writer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Videos as people have them: any container, frame rate and sound, read to a constant rate. Nothing but the file itself is opened."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data_tools.media.clips import encode_clip, read_clip
from data_tools.media.container import VIDEO_SUFFIXES, FootageError, check_file, open_media
from data_tools.media.kept import Kept
from data_tools.media.looking import Block, View, look, read_frames
from data_tools.media.sound import Sound, read_sound, write_sound
from data_tools.media.survey import Footage, survey

__all__ = [
    "VIDEO_SUFFIXES",
    "Block",
    "Footage",
    "FootageError",
    "Kept",
    "Sound",
    "View",
    "check_file",
    "encode_clip",
    "from_png",
    "look",
    "open_media",
    "read_clip",
    "read_frames",
    "read_sound",
    "survey",
    "to_png",
    "write_sound",
]


def to_png(picture: np.ndarray) -> bytes:
    """A picture uint8 (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def from_png(data: bytes, where: str) -> np.ndarray:
    """uint8 (H, W, 3) of a picture.

    Raises:
        FootageError: undecodable.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FootageError(f"{where}: the picture can not be decoded ({error})") from error

"""Conditions of the video: text, sound and a reference picture. Importing this loads no media library and no model library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowact.conditioning.audio import LogMel, WhisperAudio
from flowact.conditioning.base import AudioEncoder, ConditioningEncoder, TextEncoder, check_samples
from flowact.conditioning.dropout import ConditionDropout
from flowact.conditioning.reference import ReferenceLatent, load_picture, prepare_picture
from flowact.conditioning.text import HashedText, MiniLMText

if TYPE_CHECKING:
    from flowact.conditioning.media import load_audio

__all__ = [
    "AudioEncoder",
    "ConditionDropout",
    "ConditioningEncoder",
    "HashedText",
    "LogMel",
    "MiniLMText",
    "ReferenceLatent",
    "TextEncoder",
    "WhisperAudio",
    "check_samples",
    "load_audio",
    "load_picture",
    "prepare_picture",
]


def __getattr__(name: str) -> Any:
    if name == "load_audio":  # the only name that needs FFmpeg
        from flowact.conditioning.media import load_audio

        return load_audio
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

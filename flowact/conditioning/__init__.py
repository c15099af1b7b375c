"""Conditions of the video: text, sound and a reference picture. Importing this loads no media library and no model library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowact.conditioning.audio import LogMel
from flowact.conditioning.base import AudioEncoder, ConditioningEncoder, TextEncoder, check_samples
from flowact.conditioning.blockwise import BlockwiseAudio
from flowact.conditioning.dropout import ConditionDropout
from flowact.conditioning.reference import ReferenceLatent, load_picture, prepare_picture
from flowact.conditioning.text import HashedText, MiniLMText
from flowact.conditioning.transformers_text import HunyuanVideo15Text, HunyuanVideoText, T5Text
from flowact.conditioning.whisper import WhisperAudio, WhisperBaseAudio

if TYPE_CHECKING:
    from flowact.conditioning.media import load_audio

__all__ = [
    "AudioEncoder",
    "BlockwiseAudio",
    "ConditionDropout",
    "ConditioningEncoder",
    "HashedText",
    "HunyuanVideo15Text",
    "HunyuanVideoText",
    "LogMel",
    "MiniLMText",
    "ReferenceLatent",
    "T5Text",
    "TextEncoder",
    "WhisperAudio",
    "WhisperBaseAudio",
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

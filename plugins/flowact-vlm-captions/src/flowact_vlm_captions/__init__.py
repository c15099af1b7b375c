"""Captions by a vision-language model, as a step of `flowact-data build`."""

from __future__ import annotations

from flowact_vlm_captions.endpoint import AskingFailed, ChatEndpoint, Patience
from flowact_vlm_captions.step import VlmCaptions

__all__ = ["AskingFailed", "ChatEndpoint", "Patience", "VlmCaptions"]

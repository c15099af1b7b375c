"""Synthetic characters with exact truth, and the speech they speak."""

from flowact.characters.base import Character, Identity, Readout
from flowact.characters.speech import SpeechPiece, load_speech

__all__ = ["Character", "Identity", "Readout", "SpeechPiece", "load_speech"]

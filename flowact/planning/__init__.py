"""What the character should be seen doing, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowact.planning.base import PHASES, Behaviour, Conversation, Heard, LivePlanner, Phase, Planner, TimedPrompt
from flowact.planning.conversation import ConversationPlanner
from flowact.planning.phases import Timing
from flowact.planning.prompts import load_prompts, prompts_per_frame, save_prompts, states_per_frame
from flowact.planning.speech_activity import SpeechActivityPlanner
from flowact.planning.voice import EnergyDetector, VoiceDetector

if TYPE_CHECKING:
    from flowact.planning.silero import SileroDetector

__all__ = [
    "PHASES",
    "Behaviour",
    "Conversation",
    "ConversationPlanner",
    "EnergyDetector",
    "Heard",
    "LivePlanner",
    "Phase",
    "Planner",
    "SileroDetector",
    "SpeechActivityPlanner",
    "TimedPrompt",
    "Timing",
    "VoiceDetector",
    "load_prompts",
    "prompts_per_frame",
    "save_prompts",
    "states_per_frame",
]


def __getattr__(name: str) -> Any:
    if name == "SileroDetector":  # the only name that needs torch
        from flowact.planning.silero import SileroDetector

        return SileroDetector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

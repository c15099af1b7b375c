"""What the character should be seen doing, and when."""

from __future__ import annotations

from flowact.planning.base import PHASES, Behaviour, Conversation, Heard, LivePlanner, Phase, Planner, TimedPrompt
from flowact.planning.conversation import ConversationPlanner
from flowact.planning.phases import Timing
from flowact.planning.prompts import load_prompts, prompts_per_frame, save_prompts, states_per_frame
from flowact.planning.silero import SileroDetector
from flowact.planning.speech_activity import SpeechActivityPlanner
from flowact.planning.voice import EnergyDetector, VoiceDetector

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

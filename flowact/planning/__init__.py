"""What the character should be seen doing, and when."""

from __future__ import annotations

from flowact.planning.base import Planner, TimedPrompt
from flowact.planning.prompts import load_prompts, prompts_per_frame, save_prompts, states_per_frame
from flowact.planning.speech_activity import SpeechActivityPlanner

__all__ = ["Planner", "SpeechActivityPlanner", "TimedPrompt", "load_prompts", "prompts_per_frame", "save_prompts", "states_per_frame"]

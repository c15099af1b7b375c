"""A language model that plans the behaviour of a live character (FlowAct-R1, action planning), with the state machine to fall back on."""

from __future__ import annotations

from flowact_llm_planner.conversation import Counts, LanguageModelConversation
from flowact_llm_planner.planner import LanguageModelPlanner

__all__ = ["Counts", "LanguageModelConversation", "LanguageModelPlanner"]

"""Steps of a build: each looks at one thing. What is measured and what is done about it are apart, so thresholds change without measuring again."""

from __future__ import annotations

from data_tools.steps.base import Clip, Plan, Recording, Rejection, Rule, Soundtrack, Span, Step, Watcher

__all__ = ["Clip", "Plan", "Recording", "Rejection", "Rule", "Soundtrack", "Span", "Step", "Watcher"]

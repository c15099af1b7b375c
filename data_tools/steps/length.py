"""How long clips are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from data_tools.steps.base import Clip, Plain, Recording, Rule, Span, Step
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND


@final
class Length(Step):
    """Cuts long spans into clips of equal length, and brings every clip to 4 n + 1 frames.

    A causal video autoencoder with a temporal stride of 4 turns 4 n + 1 frames into n + 1 latents: one for the first frame, one for each four
    after it. Frames beyond that would be lost without a word later, so they are left out here, at most three at the end of a clip.

    Args:
        max_seconds: of a clip; longer spans are cut into the fewest equal parts that fit. 20 s are what the recipes' memory can be trained on.
        min_seconds: shorter clips are rejected; 2 s are what the smallest training window with history takes.
        frame_step: the autoencoder's temporal stride, 4.
    """

    thresholds = ("max_seconds", "min_seconds", "frame_step")

    def __init__(self, max_seconds: float = 20.0, min_seconds: float = 2.0, frame_step: int = 4) -> None:
        if min_seconds < 0 or max_seconds < max(min_seconds, 1 / FRAMES_PER_SECOND):
            raise UserError(f"Length: min_seconds {min_seconds} and max_seconds {max_seconds}: the longest is at least the shortest and one frame")
        if frame_step < 1:
            raise UserError(f"Length: frame_step {frame_step}: at least 1, the autoencoder's temporal stride")
        self.max_seconds = max_seconds
        self.min_seconds = min_seconds
        self.frame_step = frame_step

    def cut(self, recording: Recording, spans: Sequence[Span]) -> list[Span]:
        longest = self._whole(round(self.max_seconds * FRAMES_PER_SECOND) + 1)
        cut = []
        for span in spans:
            if span.frames < 1:
                continue
            parts = -(-span.frames // longest)
            each = self._whole(span.frames // parts) if parts > 1 else self._whole(span.frames)
            starts = [span.first + part * (span.frames // parts) for part in range(parts)]
            cut += [Span(start, start + each, span.track) for start in starts]
        return cut

    def _whole(self, frames: int) -> int:
        """The largest n * step + 1 up to a number of frames."""
        return max((frames - 1) // self.frame_step, 0) * self.frame_step + 1

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        return {"seconds": clip.frames / FRAMES_PER_SECOND}

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (Rule.at_least("seconds", scores["seconds"], self.min_seconds),)

    def explain(self, rule: Rule) -> str:
        return f"{rule.value:g} s long, must be at least {rule.bound:g} s"

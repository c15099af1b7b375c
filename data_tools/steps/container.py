"""What a container must hold to be worth decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from data_tools.footage import Footage
from data_tools.inputs import Source
from data_tools.steps.base import Plain, Rule, Step


@final
class Container(Step):
    """Rate, size and sound that the container claims. That the file decodes as far as it claims is seen later, when every frame is decoded.

    Args:
        min_fps: fewer frames a second than this are refused: brought to 25, mouths would jump. 20 lets 23.976 and 24 pass.
        min_height: pixels of the picture's shorter side; None takes any. Clips are never enlarged beyond their crop's own pixels by accident.
        min_seconds: shorter recordings are refused; None takes any.
        max_seconds: longer ones are refused; None takes any (they are streamed, so none is too long to read).
        sound: refuse recordings without a soundtrack (or one beside them); otherwise they get silence.
    """

    thresholds = ("min_fps", "min_height", "min_seconds", "max_seconds", "sound")

    def __init__(
        self,
        min_fps: float | None = 20.0,
        min_height: int | None = None,
        min_seconds: float | None = 1.0,
        max_seconds: float | None = None,
        sound: bool = True,
    ) -> None:
        self.min_fps = min_fps
        self.min_height = min_height
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.sound = sound

    def survey(self, source: Source, footage: Footage) -> Mapping[str, Plain]:
        return {
            "fps": footage.fps or None,
            "height": min(footage.width, footage.height),
            "seconds": footage.seconds or None,
            "sound": footage.audio_codec is not None or "wav" in source.sidecars,
        }

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule("sound", scores["sound"], "is", True, scores["sound"] or not self.sound),
            Rule.at_least("fps", scores["fps"], self.min_fps),
            Rule.at_least("height", scores["height"], self.min_height),
            Rule.at_least("seconds", scores["seconds"], self.min_seconds),
            Rule.at_most("seconds", scores["seconds"], self.max_seconds),
        )

    def explain(self, rule: Rule) -> str:
        if rule.score == "sound":
            return "the file has no soundtrack and there is no .wav beside it; no lips can be learnt from it (Container.sound: false gives silence)"
        what = {"fps": "frames a second", "height": "pixels on the shorter side", "seconds": "seconds long"}[rule.score]
        return f"{rule.value:g} {what}, must be {rule.relation} {rule.bound:g}"

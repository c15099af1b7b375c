"""How loud the sound is, and how much of it is spoilt.

Axes: S samples at 16 kHz, N windows of 40 ms.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from data_tools.steps.base import Clip, Plain, Plan, Rule, Step
from data_tools.steps.libraries import need
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

FULL_SCALE = 0.99  # of full scale; resampling rounds off what was clipped
FLOOR_PERCENTILE = 10  # of the levels of frames: what is heard between words


@final
class Loudness(Step):
    """Integrated loudness (ITU-R BS.1770, by pyloudnorm), peak, clipped samples and the noise between words. The sound itself is never changed.

    Loudness needs 0.4 s of sound above -70 LUFS; without, it is unknown. The noise floor is the level that a tenth of the frames stay below: a clip
    without a pause has none, and its floor is the quietest speech.

    Args:
        min_lufs: quieter clips are rejected, silent ones too; None takes any. Speech is mostly between -30 and -16.
        max_lufs: louder ones are; None takes any.
        max_peak_db: dBFS; None takes any.
        max_clipped: share of samples at full scale; None takes any. 0.001 is heard.
        max_noise_db: dBFS of the noise floor; None takes any. -60 is a quiet room.
    """

    thresholds = ("min_lufs", "max_lufs", "max_peak_db", "max_clipped", "max_noise_db")
    package = "pyloudnorm"

    def __init__(
        self,
        min_lufs: float | None = None,
        max_lufs: float | None = None,
        max_peak_db: float | None = None,
        max_clipped: float | None = None,
        max_noise_db: float | None = None,
    ) -> None:
        self.min_lufs, self.max_lufs, self.max_peak_db = min_lufs, max_lufs, max_peak_db
        self.max_clipped, self.max_noise_db = max_clipped, max_noise_db

    def check(self) -> None:
        need("pyloudnorm", self.name)

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        samples_S = clip.samples()
        if not samples_S.any():
            return {"lufs": None, "peak_db": None, "clipped": 0.0, "noise_db": None}
        power_N = np.square(samples_S.reshape(-1, SAMPLES_PER_FRAME), dtype=np.float64).mean(1)
        sounding_N = power_N[power_N > 0]  # a digital silence is no noise
        return {
            "lufs": _lufs(samples_S),
            "peak_db": round(float(20 * np.log10(np.abs(samples_S).max())), 2),
            "clipped": round(float((np.abs(samples_S) >= FULL_SCALE).mean()), 6),
            "noise_db": round(float(10 * np.log10(np.percentile(sounding_N, FLOOR_PERCENTILE))), 2),
        }

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule.at_least("lufs", scores["lufs"], self.min_lufs, unknown=False),
            Rule.at_most("lufs", scores["lufs"], self.max_lufs),
            Rule.at_most("peak_db", scores["peak_db"], self.max_peak_db),
            Rule.at_most("clipped", scores["clipped"], self.max_clipped),
            Rule.at_most("noise_db", scores["noise_db"], self.max_noise_db),
        )

    def explain(self, rule: Rule) -> str:
        if rule.value is None:
            return f"the sound is silent or too short for a loudness, must be {rule.relation} {rule.bound:g} LUFS"
        if rule.score == "clipped":
            return f"{rule.value:.2%} of the samples are clipped, at most {rule.bound:.2%} are allowed"
        what = {"lufs": "the loudness", "peak_db": "the peak", "noise_db": "the noise"}[rule.score]
        return f"{what} is {rule.value:g} {'LUFS' if rule.score == 'lufs' else 'dBFS'}, must be {rule.relation} {rule.bound:g}"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        return clip.with_plan(lufs=scores["lufs"])


def _lufs(samples_S: np.ndarray) -> float | None:
    """Integrated loudness; None where no block of 0.4 s is above the gate."""
    meter = need("pyloudnorm", "Loudness").Meter(SAMPLE_RATE)
    if len(samples_S) < meter.block_size * SAMPLE_RATE:
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the mean of no block
        value = float(meter.integrated_loudness(samples_S.astype(np.float64)))
    return round(value, 2) if np.isfinite(value) else None

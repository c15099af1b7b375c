"""Whether lips and sound go together, and by how many frames they miss each other.

Axes: T frames at 25 a second, S samples at 16 kHz, K lags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import numpy as np

from data_tools.steps.base import Clip, Plain, Plan, Rule, Step
from flowact.characters.mouth import listen
from flowact.characters.speech import normalise_loudness
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME

REACH = 15  # lags searched, frames to both sides, as SyncNet does
SLOW_FRAMES = 25  # what changes more slowly than this is a smile, a turned head or a louder sentence, and would hide the syllables
SURROUNDINGS = 500  # frames to both sides
AUDIBLE = 0.1  # opening that the sound asks for, of 1
MIN_AUDIBLE_FRAMES = 75  # in a shorter stretch of speech any mouth fits somewhere
MIN_LEVEL_DB, MIN_RANGE_DB = -50.0, 12.0  # of the loudest twentieth of frames, and how far the quietest tenth lies below: speech rises and falls
EVEN = 1e-5  # a mouth that moves less does not move


@final
class Sync(Step):
    """Offset between lips and sound, from the mouth's opening and the loudness of the sound; shifts the sound to where it belongs.

    The opening that the sound asks for (level over 40 ms, quick attack, slow release) is correlated with the mouth's own at each lag up to 15
    frames, both without what changes more slowly than a second. Confidence is the best correlation minus the median over lags. A clip with less
    than three seconds of sound has the offset of 20 s of its recording to both sides (method 'surroundings'), for a delay mostly is the
    recording's; without these, without a mouth, or where the sound is too faint or too even for speech, it is unknown. Put it before `Voice`, so
    that who speaks is judged with the sound in its place.

    Measured with offsets from -8 to 8 frames. On the drawn actor (`flowact-data synth`, 24 takes, 421 clips of 4 to 12 s) the offset is found
    within one frame in all clips, also with noise of 0.06 on the opening; confidence is at least 0.86, with that noise 0.52. On the rigged human,
    its mouth found in the picture by MeshDetector, the offset is exact in all clips at a confidence of 0.95 and more, and of 0.84 after encoding to
    a seventieth of the size. A mouth against the speech of another take reaches 0.6 in 6 % of clips of 4 s and in none of 6 s and more; so does a
    filmed face that does not speak.

    What it can not tell, and a SyncNet can (plugin flowact-syncnet): sounds that need closed or rounded lips; singing and music, whose loudness is
    not the mouth's; a beard or a hand that hides the lips; two people at once. The synthetic mouths are moved by the very function that is
    correlated here, so the figures are the best case. Real people open their mouths before they are heard, so that filmed offsets may be early by
    some frames: look at the report before trusting the correction.

    Args:
        max_offset: frames; clips that are further off are rejected, for then more than a delay is wrong. 6 is LatentSync's bound. None takes any.
        min_confidence: less rejects; None takes any, for people who listen have none.
        trusted: an offset with less confidence than this counts as unknown: it neither rejects nor corrects.
        unknown: 'keep' or 'reject' clips whose offset is unknown.
        correct: shift the sound by the offset.
    """

    thresholds = ("max_offset", "min_confidence", "trusted", "unknown", "correct")

    def __init__(
        self,
        max_offset: int | None = 6,
        min_confidence: float | None = None,
        trusted: float = 0.6,
        unknown: Literal["keep", "reject"] = "keep",
        correct: bool = True,
    ) -> None:
        if max_offset is not None and not 0 <= max_offset <= REACH:
            raise UserError(f"Sync: max_offset {max_offset} is 0 to {REACH} frames, as far as is searched, or null")
        if unknown not in ("keep", "reject"):
            raise UserError(f"Sync: unknown {unknown!r} must be keep or reject")
        if not 0 <= trusted <= 2:
            raise UserError(f"Sync: trusted {trusted} is a confidence, 0 to 2")
        self.max_offset, self.min_confidence, self.trusted = max_offset, min_confidence, trusted
        self.unknown, self.correct = unknown, correct

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        span, method = clip.plan.span, "opening"
        curve_K = _curve_of(clip, span.first, span.end)
        if curve_K is None:
            curve_K, method = _curve_of(clip, max(span.first - SURROUNDINGS, 0), min(span.end + SURROUNDINGS, clip.recording.frames)), "surroundings"
        if curve_K is None:
            return {**dict.fromkeys(("offset_frames", "frames_off", "confidence", "correlation")), "method": "opening"}
        offset = REACH - int(curve_K.argmax())
        confidence = float(curve_K.max() - np.median(curve_K))
        return {
            "offset_frames": offset,
            "frames_off": abs(offset),
            "confidence": round(confidence, 4),
            "correlation": round(float(curve_K.max()), 4),
            "method": method,
        }

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        keep, confidence = self.unknown == "keep", scores["confidence"]
        known = confidence is not None and confidence >= self.trusted
        return (
            None if keep else Rule("confidence", confidence, "at least", self.trusted, known),
            Rule.at_least("confidence", confidence, self.min_confidence, unknown=keep),
            Rule.at_most("frames_off", scores["frames_off"] if known else None, self.max_offset),
        )

    def explain(self, rule: Rule) -> str:
        if rule.value is None:
            return "whether lips and sound go together can not be told: the mouth is not seen, or less than three seconds of speech are heard"
        if rule.score == "frames_off":
            return f"lips and sound are {rule.value} frames apart, at most {rule.bound} are allowed"
        return f"lips and sound go together with a confidence of {rule.value:.2f}, must be at least {rule.bound:g}"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        offset = scores["offset_frames"]
        if not self.correct or not offset or scores["confidence"] < self.trusted:
            return clip.plan
        return clip.with_plan(shift=clip.plan.shift + offset, speech=_moved(clip.plan.speech, offset, clip.frames))


def _curve_of(clip: Clip, first: int, end: int) -> np.ndarray | None:
    """`lag_curve` of frames first..end-1 of the clip's recording."""
    mouth_T = clip.recording.signals.get(clip.plan.mouth)
    if mouth_T is None:
        return None
    shift = clip.plan.shift
    return lag_curve(mouth_T[first:end], clip.recording.sound.read(first - shift - REACH, end - shift + REACH))


def lag_curve(mouth_T: np.ndarray, around_S: np.ndarray) -> np.ndarray | None:
    """Correlation of a mouth with the sound of 2 * 15 + 1 places; None where there is nothing to correlate.

    Args:
        mouth_T: opening, NaN where unseen.
        around_S: sound of the same frames with 15 more at both ends.

    Returns:
        float (31,): entry k compares frame t of the picture with frame t + k - 15 of the sound; its peak at 15 means that they fit.
    """
    known_T = np.isfinite(mouth_T)
    if known_T.sum() < MIN_AUDIBLE_FRAMES or not _rises_and_falls(around_S):
        return None
    wanted_T = listen(normalise_loudness(around_S)).opening_T.astype(np.float64)
    if (wanted_T[REACH:-REACH] > AUDIBLE).sum() < MIN_AUDIBLE_FRAMES:
        return None
    times_T = np.arange(len(mouth_T))
    own_N = _quick(np.interp(times_T, times_T[known_T], mouth_T[known_T]))[known_T]
    own_N = own_N - own_N.mean()
    wanted_KN = np.lib.stride_tricks.sliding_window_view(_quick(wanted_T), len(mouth_T))[:, known_T]
    wanted_KN = wanted_KN - wanted_KN.mean(axis=1, keepdims=True)
    norms_K, norm = np.linalg.norm(wanted_KN, axis=1), np.linalg.norm(own_N)
    if norm < EVEN * np.sqrt(len(own_N)):
        return None
    return np.where(norms_K > 0, wanted_KN @ own_N / np.maximum(norms_K * norm, 1e-12), 0.0)


def _rises_and_falls(samples_S: np.ndarray) -> bool:
    """Whether a sound can be speech: loud enough, and not as even as noise and most music."""
    power_T = np.square(samples_S.reshape(-1, SAMPLES_PER_FRAME), dtype=np.float64).mean(axis=1)
    quiet_db, loud_db = np.percentile(10 * np.log10(np.maximum(power_T, 1e-10)), (10, 95))
    return bool(loud_db >= MIN_LEVEL_DB and loud_db - quiet_db >= MIN_RANGE_DB)


def _quick(values_T: np.ndarray) -> np.ndarray:
    """The values without their mean over a second around each."""
    padded = np.pad(values_T, SLOW_FRAMES // 2, mode="edge")
    return values_T - np.convolve(padded, np.full(SLOW_FRAMES, 1 / SLOW_FRAMES), "valid")


def _moved(speech: Sequence[tuple[float, float, str]], frames: int, length: int) -> tuple[tuple[float, float, str], ...]:
    """Speech that was found before the sound was moved, later by a number of frames, inside a clip of some length."""
    moved = [(start + frames / FRAMES_PER_SECOND, end + frames / FRAMES_PER_SECOND, who) for start, end, who in speech]
    inside = [(round(max(start, 0.0), 2), round(min(end, length / FRAMES_PER_SECOND), 2), who) for start, end, who in moved]
    return tuple(run for run in inside if run[1] > run[0])

"""Who speaks when: voice activity frame by frame, of the person and of whom they talk to.

Axes: T frames at 25 a second, S samples at 16 kHz, N windows of 32 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import numpy as np

from data_tools.steps.base import Clip, Plain, Plan, Rule, Soundtrack, Step
from data_tools.steps.face_tracks import runs
from data_tools.steps.libraries import DATA_EXTRA, folder_of
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME

#: four frames are five of the network's windows; a piece is 40 s
CYCLE_FRAMES, CYCLE_WINDOWS = 4, 5
PIECE_CYCLES = 250
#: a frame with at least this probability counts as speech in scores: the network's own operating point
SPEECH = 0.5
SILENT_DB = -100.0
HYSTERESIS = 0.15
#: change of a mouth's opening within a second, below which it stands still; in the detector's unit, a share of the face's size
STILL = 0.04


@final
class Voice(Step):
    """Speech by the network of Silero VAD; loud sounds that are no voice are none. Singing mostly is.

    Signals: `speech`, the probability of a voice in each frame, and `level` in dBFS; `other` and `other_level` of the second track, if there is one.
    One track with a known mouth: a voice that is heard while the mouth stands still comes from off screen and is the other's.

    Args:
        threshold: a stretch of speech begins at this probability; it ends 0.15 below.
        min_speech: frames that a stretch lasts at least; shorter ones are coughs and clicks. Silero's own default is a quarter of a second.
        min_pause: shorter pauses belong to the stretch.
        bleed_db: where both tracks hold a voice and one is louder by this much, the quieter one is the louder heard through the other microphone.
        still: a mouth whose opening changes by less than this within a second stands still, in the detector's unit (a share of the face's size).
            Speaking mouths change by 0.1 and more, drawn ones at rest by 0.01, filmed ones by 0.03, which is the face mesh's noise.
        min_share: of frames with speech of the person's track; None rejects nothing, for people who listen are wanted too.
        max_off_screen: share of speech that is heard while the mouth stands still; None rejects nothing. 0.5 takes out voice-overs.
    """

    thresholds = ("threshold", "min_speech", "min_pause", "bleed_db", "min_share", "max_off_screen")
    package = "silero-vad"

    def __init__(
        self,
        threshold: float = 0.5,
        min_speech: int = 6,
        min_pause: int = 8,
        bleed_db: float = 12.0,
        still: float = STILL,
        min_share: float | None = None,
        max_off_screen: float | None = None,
    ) -> None:
        if not HYSTERESIS < threshold < 1:
            raise UserError(f"Voice: threshold {threshold} is a probability above {HYSTERESIS} and below 1")
        if min_speech < 1 or min_pause < 1 or bleed_db < 0 or still < 0:
            raise UserError(
                f"Voice: min_speech {min_speech} and min_pause {min_pause} are at least 1, bleed_db {bleed_db} and still {still} at least 0"
            )
        self.threshold, self.min_speech, self.min_pause = threshold, min_speech, min_pause
        self.bleed_db, self.still = bleed_db, still
        self.min_share, self.max_off_screen = min_share, max_off_screen

    def check(self) -> None:
        folder_of("silero_vad", self.name, DATA_EXTRA)
        _Detector()

    # --- what is heard ------------------------------------------------------------------------------------------------------------------------------

    def listen(self, sound: Soundtrack, other: Soundtrack | None) -> dict[str, np.ndarray]:
        speech_T, level_T = _listen(sound)
        signals = {"speech": speech_T, "level": level_T}
        if other is not None:
            signals["other"], signals["other_level"] = _listen(other)
        return signals

    # --- what it says about a clip ------------------------------------------------------------------------------------------------------------------

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        speech_T, other_T = heard(clip, f"{self.name}/speech"), heard(clip, f"{self.name}/other")
        scores: dict[str, Plain] = {"share": None, "other_share": None, "off_screen": None}
        if speech_T is None or not len(speech_T):
            return scores
        voiced_T = speech_T >= SPEECH
        scores["share"] = round(float(voiced_T.mean()), 4)
        if other_T is not None:
            scores["other_share"] = round(float((other_T >= SPEECH).mean()), 4)
            return scores
        still_T, known_T = still_mouth(clip.mouth_T, self.still, clip.frames)
        if (voiced_T & known_T).any():
            scores["off_screen"] = round(float(still_T[voiced_T & known_T].mean()), 4)
        return scores

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule.at_least("share", scores["share"], self.min_share, unknown=False),
            Rule.at_most("off_screen", scores["off_screen"], self.max_off_screen),
        )

    def explain(self, rule: Rule) -> str:
        if rule.score == "off_screen":
            return f"in {rule.value:.0%} of the speech the mouth stands still, so somebody else speaks; at most {rule.bound:.0%} are allowed"
        return f"there is speech in {rule.value or 0:.0%} of the frames, must be at least {rule.bound:.0%}"

    # --- what follows -------------------------------------------------------------------------------------------------------------------------------

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        speech_T, other_T = heard(clip, f"{self.name}/speech"), heard(clip, f"{self.name}/other")
        if speech_T is None:
            return clip.plan
        self_T = self._stretches(speech_T)
        if other_T is not None:
            others_T = self._stretches(other_T)
            level_T, other_level_T = heard(clip, f"{self.name}/level", SILENT_DB), heard(clip, f"{self.name}/other_level", SILENT_DB)
            assert level_T is not None
            assert other_level_T is not None  # `listen` gives both
            both_T = self_T & others_T
            self_T, others_T = (
                self._tidy(self_T & ~(both_T & (other_level_T >= level_T + self.bleed_db))),
                self._tidy(others_T & ~(both_T & (level_T >= other_level_T + self.bleed_db))),
            )
        else:
            still_T, _ = still_mouth(clip.mouth_T, self.still, clip.frames)
            self_T, others_T = self._tidy(self_T & ~still_T), self._tidy(self_T & still_T)
        found = [(first, end, who) for who, mask_T in (("self", self_T), ("other", others_T)) for first, end, on in runs(mask_T) if on]
        speech = tuple((first / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND, who) for first, end, who in sorted(found))
        return clip.with_plan(speech=speech)

    def _stretches(self, probability_T: np.ndarray) -> np.ndarray:
        """bool (T,): speech, by two thresholds, without clicks and short pauses."""
        return self._tidy(hysteresis(probability_T, self.threshold, self.threshold - HYSTERESIS))

    def _tidy(self, mask_T: np.ndarray) -> np.ndarray:
        return without_short(~without_short(~mask_T, self.min_pause), self.min_speech)



def heard(clip: Clip, name: str, silence: float = 0.0) -> np.ndarray | None:
    """A signal of the soundtrack in the clip's frames, moved as the plan moves the sound; `silence` outside the recording. None if there is none."""
    signal_T = clip.recording.signals.get(name)
    if signal_T is None:
        return None
    first, end = clip.plan.span.first - clip.plan.shift, clip.plan.span.end - clip.plan.shift
    inside = signal_T[max(first, 0) : max(end, 0)]
    before = min(max(-first, 0), end - first)
    return np.pad(inside, (before, end - first - before - len(inside)), constant_values=silence)


def hysteresis(values_T: np.ndarray, high: float, low: float) -> np.ndarray:
    """bool (T,): on from where a value reaches `high` to where it falls below `low`."""
    on_T, on = np.zeros(len(values_T), bool), False
    for t, value in enumerate(values_T.tolist()):
        on = value >= (low if on else high)
        on_T[t] = on
    return on_T


def without_short(mask_T: np.ndarray, shortest: int) -> np.ndarray:
    """The mask without true stretches of fewer frames; those at a clip's ends are kept, for nobody knows how long they are."""
    kept_T = mask_T.copy()
    for first, end, on in runs(mask_T):
        if on and end - first < shortest and first > 0 and end < len(mask_T):
            kept_T[first:end] = False
    return kept_T


def still_mouth(mouth_T: np.ndarray | None, still: float, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the mouth stands still, and where it was seen at all; both bool (T,). A mouth that was not seen does not stand still.

    Args:
        mouth_T: its opening, NaN where it was not seen; None if never.
        still: largest change of the opening within a second that counts as none.
        frames: of the clip.
    """
    if mouth_T is None:
        return np.zeros(frames, bool), np.zeros(frames, bool)
    reach = FRAMES_PER_SECOND // 2
    known_T = np.isfinite(mouth_T)
    low_T, high_T = (np.pad(np.where(known_T, mouth_T, fill), reach, constant_values=fill) for fill in (np.inf, -np.inf))
    around = 2 * reach + 1
    range_T = np.lib.stride_tricks.sliding_window_view(high_T, around).max(-1) - np.lib.stride_tricks.sliding_window_view(low_T, around).min(-1)
    return known_T & (range_T < still), known_T


def _listen(sound: Soundtrack) -> tuple[np.ndarray, np.ndarray]:
    """Probability of a voice, and level in dBFS, of each frame; float32 (T,)."""
    detector = _Detector()
    speech, level = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for samples_S, frames in _pieces(sound):
        speech.append(detector.hear(samples_S)[:frames])
        power_T = np.square(samples_S.reshape(-1, SAMPLES_PER_FRAME), dtype=np.float64).mean(1)[:frames]
        level.append((10 * np.log10(np.maximum(power_T, 10 ** (SILENT_DB / 10)))).astype(np.float32))
    return np.concatenate(speech), np.concatenate(level)


def _pieces(sound: Soundtrack) -> Iterator[tuple[np.ndarray, int]]:
    """Samples of 40 s at a time, padded to whole cycles, and the frames that they hold."""
    each = PIECE_CYCLES * CYCLE_FRAMES
    for first in range(0, sound.frames, each):
        frames = min(each, sound.frames - first)
        yield sound.read(first, first + -(-frames // CYCLE_FRAMES) * CYCLE_FRAMES), frames


class _Detector:
    """Silero's network with what it remembers from piece to piece."""

    def __init__(self) -> None:
        from flowact.planning.silero import SileroDetector

        self.detector = SileroDetector()
        state = self.detector.reset()
        self.context_S, self.recurrent = state.context_S, state.recurrent
        # how much of a frame lies in each window of its cycle
        edges = np.arange(CYCLE_WINDOWS + 1) * CYCLE_FRAMES / CYCLE_WINDOWS
        starts = np.arange(CYCLE_FRAMES)[:, None]
        self.shares_43 = np.clip(np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts), 0, None).astype(np.float32)

    def hear(self, samples_S: np.ndarray) -> np.ndarray:
        """Probability of a voice in each frame of whole cycles: the mean over its windows, by how much of the frame lies in each."""
        windows_NS = samples_S.reshape(-1, self.detector.hop)
        probability_N, self.recurrent = self.detector.probabilities(windows_NS, self.context_S, self.recurrent)
        self.context_S = windows_NS[-1, -len(self.context_S) :].copy()
        return (probability_N.reshape(-1, CYCLE_WINDOWS) @ self.shares_43.T).reshape(-1)

"""What a person does in each frame: speaks, listens, thinks, or nothing of these.

Axes: T frames at 25 a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from data_tools.steps.base import Clip, Plain, Plan, Rule, Step
from data_tools.steps.face_tracks import runs
from data_tools.steps.voice import STILL, heard, still_mouth, without_short
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, STATES

SPEAKING, LISTENING, THINKING, IDLE = range(len(STATES))
Run = tuple[int, int, str]


@final
class States(Step):
    """Behaviour from voice, mouth and pose, by rules.

    Speaking: the person's own speech, unless the mouth is seen to stand still. Listening: the other's speech (a second track, or a voice from off
    screen), while the person does not speak. Thinking: silence right before own speech, from where the head turns away from its usual direction.
    Idle: everything else. Pauses within speech belong to it, and nothing is shorter than `min_frames`.

    Gaze is the head's: eyes that wander alone are not seen, nor a hand at the chin. Without pose (SidecarBoxes) there is no thinking; with one track
    and nobody off screen there is no listening: import labels with `Labels` where these matter.

    Confidence is the mean over frames of what speaks for their state: the probability of the voice for speaking and listening, of silence for the
    other two.

    Args:
        min_frames: of a state; shorter ones become part of the longer neighbour. 8 frames are two latents, the least that can be trained on.
        speech_pause: frames of silence within own speech that still are speaking.
        listen_pause: frames of silence within the other's speech that still are listening.
        think_seconds: before own speech in which a person can be thinking; 0 finds no thinking.
        gaze_degrees: by which the head is turned from its median direction, to a side, up or down, to look away.
        still: a mouth whose opening changes by less within a second stands still.
        min_confidence: less rejects; None takes any.
    """

    needs = ("Voice",)
    thresholds = ("min_confidence",)

    def __init__(
        self,
        min_frames: int = 8,
        speech_pause: int = 12,
        listen_pause: int = 25,
        think_seconds: float = 3.0,
        gaze_degrees: float = 10.0,
        still: float = STILL,
        min_confidence: float | None = None,
    ) -> None:
        if min_frames < 1 or speech_pause < 0 or listen_pause < 0:
            raise UserError(
                f"States: min_frames {min_frames} is at least 1, speech_pause {speech_pause} and listen_pause {listen_pause} are at least 0 frames"
            )
        if think_seconds < 0 or gaze_degrees <= 0 or still < 0:
            raise UserError(f"States: think_seconds {think_seconds} and still {still} are at least 0, gaze_degrees {gaze_degrees} is above 0")
        self.min_frames, self.speech_pause, self.listen_pause = min_frames, speech_pause, listen_pause
        self.think_seconds, self.gaze_degrees, self.still = think_seconds, gaze_degrees, still
        self.min_confidence = min_confidence

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        states_T = self.states(clip)
        shares = {name: round(float((states_T == number).mean()), 4) if len(states_T) else 0.0 for number, name in enumerate(STATES)}
        support_T = _support(clip, states_T)
        return {**shares, "confidence": round(float(support_T.mean()), 4) if len(support_T) else None}

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (Rule.at_least("confidence", scores["confidence"], self.min_confidence),)

    def explain(self, rule: Rule) -> str:
        return f"what the person does is known with a confidence of {rule.value:.2f}, must be at least {rule.bound:g}"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        return clip.with_plan(states=named_runs(self.states(clip)))

    # --- rules --------------------------------------------------------------------------------------------------------------------------------------

    def states(self, clip: Clip) -> np.ndarray:
        """Index into `STATES` of each frame, int64 (T,)."""
        still_T, _ = still_mouth(clip.mouth_T, self.still, clip.frames)
        own_T = speech_mask(clip, "self") & ~still_T
        other_T = speech_mask(clip, "other")
        thinking_T = self._thinking(own_T, other_T, _away(clip, self.gaze_degrees))
        own_T = ~without_short(~own_T, self.speech_pause + 1)
        other_T = ~without_short(~other_T, self.listen_pause + 1)
        states_T = np.select([own_T, other_T, thinking_T], [SPEAKING, LISTENING, THINKING], IDLE)
        return absorb_short(states_T, self.min_frames)

    def _thinking(self, own_T: np.ndarray, other_T: np.ndarray, away_T: np.ndarray) -> np.ndarray:
        """Silence before own speech, from where the head is first turned away for `min_frames` in all."""
        thinking_T, longest = np.zeros_like(own_T), round(self.think_seconds * FRAMES_PER_SECOND)
        for first, end, sounding in runs(own_T | other_T):
            if sounding or end == len(own_T) or not own_T[end]:
                continue
            turned = max(first, end - longest) + np.flatnonzero(away_T[max(first, end - longest) : end])
            if len(turned) >= self.min_frames:
                thinking_T[turned[0] : end] = True
        return thinking_T


def speech_mask(clip: Clip, who: str) -> np.ndarray:
    """bool (T,): where the plan says that 'self' or 'other' speaks."""
    mask_T = np.zeros(clip.frames, bool)
    for start, end, speaker in clip.plan.speech:
        if speaker == who:
            mask_T[round(start * FRAMES_PER_SECOND) : round(end * FRAMES_PER_SECOND)] = True
    return mask_T


def absorb_short(states_T: np.ndarray, shortest: int) -> np.ndarray:
    """The shortest run, as long as it is too short, becomes part of its longer neighbour; a whole clip is never too short."""
    states_T = states_T.copy()
    while True:
        found = runs(states_T)
        short = [(end - first, first, number) for number, (first, end, _) in enumerate(found) if end - first < shortest]
        if len(found) < 2 or not short:
            return states_T
        _, first, number = min(short)
        neighbours = [found[n] for n in (number - 1, number + 1) if 0 <= n < len(found)]
        states_T[first : found[number][1]] = max(neighbours, key=lambda run: run[1] - run[0])[2]


def named_runs(states_T: np.ndarray) -> tuple[Run, ...]:
    """Indices into `STATES` as runs first, end, state."""
    return tuple((first, end, STATES[state]) for first, end, state in runs(states_T))


def _away(clip: Clip, degrees: float) -> np.ndarray:
    """bool (T,): the head is turned from its median direction. Nowhere, where its pose is not known."""
    step, _, name = clip.plan.boxes.partition("/boxes/")
    pose_T3 = clip.signal(f"{step}/pose/{name}") if name else None
    if pose_T3 is None or not np.isfinite(pose_T3[:, :2]).any():
        return np.zeros(clip.frames, bool)
    turned_T2 = np.abs(pose_T3[:, :2] - np.nanmedian(pose_T3[:, :2], axis=0))
    return (np.nan_to_num(turned_T2) > degrees).any(axis=1)


def _support(clip: Clip, states_T: np.ndarray) -> np.ndarray:
    """How sure each frame's state is, 0 to 1, float (T,)."""
    own_T, other_T = heard(clip, "Voice/speech"), heard(clip, "Voice/other")
    if own_T is None:
        return np.zeros(0)
    loudest_T = own_T if other_T is None else np.maximum(own_T, other_T)
    partner_T = own_T if other_T is None else other_T
    return np.select([states_T == SPEAKING, states_T == LISTENING], [own_T, partner_T], 1 - loudest_T)

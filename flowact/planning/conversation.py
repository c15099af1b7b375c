"""A planner for live conversation: who is heard decides what the character does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np

from flowact.errors import UserError, did_you_mean
from flowact.planning.base import Behaviour, Conversation, Heard, LivePlanner, Phase, chunk_samples, fitted
from flowact.planning.captions import another, phase_captions
from flowact.planning.phases import Cues, Moment, Timing, step
from flowact.planning.voice import GAP_SECONDS, Ear, EnergyDetector, VoiceDetector, listen
from flowact.types import SAMPLE_RATE

Detector = Literal["energy", "silero"]
DETECTORS = ("energy", "silero")


@final
class ConversationPlanner(LivePlanner):
    """Speaks, listens, reacts, thinks and idles by who is heard.

    - Own speech in the entering chunk is speaking, at once and whatever else is heard; a user who talks into it does not end it.
    - Own speech that was cut off is a short reaction, then listening.
    - The user's voice is listening, with a short reaction (a nod) in some of its pauses; after a turn of the user comes thinking until own speech
      begins or thinking has lasted too long.
    - Queued own speech is thinking until it plays. After own speech the person listens for a while; after silence of both it idles.

    Laws: the same sounds, seed and options give the same behaviour, and so do both sounds at half the volume; no phase is shorter than
    `timing.shortest_phase` unless own speech begins or is cut off; a caption does not follow itself.

    Args:
        captions: state, or "reacting" -> paraphrases to choose from; each that is left out keeps the default's. With captions for listening and none
            for reacting, reactions have those of listening: a trained character knows no other words.
        seed: chooses paraphrases and durations.
        vad: how the user's voice is found: "energy", by its level above the background, or "silero", by a trained network (flowact[speech]).
        own_vad: the same for own speech, which is a clean track and needs no network.
        timing: durations.

    Raises:
        UserError: unknown state, a state without captions, an unknown detector, or one that is not installed.
    """

    def __init__(
        self,
        captions: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        vad: Detector = "energy",
        own_vad: Detector = "energy",
        timing: Timing = Timing(),
    ) -> None:
        if seed < 0:
            raise UserError(f"seed {seed} is negative; use 0 or more")
        self.captions = phase_captions(captions)
        self.seed = seed
        self.timing = timing
        self._user_detector = _detector("vad", vad, noise_seconds=4.0)
        self._own_detector = _detector("own_vad", own_vad, noise_seconds=0.0)

    def begin(self, chunk_frames: int) -> LiveConversation:
        """See `Planner.begin`. Every conversation of a planner begins alike."""
        return LiveConversation(self.captions, self.seed, self.timing, self._own_detector, self._user_detector, chunk_frames)


@dataclass(frozen=True, eq=False)
class _State:
    """All that a conversation remembers.

    Attributes:
        own: ear for own speech.
        user: ear for the user.
        moment: of the state machine.
        text: the prompt in force.
        said: the last caption of each phase.
        text_seconds: how long the prompt is in force.
        draws: captions chosen so far.
    """

    own: Ear[Any]
    user: Ear[Any]
    moment: Moment
    text: str = ""
    said: Mapping[Phase, str] = field(default_factory=dict)
    text_seconds: float = 0.0
    draws: int = 0


@final
class LiveConversation(Conversation):
    """A conversation of a `ConversationPlanner`.

    Args:
        captions: phase -> paraphrases.
        seed: chooses.
        timing: durations.
        own_detector: hears own speech.
        user_detector: hears the user.
        chunk_frames: video frames of a chunk.
    """

    def __init__(
        self,
        captions: Mapping[Phase, Sequence[str]],
        seed: int,
        timing: Timing,
        own_detector: VoiceDetector[Any],
        user_detector: VoiceDetector[Any],
        chunk_frames: int,
    ) -> None:
        self._captions = captions
        self._seed = seed
        self._timing = timing
        self._own_detector = own_detector
        self._user_detector = user_detector
        self._length = chunk_samples(chunk_frames)
        self._state = _State(Ear(own_detector.reset()), Ear(user_detector.reset()), Moment())

    def hear(self, heard: Heard) -> Behaviour:
        """See `Conversation.hear`."""
        chunk_seconds = self._length / SAMPLE_RATE
        own = listen(self._own_detector, self._state.own, fitted(heard.speech, self._length), chunk_seconds)
        user = listen(self._user_detector, self._state.user, np.asarray(heard.user).ravel(), chunk_seconds)
        cues = Cues(
            own_voice=own.fresh_seconds > 0 and own.voice_seconds >= self._timing.shortest_voice,
            own_silence=own.silence_seconds,
            queued=heard.queued_seconds > 0,
            interrupted=heard.interrupted,
            user_voice=user.fresh_seconds,
            user_silence=user.silence_seconds,
            user_talks=user.voice_seconds >= self._timing.shortest_voice and user.silence_seconds < min(GAP_SECONDS, self._timing.nod_pause),
        )
        moment = step(self._state.moment, cues, chunk_seconds, self._timing, self._seed)
        state = replace(self._state, own=own, user=user, moment=moment, text_seconds=self._state.text_seconds + chunk_seconds)
        is_new = moment.number != self._state.moment.number or not state.text
        if is_new or state.text_seconds > self._timing.another_caption * moment.pace:
            generator = np.random.default_rng((self._seed, state.draws, 1))  # the last number: apart from the draws of durations
            text = another(self._captions[moment.phase], [state.said.get(moment.phase, ""), state.text], generator)
            state = replace(state, text=text, said={**state.said, moment.phase: text}, text_seconds=chunk_seconds, draws=state.draws + 1)
        self._state = state
        return Behaviour("listening" if moment.phase == "reacting" else moment.phase, state.text, moment.phase)


def _detector(argument: str, name: str, noise_seconds: float) -> VoiceDetector[Any]:
    """The detector of this name.

    Raises:
        UserError: there is none.
    """
    if name == "energy":
        return EnergyDetector(noise_seconds=noise_seconds)
    if name == "silero":
        from flowact.planning.silero import SileroDetector  # imports torch

        return SileroDetector()
    raise UserError(f"{argument} {name!r}: there is no such detector.{did_you_mean(str(name), DETECTORS)}")

"""The state machine of a live conversation: a pure step from what is going on to the phase that is shown.

One rule per situation, the first that holds: own speech, then an interruption, then what the user does, then what is about to come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from flowact.planning.base import Phase

#: durations are drawn anew for each phase from 1 - JITTER to 1 + JITTER times their length, so that no rhythm is heard
JITTER = 0.2


@dataclass(frozen=True)
class Timing:
    """How long things take in a conversation, in seconds.

    Args:
        shortest_phase: no phase is shorter, except where own speech begins or is cut off.
        shortest_voice: shorter sounds are no speech.
        longest_pause: own silence that stays speaking.
        longest_queued_pause: the same while more own speech is queued.
        turn: voice that makes a turn of the user, which is answered by thinking; less is a cough.
        turn_end: silence that ends the user's turn.
        nod_pause: a pause of the user in which the character reacts.
        nod_every: between two such reactions, about.
        nod_after: voice of the user before the first.
        reaction: length of a reaction, about.
        longest_thinking: after the user's turn, while no own speech comes, about.
        idle_after: silence of both before the character idles, about.
        another_caption: a longer phase gets another paraphrase this often.

    Raises:
        ValueError: a negative duration, or a reaction to pauses that already end the turn.
    """

    shortest_phase: float = 0.8
    shortest_voice: float = 0.08
    longest_pause: float = 0.4
    longest_queued_pause: float = 1.2
    turn: float = 0.3
    turn_end: float = 0.9
    nod_pause: float = 0.3
    nod_every: float = 4.0
    nod_after: float = 1.0
    reaction: float = 0.8
    longest_thinking: float = 6.0
    idle_after: float = 3.0
    another_caption: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"timing.{field.name} is in seconds and not negative, got {value}")
        if self.nod_pause >= self.turn_end:
            raise ValueError(f"timing.nod_pause {self.nod_pause} is shorter than timing.turn_end {self.turn_end}, which ends the user's turn")


@dataclass(frozen=True)
class Cues:
    """What is going on while a chunk enters.

    Attributes:
        own_voice: the chunk holds own speech.
        own_silence: seconds of own silence up to the end of the chunk.
        queued: own speech waits behind the chunk.
        interrupted: own speech was cut off.
        user_voice: seconds of the user's voice that are new.
        user_silence: seconds since the user's last voice.
        user_talks: the user is talking: a voice that lasted, in no longer pause.
    """

    own_voice: bool = False
    own_silence: float = math.inf
    queued: bool = False
    interrupted: bool = False
    user_voice: float = 0.0
    user_silence: float = math.inf
    user_talks: bool = False


@dataclass(frozen=True)
class Moment:
    """Where a conversation stands. Seconds are those up to the chunk that enters next.

    Attributes:
        phase: what is shown.
        seconds: for how long; long enough at the start.
        number: of the phase, counted from 0; it seeds what is drawn.
        pace: factor of the phase's durations.
        quiet_seconds: since anybody was heard.
        turn_seconds: the user's voice that own speech has not answered.
        unreacted_seconds: since the last reaction.
    """

    phase: Phase = "idle"
    seconds: float = math.inf
    number: int = 0
    pace: float = 1.0
    quiet_seconds: float = math.inf
    turn_seconds: float = 0.0
    unreacted_seconds: float = math.inf


def step(moment: Moment, cues: Cues, chunk_seconds: float, timing: Timing, seed: int) -> Moment:
    """The moment after a chunk that enters with these cues."""
    turn = 0.0 if cues.own_voice else moment.turn_seconds + cues.user_voice
    heard = cues.own_voice or cues.interrupted or cues.user_talks or (cues.user_voice > 0 and turn >= timing.turn)
    if turn < timing.turn and cues.user_silence >= timing.turn_end:
        turn = 0.0  # a cough is not added to a later one
    now = replace(moment, quiet_seconds=0.0 if heard else moment.quiet_seconds + chunk_seconds, turn_seconds=turn)
    wanted = _wanted(now, cues, timing)
    forced = wanted == "speaking" or cues.interrupted
    if wanted == now.phase or (now.seconds < timing.shortest_phase and not forced):
        unreacted = 0.0 if now.phase == "reacting" else now.unreacted_seconds + chunk_seconds
        return replace(now, seconds=now.seconds + chunk_seconds, unreacted_seconds=unreacted)
    if now.phase == "thinking" and not cues.user_talks:
        now = replace(now, turn_seconds=0.0)  # answered, or given up
    number = now.number + 1
    pace = 1.0 + JITTER * float(np.random.default_rng((seed, number)).uniform(-1.0, 1.0))
    unreacted = 0.0 if wanted == "reacting" else now.unreacted_seconds + chunk_seconds
    return replace(now, phase=wanted, seconds=chunk_seconds, number=number, pace=pace, unreacted_seconds=unreacted)


def _wanted(now: Moment, cues: Cues, timing: Timing) -> Phase:
    """The phase that fits the cues, whatever the shortest durations say."""
    if cues.own_voice:
        return "speaking"
    if cues.interrupted:
        return "reacting"
    if now.phase == "speaking" and cues.own_silence <= (timing.longest_queued_pause if cues.queued else timing.longest_pause):
        return "speaking"
    if now.phase == "reacting" and now.seconds < timing.reaction * now.pace:
        return "reacting"
    if cues.user_talks:
        return "listening"
    is_turn = now.turn_seconds >= timing.turn
    if is_turn and cues.user_silence < timing.turn_end:
        nods = now.turn_seconds >= timing.nod_after and cues.user_silence >= timing.nod_pause
        nods = nods and now.phase == "listening" and now.unreacted_seconds >= timing.nod_every * now.pace
        return "reacting" if nods else "listening"
    if cues.queued:
        return "thinking"
    if is_turn and not (now.phase == "thinking" and now.seconds >= timing.longest_thinking * now.pace):
        return "thinking"
    if now.phase == "idle" and now.quiet_seconds > 0:
        return "idle"  # only a sound ends it
    return "listening" if now.quiet_seconds < timing.idle_after * now.pace else "idle"

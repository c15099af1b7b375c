"""Laws of live conversations."""

from __future__ import annotations

import numpy as np

from flowact.planning.base import Behaviour, Heard, Planner
from flowact.testing.laws import broken, ensure
from flowact.testing.sounds import syllables
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME


def check_conversation(planner: Planner, chunk_frames: int = 12, repeatable: bool = True) -> None:
    """The laws of `Planner.begin`.

    Args:
        planner: of any kind; its default live side is checked too.
        chunk_frames: video frames of a chunk.
        repeatable: whether equal sounds have equal behaviour; false for a planner that asks somebody else.
    """
    length = chunk_frames * SAMPLES_PER_FRAME
    quiet = np.zeros(length, np.float32)
    speech = syllables(3 * length / SAMPLE_RATE, 0).reshape(3, length)
    user = syllables(3 * length / SAMPLE_RATE, 1).reshape(3, length)
    told = {
        "silence": [Heard(quiet)] * 8,
        "own speech": [Heard(part) for part in speech],
        "the user's voice": [Heard(quiet, user=part) for part in user] + [Heard(quiet, user=quiet)] * 6,
        "an interruption": [*(Heard(part) for part in speech[:2]), Heard(quiet, interrupted=True), *(Heard(quiet, user=part) for part in user)],
    }
    done = {name: _hear(planner, chunk_frames, name, heard) for name, heard in told.items()}
    for name in ("silence", "the user's voice"):
        ensure(all(behaviour.state != "speaking" for behaviour in done[name]), planner, "nobody speaks in silence", name)
    ensure(any(behaviour.state == "speaking" for behaviour in done["own speech"][:2]), planner, "own speech is speaking within one chunk")
    ensure(any(behaviour.state != "speaking" for behaviour in done["an interruption"][2:]), planner, "an interruption ends speaking")
    if repeatable:
        for name, heard in told.items():
            ensure(_hear(planner, chunk_frames, name, heard) == done[name], planner, "equal sounds have equal behaviour", name)
    bad = {"no samples": quiet[:0], "NaN": quiet + np.nan, "infinite": quiet + np.inf, "clipped": quiet + 1, "huge": quiet + np.float32(1e30)}
    for name, sound in bad.items():
        _hear(planner, chunk_frames, name, [Heard(sound, user=sound), Heard(quiet, user=sound), Heard(sound, 1.0, interrupted=True), Heard(quiet)])


def _hear(planner: Planner, chunk_frames: int, name: str, heard: list[Heard]) -> list[Behaviour]:
    """What a new conversation does."""
    conversation = planner.begin(chunk_frames)
    try:
        done = [conversation.hear(one) for one in heard]
    except Exception as error:
        broken(planner, "a conversation hears any sound", f"{name}: {type(error).__name__}: {error}")
    finally:
        conversation.close()
    conversation.close()
    ensure(all(isinstance(behaviour, Behaviour) for behaviour in done), planner, "hear answers with a Behaviour", name)
    return done

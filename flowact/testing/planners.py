"""Laws of planners."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from flowact.planning.base import Planner
from flowact.testing.conversations import check_conversation
from flowact.testing.laws import ensure
from flowact.testing.sounds import syllables
from flowact.types import (
    FRAMES_PER_SECOND,
    SAMPLES_PER_FRAME,
    STATES,
)


def check_planner(planner: Planner, repeatable: bool = True) -> None:
    """The laws of `Planner`: of its plans, and of its conversations.

    Args:
        planner: of any kind.
        repeatable: see `check_conversation`.
    """
    silence = np.zeros(FRAMES_PER_SECOND * SAMPLES_PER_FRAME * 3, np.float32)
    soundtracks = {
        "silence": silence,
        "speech": syllables(3, 0),
        "speech with pauses": np.concatenate([silence, syllables(3, 1), silence, syllables(2, 2)]),
    }
    for name, samples in soundtracks.items():
        prompts = list(planner.plan(samples))
        seconds = samples.size / (FRAMES_PER_SECOND * SAMPLES_PER_FRAME)
        ensure(prompts and prompts[0].start_seconds == 0, planner, "the first prompt starts at 0", name)
        starts = [prompt.start_seconds for prompt in prompts]
        ensure(all(a < b for a, b in pairwise(starts)), planner, "prompts are in time order", f"{name}: {starts}")
        ensure(starts[-1] < seconds, planner, "no prompt starts after the sound has ended", f"{name}: {starts[-1]} of {seconds} s")
        for prompt in prompts:
            ensure(prompt.state in STATES, planner, f"a state is one of {', '.join(STATES)}", f"{name}: {prompt.state}")
            ensure(prompt.text.strip(), planner, "a prompt has words", f"{name} at {prompt.start_seconds} s")
        ensure(list(planner.plan(samples.copy())) == prompts, planner, "the same soundtrack has the same plan", name)
    ensure(all(prompt.state != "speaking" for prompt in planner.plan(silence)), planner, "nobody speaks in silence")
    ensure(any(prompt.state == "speaking" for prompt in planner.plan(soundtracks["speech"])), planner, "speech is spoken")
    check_conversation(planner, repeatable=repeatable)

"""Laws of characters."""

from __future__ import annotations

import json

import numpy as np

from flowact.characters.base import Character
from flowact.testing.laws import ensure
from flowact.testing.sounds import syllables
from flowact.types import (
    FRAMES_PER_SECOND,
    SAMPLES_PER_FRAME,
    STATES,
)


def check_character(character: Character, *, seconds_per_state: float = 1.0) -> None:
    """The laws of `Character`: what is rendered can be read back.

    Args:
        character: renders and reads.
        seconds_per_state: of each of the four states that it performs.
    """
    frames_per_state = round(seconds_per_state * FRAMES_PER_SECOND)
    states = np.repeat(np.arange(len(STATES), dtype=np.uint8), frames_per_state)
    samples = np.zeros(states.size * SAMPLES_PER_FRAME, np.float32)
    samples[: frames_per_state * SAMPLES_PER_FRAME] = syllables(seconds_per_state, 0)  # STATES starts with speaking
    identities = [character.sample_identity(np.random.default_rng(seed)) for seed in range(4)]
    identity = identities[0]
    ensure(character.sample_identity(np.random.default_rng(0)) == identity, character, "the generator alone decides an identity")
    ensure(json.loads(json.dumps(identity)) == identity, character, "an identity is plain numbers that JSON keeps exactly")
    ensure(identities[1] != identity, character, "people differ")

    truth = character.perform(samples, states, np.random.default_rng(1))
    want = (states.size, len(character.channels))
    ensure(
        truth.shape == want and truth.dtype == np.float32,
        character,
        "truth is float32 [T, channels]",
        f"{truth.dtype} {truth.shape}, expected {want}",
    )
    ensure(np.isfinite(truth).all(), character, "truth is finite")
    ensure(
        np.array_equal(character.perform(samples, states, np.random.default_rng(1)), truth), character, "the generator alone decides a performance"
    )
    frames = character.render(identity, truth)
    size = (states.size, character.size, character.size, 3)
    ensure(frames.shape == size and frames.dtype == np.uint8, character, "frames are uint8 [T, size, size, 3]", f"{frames.dtype} {frames.shape}")
    ensure(np.array_equal(character.render(identity, truth), frames), character, "rendering is deterministic")

    mouth = character.mouth_area(truth)
    ensure(mouth.shape == (states.size,) and (mouth >= 0).all(), character, "mouth area is one number >= 0 a frame")
    speaking = states == STATES.index("speaking")
    ensure(mouth[speaking].mean() > mouth[~speaking].mean(), character, "the mouth is open wider while the person speaks")
    found = character.read(frames, identity)
    ensure(
        set(found.channels) <= set(character.channels),
        character,
        "what is read back is named as the truth is",
        str(set(found.channels) - set(character.channels)),
    )
    legible = np.isfinite(found.mouth_area)
    ensure(legible.mean() > 0.9, character, "the mouth can be read from what is rendered", f"in {legible.mean():.0%} of frames")
    correlation = float(np.corrcoef(found.mouth_area[legible], mouth[legible])[0, 1])
    ensure(correlation > 0.9, character, "the mouth that is read follows the true mouth", f"correlation {correlation:.2f}")
    distances = [character.identity_distance(frames, other) for other in identities]
    ensure(distances[0] == min(distances), character, "a person is nearest to their own identity", f"{distances}")
    for state in STATES:
        for variant in range(3):
            caption = character.caption(state, variant)
            ensure(0 < len(caption.split()) <= 8, character, "a caption has 1 to 8 words", f"{state}: {caption!r}")

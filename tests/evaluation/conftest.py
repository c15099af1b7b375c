"""A character small enough to know by heart: a picture of one colour with a bar for the mouth and a strip for the state."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.characters.base import Character, Readout
from flowact.evaluation import Clip
from flowact.types import SAMPLES_PER_FRAME, STATES


class Block(Character):
    """Row 0 shows the state as a grey level, the blue channel of the rows below is the mouth, red and green are the identity."""

    channels = ("mouth", "state")

    def sample_identity(self, generator):
        return {"colour": [float(x) for x in generator.uniform(0.1, 0.9, 2)]}

    def perform(self, samples, states_T, generator):
        loudness = np.abs(samples.reshape(-1, SAMPLES_PER_FRAME)).mean(1)
        return np.stack([loudness * (states_T == 0), states_T], 1).astype(np.float32)

    def render(self, identity, truth_TP):
        frames = np.zeros((len(truth_TP), self.size, self.size, 3))
        frames[..., :2] = identity["colour"]
        frames[..., 2] = truth_TP[:, 0, None, None]
        frames[:, 0] = (truth_TP[:, 1, None, None] + 0.5) / len(STATES)
        return np.round(frames * 255).clip(0, 255).astype(np.uint8)

    def mouth_area(self, truth_TP):
        return truth_TP[:, 0]

    def colours(self, frames):
        return frames[:, 1:, :, :2].astype(np.float64).mean(axis=(1, 2)) / 255

    def read(self, frames, identity):
        mouth = frames[:, 1:, :, 2].astype(np.float64).mean(axis=(1, 2)) / 255
        state = (frames[:, 0].astype(np.float64).mean(axis=(1, 2)) / 255 * len(STATES)).astype(np.int64).clip(0, 3)
        error = np.sqrt(((self.colours(frames) - identity["colour"]) ** 2).mean(1))
        return Readout({"mouth": mouth, "state": state.astype(float)}, mouth, state, error, frames[:, 1:].std(axis=(1, 2, 3)) * 0)

    def identity_distance(self, frames, identity):
        return float(np.sqrt(((self.colours(frames).mean(0) - identity["colour"]) ** 2).mean()))

    def caption(self, state, variant=0):
        return f"a block, {state}"


def make_clip(character: Block, seed: int, num_frames: int = 300) -> Clip:
    """A clip that is exactly its truth: speaking, listening, speaking, idle."""
    generator = np.random.default_rng(seed)
    states_T = np.repeat(np.array([0, 1, 0, 3], np.uint8), num_frames // 4)
    loudness = np.repeat(generator.uniform(0.05, 0.95, num_frames), SAMPLES_PER_FRAME)
    truth_TP = character.perform(loudness.astype(np.float32), states_T, generator)
    identity = character.sample_identity(generator)
    return Clip(f"clip-{seed}", character.render(identity, truth_TP), truth_TP, states_T, identity, loudness.astype(np.float32))


@pytest.fixture(scope="session")
def block() -> Block:
    return Block(8)


@pytest.fixture(scope="session")
def clips(block) -> list[Clip]:
    return [make_clip(block, seed) for seed in range(6)]

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from flowact.errors import UserError
from flowact.planning import Planner, SpeechActivityPlanner, TimedPrompt, states_per_frame
from flowact.types import STATES


def soundtrack(*parts: tuple[str, float], noise: float = 0.001) -> np.ndarray:
    """Parts ("speech" | "pause", seconds) over a little noise; speech is noise at -20 dBFS that swings four times a second."""
    generator = np.random.default_rng(0)
    pieces = []
    for kind, seconds in parts:
        time = np.arange(round(seconds * 16_000)) / 16_000
        swing = 0.1 * (1 + 0.6 * np.sin(2 * np.pi * 4 * time)) if kind == "speech" else np.zeros_like(time)
        pieces.append(swing * generator.standard_normal(len(time)) + noise * generator.standard_normal(len(time)))
    return np.concatenate(pieces).clip(-1, 1).astype(np.float32)


def states(prompts: list[TimedPrompt], samples: np.ndarray) -> list[str]:
    return [STATES[i] for i in states_per_frame(prompts, len(samples) // 640)]


def share(names: list[str], state: str, first_second: float, last_second: float) -> float:
    part = names[round(first_second * 25) : round(last_second * 25)]
    return part.count(state) / len(part)


CONVERSATION = (("pause", 4.0), ("speech", 3.0), ("pause", 5.0), ("speech", 2.0), ("pause", 8.0))


def test_a_conversation():
    samples = soundtrack(*CONVERSATION)
    prompts = SpeechActivityPlanner().plan(samples)
    assert [prompt.state for prompt in prompts] == ["listening", "thinking", "speaking", "listening", "thinking", "speaking", "listening", "idle"]
    names = states(prompts, samples)
    assert share(names, "speaking", 4.1, 6.9) == 1
    assert share(names, "speaking", 12.1, 13.9) == 1
    assert share(names, "thinking", 11.1, 11.9) == 1
    assert share(names, "listening", 7.2, 10.3) == 1
    assert share(names, "idle", 18.0, 22.0) == 1
    thinking = [(prompts[i + 1].start_seconds - p.start_seconds) for i, p in enumerate(prompts) if p.state == "thinking"]
    assert all(1.0 <= seconds <= 1.5 for seconds in thinking)


def test_speaking_begins_and_ends_with_the_speech():
    samples = soundtrack(*CONVERSATION)
    speaking = np.array([name == "speaking" for name in states(SpeechActivityPlanner().plan(samples), samples)])
    truth = np.zeros(len(speaking), bool)
    truth[100:175] = truth[300:350] = True
    assert (speaking != truth).sum() <= 4


@pytest.mark.parametrize(("pause", "still_speaking"), [(0.2, True), (0.36, True), (0.7, False), (2.0, False)])
def test_short_pauses_stay_speaking(pause, still_speaking):
    samples = soundtrack(("speech", 2.0), ("pause", pause), ("speech", 2.0))
    assert ({prompt.state for prompt in SpeechActivityPlanner().plan(samples)} == {"speaking"}) == still_speaking


def test_a_fading_voice_is_still_speech_but_does_not_begin_it():
    generator = np.random.default_rng(0)
    decibels = np.repeat([-35.0, -10.0, -35.0, -70.0], 32_000)
    samples = (10 ** (decibels / 20) * generator.standard_normal(len(decibels))).astype(np.float32)
    names = states(SpeechActivityPlanner(range_db=22.0).plan(samples), samples)
    assert share(names, "speaking", 0.0, 1.9) == 0
    assert share(names, "speaking", 2.1, 5.9) == 1
    assert share(names, "speaking", 6.1, 8.0) == 0


def test_a_click_is_no_speech():
    samples = soundtrack(("pause", 6.0))
    samples[48_000:48_300] = 0.5
    assert "speaking" not in {prompt.state for prompt in SpeechActivityPlanner().plan(samples)}


def test_speech_to_the_last_frame_has_no_tail():
    samples = soundtrack(("speech", 3.0))
    assert [prompt.state for prompt in SpeechActivityPlanner().plan(samples)] == ["speaking"]


@pytest.mark.parametrize("seed", range(5))
def test_prompts_are_well_formed(seed):
    generator = np.random.default_rng(seed)
    parts = [("speech" if i % 2 else "pause", float(generator.uniform(0.05, 4.0))) for i in range(12)]
    samples = soundtrack(*parts)
    prompts = SpeechActivityPlanner(seed=seed).plan(samples)
    assert prompts[0].start_seconds == 0
    for above, below in pairwise(prompts):
        assert above.start_seconds < below.start_seconds < len(samples) / 16_000
        assert above.state != below.state
        assert below.start_seconds * 25 == pytest.approx(round(below.start_seconds * 25))
        if above.state != "speaking":
            assert below.start_seconds - above.start_seconds >= 0.4 - 1e-9
        if above.state == "thinking":
            assert below.state == "speaking"


def test_the_seed_decides_and_nothing_else():
    samples = soundtrack(*CONVERSATION)
    assert SpeechActivityPlanner(seed=3).plan(samples) == SpeechActivityPlanner(seed=3).plan(samples)
    planner = SpeechActivityPlanner(seed=3)
    assert planner.plan(samples) == planner.plan(samples)
    assert len({tuple(SpeechActivityPlanner(seed=seed).plan(samples)) for seed in range(5)}) > 1


@pytest.mark.parametrize("gain", [0.5, 0.2])
def test_the_volume_does_not_matter(gain):
    samples = soundtrack(*CONVERSATION)
    assert SpeechActivityPlanner().plan(samples * np.float32(gain)) == SpeechActivityPlanner().plan(samples)


def test_background_noise_does_not_count_as_speech():
    samples = soundtrack(*CONVERSATION, noise=0.003)  # -50 dBFS
    assert SpeechActivityPlanner().plan(samples) == SpeechActivityPlanner().plan(soundtrack(*CONVERSATION))


@pytest.mark.parametrize("num_samples", [0, 100, 639])
def test_nothing_to_hear_is_one_idle_prompt(num_samples):
    prompts = SpeechActivityPlanner().plan(np.zeros(num_samples, np.float32))
    assert [(prompt.start_seconds, prompt.state) for prompt in prompts] == [(0.0, "idle")]


def test_silence_ends_in_idle():
    assert [prompt.state for prompt in SpeechActivityPlanner().plan(np.zeros(16_000 * 10, np.float32))] == ["listening", "idle"]


def test_captions_of_a_character_are_used():
    samples = soundtrack(*CONVERSATION)
    prompts = SpeechActivityPlanner(captions={"speaking": ["it talks", "it chats"]}).plan(samples)
    assert {prompt.text for prompt in prompts if prompt.state == "speaking"} == {"it talks", "it chats"}
    assert all(prompt.text for prompt in prompts)


def test_bad_options_and_samples():
    with pytest.raises(UserError, match=r"'speeking'\. Did you mean speaking"):
        SpeechActivityPlanner(captions={"speeking": ["x"]})
    with pytest.raises(UserError, match="at least one caption"):
        SpeechActivityPlanner(captions={"idle": []})
    with pytest.raises(ValueError, match="not negative"):
        SpeechActivityPlanner(thinking_seconds=-1)
    with pytest.raises(ValueError, match="one-dimensional"):
        SpeechActivityPlanner().plan(np.zeros((2, 640), np.float32))
    with pytest.raises(ValueError, match="NaN"):
        SpeechActivityPlanner().plan(np.full(640, np.nan, np.float32))


def test_it_is_a_planner():
    assert isinstance(SpeechActivityPlanner(), Planner)

from __future__ import annotations

import pickle
from itertools import groupby, pairwise

import numpy as np
import pytest

from flowact import registry
from flowact.errors import UserError
from flowact.planning import Behaviour, ConversationPlanner, Heard, Timing
from flowact.testing import check_constructor, check_planner
from flowact.testing.sounds import syllables
from flowact.types import STATES

RATE = 16_000
FRAMES = 12
LENGTH = FRAMES * 640
NOBODY = np.zeros(0, np.float32)


def track(seconds: float, *voices: tuple[float, float], noise: float = 0.0005) -> np.ndarray:
    """Syllables at (start, end) seconds over a little noise, a whole number of chunks."""
    count = round(seconds * RATE) // LENGTH * LENGTH
    sound = noise * np.random.default_rng(0).standard_normal(count)
    for start, end in voices:
        voice = syllables(end - start, round(start))
        sound[round(start * RATE) :][: len(voice)] += voice
    return sound.astype(np.float32)


def converse(
    planner: ConversationPlanner, own: np.ndarray, user: np.ndarray | None = None, cuts: tuple[int, ...] = (), frames: int = FRAMES
) -> list[Behaviour]:
    length = frames * 640
    with planner.begin(frames) as conversation:
        return [
            conversation.hear(
                Heard(
                    own[start : start + length],
                    user=NOBODY if user is None else user[start : start + length],
                    seconds=start / RATE,
                    interrupted=i in cuts,
                )
            )
            for i, start in enumerate(range(0, len(own) - length + 1, length))
        ]


OWN = track(36.0, (10.0, 14.0), (22.0, 25.0), noise=0.0)
USER = track(36.0, (4.0, 8.0), (12.0, 13.0), (18.0, 20.0))


def test_a_conversation():
    done = converse(ConversationPlanner(), OWN, USER)
    phases = [phase for phase, _ in groupby(behaviour.phase for behaviour in done) if phase != "reacting"]
    assert phases == ["idle", "listening", "thinking", "speaking", "listening", "idle", "listening", "thinking", "speaking", "listening", "idle"]
    at = {second: done[int(second / 0.48)].phase for second in (2, 6, 9.5, 12, 13, 19, 21.5, 24, 34)}
    assert at == {
        2: "idle",
        6: "listening",
        9.5: "thinking",
        12: "speaking",
        13: "speaking",
        19: "listening",
        21.5: "thinking",
        24: "speaking",
        34: "idle",
    }


def test_reacting_is_shown_as_listening_in_its_own_words():
    done = converse(ConversationPlanner(captions={"reacting": ["nods!"]}), OWN, USER)
    reactions = [behaviour for behaviour in done if behaviour.phase == "reacting"]
    assert reactions
    assert {(behaviour.state, behaviour.text) for behaviour in reactions} == {("listening", "nods!")}
    assert all(behaviour.state == behaviour.phase for behaviour in done if behaviour.phase != "reacting")


def test_a_trained_character_reacts_in_its_own_words_of_listening():
    captions = {state: [f"{state} {i}" for i in range(3)] for state in STATES}
    done = converse(ConversationPlanner(captions=captions), OWN, USER)
    assert all(behaviour.text.startswith(behaviour.state) for behaviour in done)
    assert any(behaviour.phase == "reacting" for behaviour in done)


@pytest.mark.parametrize("seed", range(4))
def test_a_caption_never_follows_itself(seed):
    done = converse(ConversationPlanner(seed=seed, timing=Timing(another_caption=2.0)), OWN, USER)
    said = [(phase, [text for text, _ in groupby(behaviour.text for behaviour in run)]) for phase, run in groupby(done, key=lambda b: b.phase)]
    assert any(len(texts) > 1 for _, texts in said)  # a long phase is told in other words after a while
    for (_, before), (_, after) in pairwise(said):
        assert before[-1] != after[0]
    for phase in STATES:
        texts = [text for name, run in said if name == phase for text in run]
        assert all(a != b for a, b in pairwise(texts))


@pytest.mark.parametrize("frames", [4, 12, 20])
def test_the_same_sounds_and_seed_have_the_same_behaviour(frames):
    planner = ConversationPlanner(seed=5)
    done = converse(planner, OWN, USER, frames=frames)
    assert converse(planner, OWN, USER, frames=frames) == done
    assert converse(ConversationPlanner(seed=5), OWN.copy(), USER.copy(), frames=frames) == done
    assert converse(ConversationPlanner(seed=6), OWN, USER, frames=frames) != done


def test_conversations_do_not_disturb_each_other():
    planner = ConversationPlanner()
    first, second = planner.begin(FRAMES), planner.begin(FRAMES)
    parts = list(zip(OWN.reshape(-1, LENGTH), USER.reshape(-1, LENGTH), strict=True))
    done = []
    for own, user in parts:
        done.append(first.hear(Heard(own, user=user)))
        second.hear(Heard(user, user=own))
    assert done == converse(planner, OWN, USER)


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_volume_does_not_matter(gain):
    own, user = 0.5 * OWN, 0.5 * USER
    assert converse(ConversationPlanner(), own * np.float32(gain), user * np.float32(gain)) == converse(ConversationPlanner(), own, user)


@pytest.mark.parametrize("start", [0.0, 0.1, 0.3, 0.4])
def test_own_speech_is_spoken_within_one_chunk(start):
    own = track(9.6, (4.8 + start, 7.2), noise=0.0)
    done = converse(ConversationPlanner(), own, track(9.6, (1.0, 9.0)))
    assert all(behaviour.phase == "speaking" for behaviour in done[11:14])
    assert all(behaviour.phase != "speaking" for behaviour in done[:10])


def test_the_user_does_not_end_own_speech_but_an_interruption_does():
    own = track(9.6, (1.0, 9.0), noise=0.0)
    user = track(9.6, (4.0, 9.0))
    assert [phase for phase, _ in groupby(b.phase for b in converse(ConversationPlanner(), own, user)[:18])] == ["idle", "speaking"]
    own[10 * LENGTH :] = 0
    cut = [behaviour.phase for behaviour in converse(ConversationPlanner(), own, user, cuts=(10,))]
    assert cut[9] == "speaking"
    assert [phase for phase, _ in groupby(cut[10:])][:2] == ["reacting", "listening"]


def test_a_click_is_no_speech():
    own = np.zeros(20 * LENGTH, np.float32)
    own[10 * LENGTH + 100 : 10 * LENGTH + 300] = 0.9
    assert {behaviour.phase for behaviour in converse(ConversationPlanner(), own)} == {"idle"}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0, -1.0, 1e30])
def test_no_sound_breaks_it(value):
    with ConversationPlanner().begin(FRAMES) as conversation:
        for size in (0, 1, LENGTH, 3 * LENGTH):
            for user in (0, 7, 50 * LENGTH):
                conversation.hear(Heard(np.full(size, value, np.float32), 1.0, np.full(user, value, np.float32), np.nan, True))
        assert conversation.hear(Heard(np.zeros(LENGTH, np.float32))).phase != "speaking"
        assert conversation.hear(Heard(syllables(0.48, 0))).phase == "speaking"  # and hears on


def test_clipped_speech_is_speech():
    own = np.clip(30 * OWN, -1, 1)
    assert [b.phase == "speaking" for b in converse(ConversationPlanner(), own)] == [
        b.phase == "speaking" for b in converse(ConversationPlanner(), OWN)
    ]


def test_ten_thousand_chunks_take_no_more_memory_than_a_hundred():
    generator = np.random.default_rng(0)
    with ConversationPlanner(timing=Timing(another_caption=1.0)).begin(4) as conversation:
        sizes = {}
        for i in range(10_000):
            sound = syllables(0.16, 0) if generator.random() < 0.3 else np.zeros(2560, np.float32)
            conversation.hear(Heard(sound, float(i % 5), sound[: i % 700], i * 0.16, i % 97 == 0))
            if i in (100, 9_999):
                sizes[i] = len(pickle.dumps(conversation._state))
    assert sizes[9_999] <= sizes[100] + 3000  # the samples behind a window vary


def test_laws_of_a_planner():
    check_planner(ConversationPlanner())
    check_constructor(ConversationPlanner)


def test_it_is_built_from_a_spec():
    spec = {"class_path": "ConversationPlanner", "init_args": {"seed": 2, "timing": {"turn_end": 1.5}}}
    planner = registry.instantiate(spec, "planners")
    assert (planner.seed, planner.timing.turn_end, planner.timing.reaction) == (2, 1.5, Timing().reaction)
    with pytest.raises(UserError, match="nod_pause"):
        registry.instantiate({"class_path": "ConversationPlanner", "init_args": {"timing": {"nod_pause": 2.0}}}, "planners")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"captions": {"speeking": ["x"]}}, r"'speeking'\. Did you mean speaking"),
        ({"captions": {"reacting": []}}, "at least one caption"),
        ({"captions": {"idle": "waits"}}, "is a list"),
        ({"captions": {"idle": [" "]}}, "has words"),
        ({"vad": "silera"}, r"vad 'silera'.*Did you mean silero"),
        ({"own_vad": "none"}, "own_vad 'none'"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_each_wrong_option_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        ConversationPlanner(**wrong)


def test_a_chunk_has_frames():
    with pytest.raises(ValueError, match="at least 1 video frame"):
        ConversationPlanner().begin(0)

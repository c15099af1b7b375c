from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from flowact.planning import Behaviour, Conversation, Heard, LivePlanner, Planner, SpeechActivityPlanner, TimedPrompt
from flowact.planning.base import REPLANNED_SECONDS
from flowact.testing import check_conversation, check_planner
from flowact.testing.sounds import syllables

LENGTH = 12 * 640


class Echo(LivePlanner):
    """Speaks in every chunk with sound; notes what it heard."""

    def begin(self, chunk_frames: int) -> Conversation:
        self.heard: list[Heard] = []
        self.closed = 0
        planner = self

        class EchoConversation(Conversation):
            def hear(self, heard: Heard) -> Behaviour:
                planner.heard.append(heard)
                return Behaviour("speaking", "talks", "speaking") if heard.speech.any() else Behaviour("idle", "waits", "idle")

            def close(self) -> None:
                planner.closed += 1

        return EchoConversation()


class Words(Planner):
    """Plans the number of frames it is given, and idles without sound."""

    def plan(self, samples):
        state = "speaking" if samples[-LENGTH:].any() else "idle"
        return [TimedPrompt(0.0, "listening", "begins"), TimedPrompt(0.04, state, f"{samples.size // 640} frames")]


def test_a_soundtrack_is_heard_chunk_by_chunk():
    planner = Echo()
    sound = np.concatenate([np.zeros(2 * LENGTH, np.float32), syllables(0.96, 0), np.zeros(LENGTH + 100, np.float32)])
    assert planner.plan(sound) == [TimedPrompt(0.0, "idle", "waits"), TimedPrompt(0.96, "speaking", "talks"), TimedPrompt(1.92, "idle", "waits")]
    np.testing.assert_array_equal(np.concatenate([heard.speech for heard in planner.heard])[: sound.size], sound)
    assert {heard.speech.size for heard in planner.heard} == {LENGTH}
    assert [heard.seconds for heard in planner.heard] == pytest.approx([0.0, 0.48, 0.96, 1.44, 1.92, 2.4])
    assert planner.closed == 1


@pytest.mark.parametrize("size", [0, 1, 639])
def test_no_soundtrack_has_one_prompt(size):
    assert Echo().plan(np.zeros(size, np.float32)) == [TimedPrompt(0.0, "idle", "waits")]


def test_a_planner_of_files_is_asked_again_for_each_chunk():
    planner = Words()
    with planner.begin(12) as conversation:
        quiet, loud = np.zeros(LENGTH, np.float32), syllables(0.48, 0)
        done = [conversation.hear(Heard(sound)) for sound in (quiet, quiet, loud, loud, quiet)]
    assert [behaviour.text for behaviour in done] == [
        "12 frames",
        "12 frames",
        "36 frames",
        "36 frames",
        "60 frames",
    ]  # words stay while the state does
    assert [behaviour.phase for behaviour in done] == ["idle", "idle", "speaking", "speaking", "idle"]


def test_what_is_planned_again_is_bounded_and_forgets_what_was_cut_off():
    with Words().begin(12) as conversation:
        loud, quiet = syllables(0.48, 0), np.zeros(LENGTH, np.float32)
        for i in range(100):
            text = conversation.hear(Heard((loud, quiet)[i % 2])).text
        assert int(text.split()[0]) == REPLANNED_SECONDS * 25
        assert conversation.hear(Heard(loud, interrupted=True)).text == "12 frames"


def test_speech_activity_is_live_too():
    check_conversation(SpeechActivityPlanner())
    with SpeechActivityPlanner().begin(12) as conversation:
        sounds = np.concatenate([np.zeros(5 * LENGTH, np.float32), syllables(0.48 * 5, 0), np.zeros(10 * LENGTH, np.float32)]).reshape(-1, LENGTH)
        states = [conversation.hear(Heard(sound)).state for sound in sounds]
    assert set(states[5:10]) == {"speaking"}
    assert "speaking" not in states[:5] + states[11:]
    assert states[-1] == "idle"
    assert sum(a != b for a, b in pairwise(states)) <= 5


def test_half_a_planner_cannot_be_built():
    class Neither(LivePlanner):
        pass

    with pytest.raises(TypeError, match="begin"):
        Neither()


@pytest.mark.parametrize(("state", "text", "phase"), [("sings", "x", "idle"), ("idle", "x", "singing"), ("idle", " ", "idle")])
def test_a_behaviour_is_checked(state, text, phase):
    with pytest.raises(ValueError, match=r"unknown|words"):
        Behaviour(state, text, phase)


class Deaf(Echo):
    """Never speaks."""

    def begin(self, chunk_frames: int) -> Conversation:
        class DeafConversation(Conversation):
            def hear(self, heard: Heard) -> Behaviour:
                return Behaviour("idle", "waits", "idle")

        return DeafConversation()


class Fragile(Echo):
    """Fails on sounds that are not finite."""

    def begin(self, chunk_frames: int) -> Conversation:
        class FragileConversation(Conversation):
            def hear(self, heard: Heard) -> Behaviour:
                if not np.isfinite(heard.speech).all():
                    raise ArithmeticError("NaN")
                return Behaviour("speaking", "talks", "speaking") if heard.speech.any() else Behaviour("idle", "waits", "idle")

        return FragileConversation()


@pytest.mark.parametrize(("planner", "law"), [(Deaf(), "own speech is speaking"), (Fragile(), "hears any sound': NaN: ArithmeticError")])
def test_a_conversation_that_breaks_a_law_is_told_which(planner, law):
    with pytest.raises(AssertionError, match=law):
        check_conversation(planner)
    with pytest.raises(AssertionError):
        check_planner(planner)

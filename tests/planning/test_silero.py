from __future__ import annotations

import importlib.util
import sys
import warnings

import numpy as np
import pytest
import torch

from flowact.characters.speech import load_speech
from flowact.errors import UserError
from flowact.planning import ConversationPlanner, Heard, SileroDetector
from flowact.planning.silero import PACKAGE, WINDOW
from flowact.testing import check_conversation

installed = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="silero-vad carries the weights")
RATE = 16_000


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A second of nothing, a sentence, a second of nothing."""
    silence = np.zeros(RATE, np.float32)
    return np.concatenate([silence, load_speech()[0].samples, silence])


def probabilities(detector: SileroDetector, samples: np.ndarray) -> np.ndarray:
    state = detector.reset()
    return detector.probabilities(samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW), state.context_S, state.recurrent)[0]


@installed
def test_the_network_is_the_packages_own(speech):
    """With the weights of the package's script module it says the same; those in safetensors are of another training."""
    detector = SileroDetector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(str(detector._path.parent / "silero_vad.jit"))
    theirs = script._model.state_dict()
    names = {"stft_conv.weight": "stft.forward_basis_buffer"}
    names |= {f"conv{i + 1}.{part}": f"encoder.{i}.reparam_conv.{part}" for i in range(4) for part in ("weight", "bias")}
    names |= {f"lstm_cell.{part}": f"decoder.rnn.{part}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    names |= {f"final_conv.{part}": f"decoder.decoder.2.{part}" for part in ("weight", "bias")}
    assert set(names) == set(detector._weights)
    detector._weights = {ours: theirs[name] for ours, name in names.items()}
    windows = speech[: len(speech) // WINDOW * WINDOW].reshape(-1, WINDOW)
    with torch.inference_mode():
        expected = [script(torch.from_numpy(window)[None], RATE).item() for window in windows]
    assert max(expected) > 0.9
    assert min(expected) < 0.1
    np.testing.assert_allclose(probabilities(detector, speech), expected, atol=1e-5)


@installed
def test_speech_and_silence(speech):
    detector = SileroDetector()
    _, heard = detector.step(detector.reset(), speech)
    assert not heard[:28].any()
    assert heard[36:-40].mean() > 0.9
    assert not heard[-20:].any()


@installed
def test_noise_and_a_tone_are_no_speech():
    detector = SileroDetector()
    time = np.arange(3 * RATE) / RATE
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    noise = (0.1 * np.random.default_rng(0).standard_normal(3 * RATE)).astype(np.float32)
    for sound in (tone, noise):
        assert detector.step(detector.reset(), sound)[1].mean() < 0.05


@installed
@pytest.mark.parametrize("size", [200, 512, 5000])
def test_pieces_equal_the_whole(speech, size):
    detector = SileroDetector()
    state, heard = detector.reset(), []
    for start in range(0, len(speech), size):
        state, part = detector.step(state, speech[start : start + size])
        heard.append(part)
    np.testing.assert_array_equal(np.concatenate(heard), detector.step(detector.reset(), speech)[1])


@installed
def test_torchs_threads_are_left_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        probabilities(SileroDetector(), np.zeros(RATE, np.float32))
        assert torch.get_num_threads() == before + 1
        assert PACKAGE not in sys.modules
    finally:
        torch.set_num_threads(before)


@installed
def test_a_planner_listens_with_it(speech):
    planner = ConversationPlanner(vad="silero")
    check_conversation(planner)
    with planner.begin(12) as conversation:
        quiet = np.zeros(12 * 640, np.float32)
        phases = [conversation.hear(Heard(quiet, user=part)).phase for part in np.array_split(speech, len(speech) // len(quiet))]
    assert phases[0] == "idle"
    assert "listening" in phases


def test_without_the_package_its_command_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"flowact\[speech\].*or use 'energy'"):
        ConversationPlanner(vad="silero")


@installed
@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"threshold": 1.5}, {"hysteresis": 0.6}])
def test_thresholds_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="threshold"):
        SileroDetector(**wrong)

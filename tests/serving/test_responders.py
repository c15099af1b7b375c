"""What the character answers."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.errors import UserError
from flowact.serving import EchoResponder, NoResponder, RecordedResponder
from flowact.types import SAMPLE_RATE

HEARD = (0.1 * np.sin(2 * np.pi * 400 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)


@pytest.mark.parametrize("semitones", [-5.0, -3.0, 0.0, 4.0])
def test_the_echo_is_shifted_by_its_interval(semitones):
    answer = EchoResponder(semitones).respond(HEARD)
    speed = 2 ** (semitones / 12)
    assert len(answer) == pytest.approx(len(HEARD) / speed, abs=2)
    spectrum = np.abs(np.fft.rfft(answer * np.hanning(len(answer))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(answer) == pytest.approx(400 * speed, rel=0.01)
    assert np.abs(answer).max() == pytest.approx(0.7, rel=0.02)


def test_nothing_heard_is_nothing_said():
    assert len(EchoResponder().respond(np.zeros(1000, np.float32))) == 0
    assert len(EchoResponder().respond(np.zeros(0, np.float32))) == 0
    assert len(NoResponder().respond(HEARD)) == 0


def test_recordings_are_played_in_turn():
    first, second = np.ones(3, np.float32), np.zeros(2, np.float32)
    responder = RecordedResponder([first, second])
    assert [len(responder.respond(HEARD)) for _ in range(5)] == [3, 2, 3, 2, 3]


def test_wrong_options_are_told():
    with pytest.raises(UserError, match="octave"):
        EchoResponder(13)
    with pytest.raises(UserError, match="at least one"):
        RecordedResponder([])

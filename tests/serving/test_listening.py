"""Any sound of a client becomes 16 kHz mono, and its words become turns."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.serving.events import InputFormat
from flowact.serving.limits import Refusal
from flowact.serving.listening import ClientSound, TurnDetector, TurnEnded, TurnStarted
from flowact.types import SAMPLE_RATE


def tone(seconds: float, rate: int, hertz: float = 300.0) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def encoded(samples: np.ndarray, form: InputFormat) -> bytes:
    channels = np.repeat(samples[:, None], form.channels, axis=1)
    return channels.astype("<f4").tobytes() if form.type == "audio/pcm-f32" else (channels * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcm-f32"])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000, 96000])
def test_every_rate_and_layout_gives_the_same_tone(rate, channels, kind):
    form = InputFormat(type=kind, rate=rate, channels=channels)
    sound = ClientSound(form)
    payload = encoded(tone(1.0, rate), form)
    size = len(payload) // (rate * channels) * channels
    assert sound.seconds(len(payload)) == pytest.approx(1.0)
    pieces = [sound.read(payload[at : at + 777 * size]) for at in range(0, len(payload), 777 * size)]
    samples = np.concatenate(pieces)
    assert samples.dtype == np.float32
    assert abs(len(samples) - SAMPLE_RATE) < 0.01 * SAMPLE_RATE
    middle = samples[4000:12000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(middle) == pytest.approx(300, abs=3)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.02)


def test_what_is_no_number_is_silence_and_what_is_loud_is_clipped():
    sound = ClientSound(InputFormat(type="audio/pcm-f32"))
    samples = sound.read(np.array([0.5, np.nan, np.inf, -np.inf, 7.0, -1e30], "<f4").tobytes())
    np.testing.assert_array_equal(samples, np.array([0.5, 0, 0, 0, 1, -1], np.float32))
    assert sound.num_repaired == 3


def test_a_piece_that_ends_within_a_sample_is_refused():
    with pytest.raises(Refusal, match="4 bytes"):
        ClientSound(InputFormat(channels=2)).read(b"\0" * 6)
    assert len(ClientSound(InputFormat()).read(b"")) == 0


def conversation() -> np.ndarray:
    """Quiet noise, with words from 1.0 to 2.0 s (a short pause within) and from 4.0 to 4.6 s."""
    samples = np.random.default_rng(0).normal(0, 1e-3, 7 * SAMPLE_RATE)
    for begin, end in ((1.0, 1.4), (1.6, 2.0), (4.0, 4.6)):
        samples[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)] += tone(end - begin, SAMPLE_RATE)
    return samples.astype(np.float32)


def turns(samples: np.ndarray, piece: int, **options: float) -> list[TurnStarted | TurnEnded]:
    detector = TurnDetector(**options)
    return [found for at in range(0, len(samples), piece) for found in detector.hear(samples[at : at + piece])]


def test_turns_are_found_and_hold_the_words():
    found = turns(conversation(), 1600)
    assert [type(turn) for turn in found] == [TurnStarted, TurnEnded, TurnStarted, TurnEnded]
    assert [turn.seconds for turn in found] == pytest.approx([1.0, 2.0, 4.0, 4.6], abs=0.09)
    energy = [float(np.square(turn.samples).sum()) for turn in found if isinstance(turn, TurnEnded)]
    assert energy == pytest.approx([0.08 * 0.8 * SAMPLE_RATE, 0.08 * 0.6 * SAMPLE_RATE], rel=0.05)


def test_how_the_sound_is_cut_changes_nothing():
    whole = turns(conversation(), 10**9)
    for piece in (37, 640, 5000):
        for one, other in zip(whole, turns(conversation(), piece), strict=True):
            assert one.seconds == other.seconds
            if isinstance(one, TurnEnded):
                np.testing.assert_array_equal(one.samples, other.samples)


@pytest.mark.parametrize("sound", ["silence", "noise", "click"])
def test_silence_noise_and_clicks_are_no_turn(sound):
    samples = np.zeros(6 * SAMPLE_RATE, np.float32)
    if sound == "noise":
        samples += np.random.default_rng(1).normal(0, 2e-3, len(samples)).astype(np.float32)
    if sound == "click":
        samples[SAMPLE_RATE : SAMPLE_RATE + 500] = 0.8
    assert turns(samples, 1600) == []


def test_an_endless_turn_is_kept_in_bounds():
    detector = TurnDetector(longest_seconds=2.0)
    for _ in range(10):
        detector.hear(tone(1.0, SAMPLE_RATE).astype(np.float32))
    assert detector.heard_seconds <= 2.0
    assert len(detector.end().samples) <= 2.0 * SAMPLE_RATE


def test_without_detection_everything_is_kept_until_the_end():
    detector = TurnDetector()
    samples = conversation()[: 6 * SAMPLE_RATE]
    for at in range(0, len(samples), 1600):
        assert not [found for found in detector.hear(samples[at : at + 1600], find_end=False) if isinstance(found, TurnEnded)]
    assert len(detector.end().samples) > 4.5 * SAMPLE_RATE
    assert detector.heard_seconds == 0.0

"""Sound from anywhere becomes what the model hears, and a queue gives back exactly what it took."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowact.errors import UserError
from flowact.sampling.sound import SoundInput, SoundQueue


def tone(rate, seconds=1.0, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("block", [160, 1_000, 10**6])
def test_resampling_in_blocks_has_the_length_and_the_tone_of_the_whole(rate, block):
    source, sound = tone(rate), SoundInput()
    out = [sound.convert(source[first : first + block], rate) for first in range(0, len(source), block)]
    found = np.concatenate([*out, sound.flush()])
    assert abs(len(found) - 16_000) <= 2
    middle = slice(2_000, 14_000)
    assert np.abs(found[middle] - tone(16_000)[: len(found)][middle]).max() < 0.02, "no clicks between blocks"


def test_every_utterance_has_a_resampler_of_its_own():
    source, sound = tone(24_000), SoundInput()
    first = np.concatenate([sound.convert(source, 24_000), sound.flush()])
    assert np.array_equal(first, np.concatenate([sound.convert(source, 24_000), sound.flush()]))


def test_channels_are_averaged_and_integers_scaled():
    left, right = tone(16_000), tone(16_000, hz=220.0)
    stereo = (np.stack([left, right], axis=1) * 32_768).astype(np.int16)
    assert SoundInput().convert(stereo) == pytest.approx((left + right) / 2, abs=1e-4)
    assert SoundInput().convert(left.astype(np.float64)).dtype == np.float32


def test_what_is_no_number_is_silence_and_what_is_too_loud_is_clipped(caplog):
    sound = SoundInput()
    for _ in range(2):
        found = sound.convert(np.array([0.5, np.nan, np.inf, 3.0, -3.0], np.float32))
    assert found.tolist() == [0.5, 0.0, 0.0, 1.0, -1.0]
    assert (sound.num_repaired, sound.num_clipped) == (4, 4)
    assert len(caplog.records) == 2, "said once each"


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(4), 1, "1 samples a second"),
        (np.zeros((2, 2, 2)), 16_000, "shape"),
        (np.zeros(4, np.int32), 16_000, "int32"),
        (np.array(["a"]), 16_000, "float in"),
    ],
)
def test_what_is_no_sound_is_refused(samples, rate, message):
    with pytest.raises(UserError, match=message):
        SoundInput().convert(samples, rate)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=30))
def test_a_queue_is_a_line_of_samples(moves):
    queue, inside, number = SoundQueue(1.0), np.zeros(0, np.float32), 0
    for push, count in moves:
        if push:
            block = np.arange(number, number + count, dtype=np.float32)
            queue.push(block)
            inside, number = np.concatenate([inside, block]), number + count
        else:
            assert np.array_equal(queue.peek(count), inside[:count])
            assert np.array_equal(queue.take(count), inside[:count])
            inside = inside[count:]
        assert len(queue) == len(inside)
    assert queue.clear() == len(inside)
    assert len(queue) == 0


def test_a_full_queue_takes_nothing_of_what_does_not_fit():
    queue = SoundQueue(0.01)
    queue.push(np.ones(100, np.float32))
    with pytest.raises(UserError, match=r"at most 0\.01 s"):
        queue.push(np.ones(61, np.float32))
    assert len(queue) == 100

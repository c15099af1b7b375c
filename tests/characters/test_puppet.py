"""Laws of the puppet: what is drawn can be read back, and each fault moves its own measure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flowact.characters.behaviour import IDLE, LISTENING, SPEAKING, THINKING, sample_track
from flowact.characters.puppet import CAPTIONS, Puppet
from flowact.characters.speech import load_speech
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, STATES

NUM_IDENTITIES, NUM_FRAMES = 24, 101


@pytest.fixture(scope="module")
def pieces():
    return load_speech()


def perform(puppet: Puppet, pieces, seed: int, num_frames: int = NUM_FRAMES):
    generator = np.random.default_rng(seed)
    identity = puppet.sample_identity(generator)
    samples, states_T = sample_track(generator, pieces, num_frames)
    return identity, states_T, puppet.perform(samples, states_T, generator)


@pytest.fixture(scope="module", params=[48, 64])
def readings(request, pieces):
    """(puppet, [(identity, states, truth, frames, read-out)])"""
    puppet = Puppet(request.param)
    clips = []
    for seed in range(NUM_IDENTITIES):
        identity, states_T, truth_TP = perform(puppet, pieces, 100 + seed)
        frames = puppet.render(identity, truth_TP)
        clips.append((identity, states_T, truth_TP, frames, puppet.read(frames, identity)))
    return puppet, clips


def lip_correlation(puppet, truth_TP, readout, states_T):
    speaking = states_T == SPEAKING
    return np.corrcoef(puppet.mouth_area(truth_TP)[speaking], readout.mouth_area[speaking])[0, 1]


def test_channels_are_read_back(readings):
    puppet, clips = readings
    tolerances = {"head_x": 0.012, "head_y": 0.012, "roll": 0.02, "mouth_open": 0.03, "gaze_x": 0.2, "gaze_y": 0.25}
    tolerances |= dict.fromkeys(("left_x", "left_y", "right_x", "right_y"), 0.006)
    for name, tolerance in tolerances.items():
        column = puppet.channels.index(name)
        errors = np.concatenate([readout.channels[name] - truth[:, column] for _, _, truth, _, readout in clips])
        assert np.nanpercentile(np.abs(errors), 90) < tolerance, name
        assert np.isnan(errors).mean() < 0.06, name


def test_closed_eyes_hide_the_head_and_nothing_else(readings):
    puppet, clips = readings
    blink, roll = puppet.channels.index("blink"), puppet.channels.index("roll")
    shut = np.concatenate([truth[:, blink] == 1 for _, _, truth, _, _ in clips])
    wide_open = np.concatenate([truth[:, blink] == 0 for _, _, truth, _, _ in clips])
    closed = np.concatenate([readout.channels["blink"] for *_, readout in clips])
    errors = np.concatenate([readout.channels["roll"] - truth[:, roll] for _, _, truth, _, readout in clips])
    assert shut.sum() > 40
    assert closed[shut].min() == 1
    assert np.median(closed[wide_open]) < 0.1
    assert np.isnan(errors[shut]).all()
    assert np.isfinite(errors[wide_open]).mean() > 0.99
    assert np.nanmax(np.abs(errors)) < 0.2  # what is not hidden is right
    assert all(np.isfinite(readout.mouth_area).all() and np.isfinite(readout.channels["left_x"]).all() for *_, readout in clips)


def test_mouth_area_follows_the_truth(readings):
    puppet, clips = readings
    correlations = [lip_correlation(puppet, truth, r, states) for _, states, truth, _, r in clips if (states == SPEAKING).sum() > 25]
    assert len(correlations) > 10
    assert min(correlations) > 0.97
    scale = [np.polyfit(puppet.mouth_area(truth), r.mouth_area, 1)[0] for _, states, truth, _, r in clips if (states == SPEAKING).sum() > 25]
    assert np.abs(np.array(scale) - 1).max() < 0.1  # in the same units


def test_states_are_read_back(readings):
    _, clips = readings
    assert np.mean([(r.state == states).mean() for _, states, _, _, r in clips]) > 0.95
    for state in (SPEAKING, LISTENING, THINKING, IDLE):
        recalls = [(r.state[states == state] == state).mean() for _, states, _, _, r in clips if (states == state).any()]
        assert np.mean(recalls) > 0.9, STATES[state]


def test_identity_is_read_back_and_its_own_is_nearest(readings):
    puppet, clips = readings
    assert max(r.identity_error.mean() for *_, r in clips) < 0.01
    distances = np.array([[puppet.identity_distance(frames[::20], other) for other, *_ in clips] for _, _, _, frames, _ in clips])
    assert (distances.argmin(axis=1) == np.arange(len(clips))).all()
    assert np.diag(distances).max() < 0.3 * np.sort(distances, axis=1)[:, 1].min()


def box_blur(frames):
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9


def test_each_fault_moves_its_own_measure(readings):
    puppet, clips = readings
    speaking = [clip for clip in clips if (clip[1] == SPEAKING).sum() > 40][:6]
    lips = {"clean": [], "late": [], "blurred": []}
    for i, (identity, states, truth, frames, clean) in enumerate(speaking):
        lips["clean"].append(lip_correlation(puppet, truth, clean, states))
        late = puppet.read(np.roll(frames, 2, axis=0), identity)
        lips["late"].append(lip_correlation(puppet, truth, late, states))
        assert late.identity_error.mean() == pytest.approx(clean.identity_error.mean(), abs=0.002)

        blurred = puppet.read(box_blur(frames / np.float32(255)), identity)
        lips["blurred"].append(lip_correlation(puppet, truth, blurred, states))
        assert blurred.residual.mean() > 1.5 * clean.residual.mean()

        hue = np.clip(frames / 255 + np.array([0.05, 0, -0.05]), 0, 1)
        assert puppet.read(hue, identity).identity_error.mean() > 0.03 + clean.identity_error.mean()

        stranger = speaking[i - 1][0]
        assert puppet.identity_distance(frames, stranger) > 5 * puppet.identity_distance(frames, identity)
    assert np.mean(lips["clean"]) > 0.99
    assert np.mean(lips["late"]) < 0.75
    assert np.mean(lips["blurred"]) > 0.95  # a soft picture is no reason to fail at reading lips


def test_noise_does_not_bias_the_mouth(readings):
    puppet, clips = readings
    identity, _, _, frames, clean = clips[0]
    noise = np.random.default_rng(0).normal(0, 0.05, frames.shape)
    noisy = puppet.read(np.clip(frames / 255 + noise, 0, 1), identity)
    assert noisy.mouth_area.mean() == pytest.approx(clean.mouth_area.mean(), rel=0.1)


def test_nothing_is_invented_in_an_empty_picture():
    puppet = Puppet(64)
    identity = puppet.sample_identity(np.random.default_rng(0))
    readout = puppet.read(np.full((3, 64, 64, 3), 128, np.uint8), identity)
    for name in ("head_x", "roll", "left_x", "right_y"):
        assert np.isnan(readout.channels[name]).all(), name
    assert readout.identity_error.min() > 0.05
    assert readout.residual.min() > 0.1


def test_same_seed_same_pixels_whatever_the_batch(pieces):
    puppet = Puppet(64)
    identity, _states, truth = perform(puppet, pieces, 7, num_frames=150)
    again = perform(Puppet(64), pieces, 7, num_frames=150)
    assert again[0] == identity
    np.testing.assert_array_equal(again[2], truth)
    frames = puppet.render(identity, truth)
    assert frames.shape == (150, 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(puppet.render(identity, truth[40:43]), frames[40:43])
    whole, part = puppet.read(frames, identity), puppet.read(frames[:100], identity)
    np.testing.assert_array_equal(whole.mouth_area[:90], part.mouth_area[:90])


def test_identity_survives_json():
    puppet = Puppet(32)
    identity = puppet.sample_identity(np.random.default_rng(3))
    restored = json.loads(json.dumps(identity))
    assert restored == identity
    assert all(isinstance(value, float) for values in identity.values() for value in values)


def test_only_the_states_that_speak_open_the_mouth(pieces):
    puppet = Puppet(32)
    samples = pieces[0].samples[: 640 * 40]
    states = np.full(len(samples) // 640, LISTENING, np.uint8)
    heard = puppet.perform(samples, states, np.random.default_rng(0))
    assert heard[:, puppet.channels.index("mouth_open")].max() == 0
    spoken = puppet.perform(samples, np.full_like(states, SPEAKING), np.random.default_rng(0))
    assert spoken[:, puppet.channels.index("mouth_open")].max() > 0.5


def test_transitions_take_a_quarter_of_a_second():
    puppet = Puppet(32)
    states = np.repeat([IDLE, THINKING], 50).astype(np.uint8)
    truth = puppet.perform(np.zeros(100 * 640, np.float32), states, np.random.default_rng(0))
    hand = truth[:, puppet.channels.index("right_y")]
    done = (hand[49] - hand[50:]) / (hand[49] - hand[-1])
    assert done[0] < 0.2
    assert done[FRAMES_PER_SECOND // 4] > 0.75
    assert done.max() < 1.001  # critically damped: no overshoot


def test_captions_say_their_state_in_few_words():
    puppet = Puppet(32)
    assert set(CAPTIONS) == set(STATES)
    everything = [puppet.caption(state, variant) for state in STATES for variant in range(4)]
    assert len(set(everything)) == 16
    assert max(len(caption.split()) for caption in everything) <= 8
    assert puppet.caption("idle", 5) == puppet.caption("idle", 1)
    with pytest.raises(UserError, match="listening"):
        puppet.caption("listenning")


def test_errors_name_the_rule():
    with pytest.raises(UserError, match="16 pixels"):
        Puppet(8)
    with pytest.raises(ValueError, match="hair"):
        Puppet(32).render({"skin": [0.5, 0.5, 0.5]}, np.zeros((1, 12), np.float32))


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes_render_and_read(size, pieces):
    puppet = Puppet(size)
    identity, _states, truth = perform(puppet, pieces, 5, num_frames=60)
    frames = puppet.render(identity, truth)
    assert frames.shape == (60, size, size, 3)
    readout = puppet.read(frames, identity)
    assert np.corrcoef(readout.mouth_area, puppet.mouth_area(truth))[0, 1] > 0.95
    assert readout.identity_error.mean() < 0.015

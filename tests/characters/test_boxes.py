"""Boxes of face and mouth lie where the pixels are."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.characters.behaviour import sample_track
from flowact.characters.human import MOUTH as HUMAN_MOUTH
from flowact.characters.human import RiggedHuman
from flowact.characters.puppet import Puppet
from flowact.characters.puppet_anatomy import MOUTH as PUPPET_MOUTH
from flowact.characters.speech import load_speech


@pytest.mark.parametrize(("character", "colour"), [(Puppet(64), PUPPET_MOUTH), (RiggedHuman(64), HUMAN_MOUTH)])
def test_the_open_mouth_lies_in_its_box_and_that_in_the_face(character, colour):
    generator = np.random.default_rng(3)
    identity = character.sample_identity(generator)
    samples, states_T = sample_track(generator, load_speech(), 60)
    truth_TP = character.perform(samples, states_T, generator)
    boxes_TX4 = character.boxes(identity, truth_TP)
    assert boxes_TX4.shape == (60, 2, 4)
    assert boxes_TX4.dtype == np.float32
    assert boxes_TX4.min() >= 0
    assert boxes_TX4.max() <= 1
    face, mouth = boxes_TX4[:, 0], boxes_TX4[:, 1]
    assert np.all(face[:, :2] <= mouth[:, :2])
    assert np.all(mouth[:, 2:] <= face[:, 2:])

    frames = character.render(identity, truth_TP).astype(np.float32) / 255
    hue = colour / np.linalg.norm(colour)
    across_colour = np.linalg.norm(frames - (frames @ hue)[..., None] * hue, axis=-1)
    is_mouth = (across_colour < 0.04) & (frames.max(axis=-1) < 0.4) & (frames[..., 2] > 2 * frames[..., 1])
    seen = 0
    for t, inside_HW in enumerate(is_mouth):
        down, across = (np.nonzero(inside_HW)[axis] + 0.5 for axis in (0, 1))
        left, top, right, bottom = mouth[t] * 64
        seen += len(down)
        assert np.all((across > left - 1) & (across < right + 1) & (down > top - 1) & (down < bottom + 1))
    assert seen > 200

"""The puppet: a 2-D cartoon person whose every quantity is known and can be read back from its pixels.

Axes: T pixel frames, P truth channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowact.characters import mouth, puppet_anatomy, puppet_painter, puppet_reading
from flowact.characters.base import Character, Identity, Readout, shares_of_picture
from flowact.characters.behaviour import IDLE, LISTENING, SPEAKING, THINKING, follow, sample_blinks, smooth_causal, sway, voiced
from flowact.characters.captions import choose_caption
from flowact.errors import UserError

MIN_SIZE = 16

CAPTIONS: Mapping[str, tuple[str, ...]] = {
    "speaking": (
        "The person speaks with lively hands.",
        "Talking, with both hands gesturing.",
        "The person talks and gestures.",
        "Speaking, mouth moving, hands lively.",
    ),
    "listening": (
        "The person listens, nodding, head tilted.",
        "Listening with a tilted, nodding head.",
        "Head tilted, the person listens and nods.",
        "The person nods slowly while listening.",
    ),
    "thinking": (
        "The person thinks, hand at the chin.",
        "Thinking, looking up, hand on chin.",
        "Hand at chin, the person looks up.",
        "The person looks up and thinks.",
    ),
    "idle": (
        "The person waits quietly, hands down.",
        "Waiting, still, hands down.",
        "The person rests and breathes calmly.",
        "Hands down, the person stays idle.",
    ),
}


class Puppet(Character):
    """A cartoon bust with mittens. Lengths are in half pictures, x to the right, y down, angles in radians, clockwise as seen.

    Truth channels: `head_x`, `head_y` displacement of the head; `roll`; `mouth_open` and `mouth_width` in [0, 1]; `gaze_x`, `gaze_y` in [-1, 1];
    `blink` 0 open to 1 closed; `left_x` ... `right_y` the mittens' middles, left and right as seen in the picture.

    The read-out measures reserved colours (mittens, mouth, white of the eye) and is exact up to anti-aliasing; see `puppet_reading`.

    Args:
        size: pixels of a side, 16 or more; 32 to 128 are usual, 64 reads and looks well.
    """

    channels = puppet_anatomy.CHANNELS

    def __init__(self, size: int = 64) -> None:
        if size < MIN_SIZE:
            raise UserError(f"Puppet size={size}, but a puppet needs {MIN_SIZE} pixels or more to have a face; 64 is usual")
        super().__init__(size)

    def sample_identity(self, generator: np.random.Generator) -> Identity:
        return puppet_anatomy.sample_identity(generator)

    def identity_of(self, parts: Mapping[str, Sequence[float]], generator: np.random.Generator) -> Identity:
        identity = super().identity_of(parts, generator)
        puppet_anatomy.check_readable(identity)
        return identity

    def perform(self, samples: np.ndarray, states_T: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        num_frames = len(states_T)
        motion = mouth.listen(voiced(samples, states_T))
        phases = generator.uniform(0, 2 * np.pi, 8)
        beat_left, beat_right = generator.uniform(0.7, 1.3, 2)
        energy_T = smooth_causal(motion.opening_T)
        waves = {
            "breath": sway(0.3, phases[0], num_frames),
            "drift": sway(0.17, phases[1], num_frames),
            "nod": sway(0.9, phases[2], num_frames),
            "talk_x": sway(0.6, phases[3], num_frames),
            "talk_y": energy_T * sway(1.1, phases[4], num_frames),
            "left": energy_T * sway(beat_left, phases[5], num_frames),
            "right": energy_T * sway(beat_right, phases[6], num_frames),
        }
        targets_TP = np.stack([_targets(state, waves, energy_T) for state in range(4)])[np.asarray(states_T, np.int64), np.arange(num_frames)]
        truth = dict(zip(self.channels, follow(targets_TP).T, strict=True))
        truth |= {"mouth_open": motion.opening_T, "mouth_width": motion.width_T, "blink": sample_blinks(generator, num_frames)}
        return np.stack([truth[name] for name in self.channels], axis=1).astype(np.float32)

    def render(self, identity: Identity, truth_TP: np.ndarray) -> np.ndarray:
        return puppet_painter.paint(puppet_anatomy.Look.of(identity), truth_TP, self.size)

    def mouth_area(self, truth_TP: np.ndarray) -> np.ndarray:
        truth = dict(zip(self.channels, np.asarray(truth_TP).T, strict=True))
        half_width, half_height = puppet_anatomy.mouth_half_axes(truth["mouth_open"], truth["mouth_width"])
        return np.pi * half_width * half_height

    def boxes(self, identity: Identity, truth_TP: np.ndarray) -> np.ndarray:
        look, truth = puppet_anatomy.Look.of(identity), dict(zip(self.channels, np.asarray(truth_TP).T, strict=True))
        cosine_T, sine_T = np.cos(truth["roll"]), np.sin(truth["roll"])
        face_T2 = np.stack([truth["head_x"], truth["head_y"] + puppet_anatomy.HEAD_Y], axis=1)
        mouth_T2 = face_T2 + look.mouth_v * np.stack([-sine_T, cosine_T], axis=1)
        half_width_T, half_height_T = puppet_anatomy.mouth_half_axes(truth["mouth_open"], truth["mouth_width"])
        found = []
        for middle_T2, half_u, half_v in ((face_T2, look.head_width, look.head_height), (mouth_T2, half_width_T, half_height_T)):
            reach_T2 = np.stack([np.hypot(half_u * cosine_T, half_v * sine_T), np.hypot(half_u * sine_T, half_v * cosine_T)], axis=1)
            found.append(shares_of_picture(middle_T2 - reach_T2, middle_T2 + reach_T2))
        return np.stack(found, axis=1)

    def read(self, frames: np.ndarray, identity: Identity) -> Readout:
        return puppet_reading.read(frames, puppet_anatomy.Look.of(identity))

    def identity_distance(self, frames: np.ndarray, identity: Identity) -> float:
        return puppet_reading.identity_distance(frames, puppet_anatomy.Look.of(identity))

    def caption(self, state: str, variant: int = 0) -> str:
        return choose_caption(CAPTIONS, state, variant)


def _targets(state: int, waves: dict[str, np.ndarray], energy_T: np.ndarray) -> np.ndarray:
    """Where a state pulls the body, (T, P) in the order of `Puppet.channels`; the mouth and the blink are not pulled."""
    zero = np.zeros_like(energy_T)
    body = dict.fromkeys(Puppet.channels, zero)
    body["head_x"] = 0.02 * waves["drift"]
    body["head_y"] = 0.012 * waves["breath"]
    hands = puppet_anatomy.HANDS_DOWN
    if state == SPEAKING:
        hands = puppet_anatomy.HANDS_TALKING
        body["head_x"] = body["head_x"] + 0.03 * waves["talk_x"]
        body["head_y"] = body["head_y"] + 0.035 * waves["talk_y"]
    elif state == LISTENING:
        body["roll"] = zero + 0.26
        body["head_y"] = body["head_y"] + 0.02 + 0.035 * waves["nod"]
    elif state == THINKING:
        hands = (hands[0], puppet_anatomy.HAND_AT_CHIN)
        body["roll"] = zero - 0.14
        body["gaze_x"], body["gaze_y"] = zero + 0.7, zero - 1.0
    elif state != IDLE:
        raise ValueError(f"state {state} is none of 0..3")
    (body["left_x"], body["left_y"]), (body["right_x"], body["right_y"]) = [(zero + x, zero + y) for x, y in hands]
    if state == SPEAKING:
        for side, sign in (("left", 1), ("right", -1)):
            body[f"{side}_x"] = body[f"{side}_x"] + sign * 0.03 + 0.10 * waves[side]
            body[f"{side}_y"] = body[f"{side}_y"] - 0.12 * energy_T - 0.09 * np.roll(waves[side], 6)
    return np.stack([body[name] for name in Puppet.channels], axis=1)

"""What a synthetic person does over time: tracks of behaviour states, and the laws by which a body moves between them.

Axes: T pixel frames, P truth channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowact.characters.speech import SpeechPiece
from flowact.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME, STATES

SPEAKING, LISTENING, THINKING, IDLE = range(len(STATES))

SPEAKING_PROBABILITY = 0.42  # of a new segment; utterances are longer than the rest, so about half of the time is speech
SHORTEST_QUIET = FRAMES_PER_SECOND  # frames of a segment without speech
LONGEST_QUIET = 3 * FRAMES_PER_SECOND

SPRING_RATE = 14.0  # 1/s, critically damped: half of the way in 3 frames, 90 % in 7
BLINK_T = np.array([0.5, 1.0, 1.0, 0.5], np.float32)
FIRST_BLINK = 8  # frames; a performance starts with open eyes
BLINK_PAUSE = (40, 110)  # frames between blinks, drawn evenly


@dataclass(frozen=True)
class TrackSegment:
    """A run of frames in one state; `speech` is heard from its first frame and may be cut by its end."""

    state: int
    num_frames: int
    speech: SpeechPiece | None = None


def sample_segments(generator: np.random.Generator, speech_pieces: Sequence[SpeechPiece], num_frames: int) -> list[TrackSegment]:
    """Random behaviour that fills `num_frames`: whole utterances, between them listening, thinking and idling for one to three seconds.

    A state without speech never follows itself, so that every boundary of segments without speech is seen.
    """
    segments: list[TrackSegment] = []
    remaining = num_frames
    while remaining > 0:
        if generator.random() < SPEAKING_PROBABILITY:
            piece = speech_pieces[int(generator.integers(len(speech_pieces)))]
            segment = TrackSegment(SPEAKING, min(-(-len(piece.samples) // SAMPLES_PER_FRAME), remaining), piece)
        else:
            before = segments[-1].state if segments else SPEAKING
            state = generator.choice([state for state in (LISTENING, THINKING, IDLE) if state != before])
            segment = TrackSegment(int(state), min(int(generator.integers(SHORTEST_QUIET, LONGEST_QUIET + 1)), remaining))
        segments.append(segment)
        remaining -= segment.num_frames
    return segments


def lay_out(segments: Sequence[TrackSegment]) -> tuple[np.ndarray, np.ndarray]:
    """Samples, float32 (640 * T,), with silence where nobody speaks, and states_T, uint8."""
    states_T = np.concatenate([np.full(segment.num_frames, segment.state, np.uint8) for segment in segments])
    samples = np.zeros(len(states_T) * SAMPLES_PER_FRAME, np.float32)
    start = 0
    for segment in segments:
        end = start + segment.num_frames * SAMPLES_PER_FRAME
        if segment.speech is not None:
            heard = segment.speech.samples[: end - start]
            samples[start : start + len(heard)] = heard
        start = end
    return samples, states_T


def sample_track(generator: np.random.Generator, speech_pieces: Sequence[SpeechPiece], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and states of random behaviour: `lay_out(sample_segments(...))`."""
    return lay_out(sample_segments(generator, speech_pieces, num_frames))


def state_runs(states_T: np.ndarray) -> list[tuple[int, int, int]]:
    """(first frame, frame after the last, state) of each run of one state."""
    edges = [0, *(np.flatnonzero(np.diff(states_T)) + 1).tolist(), len(states_T)]
    return [(start, end, int(states_T[start])) for start, end in itertools.pairwise(edges)]


def voiced(samples: np.ndarray, states_T: np.ndarray) -> np.ndarray:
    """Samples of the frames in which the person speaks, zeros elsewhere: what moves the person's own mouth."""
    return samples[: len(states_T) * SAMPLES_PER_FRAME] * np.repeat(states_T == SPEAKING, SAMPLES_PER_FRAME).astype(np.float32)


def follow(targets_TP: np.ndarray, rate: float = SPRING_RATE) -> np.ndarray:
    """Positions of critically damped springs pulled to targets that hold for a frame each; at rest on the first target before it starts.

    The step is the exact solution x(t) = target + (d + (v + rate d) t) exp(-rate t), so no step size is too large.
    """
    dt = 1 / FRAMES_PER_SECOND
    decay = np.exp(-rate * dt)
    position, velocity = targets_TP[0].astype(np.float64), np.zeros(targets_TP.shape[1])
    positions_TP = np.empty(targets_TP.shape)
    for t, target in enumerate(targets_TP):
        distance = position - target
        impulse = velocity + rate * distance
        position = target + (distance + impulse * dt) * decay
        velocity = (velocity - rate * impulse * dt) * decay
        positions_TP[t] = position
    return positions_TP


def sample_blinks(generator: np.random.Generator, num_frames: int) -> np.ndarray:
    """How far the eyes are closed, (T,) float32 in [0, 1]."""
    closed_T = np.zeros(num_frames + len(BLINK_T), np.float32)
    frame = FIRST_BLINK + int(generator.integers(0, BLINK_PAUSE[0]))
    while frame < num_frames:
        closed_T[frame : frame + len(BLINK_T)] = BLINK_T
        frame += int(generator.integers(*BLINK_PAUSE))
    return closed_T[:num_frames]


def sway(frequency: float, phase: float, num_frames: int) -> np.ndarray:
    """sin(2 pi f t + phase), (T,)."""
    return np.sin(2 * np.pi * frequency * np.arange(num_frames) / FRAMES_PER_SECOND + phase)


def smooth_causal(signal_T: np.ndarray, seconds: float = 0.3) -> np.ndarray:
    """First-order low-pass, no look ahead."""
    keep = np.exp(-1 / (FRAMES_PER_SECOND * seconds))
    smoothed, level = np.empty(len(signal_T)), 0.0
    for t, value in enumerate(signal_T):
        level = keep * level + (1 - keep) * float(value)
        smoothed[t] = level
    return smoothed

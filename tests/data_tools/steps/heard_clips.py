"""Clips as steps are shown them: a synthetic person who speaks, with exact truth, or any sound and mouth."""

from __future__ import annotations

import functools
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plan, Recording, Soundtrack, Span
from flowact.characters.behaviour import sample_track
from flowact.characters.puppet import Puppet
from flowact.characters.speech import load_speech, of_split
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

BOXES, MOUTH, POSE = "FaceTracks/boxes/0", "FaceTracks/mouth/0", "FaceTracks/pose/0"


@dataclass(frozen=True)
class Take:
    """What a puppet does: sound (T * 640,), states (T,), and the opening of its mouth (T,) as `SidecarBoxes` gives it."""

    samples: np.ndarray
    states_T: np.ndarray
    mouth_T: np.ndarray


@functools.cache
def act(seed: int = 0, frames: int = 301) -> Take:
    generator = np.random.default_rng([0, 0, seed])
    puppet = Puppet()
    identity = puppet.sample_identity(generator)
    samples, states_T = sample_track(generator, of_split(load_speech(None), "train"), frames)
    boxes_TX4 = puppet.boxes(identity, puppet.perform(samples, states_T, generator))
    height_TX = boxes_TX4[..., 3] - boxes_TX4[..., 1]
    return Take(samples, states_T, (height_TX[:, 1] / height_TX[:, 0]).astype(np.float32))


def write_sound_file(path: Path, samples: np.ndarray) -> Soundtrack:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return Soundtrack(path)


def clip_of(
    folder: Path,
    samples: np.ndarray,
    *,
    other: np.ndarray | None = None,
    mouth_T: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    span: Span | None = None,
    source: Mapping[str, Any] | None = None,
    **plan: Any,
) -> Clip:
    """A clip of a recording with this sound; the whole of it unless a span is given."""
    sound = write_sound_file(folder / "sound.wav", samples)
    second = None if other is None else write_sound_file(folder / "other.wav", other)
    frames = len(samples) // SAMPLES_PER_FRAME
    found = {MOUTH: mouth_T} if mouth_T is not None else {}
    recording = Recording(
        Source(**{"id": "take", "address": str(folder / "take.mp4"), "identity": "anna", **(source or {})}),
        None,  # type: ignore[arg-type]  # no step that listens looks at the container
        frames,
        64,
        64,
        sound,
        second,
        {**found, **(signals or {})},
    )
    return Clip(recording, Plan(span or Span(0, frames), **{**({"mouth": MOUTH} if mouth_T is not None else {}), **plan}))


def with_signals(clip: Clip, step: Any) -> Clip:
    """The clip, after a step listened to its recording."""
    recording = clip.recording
    heard = step.listen(recording.sound, recording.other)
    signals = {**recording.signals, **{f"{step.name}/{name}": values for name, values in heard.items()}}
    return Clip(Recording(**{**vars(recording), "signals": signals}), clip.plan, clip.scores)


def judged(step: Any, clip: Clip) -> tuple[dict[str, Any], Plan, list[str]]:
    """Scores, the plan that follows, and why the clip is out."""
    scores = dict(step.score(clip))
    broken = [rule for rule in step.judge(scores) if rule is not None and not rule.kept]
    return scores, step.apply(clip, scores), [step.explain(rule) for rule in broken]


def mask_of(speech: tuple[tuple[float, float, str], ...], who: str, frames: int) -> np.ndarray:
    mask_T = np.zeros(frames, bool)
    for start, end, speaker in speech:
        if speaker == who:
            mask_T[round(start * 25) : round(end * 25)] = True
    return mask_T

"""Recordings made in a test, looked at and listened to as a build does it."""

from __future__ import annotations

import functools
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.footage import look, survey
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plan, Recording, Soundtrack, Span, Step
from flowact.characters.behaviour import SPEAKING
from flowact.characters.puppet import Puppet
from flowact.characters.speech import load_speech, of_split
from flowact.data.media import encode_video
from flowact.types import SAMPLES_PER_FRAME


@functools.cache
def act(seed: int = 0, frames: int = 61, size: int = 64, person: int = 0) -> dict[str, np.ndarray]:
    """A puppet that speaks all the time, as `record` takes it: pictures, boxes and samples. Another seed is another take of the same person."""
    generator = np.random.default_rng([1, seed])
    puppet = Puppet(size)
    identity = puppet.sample_identity(np.random.default_rng([2, person]))
    samples_S = np.concatenate([piece.samples for piece in of_split(load_speech(None), "train")[seed : seed + 8]])[: frames * SAMPLES_PER_FRAME]
    states_T = np.full(frames, SPEAKING, np.uint8)
    truth_TP = puppet.perform(samples_S, states_T, generator)
    return {"pictures_THWC": puppet.render(identity, truth_TP), "boxes_TX4": puppet.boxes(identity, truth_TP), "samples_S": samples_S}


def shot(seed: int, frames: int, *, size: tuple[int, int] = (64, 96), speed: float = 1.0, colour: Sequence[float] | None = None) -> np.ndarray:
    """A textured picture that drifts `speed` pixels a frame to the right: uint8 (T, H, W, 3). Another seed is another place."""
    height, width = size
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    tone = random.uniform(60, 190, 3) if colour is None else np.asarray(colour, float)
    waves = [(random.uniform(0.05, 0.5, 2), random.uniform(0, 6.3), random.uniform(5, 14, 3)) for _ in range(8)]
    pictures = [
        tone + sum(weight * np.sin(k[0] * y + k[1] * (x - speed * t) + phase)[..., None] for k, phase, weight in waves) for t in range(frames)
    ]
    return np.clip(np.stack(pictures), 0, 255).astype(np.uint8)


def write_wav(path: Path, samples_S: np.ndarray) -> Path:
    """PCM16 mono at 16 kHz of floats in [-1, 1]."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.clip(samples_S, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def record(
    folder: Path,
    steps: Sequence[Step],
    pictures_THWC: np.ndarray | None = None,
    *,
    video: Path | None = None,
    boxes_TX4: np.ndarray | None = None,
    samples_S: np.ndarray | None = None,
    other_S: np.ndarray | None = None,
    block: int = 50,
    **source: Any,
) -> Recording:
    """What a build knows of a recording after the turns `look` and `listen` of the steps.

    Args:
        folder: to write in.
        steps: that look and listen.
        pictures_THWC: the recording's frames; or
        video: its file.
        boxes_TX4: of face and mouth, put beside it.
        samples_S: its sound; silence without.
        other_S: sound of the person talked to.
        block: frames that are seen at once.
        source: more of the source's fields.
    """
    if video is None:
        assert pictures_THWC is not None
        video = folder / "recording.mp4"
        video.write_bytes(encode_video(pictures_THWC, crf=10, pixel_format="yuv444p", preset="ultrafast"))
    sidecars = {}
    if boxes_TX4 is not None:
        np.save(folder / "recording.boxes.npy", np.asarray(boxes_TX4, np.float32))
        sidecars["boxes.npy"] = str(folder / "recording.boxes.npy")
    named = Source(**{"id": "recording", "address": str(video), "identity": "recording", "sidecars": sidecars, **source})
    footage = survey(video, count=False)
    watchers = [(step, watcher) for step in steps if (watcher := step.watcher(named, footage)) is not None]
    frames = 0
    for part in look(video, tuple(dict.fromkeys(view for _, watcher in watchers for view in watcher.views)), block=block):
        for _, watcher in watchers:
            watcher.see(part)
        frames = part.first + part.count
    signals = {f"{step.name}/{name}": values for step, watcher in watchers for name, values in watcher.signals().items()}
    sound = _soundtrack(folder / "sound.wav", np.zeros(0) if samples_S is None else samples_S, frames)
    other = None if other_S is None else _soundtrack(folder / "other.wav", other_S, frames)
    for step in steps:
        signals |= {f"{step.name}/{name}": values for name, values in step.listen(sound, other).items()}
    return Recording(named, footage, frames, footage.width, footage.height, sound, other, signals)


def whole(recording: Recording) -> Clip:
    """All of it as one clip."""
    return Clip(recording, Plan(Span(0, recording.frames)))


def spans(step: Step, recording: Recording) -> list[tuple[int, int]]:
    """Where one step cuts."""
    return [(span.first, span.end) for span in step.cut(recording, [Span(0, recording.frames)])]


def broken(step: Step, scores: Any) -> dict[str, str]:
    """Score -> sentence, of the rules that are not kept."""
    return {rule.score: step.explain(rule) for rule in step.judge(scores) if rule is not None and not rule.kept}


def _soundtrack(path: Path, samples_S: np.ndarray, frames: int) -> Soundtrack:
    length = frames * SAMPLES_PER_FRAME
    return Soundtrack(write_wav(path, np.pad(samples_S[:length], (0, max(length - len(samples_S), 0)))))

"""One table of numbers for a set of clips: generated ones, or the truth itself, which gives the ceiling. Legend: flowact/types.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowact.characters.base import Character, Identity, Readout
from flowact.evaluation import metrics
from flowact.types import FRAMES_PER_SECOND, STATES

#: the names that metrics.json promises for each stage
METRIC_NAMES = (
    "lip_correlation",
    "lip_correlation_shuffled",
    "lip_lag_frames",
    "identity_error",
    "identity_rank",
    "state_accuracy",
    "drift",
    "motion_ratio",
)
#: what changes slowly (identity, sharpness) is measured in every fifth frame
FRAME_STEP = 5
#: lips per second are correlated in windows of this many seconds
LIP_WINDOW_SECONDS = 5


@dataclass(frozen=True, eq=False)
class Clip:
    """A video to be measured and the truth that drove it; frame t of each describes the same 40 ms.

    Attributes:
        key: the sample's key in its shard.
        frames_THWC: uint8 RGB.
        truth_TP: float32, the character's truth channels.
        states_T: uint8 indices into `flowact.types.STATES`: the states that were asked for.
        identity: the character's appearance.
        samples: float32 at 16 kHz, 640 a frame: the sound.

    Raises:
        ValueError: frames, truth and states differ in length, or there are none.
    """

    key: str
    frames_THWC: np.ndarray
    truth_TP: np.ndarray
    states_T: np.ndarray
    identity: Identity
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        lengths = {"frames": len(self.frames_THWC), "truth": len(self.truth_TP), "states": len(self.states_T)}
        if len(set(lengths.values())) != 1 or not lengths["frames"]:
            raise ValueError(f"a clip's frames, truth and states have one length, 1 or more; {self.key} has {lengths}")


@dataclass(frozen=True, eq=False)
class Lips:
    """How the mouth of a speaking clip follows the sound; a NaN `correlation` marks a failure (frozen, unreadable)."""

    correlation: float
    lag_curve: np.ndarray

    @property
    def failed(self) -> bool:
        return bool(np.isnan(self.correlation))

    @property
    def score(self) -> float:
        """The correlation; 0 for a failure."""
        return 0.0 if self.failed else self.correlation


@dataclass(frozen=True, eq=False)
class ClipMeasurement:
    """What was measured in one clip, frame by frame and in sum. `lips` is None for a clip without speech."""

    key: str
    true_area_T: np.ndarray
    readout: Readout
    states_T: np.ndarray
    lips: Lips | None
    identity_error: float
    identity_rank: float
    motion_T: np.ndarray
    true_motion_T: np.ndarray
    sharpness: float
    true_sharpness: float

    @property
    def speaking_T(self) -> np.ndarray:
        return self.states_T == STATES.index("speaking")

    @property
    def state_accuracy(self) -> float:
        return float((self.readout.state == self.states_T).mean())


@dataclass(frozen=True, eq=False)
class Measurement:
    """The numbers of `metrics.json` for one set of clips.

    Attributes:
        lip_correlation: mean over speaking clips; failures count as 0. Range -1..1, 1 is perfect.
        lip_correlation_shuffled: the same against the speech of other clips: chance.
        lip_lag_frames: peak of the mean lag curve, frames of 40 ms, positive = video late; NaN if no lag correlates.
        identity_error: distance of the colours to the reference's over the last 2 s, 0..1 RGB units.
        identity_rank: mean rank of the own reference among all clips' identities over the last 2 s, 1 = nearest.
        state_accuracy: share of frames whose read state is the one asked for.
        drift: the larger of the drifts of identity error and residual, first against last 15 %.
        motion_ratio: frame-to-frame change, generated over true.
        details: everything else that was measured, plain data (see `measure`).
        clips: the measurements clip by clip; not written to JSON in full.
    """

    lip_correlation: float
    lip_correlation_shuffled: float
    lip_lag_frames: float
    identity_error: float
    identity_rank: float
    state_accuracy: float
    drift: float
    motion_ratio: float
    details: Mapping[str, Any]
    clips: tuple[ClipMeasurement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The eight promised keys and `details`, plain data; numbers that do not exist (NaN, infinity) are None."""
        return plain({**{name: getattr(self, name) for name in METRIC_NAMES}, "details": self.details})


def plain(value: Any, digits: int = 6) -> Any:
    """Numpy and records to what JSON can say: rounded floats, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, np.integer):
        return int(value)
    number = float(value)
    return round(number, digits) if math.isfinite(number) else None


def measure(clips: Sequence[Clip], character: Character) -> Measurement:
    """Read every clip back with the character's closed-form read-out and compare with its truth.

    `details` holds
        num_clips, num_frames, num_identities, frames_per_second: how much was measured;
        lip_clips, lip_failures: clips that speak, and how many of their mouths are frozen or unreadable and counted as 0;
        unreadable: share of frames without a readable identity;
        lip_correlation_interval, identity_error_interval, state_accuracy_interval: 95 %, bootstrap over clips;
        drift_identity, drift_residual: the two whose larger one is `drift`;
        residual, sharpness_ratio, pose_frechet, mouth_amplitude_ratio, closed_mouth_leak: see their functions;
        state_recall, switches: per state, share of frames, and number, missed and median latency in frames;
        lag_curve, curves: correlation by lag, everything by second of time;
        per_clip: a row for each clip; example: the traces of one clip, for pictures.

    Raises:
        ValueError: no clips.
    """
    if not clips:
        raise ValueError("nothing to measure: no clips")
    identities = distinct([clip.identity for clip in clips])
    measured = tuple(measure_clip(clip, character, identities) for clip in clips)
    speaking = [clip for clip in measured if clip.lips is not None]
    lips = [clip.lips for clip in speaking if clip.lips is not None]
    lag_curve = np.mean([found.lag_curve for found in lips], axis=0) if lips else np.zeros(2 * metrics.MAX_LAG + 1)
    identity_errors = [clip.identity_error for clip in measured]
    drift_identity = float(np.mean([metrics.drift(clip.readout.identity_error) for clip in measured]))
    drift_residual = float(np.mean([metrics.drift(clip.readout.residual) for clip in measured]))
    read = np.concatenate([clip.readout.state for clip in measured])
    states = np.concatenate([clip.states_T for clip in measured])
    motion, true_motion = (mean_of(np.concatenate(rows)) for rows in zip(*((c.motion_T, c.true_motion_T) for c in measured), strict=True))
    true_sharpness = sum(clip.true_sharpness for clip in measured)
    details = {
        "num_clips": len(measured),
        "num_frames": len(states),
        "num_identities": len(identities),
        "frames_per_second": FRAMES_PER_SECOND,
        "lip_clips": len(speaking),
        "lip_failures": sum(found.failed for found in lips),
        "unreadable": float(np.mean([np.isnan(clip.readout.identity_error).mean() for clip in measured])),
        "lip_correlation_interval": metrics.bootstrap_interval([found.score for found in lips]),
        "identity_error_interval": metrics.bootstrap_interval(identity_errors),
        "state_accuracy_interval": metrics.bootstrap_interval([clip.state_accuracy for clip in measured]),
        "drift_identity": drift_identity,
        "drift_residual": drift_residual,
        "residual": float(np.mean([metrics.mean_or_worst(clip.readout.residual) for clip in measured])),
        "sharpness_ratio": sum(clip.sharpness for clip in measured) / true_sharpness if true_sharpness else float("nan"),
        "pose_frechet": pose_frechet(clips, measured, character),
        "mouth_amplitude_ratio": mean_of([metrics.amplitude_ratio(c.readout.mouth_area, c.true_area_T, c.speaking_T) for c in speaking]),
        "closed_mouth_leak": mean_of([metrics.closed_mouth_leak(c.readout.mouth_area, c.true_area_T, c.states_T) for c in measured]),
        "state_recall": metrics.state_recall(read, states),
        "switches": switch_summary(measured),
        "lag_curve": {"lags": list(range(-metrics.MAX_LAG, metrics.MAX_LAG + 1)), "correlation": lag_curve},
        "curves": curves(measured),
        "per_clip": [clip_summary(clip) for clip in measured],
        "example": example(measured),
    }
    return Measurement(
        lip_correlation=mean_of([found.score for found in lips]),
        lip_correlation_shuffled=shuffled(speaking),
        lip_lag_frames=metrics.best_lag(lag_curve),
        identity_error=float(np.mean(identity_errors)),
        identity_rank=float(np.mean([clip.identity_rank for clip in measured])),
        state_accuracy=float((read == states).mean()),
        drift=max(drift_identity, drift_residual),
        motion_ratio=motion / true_motion if true_motion else float("nan"),
        details=details,
        clips=measured,
    )


def measure_clip(clip: Clip, character: Character, identities: Sequence[Identity]) -> ClipMeasurement:
    """Measure one clip; `identities` are the distinct identities of the whole set, the clip's own among them."""
    readout = character.read(clip.frames_THWC, clip.identity)
    true_area_T = np.asarray(character.mouth_area(clip.truth_TP), np.float64)
    true_frames = character.render(clip.identity, clip.truth_TP)
    states_T = np.asarray(clip.states_T, np.int64)
    speaking_T = states_T == STATES.index("speaking")
    lips = None
    if metrics.has_lips_to_measure(true_area_T, speaking_T):
        signals = (readout.mouth_area, true_area_T, speaking_T)
        lips = Lips(metrics.lip_correlation(*signals), metrics.lag_curve(*signals))
    last = metrics.end_of(clip.frames_THWC)[::FRAME_STEP]
    distances = [character.identity_distance(last, identity) for identity in identities]
    return ClipMeasurement(
        key=clip.key,
        true_area_T=true_area_T,
        readout=readout,
        states_T=states_T,
        lips=lips,
        identity_error=metrics.mean_or_worst(metrics.end_of(readout.identity_error)),
        identity_rank=metrics.identity_rank(distances, [fingerprint(identity) for identity in identities].index(fingerprint(clip.identity))),
        motion_T=metrics.motion(clip.frames_THWC),
        true_motion_T=metrics.motion(true_frames),
        sharpness=metrics.sharpness(clip.frames_THWC[::FRAME_STEP]),
        true_sharpness=metrics.sharpness(true_frames[::FRAME_STEP]),
    )


def fingerprint(identity: Identity) -> str:
    """Equal for equal identities."""
    return json.dumps({key: np.asarray(value).tolist() for key, value in identity.items()}, sort_keys=True)


def distinct(identities: Sequence[Identity]) -> list[Identity]:
    """Each identity once, in order: two clips of one person are not rivals of each other."""
    return list({fingerprint(identity): identity for identity in identities}.values())


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """Mean over the defined values; NaN for none. For numbers that some clips cannot have, never for failures."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def shuffled(speaking: Sequence[ClipMeasurement]) -> float:
    """Chance level of the lips: every mouth against the speech of every other clip."""
    if len(speaking) == 1:
        return metrics.self_shuffled_lip_correlation(speaking[0].readout.mouth_area, speaking[0].true_area_T, speaking[0].speaking_T)
    truths = [(clip.true_area_T, clip.speaking_T) for clip in speaking]
    return mean_of(
        [
            metrics.shuffled_lip_correlation(clip.readout.mouth_area, clip.speaking_T, truths[:index] + truths[index + 1 :])
            for index, clip in enumerate(speaking)
        ]
    )


def pose_frechet(clips: Sequence[Clip], measured: Sequence[ClipMeasurement], character: Character) -> float:
    """Frechet distance of read-out to true pose over all frames, channels in units of the truth's standard deviation: do they move in the same ways.

    Only channels that move in truth and are readable in nine of ten frames. NaN without such channels.
    """
    true_NP = np.concatenate([clip.truth_TP for clip in clips]).astype(np.float64)
    columns = []
    for index, name in enumerate(character.channels):
        if all(name in clip.readout.channels for clip in measured) and true_NP[:, index].std() > 0:
            read = np.concatenate([clip.readout.channels[name] for clip in measured]).astype(np.float64)
            if np.isfinite(read).mean() >= 0.9:
                columns.append((read - true_NP[:, index].mean(), true_NP[:, index] - true_NP[:, index].mean(), true_NP[:, index].std()))
    if not columns:
        return float("nan")
    read_NP = np.stack([read / scale for read, _, scale in columns], 1)
    whole = np.isfinite(read_NP).all(1)
    if whole.sum() < 2:
        return float("nan")
    return metrics.frechet_distance(read_NP[whole], np.stack([true / scale for _, true, scale in columns], 1))


def switch_summary(measured: Sequence[ClipMeasurement]) -> dict[str, dict[str, float]]:
    """Per new state: number of switches, how many were never seen, median frames until it was seen (infinite if most were missed)."""
    latencies = [pair for clip in measured for pair in metrics.switch_latencies(clip.readout.state, clip.states_T)]
    summary = {}
    for index, name in enumerate(STATES):
        own = [latency for state, latency in latencies if state == index]
        if own:
            summary[name] = {"switches": len(own), "missed": int(np.isinf(own).sum()), "median_frames": float(np.sort(own)[len(own) // 2])}
    return summary


def curves(measured: Sequence[ClipMeasurement]) -> dict[str, np.ndarray]:
    """Means over clips of each second of time, to see drift: seconds, identity_error, residual, state_accuracy, motion, lip_correlation.

    Lips are correlated in a window of 5 seconds around each second.
    """
    series = {
        "identity_error": [metrics.per_second(clip.readout.identity_error) for clip in measured],
        "residual": [metrics.per_second(clip.readout.residual) for clip in measured],
        "state_accuracy": [metrics.per_second((clip.readout.state == clip.states_T).astype(float)) for clip in measured],
        "motion": [metrics.per_second(clip.motion_T) for clip in measured],
        "lip_correlation": [lips_per_second(clip) for clip in measured],
    }
    means = {name: metrics.mean_curve(rows) for name, rows in series.items()}
    return {"seconds": np.arange(len(means["identity_error"])), **means}


def lips_per_second(clip: ClipMeasurement) -> np.ndarray:
    """Lip correlation in a window of `LIP_WINDOW_SECONDS` around each second; 0 where it fails, NaN where nobody speaks."""
    num_seconds = len(metrics.per_second(clip.readout.identity_error))
    scores = np.full(num_seconds, np.nan)
    margin = LIP_WINDOW_SECONDS // 2
    for second in range(num_seconds):
        window = slice(max(0, second - margin) * FRAMES_PER_SECOND, (second + margin + 1) * FRAMES_PER_SECOND)
        if metrics.has_lips_to_measure(clip.true_area_T[window], clip.speaking_T[window]):
            score = metrics.lip_correlation(clip.readout.mouth_area[window], clip.true_area_T[window], clip.speaking_T[window])
            scores[second] = np.nan_to_num(score)
    return scores


def clip_summary(clip: ClipMeasurement) -> dict[str, Any]:
    """The row of one clip. Lips: None without speech; a failure is 0 and says so."""
    lips, motion, true_motion = clip.lips, mean_of(clip.motion_T), mean_of(clip.true_motion_T)
    return {
        "key": clip.key,
        "num_frames": len(clip.states_T),
        "lip_correlation": lips.score if lips else None,
        "lip_failed": bool(lips and lips.failed),
        "lip_lag_frames": metrics.best_lag(lips.lag_curve) if lips else None,
        "identity_error": clip.identity_error,
        "identity_rank": clip.identity_rank,
        "state_accuracy": clip.state_accuracy,
        "motion_ratio": motion / true_motion if true_motion else float("nan"),
    }


def example(measured: Sequence[ClipMeasurement]) -> dict[str, Any]:
    """Traces of one clip. It is chosen by truth alone (most states, then most speech), so every stage shows the same one."""
    clip = max(measured, key=lambda candidate: (len(np.unique(candidate.states_T)), int(candidate.speaking_T.sum())))
    return {
        "key": clip.key,
        "true_mouth_area": np.round(clip.true_area_T, 5),
        "measured_mouth_area": np.round(np.asarray(clip.readout.mouth_area, np.float64), 5),
        "true_state": clip.states_T,
        "read_state": clip.readout.state,
    }

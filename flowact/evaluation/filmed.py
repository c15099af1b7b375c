"""Measuring streams of filmed people: there is no exact truth, so the film of the same sound stands in for it. Legend: flowact/types.py.

Motion, drift, sharpness and saturation come from pixels. Likeness is a judge's, or weak (`GRID_NOTE`); lips are a judge's, or not measured. Every
number has the meaning that it has for synthetic characters (`flowact.evaluation.measurement`), as far as `details` does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from flowact.evaluation import metrics
from flowact.evaluation.judges import Judge
from flowact.evaluation.measurement import FRAME_STEP, Clip, Measurement, mean_of
from flowact.types import FRAMES_PER_SECOND, STATES

GRID = 8
GRID_NAME = f"colours of a {GRID} x {GRID} grid"
GRID_NOTE = (
    f"Identity of filmed people was measured weakly, by the {GRID_NAME} over the face: pose, light and clothes change them too. "
    "A judge of faces (`flowact evaluate --judge`) measures more."
)
NO_LIPS = "no judge that reads mouths was named (--judge)"
NO_STATES = "what people do can be read back from synthetic characters only"
ONE_PERSON = "there is one person, who is nearest to itself"
#: side of the region around a face, in sides of its box
MARGIN = 1.4


@dataclass(frozen=True, eq=False)
class Film:
    """What was filmed where a clip was generated.

    Attributes:
        frames_THWC: uint8 RGB of the same frames, or more.
        reference_HWC: uint8 reference picture.
        boxes_TX4: where face and mouth are in the film, as shares of the picture; None where that is unknown.
    """

    frames_THWC: np.ndarray
    reference_HWC: np.ndarray
    boxes_TX4: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Measured:
    """Signals of one clip; NaN in frames that were not looked at."""

    clip: Clip
    error_T: np.ndarray
    end_ND: np.ndarray
    saturation_T: np.ndarray
    brightness_T: np.ndarray
    motion_T: np.ndarray
    film_motion_T: np.ndarray
    sharpness: float
    film_sharpness: float
    mouth_T: np.ndarray | None
    film_mouth_T: np.ndarray | None
    speaking_T: np.ndarray

    @property
    def lips(self) -> float | None:
        """Correlation with the filmed mouth; NaN is a failure, None no clip to measure."""
        if self.mouth_T is None or self.film_mouth_T is None or not metrics.has_lips_to_measure(self.film_mouth_T, self.speaking_T):
            return None
        return metrics.lip_correlation(self.mouth_T, self.film_mouth_T, self.speaking_T)


def measure_filmed(clips: Sequence[Clip], films: Sequence[Film], judge: Judge | None = None) -> Measurement:
    """Compare streams with films of the same people saying the same.

    `details` holds num_clips, num_frames, num_identities, frames_per_second, identity_by, identity_note, skipped (number -> reason), drift_identity,
    drift_saturation, drift_brightness, sharpness_ratio, saturation_ratio, lip_clips, lip_failures, intervals, curves and per_clip.

    Args:
        clips: generated; the identity of each is {"person": name}.
        films: of each.
        judge: of faces or mouths; None for neither.

    Raises:
        ValueError: no clips, or another number of films.
    """
    if not clips or len(clips) != len(films):
        raise ValueError(f"{len(clips)} clips and {len(films)} films; there is a film for each of one or more clips")
    reader = judge if judge is not None and "identity" in judge.measures else None
    likeness = _cosine_distance if reader is not None else _colour_distance
    references = {str(clip.identity["person"]): _embed(film.reference_HWC[None], film, reader)[0] for clip, film in zip(clips, films, strict=True)}
    measured = [_measure_clip(clip, film, judge, reader) for clip, film in zip(clips, films, strict=True)]
    errors = [metrics.mean_or_worst(metrics.end_of(one.error_T)) for one in measured]
    ranks = [
        metrics.identity_rank([float(np.nanmean(_or_nan(likeness(one.end_ND, vector)))) for vector in references.values()], own)
        for one, own in ((one, list(references).index(str(one.clip.identity["person"]))) for one in measured)
    ]
    several = len(references) > 1
    lips = [one.lips for one in measured]
    scores = [float(np.nan_to_num(score)) for score in lips if score is not None]
    speaking = [one for one in measured if one.lips is not None]
    curve = _lag_curve(speaking)
    drifts = {name: mean_of([metrics.drift(getattr(one, f"{name}_T")) for one in measured]) for name in ("error", "saturation", "brightness")}
    motion, film_motion = (mean_of(np.concatenate([getattr(one, name) for one in measured])) for name in ("motion_T", "film_motion_T"))
    unheard = () if speaking else ("lip_correlation", "lip_correlation_shuffled", "lip_lag_frames")
    skipped = dict.fromkeys(unheard, NO_LIPS if _blind(judge) else "nobody speaks for a second with a mouth in sight")
    skipped |= {"state_accuracy": NO_STATES} | ({} if several else {"identity_rank": ONE_PERSON})
    details: dict[str, Any] = {
        "num_clips": len(measured),
        "num_frames": sum(len(one.error_T) for one in measured),
        "num_identities": len(references),
        "frames_per_second": FRAMES_PER_SECOND,
        "truth": "film",
        "identity_by": GRID_NAME if reader is None else reader.name,
        "identity_note": GRID_NOTE if reader is None else "",
        "skipped": skipped,
        "lip_clips": len(speaking),
        "lip_failures": sum(bool(np.isnan(score)) for score in lips if score is not None),
        "lip_correlation_interval": metrics.bootstrap_interval(scores),
        "identity_error_interval": metrics.bootstrap_interval(errors),
        "unreadable": float(np.mean([np.isnan(one.error_T[::FRAME_STEP]).mean() for one in measured])),
        "drift_identity": drifts["error"],
        "drift_saturation": drifts["saturation"],
        "drift_brightness": drifts["brightness"],
        "sharpness_ratio": _ratio([one.sharpness for one in measured], [one.film_sharpness for one in measured]),
        "saturation_ratio": _ratio(
            [mean_of(one.saturation_T) for one in measured], [mean_of(saturation(film.frames_THWC[::FRAME_STEP])) for film in films]
        ),
        "curves": _curves(measured),
        "per_clip": [
            {
                "key": one.clip.key, "num_frames": len(one.error_T), "lip_correlation": None if score is None else float(np.nan_to_num(score)),
                "lip_failed": bool(score is not None and np.isnan(score)), "identity_error": error, "identity_rank": rank if several else None,
                "motion_ratio": mean_of(one.motion_T) / mean_of(one.film_motion_T) if mean_of(one.film_motion_T) else float("nan"),
            }
            for one, error, rank, score in zip(measured, errors, ranks, lips, strict=True)
        ],
    }  # fmt: skip
    if speaking:
        details["lag_curve"] = {"lags": list(range(-metrics.MAX_LAG, metrics.MAX_LAG + 1)), "correlation": curve}
    return Measurement(
        lip_correlation=mean_of(scores),
        lip_correlation_shuffled=_shuffled(speaking),
        lip_lag_frames=metrics.best_lag(curve),
        identity_error=float(np.mean(errors)),
        identity_rank=float(np.mean(ranks)) if several else float("nan"),
        state_accuracy=float("nan"),
        drift=max(drifts.values()),
        motion_ratio=motion / film_motion if film_motion else float("nan"),
        details=details,
    )


def _measure_clip(clip: Clip, film: Film, judge: Judge | None, reader: Judge | None) -> _Measured:
    frames, filmed = clip.frames_THWC, film.frames_THWC[: len(clip.frames_THWC)]
    looked = np.arange(0, len(frames), FRAME_STEP)
    features_ND = _embed(frames[looked], film, reader)
    reference_D = _embed(film.reference_HWC[None], film, reader)[0]
    distance = _cosine_distance if reader is not None else _colour_distance
    speaking_T = clip.states_T == STATES.index("speaking")
    mouth_T = film_mouth_T = None
    if judge is not None and "lips" in judge.measures:
        mouth_T, film_mouth_T = (np.asarray(judge.mouth(pixels), np.float64) for pixels in (frames, filmed))
        speaking_T = speaking_T & np.isfinite(film_mouth_T)
    return _Measured(
        clip=clip,
        error_T=_spread(distance(features_ND, reference_D), looked, len(frames)),
        end_ND=features_ND[looked >= len(frames) - round(metrics.END_SECONDS * FRAMES_PER_SECOND)],
        saturation_T=_spread(saturation(frames[looked]), looked, len(frames)),
        brightness_T=_spread(frames[looked].mean(axis=(1, 2, 3)) / 255, looked, len(frames)),
        motion_T=metrics.motion(frames),
        film_motion_T=metrics.motion(filmed),
        sharpness=metrics.sharpness(frames[looked]),
        film_sharpness=metrics.sharpness(filmed[::FRAME_STEP]),
        mouth_T=mouth_T,
        film_mouth_T=film_mouth_T,
        speaking_T=speaking_T,
    )


def saturation(frames_THWC: np.ndarray) -> np.ndarray:
    """Mean difference of the strongest and the weakest channel of each frame, (T,), 0..1; streams that run away grow it."""
    return (frames_THWC.max(axis=3).astype(np.int16) - frames_THWC.min(axis=3)).mean(axis=(1, 2)) / 255


def face_region(boxes_TX4: np.ndarray | None, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a square around the face's mean place in a clip; the whole picture where it is unknown or less than 8 pixels."""
    whole = slice(0, height), slice(0, width)
    if boxes_TX4 is None or not np.isfinite(boxes_TX4[:, 0]).all(axis=1).any():
        return whole
    left, top, right, bottom = np.nanmean(boxes_TX4[:, 0], axis=0) * (width, height, width, height)
    half = MARGIN * max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    rows, columns = slice(max(0, round(y - half)), min(height, round(y + half))), slice(max(0, round(x - half)), min(width, round(x + half)))
    return (rows, columns) if rows.stop - rows.start >= GRID and columns.stop - columns.start >= GRID else whole


def _embed(frames_NHWC: np.ndarray, film: Film, reader: Judge | None) -> np.ndarray:
    """Features (N, D) of the face region: a judge's, or mean colours of a grid in 0..1."""
    rows, columns = face_region(film.boxes_TX4, *frames_NHWC.shape[1:3])
    faces = np.ascontiguousarray(frames_NHWC[:, rows, columns])
    if reader is not None:
        return np.asarray(reader.embed(faces), np.float64)
    small = [np.asarray(Image.fromarray(face).resize((GRID, GRID), Image.Resampling.BOX), np.float64) / 255 for face in faces]
    return np.stack(small).reshape(len(faces), -1)


def _colour_distance(features_ND: np.ndarray, reference_D: np.ndarray) -> np.ndarray:
    return np.sqrt(((features_ND - reference_D) ** 2).mean(axis=1))


def _cosine_distance(features_ND: np.ndarray, reference_D: np.ndarray) -> np.ndarray:
    """1 - cosine, 0 for the same direction."""
    lengths = np.linalg.norm(features_ND, axis=1) * np.linalg.norm(reference_D)
    return 1 - features_ND @ reference_D / np.where(lengths > 0, lengths, np.nan)


def _spread(values_N: np.ndarray, looked: np.ndarray, length: int) -> np.ndarray:
    """A value for each frame that was looked at, NaN between."""
    series = np.full(length, np.nan)
    series[looked] = values_N
    return series


def _or_nan(values: np.ndarray) -> np.ndarray:
    return values if np.isfinite(values).any() else np.array([np.inf])


def _ratio(values: Sequence[float], films: Sequence[float]) -> float:
    return sum(values) / sum(films) if sum(films) else float("nan")


def _blind(judge: Judge | None) -> bool:
    return judge is None or "lips" not in judge.measures


def _lag_curve(speaking: Sequence[_Measured]) -> np.ndarray:
    mouths = [(one.mouth_T, one.film_mouth_T, one.speaking_T) for one in speaking]
    curves = [metrics.lag_curve(mouth, film, speaking_T) for mouth, film, speaking_T in mouths if mouth is not None and film is not None]
    return np.mean(curves, axis=0) if curves else np.zeros(2 * metrics.MAX_LAG + 1)


def _shuffled(speaking: Sequence[_Measured]) -> float:
    """Chance: every mouth against the film of every other clip."""
    if len(speaking) == 1 and speaking[0].mouth_T is not None and speaking[0].film_mouth_T is not None:
        return metrics.self_shuffled_lip_correlation(speaking[0].mouth_T, speaking[0].film_mouth_T, speaking[0].speaking_T)
    truths = [(one.film_mouth_T, one.speaking_T) for one in speaking if one.film_mouth_T is not None]
    return mean_of(
        [
            metrics.shuffled_lip_correlation(one.mouth_T, one.speaking_T, truths[:index] + truths[index + 1 :])
            for index, one in enumerate(speaking)
            if one.mouth_T is not None
        ]
    )


def _curves(measured: Sequence[_Measured]) -> dict[str, np.ndarray]:
    """Means over clips of each second, to see drift."""
    series = {"identity_error": "error_T", "motion": "motion_T", "saturation": "saturation_T", "brightness": "brightness_T"}
    means = {name: metrics.mean_curve([metrics.per_second(getattr(one, signal)) for one in measured]) for name, signal in series.items()}
    return {"seconds": np.arange(len(means["identity_error"])), **means}

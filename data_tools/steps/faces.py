"""Who is seen: faces followed over time, clips around them, and how well they can be seen.

Axes: T frames, X boxes (face, mouth), 4 (left, top, right, bottom) as shares of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, final

import numpy as np

from data_tools.footage import Block, Footage
from data_tools.inputs import Source
from data_tools.steps.base import Box, Clip, Plain, Plan, Recording, Rule, Span, Step, Watcher
from data_tools.steps.detectors.base import FaceDetector, FaceReader
from data_tools.steps.face_tracks import Tracks, runs
from flowact.errors import UserError

#: head and shoulders: how much of the face's height belongs above, to each side and below it
ABOVE, BESIDE, BELOW = 0.7, 1.0, 1.2
WORDS = {
    "face_px": "the face is {value:.0f} pixels high, must be at least {bound:g}",
    "face_share": "a face is seen in {value:.0%} of the frames, must be at least {bound:.0%}",
    "yaw": "the face is turned by {value:.0f} degrees to the side, at most {bound:g} are allowed",
    "pitch": "the face is turned by {value:.0f} degrees up or down, at most {bound:g} are allowed",
    "occlusion": "the face is covered or lost by {value:.0%}, at most {bound:.0%} are allowed",
    "centre_jitter": "the face trembles by {value:.1%} of its height, at most {bound:.1%} are allowed",
    "mouth_range": "the mouth opens by {value:.2f} of the face's size, must be at least {bound:g}",
}


@final
class FaceTracks(Step):
    """Follows every face, makes clips of stretches in which the wanted people are seen, and crops to head and shoulders.

    Signals for each track K: `boxes/K`, `mouth/K` (opening), `pose/K` (yaw, pitch, roll), `presence/K` (the detector's score, 0 where bridged).
    A track's number says nothing about who it is: people who are never seen together may share one.

    Args:
        detector: finds the faces of a picture: SidecarBoxes, MeshDetector, WeightsDetector, or FirstOf several of them.
        people: 'single' keeps stretches with exactly one person and rejects the others with a reason; 'one' takes the largest and longest seen person
            of a shot, whoever else is there; 'each' makes a clip of each person, named with -p1, -p2 after the first.
        max_gap: frames for which a face may be lost and its box interpolated; 25 is SyncNet's tracker's.
        min_track: frames that a face is seen at least; shorter ones are false alarms.
        background: faces smaller than this share of the largest one at the time are passers-by and count for nothing.
        median: frames of the median filter over the face's box, odd; 1 filters nothing. SyncNet's tracker takes 13, which lags behind nods.
        crop: 'face' crops to head and shoulders, 'largest' to the largest window of that aspect around the face (hands stay in), 'none' not.
        aspect: width by height of the crop.
        margin: 1 is head and shoulders; larger shows more.
        min_face_share: of the frames in which the face is seen.
        min_face_px: median height of the face in the recording's pixels; None takes any. SyncNet's tracker asks for 100; drawn test people have less.
        max_yaw: degrees to a side, nine tenths of the frames; None takes any. The mesh is sure to about 60.
        max_pitch: likewise, up and down.
        max_occlusion: one minus the detector's mean score; None takes any.
        max_jitter: see the score `centre_jitter`; None takes any.
        min_mouth_range: of the opening between its 5th and 95th percentile; None takes any, for people who listen are wanted too.
    """

    thresholds = (
        *("people", "crop", "aspect", "margin", "min_face_share", "min_face_px"),
        *("max_yaw", "max_pitch", "max_occlusion", "max_jitter", "min_mouth_range"),
    )

    def __init__(
        self,
        detector: FaceDetector,
        people: Literal["single", "one", "each"] = "single",
        max_gap: int = 25,
        min_track: int = 12,
        background: float = 0.4,
        median: int = 5,
        crop: Literal["face", "largest", "none"] = "face",
        aspect: float = 1.0,
        margin: float = 1.0,
        min_face_share: float | None = 0.9,
        min_face_px: float | None = None,
        max_yaw: float | None = None,
        max_pitch: float | None = None,
        max_occlusion: float | None = None,
        max_jitter: float | None = None,
        min_mouth_range: float | None = None,
    ) -> None:
        for name, value, words in (("people", people, ("single", "one", "each")), ("crop", crop, ("face", "largest", "none"))):
            if value not in words:
                raise UserError(f"FaceTracks: {name} {value!r} must be one of {', '.join(words)}")
        if max_gap < 0 or min_track < 1 or median < 1 or median % 2 == 0:
            raise UserError(f"FaceTracks: max_gap {max_gap} is at least 0, min_track {min_track} at least 1, median {median} odd")
        if not (0 <= background <= 1 and aspect > 0 and margin >= 0):
            raise UserError(f"FaceTracks: background {background} is a share from 0 to 1, aspect {aspect} is above 0, margin {margin} at least 0")
        self.detector, self.people, self.crop, self.aspect, self.margin = detector, people, crop, aspect, margin
        self.max_gap, self.min_track, self.background, self.median = max_gap, min_track, background, median
        self.min_face_share, self.min_face_px, self.max_yaw, self.max_pitch = min_face_share, min_face_px, max_yaw, max_pitch
        self.max_occlusion, self.max_jitter, self.min_mouth_range = max_occlusion, max_jitter, min_mouth_range

    def check(self) -> None:
        self.detector.check()

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return _Watcher(self, self.detector.open(source, footage))

    # --- who is where -------------------------------------------------------------------------------------------------------------------------------

    def _heights(self, signals: Mapping[str, np.ndarray], first: int, end: int) -> np.ndarray:
        """float (K, T): heights of the faces as shares of the picture; 0 where there is none, or one of the background."""
        boxes: list[np.ndarray] = []
        prefix = f"{self.name}/boxes/"
        while f"{prefix}{len(boxes)}" in signals:
            boxes.append(signals[f"{prefix}{len(boxes)}"][first:end, 0])
        if not boxes:
            return np.zeros((1, end - first))
        heights_KT = np.nan_to_num(np.stack([box[:, 3] - box[:, 1] for box in boxes]))
        return np.where(heights_KT >= self.background * heights_KT.max(0), heights_KT, 0)

    def cut(self, recording: Recording, spans: Sequence[Span]) -> list[Span]:
        cut = []
        for span in spans:
            heights_KT = self._heights(recording.signals, span.first, span.end)
            seen_KT = heights_KT > 0
            if self.people == "single":
                # told apart by how many there are, and by who it is where it is one
                who_T = np.where(seen_KT.sum(0) == 1, seen_KT.argmax(0), np.where(seen_KT.any(0), -2, -1))
                stretches = [(first, end, int(heights_KT[:, first:end].sum(1).argmax())) for first, end, _ in runs(who_T)]
            elif self.people == "one":
                largest = int(heights_KT.sum(1).argmax())
                stretches = [(first, end, largest) for first, end, _ in runs(seen_KT[largest])]
            else:
                stretches = [(first, end, k) for k in range(len(seen_KT)) for first, end, seen in runs(seen_KT[k]) if seen]
                stretches += [(first, end, 0) for first, end, seen in runs(np.any(seen_KT, axis=0)) if not seen]
            cut += [Span(span.first + first, span.first + end, track) for first, end, track in sorted(stretches)]
        return cut

    # --- how well it is seen ------------------------------------------------------------------------------------------------------------------------

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        span = clip.plan.span
        num_people_T = (self._heights(clip.recording.signals, span.first, span.end) > 0).sum(0)
        boxes_TX4 = clip.signal(f"{self.name}/boxes/{span.track}")
        # a second person for a moment is one: what is counted is the most that half a second or a tenth of the clip shows
        scores: dict[str, Plain] = {"num_people": int(np.percentile(num_people_T, 90)) if len(num_people_T) else 0, "face_share": 0.0}
        nothing = ("face_px", "yaw", "yaw_median", "pitch", "pitch_median", "centre_jitter", "movement", "occlusion", "mouth_range")
        scores |= dict.fromkeys(nothing)
        if boxes_TX4 is None or np.isnan(boxes_TX4[:, 0]).all():
            return scores
        size = np.array([clip.recording.width, clip.recording.height] * 2)
        faces_T4 = boxes_TX4[:, 0].astype(np.float64) * size
        seen_T = ~np.isnan(faces_T4).any(1)
        height = float(np.median(faces_T4[seen_T, 3] - faces_T4[seen_T, 1]))
        centres_T2 = (faces_T4[:, :2] + faces_T4[:, 2:]) / 2
        bends_T = np.linalg.norm(np.diff(centres_T2, n=2, axis=0), axis=1)
        scores |= {"face_share": _round(seen_T.mean()), "face_px": _round(height, 1)}
        scores["centre_jitter"] = _round(np.nanmean(bends_T) / height) if np.isfinite(bends_T).any() else None
        scores["movement"] = _round(np.linalg.norm(np.nanstd(centres_T2, axis=0)) / height)
        pose_T3, mouth_T, presence_T = (clip.signal(f"{self.name}/{name}/{span.track}") for name in ("pose", "mouth", "presence"))
        for i, name in enumerate(("yaw", "pitch")):
            angles = np.zeros(0) if pose_T3 is None else pose_T3[np.isfinite(pose_T3[:, i]), i]
            if len(angles):
                scores |= {name: _round(np.percentile(np.abs(angles), 90), 1), f"{name}_median": _round(np.median(angles), 1)}
        if presence_T is not None and np.isfinite(presence_T).any():
            scores["occlusion"] = _round(1 - np.nanmean(presence_T))
        if mouth_T is not None and np.isfinite(mouth_T).any():
            scores["mouth_range"] = _round(np.subtract(*np.nanpercentile(mouth_T, (95, 5))))
        return scores

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        return (
            Rule.at_least("face_share", scores["face_share"], self.min_face_share),
            Rule.at_most("num_people", scores["num_people"], 1) if self.people == "single" else None,
            Rule.at_least("face_px", scores["face_px"], self.min_face_px, unknown=False),
            Rule.at_most("yaw", scores["yaw"], self.max_yaw),
            Rule.at_most("pitch", scores["pitch"], self.max_pitch),
            Rule.at_most("occlusion", scores["occlusion"], self.max_occlusion),
            Rule.at_most("centre_jitter", scores["centre_jitter"], self.max_jitter),
            Rule.at_least("mouth_range", scores["mouth_range"], self.min_mouth_range),
        )

    def explain(self, rule: Rule) -> str:
        if rule.score == "num_people":
            return f"{'two' if rule.value == 2 else rule.value} faces are seen, one is wanted (FaceTracks.people: one or each takes such clips too)"
        if rule.score == "face_share" and not rule.value:
            return "no face is seen"
        return "no face is measured" if rule.value is None else WORDS[rule.score].format(value=rule.value, bound=rule.bound)

    # --- what follows -------------------------------------------------------------------------------------------------------------------------------

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        track = clip.plan.span.track
        boxes, mouth = f"{self.name}/boxes/{track}", f"{self.name}/mouth/{track}"
        boxes_TX4, mouth_T = clip.signal(boxes), clip.signal(mouth)
        if boxes_TX4 is None or np.isnan(boxes_TX4[:, 0]).all():
            return clip.plan
        opens = mouth_T is not None and bool(np.isfinite(mouth_T).any())
        plan = clip.with_plan(boxes=boxes, mouth=mouth if opens else "")
        if self.people == "each" and track:  # another person than the first
            plan = replace(plan, identity=f"{plan.identity or clip.recording.source.identity}-p{track}")
        if self.crop == "none":
            return plan
        size = clip.recording.width, clip.recording.height
        faces_T4 = boxes_TX4[:, 0]
        crop = head_and_shoulders(faces_T4, size, self.aspect, self.margin) if self.crop == "face" else largest(faces_T4, size, self.aspect)
        return replace(plan, crop=crop)


def head_and_shoulders(faces_T4: np.ndarray, size: tuple[int, int], aspect: float, margin: float) -> Box:
    """The smallest window that holds a face's boxes with their surroundings, the same for all frames: left, top, right, bottom in pixels, all even.

    Args:
        faces_T4: shares of the picture, NaN where unseen.
        size: width and height of the picture in pixels.
        aspect: width by height; kept as far as even numbers and the picture allow.
        margin: how much of the surroundings, 1 for head and shoulders.
    """
    boxes_T4 = faces_T4[~np.isnan(faces_T4).any(1)] * np.array([*size, *size])
    height = float(np.median(boxes_T4[:, 3] - boxes_T4[:, 1])) * margin
    left, top = boxes_T4[:, 0].min() - BESIDE * height, boxes_T4[:, 1].min() - ABOVE * height
    right, bottom = boxes_T4[:, 2].max() + BESIDE * height, boxes_T4[:, 3].max() + BELOW * height
    wide = max(right - left, (bottom - top) * aspect)
    return _window((left + right) / 2, (top + bottom) / 2, wide, size, aspect)


def largest(faces_T4: np.ndarray, size: tuple[int, int], aspect: float) -> Box:
    """The largest window of an aspect inside the picture, as near to the face's middle as it can be."""
    left, top, right, bottom = np.nanmedian(faces_T4, axis=0) * np.array([*size, *size])
    return _window((left + right) / 2, (top + bottom) / 2, float("inf"), size, aspect)


def _window(x: float, y: float, wide: float, size: tuple[int, int], aspect: float) -> Box:
    """A window around a point, so wide if it fits; moved and, at last, made smaller to lie inside the picture."""
    wide = min(wide, size[0], size[1] * aspect)
    width, height = (max(min(int(np.ceil(side / 2)) * 2, whole // 2 * 2), 2) for side, whole in zip((wide, wide / aspect), size))
    left = int(np.clip(round((x - width / 2) / 2) * 2, 0, (size[0] - width) // 2 * 2))
    top = int(np.clip(round((y - height / 2) / 2) * 2, 0, (size[1] - height) // 2 * 2))
    return left, top, left + width, top + height


def _round(value: float | np.floating, digits: int = 4) -> float:
    return round(float(value), digits)


@final
class _Watcher(Watcher):
    def __init__(self, step: FaceTracks, reader: FaceReader | None) -> None:
        self.reader = reader
        self.view = None if reader is None else reader.view
        self.views = () if self.view is None else (self.view,)
        self.frames = 0
        self.tracks = Tracks(step.max_gap, step.min_track, 1 if reader is None or reader.exact else step.median)

    def see(self, block: Block) -> None:
        self.frames = block.first + block.count
        if self.reader is None:
            return
        if self.view is None:
            for number in range(block.first, self.frames):
                self.tracks.add(number, self.reader.read(number, None))
            return
        every = self.view.every
        for i, picture in enumerate(block.pictures[self.view]):
            number = -(-block.first // every) * every + i * every
            self.tracks.add(number, self.reader.read(number, picture))

    def signals(self) -> dict[str, np.ndarray]:
        return self.tracks.signals(self.frames)

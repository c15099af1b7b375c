"""SyncNet as a step of `flowact-data build`.

Axes: T frames at 25 a second, X boxes (face, mouth), C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data_tools.footage import read_clip
from data_tools.steps import Clip, Plan, Rule, Step
from flowact.errors import UserError
from flowact_syncnet.network import FRAMES, SIDE, STEPS, Network, load_network
from flowact_syncnet.search import REACH, best_match
from flowact_syncnet.sound import mfcc

MIN_WINDOWS = 25  # a second
CROP_SCALE = 0.4  # of the face's size, what is seen around it
GREY = 110  # outside the picture
MEDIAN = 13  # frames of the filter over the box
STEPS_PER_FRAME = 4


@final
class SyncNet(Step):
    """Offset, confidence and distance of lips and sound by a trained network (Chung and Zisserman 2016); shifts the sound to where it belongs.

    Computed as published: five frames of the face's crop against 20 steps of 13 cepstral coefficients, shifts up to 15 frames, the offset at the
    smallest mean distance, confidence the median minus the smallest. The faces are those of `FaceTracks`, read anew from the recording, which takes
    the time of decoding again and of the network (about 90 ms a frame on one CPU core).

    Args:
        weights: path of the authors' syncnet_v2.model, or of a state dict with the same names and shapes.
        max_offset: frames; clips that are further off are rejected. 6 is LatentSync's bound. None takes any.
        min_confidence: less rejects; 3 is LatentSync's bound. None takes any.
        trusted: an offset with less confidence neither rejects nor corrects.
        unknown: 'keep' or 'reject' clips without a face or shorter than 30 frames.
        correct: shift the sound by the offset.
        batch: windows at once.
        device: of the network, such as cuda:0; a build has a process for each core, and each would load it there.
    """

    needs = ("FaceTracks",)
    # scores read the last two, which change how fast they come and not what they are
    thresholds = ("max_offset", "min_confidence", "trusted", "unknown", "correct", "batch", "device")

    def __init__(
        self,
        weights: str,
        max_offset: int | None = 6,
        min_confidence: float | None = 3.0,
        trusted: float = 1.5,
        unknown: Literal["keep", "reject"] = "keep",
        correct: bool = True,
        batch: int = 16,
        device: str = "cpu",
    ) -> None:
        if max_offset is not None and not 0 <= max_offset <= REACH:
            raise UserError(f"SyncNet: max_offset {max_offset} is 0 to {REACH} frames, as far as is searched, or null")
        if unknown not in ("keep", "reject"):
            raise UserError(f"SyncNet: unknown {unknown!r} must be keep or reject")
        if batch < 1 or trusted < 0:
            raise UserError(f"SyncNet: batch {batch} is at least 1, trusted {trusted} at least 0")
        self.weights, self.max_offset, self.min_confidence, self.trusted = Path(weights), max_offset, min_confidence, trusted
        self.unknown, self.correct, self.batch, self.device = unknown, correct, batch, device

    def check(self) -> None:
        self._network  # noqa: B018  # loads it

    @cached_property
    def _network(self) -> Network:
        network = load_network(self.weights)
        try:
            return network.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"SyncNet: device {self.device!r} can not be used ({str(error).splitlines()[0]})") from error

    # --- scores -------------------------------------------------------------------------------------------------------------------------------------

    def score(self, clip: Clip) -> Mapping[str, object]:
        faces_T4 = face_boxes(clip)
        windows = clip.frames - FRAMES  # the last has no whole window of sound
        if faces_T4 is None or windows < MIN_WINDOWS:
            return {**dict.fromkeys(("offset_frames", "frames_off", "confidence", "distance")), "method": "syncnet"}
        match = best_match(self.lips(clip, faces_T4)[:windows], self.sound(clip)[:windows])
        return {
            "offset_frames": match.offset,
            "frames_off": abs(match.offset),
            "confidence": round(match.confidence, 4),
            "distance": round(match.distance, 4),
            "method": "syncnet",
        }

    @torch.inference_mode()
    def lips(self, clip: Clip, faces_T4: np.ndarray) -> Tensor:
        """Embeddings (T - 4, 1024) of the clip's faces, on the CPU."""
        held: list[Tensor] = []
        found: list[Tensor] = []
        for number, picture_HWC in enumerate(_pictures(clip)):
            held.append(crop_face(picture_HWC, faces_T4[number]))
            if len(held) == self.batch + FRAMES - 1 or (number == clip.frames - 1 and len(held) >= FRAMES):
                found.append(self._network.lips(torch.stack(held).to(self.device)).cpu())
                held = held[-(FRAMES - 1) :]
        return torch.cat(found)

    @torch.inference_mode()
    def sound(self, clip: Clip) -> Tensor:
        """Embeddings (T - 5, 1024) of the clip's sound, on the CPU."""
        span, shift = clip.plan.span, clip.plan.shift
        steps_13S = torch.from_numpy(mfcc(clip.recording.sound.pcm(span.first - shift, span.end - shift)).T.astype(np.float32))
        windows_N13S = steps_13S.unfold(1, STEPS, STEPS_PER_FRAME).transpose(0, 1)
        return torch.cat([self._network.sound(part.to(self.device)).cpu() for part in windows_N13S.split(self.batch)])

    # --- what follows -------------------------------------------------------------------------------------------------------------------------------

    def judge(self, scores: Mapping[str, object]) -> Sequence[Rule | None]:
        keep, confidence, off = self.unknown == "keep", _number(scores["confidence"]), _number(scores["frames_off"])
        known = confidence is not None and confidence >= self.trusted
        return (
            None if keep else Rule("confidence", confidence, "at least", self.trusted, known),
            Rule.at_least("confidence", confidence, self.min_confidence, unknown=keep),
            Rule.at_most("frames_off", off if known else None, self.max_offset),
        )

    def explain(self, rule: Rule) -> str:
        if rule.value is None:
            return "whether lips and sound go together can not be told: no face is seen, or the clip is shorter than 30 frames"
        if rule.score == "frames_off":
            return f"lips and sound are {rule.value:g} frames apart, at most {rule.bound} are allowed"
        return f"lips and sound go together with a confidence of {rule.value:.2f}, must be at least {rule.bound:g}"

    def apply(self, clip: Clip, scores: Mapping[str, object]) -> Plan:
        offset, confidence = _number(scores["offset_frames"]), _number(scores["confidence"])
        if not self.correct or not offset or confidence is None or confidence < self.trusted:
            return clip.plan
        return clip.with_plan(shift=clip.plan.shift + round(offset))


def face_boxes(clip: Clip) -> np.ndarray | None:
    """Left, top, right, bottom of the face in pixels, (T, 4), smoothed as SyncNet's tracker does; None where it is never seen."""
    boxes_TX4 = clip.boxes_TX4
    if boxes_TX4 is None:
        return None
    seen_T = np.isfinite(boxes_TX4[:, 0]).all(axis=1)
    if not seen_T.any():
        return None
    size, times_T = [clip.recording.width, clip.recording.height] * 2, np.arange(len(seen_T))
    faces_T4 = np.stack([np.interp(times_T, times_T[seen_T], boxes_TX4[seen_T, 0, side]) for side in range(4)], axis=1) * size
    padded = np.pad(faces_T4, ((MEDIAN // 2, MEDIAN // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=0), axis=-1)


def crop_face(picture_HWC: np.ndarray, face_4: np.ndarray) -> Tensor:
    """The part of a picture that SyncNet looks at, float32 (3, 224, 224), 0 to 255: a square around the face that reaches further down, grey outside.

    Args:
        picture_HWC: uint8, channels as the network wants them.
        face_4: left, top, right, bottom in pixels.
    """
    left, top, right, bottom = face_4
    half = max(right - left, bottom - top) / 2
    x, y, reach = (left + right) / 2, (top + bottom) / 2, half * (1 + CROP_SCALE)
    x0, x1, y0, y1 = (int(np.floor(edge)) for edge in (x - reach, x + reach, y - half, y + half * (1 + 2 * CROP_SCALE)))
    height, width = picture_HWC.shape[:2]
    cut_HWC = np.full((max(y1 - y0, 1), max(x1 - x0, 1), 3), GREY, np.uint8)
    inside = picture_HWC[max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
    cut_HWC[max(-y0, 0) : max(-y0, 0) + inside.shape[0], max(-x0, 0) : max(-x0, 0) + inside.shape[1]] = inside
    cut_CHW = torch.from_numpy(cut_HWC).permute(2, 0, 1)[None].float()
    return functional.interpolate(cut_CHW, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]


def _pictures(clip: Clip) -> Iterator[np.ndarray]:
    """The clip's frames as the recording shows them, uint8 (H, W, 3), blue first."""
    source, span = clip.recording.source, clip.plan.span
    for frame in read_clip(Path(source.address), span.first, span.frames, start_s=source.start_s or 0.0):
        yield frame.to_ndarray(format="bgr24")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None

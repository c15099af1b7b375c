"""Clips that a model has not seen: read from shards, turned into what drives a stream, and set against the stream that came out.

The alignment of generated and true frames is decided here and nowhere else. Legend: flowact/types.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowact import registry
from flowact.autoencoders.base import Autoencoder
from flowact.characters.base import Character, Identity
from flowact.data import ClipRef, Split, decode_sound, decode_video, open_split, parse_captions
from flowact.errors import UserError
from flowact.evaluation.filmed import Film, measure_filmed
from flowact.evaluation.judges import Judge
from flowact.evaluation.measurement import Clip, Measurement, measure
from flowact.types import FIRST_STREAMED_FRAME, FRAMES_PER_SECOND, SAMPLES_PER_FRAME


@dataclass(frozen=True, eq=False)
class HeldOutClip:
    """One clip with its truth. Filmed people have none: their clip itself is what a stream is set against.

    Attributes:
        key: in its shard.
        video: the clip as mp4 bytes.
        reference_HWC: uint8 reference picture.
        truth_TP: float32; without columns where nothing but the film is known.
        states_T: uint8.
        samples: float32 at 16 kHz, 640 per frame.
        identity: the character's appearance; of filmed people {"person": name}.
        captions: (first frame, text) in time order, from frame 0 on.
        boxes_TX4: float32, where face and mouth are in the clip, as shares of the picture, NaN where unknown; None without.
    """

    key: str
    video: bytes
    reference_HWC: np.ndarray
    truth_TP: np.ndarray
    states_T: np.ndarray
    samples: np.ndarray
    identity: Identity
    captions: tuple[tuple[int, str], ...]
    boxes_TX4: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return len(self.states_T)

    def frames_THWC(self) -> np.ndarray:
        """The clip's own frames, uint8, decoded from the video."""
        return decode_video(self.video, self.key, count=self.num_frames)

    def cut(self, num_frames: int) -> HeldOutClip:
        """The first `num_frames` frames of the clip."""
        return replace(
            self,
            truth_TP=self.truth_TP[:num_frames],
            states_T=self.states_T[:num_frames],
            samples=self.samples[: num_frames * SAMPLES_PER_FRAME],
            captions=tuple(caption for caption in self.captions if caption[0] < num_frames),
            boxes_TX4=None if self.boxes_TX4 is None else self.boxes_TX4[:num_frames],
        )

    def reference_CHW(self) -> Tensor:
        """The reference picture as the model takes it, float32 in [-1, 1]."""
        return torch.from_numpy(self.reference_HWC.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def heard(self) -> np.ndarray:
        """The sound that drives a stream: sample 0 belongs to generated frame 0."""
        return self.samples[FIRST_STREAMED_FRAME * SAMPLES_PER_FRAME :]

    def prompts(self) -> list[tuple[int, str]]:
        """(first generated frame, text) of the captions that drive a stream, from frame 0 on."""
        moved: dict[int, str] = {}
        for start, text in self.captions:
            moved[max(0, start - FIRST_STREAMED_FRAME)] = text  # of those that begin before the stream, the last is in force
        return list(moved.items())

    def against(self, frames_THWC: np.ndarray) -> Clip:
        """Generated frames beside the truth that they should show; what goes beyond the other's end is cut."""
        length = min(len(frames_THWC), self.num_frames - FIRST_STREAMED_FRAME)
        true = slice(FIRST_STREAMED_FRAME, FIRST_STREAMED_FRAME + length)
        heard = self.heard()[: length * SAMPLES_PER_FRAME]
        return Clip(self.key, frames_THWC[:length], self.truth_TP[true], self.states_T[true], self.identity, heard)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The clips of an evaluation, all of one length, and the character that knows how to read them; None for filmed people."""

    clips: tuple[HeldOutClip, ...]
    character: Character | None

    @property
    def references(self) -> dict[str, np.ndarray]:
        """Clip key -> reference picture."""
        return {clip.key: clip.reference_HWC for clip in self.clips}

    def true_frames(self, key: str) -> np.ndarray:
        """What the stream of a clip should show, uint8 (T, H, W, 3): rendered from the truth, or the film."""
        clip = next(clip for clip in self.clips if clip.key == key)
        if self.character is None:
            return clip.frames_THWC()[FIRST_STREAMED_FRAME:]
        return self.character.render(clip.identity, clip.truth_TP[FIRST_STREAMED_FRAME:])


def read_held_out(spec: str, seconds: float | None = None, limit: int | None = None) -> HeldOut:
    """Read clips from shards. Those of synthetic characters have exact truth; if one clip has none, all are taken for films.

    Args:
        spec: a folder with shards (DIR/shards/val) or a brace string.
        seconds: use this much of each clip, and no clip that is shorter. None: as much as the shortest clip has.
        limit: at most so many clips, spread evenly over the split.

    Raises:
        UserError: no clip of that length, or damaged shards.
    """
    if seconds is not None and seconds * FRAMES_PER_SECOND < FIRST_STREAMED_FRAME + 1:
        raise UserError(f"--seconds {seconds:g} is less than two frames; give 2 seconds or more for meaningful numbers")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: at least one clip is needed to measure anything")
    split = open_split(spec)
    wanted = 0 if seconds is None else round(seconds * FRAMES_PER_SECOND)
    refs = [clip for clip in split.clips if clip.frames >= wanted]
    if not refs:
        longest = max(clip.frames for clip in split.clips) / FRAMES_PER_SECOND
        raise UserError(f"no clip of {spec} lasts {seconds:g} s, the longest {longest:g} s; give a smaller --seconds, or render longer clips")
    refs = spread(refs, limit)
    num_frames = wanted or min(clip.frames for clip in refs)
    metadata = [split.metadata(ref)[0] for ref in refs]
    exact = all("truth.npy" in split.members(ref) and "appearance" in found for ref, found in zip(refs, metadata, strict=True))
    clips = [_read_clip(split, ref, found, exact).cut(num_frames) for ref, found in zip(refs, metadata, strict=True)]
    character = build_character((split.info.character if split.info else None) or metadata[0].get("character"), spec) if exact else None
    return HeldOut(tuple(clips), character)


def _read_clip(split: Split, ref: ClipRef, metadata: dict[str, Any], exact: bool) -> HeldOutClip:
    where, members = split.where(ref), split.members(ref)
    captions, video = parse_captions(metadata, where), split.read(ref, "mp4")
    if "ref.png" in members:
        reference = np.asarray(Image.open(io.BytesIO(split.read(ref, "ref.png"))).convert("RGB"))
    else:  # shards made elsewhere: the stream begins from the clip's first frame
        reference = decode_video(video, ref.key, count=1)[0]
    return HeldOutClip(
        key=ref.key,
        video=video,
        reference_HWC=reference,
        truth_TP=split.decode(ref, "truth.npy") if exact else np.zeros((ref.frames, 0), np.float32),
        states_T=split.decode(ref, "states.npy") if "states.npy" in members else np.zeros(ref.frames, np.uint8),
        samples=decode_sound(split.read(ref, "wav"), where).astype(np.float32) / 32768,
        identity=metadata["appearance"] if exact else {"person": metadata["identity"]},
        captions=tuple(zip((int(start) for start in captions.starts), captions.texts, strict=True)),
        boxes_TX4=split.decode(ref, "boxes.npy") if "boxes.npy" in members else None,
    )


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` items, evenly from the first to the last, so that a few clips are not all of one person."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def build_character(spec: dict[str, Any] | None, where: str) -> Character:
    """The character that a dataset names.

    Raises:
        UserError: it names none, or one that is not installed.
    """
    if spec is None:
        raise UserError(
            f"{where} names no character in dataset.yaml, so its clips cannot be read back; make synthetic clips with: flowact-data synth"
        )
    return registry.instantiate(spec, "characters")


class Generated(Protocol):
    """What a pipeline returns: frames (T, H, W, 3) uint8 per clip, and how fast it was."""

    @property
    def frames(self) -> Sequence[np.ndarray]: ...

    @property
    def ttff_seconds(self) -> float: ...

    @property
    def frames_per_second(self) -> float: ...

    @property
    def evaluations_per_chunk(self) -> float: ...

    @property
    def num_chunks(self) -> int: ...


class Streamer(Protocol):
    """The part of `flowact.sampling.pipeline.Pipeline` that evaluation needs."""

    @property
    def autoencoder(self) -> Autoencoder: ...

    def generate(
        self,
        references: Sequence[Tensor],
        samples: Sequence[np.ndarray],
        captions: Sequence[Sequence[tuple[int, str]]],
        seed: int = 0,
        progress: Callable[..., None] | None = None,
    ) -> Generated: ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Numbers, and the clips they were measured on."""

    measurement: Measurement
    clips: tuple[Clip, ...]


def evaluate_stream(
    streamer: Streamer, held_out: HeldOut, seed: int = 0, progress: Callable[..., None] | None = None, judge: Judge | None = None
) -> Evaluation:
    """Stream all clips as one batch and measure them. `details.generation` says how the stream ran; its speed is that of the whole batch.

    Args:
        streamer: the model.
        held_out: the clips.
        seed: of the noise.
        progress: see `Streamer.generate`.
        judge: of filmed people's faces and mouths; None measures what needs none.
    """
    clips = held_out.clips
    generated = streamer.generate(
        [clip.reference_CHW() for clip in clips], [clip.heard() for clip in clips], [clip.prompts() for clip in clips], seed=seed, progress=progress
    )
    shown = tuple(clip.against(frames) for clip, frames in zip(clips, generated.frames, strict=True))
    measurement = _measure(shown, held_out, judge)
    generation = {
        "seed": seed,
        "batch_size": len(clips),
        "seconds": len(shown[0].states_T) / FRAMES_PER_SECOND,
        "ttff_seconds": generated.ttff_seconds,
        "frames_per_second": generated.frames_per_second,
        "evaluations_per_chunk": generated.evaluations_per_chunk,
        "num_chunks": generated.num_chunks,
    }
    return Evaluation(replace(measurement, details={**measurement.details, "generation": generation}), shown)


def _measure(shown: Sequence[Clip], held_out: HeldOut, judge: Judge | None) -> Measurement:
    if held_out.character is not None:
        return measure(shown, held_out.character)
    films = [
        Film(clip.frames_THWC()[FIRST_STREAMED_FRAME:], clip.reference_HWC, None if clip.boxes_TX4 is None else clip.boxes_TX4[FIRST_STREAMED_FRAME:])
        for clip in held_out.clips
    ]
    return measure_filmed(shown, films, judge)


def evaluate_truth(held_out: HeldOut, autoencoder: Autoencoder | None = None, judge: Judge | None = None) -> Evaluation:
    """The ceiling: the clips themselves, measured as if they had been generated.

    With an autoencoder they go through it first, since no stream can look better than its decoder; then `details.raw` has the numbers of the clips as
    they are, and `details.through` says "autoencoder" instead of "pixels".
    """
    raw = tuple(clip.against(clip.frames_THWC()[FIRST_STREAMED_FRAME:]) for clip in held_out.clips)
    measured = _measure(raw, held_out, judge)
    if autoencoder is None:
        return Evaluation(replace(measured, details={**measured.details, "through": "pixels"}), raw)
    decoded = tuple(clip.against(reconstruct(clip.frames_THWC(), autoencoder)[FIRST_STREAMED_FRAME:]) for clip in held_out.clips)
    ceiling = _measure(decoded, held_out, judge)
    raw_numbers = measured.to_json()
    kept = {name: value for name, value in raw_numbers.items() if name != "details"}
    kept["residual"] = raw_numbers["details"].get("residual")
    return Evaluation(replace(ceiling, details={**ceiling.details, "through": "autoencoder", "raw": kept}), decoded)


@torch.no_grad()
def reconstruct(frames_THWC: np.ndarray, autoencoder: Autoencoder) -> np.ndarray:
    """Frames through an autoencoder and back, uint8; a clip whose length breaks the rule T = stride * n + 1 loses its last frames."""
    length = (len(frames_THWC) - 1) // autoencoder.temporal_stride * autoencoder.temporal_stride + 1
    parameter = next(autoencoder.parameters(), torch.zeros(()))
    frames_BCTHW = torch.from_numpy(np.ascontiguousarray(frames_THWC[:length])).permute(3, 0, 1, 2)[None].to(parameter.device, parameter.dtype)
    decoded_BCTHW = autoencoder.decode(autoencoder.encode(frames_BCTHW / 127.5 - 1))
    return ((decoded_BCTHW[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()

"""Streamed previews of a stage on its validation clips. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from flowact.autoencoders import Autoencoder, load_autoencoder
from flowact.conditioning import load_audio, load_picture, prepare_picture
from flowact.data import decode_sound, decode_video, open_split
from flowact.data.schema import from_entries
from flowact.errors import UserError
from flowact.planning import SpeechActivityPlanner, load_prompts
from flowact.registry import instantiate
from flowact.sampling.pipeline import Captions, Pipeline, asked_guidance, character_captions, to_pixels, trained_staircase, trained_visibility
from flowact.schedulers.named import solver_of
from flowact.types import FIRST_STREAMED_FRAME, FRAMES_PER_SECOND, SAMPLES_PER_FRAME, MemoryView

if TYPE_CHECKING:
    from flowact.stages.base import DenoiserStage

#: share of a clip that counts as its beginning and as its end for drift, as in the evaluation
_DRIFT_SHARE = 0.15


@dataclass(frozen=True)
class PreviewInput:
    """What a preview is made from, in place of a validation clip.

    Attributes:
        reference: picture of the character.
        audio: its speech, any format that FFmpeg reads; silence follows where it is shorter than the preview.
        prompts: timed prompts, YAML or SRT; None has a planner write them from the pauses of the speech.
    """

    reference: str
    audio: str
    prompts: str | None = None

    def check(self) -> None:
        """Whether the files are there.

        Raises:
            UserError: one is not.
        """
        for name, path in (("reference", self.reference), ("audio", self.audio), ("prompts", self.prompts)):
            if path is not None and not Path(path).is_file():
                raise UserError(f"{name} of a preview is {path}; there is no such file")


@dataclass(frozen=True)
class MemoryHistory:
    """What memory held of one clip each time a chunk had left.

    Attributes:
        views: of the whole batch, oldest first.
        sample: the clip's place in the batch.
        autoencoder: makes pictures of latents.
        chunk_seconds: playing time of a chunk.
    """

    views: tuple[MemoryView, ...]
    sample: int
    autoencoder: Autoencoder
    chunk_seconds: float

    def pictures(self, count: int) -> tuple[dict[str, list[np.ndarray]], list[str]]:
        """Decoded memory at `count` moments, from after the first chunk to the last: what a bank holds as one latent frame is one picture.

        Each latent is decoded by itself, as a clip's first one is, so a mosaic of small latents is seen as a mosaic.

        Returns:
            moment such as "1.4 s" -> uint8 (H, W, 3), one for each latent frame of memory; and their names, such as "long -7".
        """
        chosen = sorted({round(index) for index in np.linspace(0, len(self.views) - 1, min(count, len(self.views)))})
        names = [f"{segment.kind} {segment.position + i}" for segment in self.views[0].segments for i in range(segment.num_frames)]
        rows = {}
        for index in chosen:
            latents_FCHW = self.views[index].latents_BFCHW[self.sample]
            decoded = [to_pixels(self.autoencoder.decode_stream(latent_CHW[None, None])[0])[0, -1] for latent_CHW in latents_FCHW]
            rows[f"{(index + 1) * self.chunk_seconds:.1f} s"] = decoded
        return rows, names


@dataclass(frozen=True)
class PreviewClip:
    """A clip that a stage has streamed.

    Attributes:
        frames_THWC: uint8 RGB at 25 fps.
        samples: mono float32 in [-1, 1] at 16 kHz, of the same duration.
        caption: what it shows, for the log.
        true_THWC: the data's own film of the same seconds, uint8, or the reference picture alone where there is none (T = 1).
        memory: what the memory bank held while it was streamed.
    """

    frames_THWC: np.ndarray
    samples: np.ndarray
    caption: str
    true_THWC: np.ndarray | None = None
    memory: MemoryHistory | None = None

    def statistics(self) -> dict[str, float]:
        """Figures of the pixels, which show over a run what the eye sees in the film.

        Returns:
            `drift`, how far mean and spread of each colour in the last 15 % are from those in the first 15 %, in 0..1 RGB units. Where there is
            something to compare with: `saturation`, mean difference of a pixel's largest and least colour over the truth's; and, if that is a film,
            `motion`, mean absolute difference of consecutive frames over the truth's.
        """
        colours_TD = np.concatenate([self.frames_THWC.mean(axis=(1, 2)), self.frames_THWC.std(axis=(1, 2))], axis=1) / 255
        length = max(1, round(_DRIFT_SHARE * len(colours_TD)))
        found = {"drift": float(np.abs(colours_TD[:length].mean(0) - colours_TD[-length:].mean(0)).mean())}
        if self.true_THWC is not None:
            found["saturation"] = _ratio(_colourfulness(self.frames_THWC), _colourfulness(self.true_THWC))
            if len(self.true_THWC) > 1:
                found["motion"] = _ratio(_motion(self.frames_THWC), _motion(self.true_THWC))
        return found


def preview_pipeline(stage: DenoiserStage) -> Pipeline:
    """The pipeline that `generate` would build from the stage's checkpoint, around the live network."""
    arguments = (stage.recipe.get("model") or {}).get("init_args") or {}
    conditions = stage.trainer.datamodule.conditions  # type: ignore[attr-defined]
    rest_caption, state_captions = character_captions(conditions["character"])
    lineage = stage.lineage()
    return Pipeline(
        stage.denoiser,
        load_autoencoder(conditions["autoencoder_path"]).to(stage.device),
        instantiate(conditions["encoders"]["text"], "conditioning").to(stage.device),
        instantiate(conditions["encoders"]["audio"], "conditioning").to(stage.device),
        stage.memory,
        trained_staircase(lineage, arguments),
        stage.chunk_frames,
        tuple(conditions["latent_shape"][1:]),
        rest_caption=rest_caption,
        state_captions=state_captions,
        visibility=trained_visibility(arguments),
        scales=asked_guidance(1.0, lineage)[1],
        solver=solver_of(lineage.get("solver", "euler")),
    )


def stream_preview(stage: DenoiserStage, seconds: float, num_clips: int, inputs: Sequence[PreviewInput] = ()) -> list[PreviewClip]:
    """The inputs, or else the first validation clips with their own sound, captions and reference picture, streamed side by side."""
    pipeline = preview_pipeline(stage)
    num_frames = int(seconds * FRAMES_PER_SECOND)
    data: Any = stage.trainer.datamodule  # type: ignore[attr-defined]
    if inputs:
        wanted = [_given(pipeline, given, num_frames) for given in inputs]
    elif data.val is not None:
        split = open_split(data.val)
        wanted = [_held_out(pipeline, split, clip, num_frames) for clip in split.clips[:num_clips]]
    else:
        return []
    references, sounds, captions, truths = zip(*wanted, strict=True)
    streamed, made, views = pipeline.clips(references, sounds, captions), [], []
    for frames_BTHWC in streamed:
        made.append(frames_BTHWC)
        views.append(streamed.stream.remembered)
    films = np.concatenate(made, axis=1)
    texts = ["; ".join(f"{first / FRAMES_PER_SECOND:.1f} s {text}" for first, text in timed if first < num_frames) for timed in captions]
    return [
        PreviewClip(
            frames[:num_frames],
            _fit(sound, len(frames[:num_frames])),
            text,
            truth,
            MemoryHistory(tuple(views), sample, pipeline.autoencoder, streamed.stream.seconds_per_chunk),
        )
        for sample, (frames, sound, text, truth) in enumerate(zip(films, sounds, texts, truths, strict=True))
    ]


def _held_out(pipeline: Pipeline, split: Any, clip: Any, num_frames: int) -> tuple[Tensor, np.ndarray, Captions, np.ndarray]:
    """Reference, sound, captions and film of a clip of the data."""
    heard = slice(FIRST_STREAMED_FRAME * SAMPLES_PER_FRAME, (FIRST_STREAMED_FRAME + num_frames) * SAMPLES_PER_FRAME)
    reference = prepare_picture(Image.open(BytesIO(split.decode(clip, "ref.png"))), pipeline.picture_size)[0]
    sound = decode_sound(split.decode(clip, "wav"), clip.key).astype(np.float32) / 32768
    timed = from_entries("captions", split.decode(clip, "json"))
    captions = [(max(first - FIRST_STREAMED_FRAME, 0), text) for first, last, _, text in timed if last > FIRST_STREAMED_FRAME]
    count = min(num_frames, clip.frames - FIRST_STREAMED_FRAME)
    return reference, sound[heard], captions, decode_video(split.decode(clip, "mp4"), clip.key, first=FIRST_STREAMED_FRAME, count=count)


def _given(pipeline: Pipeline, given: PreviewInput, num_frames: int) -> tuple[Tensor, np.ndarray, Captions, np.ndarray]:
    """Reference, sound, captions, and the reference as a film of one frame."""
    reference = load_picture(given.reference, pipeline.picture_size)
    sound = _fit(load_audio(given.audio), num_frames)
    planner = SpeechActivityPlanner(captions=pipeline.state_captions or None)
    prompts = load_prompts(given.prompts) if given.prompts else planner.plan(sound)
    captions = [(round(prompt.start_seconds * FRAMES_PER_SECOND), prompt.text) for prompt in prompts]
    return reference[0], sound, captions, to_pixels(reference[:, :, None])[0]


def _fit(samples: np.ndarray, num_frames: int) -> np.ndarray:
    wanted = num_frames * SAMPLES_PER_FRAME
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))


def _colourfulness(frames_THWC: np.ndarray) -> float:
    return float((frames_THWC.max(axis=-1) - frames_THWC.min(axis=-1)).mean()) / 255


def _motion(frames_THWC: np.ndarray) -> float:
    return float(np.abs(np.diff(frames_THWC.astype(np.int16), axis=0)).mean()) / 255


def _ratio(made: float, true: float) -> float:
    return made / max(true, 1e-6)

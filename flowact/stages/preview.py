"""Streamed previews of a stage on its validation clips. Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from flowact.autoencoders import load_autoencoder
from flowact.conditioning import prepare_picture
from flowact.data import decode_sound, open_split
from flowact.registry import instantiate
from flowact.sampling.pipeline import STREAM_CHUNKS, Pipeline, asked_guidance, character_captions, trained_shift, trained_visibility
from flowact.schedulers.staircase import Staircase
from flowact.types import FIRST_STREAMED_FRAME, FRAMES_PER_SECOND, SAMPLES_PER_FRAME

if TYPE_CHECKING:
    from flowact.stages.base import DenoiserStage


@dataclass(frozen=True)
class PreviewClip:
    """A clip that a stage has streamed.

    Attributes:
        frames_THWC: uint8 RGB at 25 fps.
        samples: mono float32 in [-1, 1] at 16 kHz, of the same duration.
        caption: what it shows, for the log.
    """

    frames_THWC: np.ndarray
    samples: np.ndarray
    caption: str


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
        Staircase(STREAM_CHUNKS, shift=trained_shift(arguments)),
        stage.chunk_frames,
        tuple(conditions["latent_shape"][1:]),
        rest_caption=rest_caption,
        state_captions=state_captions,
        visibility=trained_visibility(arguments),
        scales=asked_guidance(1.0, lineage)[1],
        solver=lineage.get("solver", "euler"),
    )


def stream_preview(stage: DenoiserStage, seconds: float, num_clips: int) -> list[PreviewClip]:
    """The first validation clips, streamed with their own sound, captions and reference picture."""
    data: Any = stage.trainer.datamodule  # type: ignore[attr-defined]
    if data.val is None:
        return []
    split, pipeline = open_split(data.val), preview_pipeline(stage)
    num_frames = int(seconds * FRAMES_PER_SECOND)
    heard = slice(FIRST_STREAMED_FRAME * SAMPLES_PER_FRAME, (FIRST_STREAMED_FRAME + num_frames) * SAMPLES_PER_FRAME)
    references, sounds, captions, texts = [], [], [], []
    for clip in split.clips[:num_clips]:
        metadata = split.decode(clip, "json")
        references.append(prepare_picture(Image.open(BytesIO(split.decode(clip, "ref.png"))), pipeline.picture_size)[0])
        sound = decode_sound(split.decode(clip, "wav"), clip.key).astype(np.float32) / 32768
        sounds.append(sound[heard])
        timed = [(max(first - FIRST_STREAMED_FRAME, 0), text) for first, last, _, text in metadata["captions"] if last > FIRST_STREAMED_FRAME]
        captions.append(timed)
        texts.append("; ".join(f"{first / FRAMES_PER_SECOND:.1f} s {text}" for first, text in timed if first < num_frames))
    result = pipeline.generate(references, sounds, captions)
    return [
        PreviewClip(frames[:num_frames], _fit(sound, len(frames[:num_frames])), text)
        for frames, sound, text in zip(result.frames, sounds, texts, strict=True)
    ]


def _fit(samples: np.ndarray, num_frames: int) -> np.ndarray:
    wanted = num_frames * SAMPLES_PER_FRAME
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))

"""Laws of conditioning encoders. Legend: flowact/types.py."""

from __future__ import annotations

import torch

from flowact.conditioning.base import AudioEncoder, ConditioningEncoder, TextEncoder
from flowact.testing.laws import broken, ensure, refuses, same, seeded
from flowact.types import (
    FRAMES_PER_SECOND,
    SAMPLES_PER_FRAME,
)


def check_conditioning_encoder(encoder: ConditioningEncoder, *, seconds: float = 2.0, tolerance: float = 1e-4) -> None:
    """The laws of `TextEncoder` and `AudioEncoder`.

    Args:
        encoder: an encoder of either family.
        seconds: of random sound that an audio encoder is tried on.
        tolerance: of comparisons, relative and absolute.
    """
    if isinstance(encoder, TextEncoder):
        _check_text_encoder(encoder, tolerance)
    elif isinstance(encoder, AudioEncoder):
        _check_audio_encoder(encoder, round(seconds * FRAMES_PER_SECOND), tolerance)
    else:
        broken(encoder, "a conditioning encoder is a TextEncoder or an AudioEncoder")


def _check_text_encoder(encoder: TextEncoder, tolerance: float) -> None:
    captions = ["a person speaks", "the person listens and nods", "", "word " * 400]
    text = encoder.encode(captions)
    want = (len(captions), encoder.num_tokens, encoder.width)
    ensure(tuple(text.shape) == want, encoder, "features are [N, num_tokens, width]", f"{tuple(text.shape)}, expected {want}")
    ensure(text.dtype == torch.float32 and not text.requires_grad, encoder, "features are float32 without gradient", str(text.dtype))
    ensure(torch.isfinite(text).all(), encoder, "features are finite")
    ensure(not text[2].any(), encoder, "an empty caption gives zeros")
    ensure(text[0].any() and not same(text[0], text[1], tolerance), encoder, "captions with other words have other features")
    for i, caption in enumerate(captions):
        ensure(
            same(encoder.encode([caption])[0], text[i], tolerance),
            encoder,
            "a caption's features do not depend on its neighbours",
            repr(caption[:40]),
        )


def _check_audio_encoder(encoder: AudioEncoder, num_frames: int, tolerance: float) -> None:
    samples = 0.1 * torch.randn(num_frames * SAMPLES_PER_FRAME, generator=seeded(0))
    audio = encoder.encode(samples)
    want = (num_frames, encoder.width)
    ensure(tuple(audio.shape) == want, encoder, "features are [samples // 640, width]", f"{tuple(audio.shape)}, expected {want}")
    ensure(audio.dtype == torch.float32 and not audio.requires_grad, encoder, "features are float32 without gradient", str(audio.dtype))
    for name, sound in (("noise", samples), ("silence", torch.zeros_like(samples)), ("full scale", torch.ones_like(samples))):
        ensure(torch.isfinite(encoder.encode(sound)).all(), encoder, "features are finite", name)
    ensure(same(encoder.encode(samples), audio), encoder, "the same sound has the same features")
    ragged = encoder.encode(samples[: 3 * SAMPLES_PER_FRAME + 100])
    ensure(ragged.shape[0] == 3, encoder, "features are [samples // 640, width]", f"{ragged.shape[0]} for 3 frames and 100 samples")
    refuses(lambda: encoder.encode(samples[None]), encoder, "sound that is not one-dimensional is refused")
    refuses(lambda: encoder.encode(samples.clone().fill_(float("nan"))), encoder, "sound that is not finite is refused")

    middle = num_frames // 2
    other = samples.clone()
    other[middle * SAMPLES_PER_FRAME : (middle + 1) * SAMPLES_PER_FRAME] *= -0.5
    changed = encoder.encode(other)
    early, late = max(middle - encoder.lookahead_frames, 0), middle + 1 + encoder.context_frames
    ensure(not same(changed, audio), encoder, "features depend on the sound")
    untouched = same(changed[:early], audio[:early], tolerance)
    ensure(untouched, encoder, "a feature sees no more of the future than lookahead_frames", f"{encoder.lookahead_frames} frames are stated")
    untouched = same(changed[late:], audio[late:], tolerance)
    ensure(untouched, encoder, "a feature sees no more of the past than context_frames", f"{encoder.context_frames} frames are stated")

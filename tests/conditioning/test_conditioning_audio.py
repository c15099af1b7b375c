from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowact.conditioning import LogMel
from flowact.conditioning.audio import mel_filterbank

FRAME = 640


def voice(seconds: float, seed: int = 0) -> Tensor:
    """A buzz of falling spectrum through two resonances, in syllables four times a second, at -21.5 dBFS while it sounds."""
    generator = torch.Generator().manual_seed(seed)
    num_samples = int(seconds * 16_000)
    time = torch.arange(num_samples) / 16_000
    pitch = 130 + 30 * torch.sin(2 * math.pi * 0.7 * time)
    phase = torch.cumsum(pitch / 16_000, dim=0)
    buzz = sum(torch.sin(2 * math.pi * k * phase) / k**1.5 for k in range(1, 40)) + 0.02 * torch.randn(num_samples, generator=generator)
    envelope = torch.sin(2 * math.pi * 2 * time).square()
    samples = buzz * envelope
    return samples * 10 ** (-21.5 / 20) / samples.square().mean().sqrt()


@pytest.fixture(params=[{}, {"subframes": 1, "context_frames": 0}, {"num_mels": 13, "subframes": 4, "context_frames": 7, "low_hz": 0.0}])
def encoder(request) -> LogMel:
    return LogMel(**request.param)


def test_one_feature_per_video_frame(encoder):
    for num_samples in (0, 639, 640, 641, 16_000):
        assert encoder.encode(torch.zeros(num_samples)).shape == (num_samples // FRAME, encoder.width)


def test_prefix_of_the_sound_gives_prefix_of_the_features(encoder):
    samples = voice(1.0)
    whole = encoder.encode(samples)
    for num_frames in (1, 7, 24):
        part = encoder.encode(samples[: num_frames * FRAME + 100])
        torch.testing.assert_close(part, whole[:num_frames], atol=1e-4, rtol=0)


def test_stream_in_chunks_equals_the_whole(encoder):
    samples = voice(1.2)
    whole = encoder.encode(samples)
    past = encoder.context_frames
    chunks = []
    for first in range(0, 30, 3):
        start = max(first - past, 0)
        chunks.append(encoder.encode(samples[start * FRAME : (first + 3) * FRAME])[first - start :])
    torch.testing.assert_close(torch.cat(chunks), whole, atol=1e-4, rtol=0)


def test_a_feature_hears_its_frame_and_context_and_nothing_else(encoder):
    base = voice(1.2)
    whole = encoder.encode(base)
    changed = base.clone()
    changed[10 * FRAME : 11 * FRAME] += 0.1 * torch.randn(FRAME, generator=torch.Generator().manual_seed(1))
    moved = (encoder.encode(changed) - whole).abs().amax(dim=1) > 1e-3
    assert moved.nonzero().flatten().tolist() == list(range(10, 11 + encoder.context_frames))


def test_silence_is_one_constant_vector_also_before_the_start(encoder):
    silent = encoder.encode(torch.zeros(20 * FRAME))
    torch.testing.assert_close(silent, silent[:1].expand_as(silent), atol=1e-5, rtol=0)
    assert silent.isfinite().all()
    assert silent.abs().max() <= 2.6
    samples = voice(0.4)
    late = encoder.encode(torch.cat([torch.zeros(9 * FRAME), samples]))
    torch.testing.assert_close(late[9:], encoder.encode(samples), atol=1e-4, rtol=0)


def test_speech_has_about_zero_mean_and_unit_deviation():
    encoder = LogMel()
    features = encoder.encode(voice(4.0))[:, :40]  # the band levels of the frame itself
    assert abs(float(features.mean())) < 0.7
    assert 0.5 < float(features.std()) < 1.6


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 1000.0])
def test_features_are_finite_and_bounded_at_any_level(scale):
    features = LogMel().encode(voice(0.4).clamp(-1, 1) * scale)
    assert features.isfinite().all()
    assert features.abs().max() < 10


def test_loudness_of_a_frame_is_its_level_in_decibels():
    """A mouth follows clip((dB + 45) / 33, 0, 1); one feature of the frame is exactly that, centred."""
    encoder = LogMel()
    place = encoder.subframes * (encoder.num_mels + 1)
    for decibels, expected in ((-60.0, 0.0), (-45.0, 0.0), (-28.5, 0.5), (-20.0, 25 / 33), (-12.0, 1.0), (-3.0, 1.0)):
        tone = 10 ** (decibels / 20) * math.sqrt(2) * torch.sin(2 * math.pi * 400 * torch.arange(FRAME) / 16_000)
        feature = encoder.encode(tone)[0, place]
        assert float(feature + 1) / 2 == pytest.approx(expected, abs=1e-3)


def test_a_mouth_with_attack_and_release_is_linearly_readable():
    train, heldout = voice(12.0), voice(6.0, seed=3) * 0.8
    encoder = LogMel()

    def mouth(samples: Tensor) -> Tensor:
        target = ((10 * torch.log10(samples.view(-1, FRAME).square().mean(dim=1) + 1e-10) + 45) / 33).clamp(0, 1).tolist()
        opening, curve = 0.0, []
        for value in target:
            opening += (0.7 if value > opening else 0.45) * (value - opening)
            curve.append(opening)
        return torch.tensor(curve, dtype=torch.float64)

    def design(samples: Tensor) -> Tensor:
        features = encoder.encode(samples).double()
        return torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)

    x = design(train)
    weights = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ mouth(train))
    predicted = design(heldout) @ weights
    assert torch.corrcoef(torch.stack([predicted, mouth(heldout)]))[0, 1] > 0.97


def test_a_tone_lights_up_its_band():
    encoder = LogMel(context_frames=0, subframes=1)
    _, centres_hz = mel_filterbank(20, 513, 60.0, 7600.0)
    silent = encoder.encode(torch.zeros(FRAME))[0, :20]
    for band in (2, 9, 17):
        tone = 0.1 * torch.sin(2 * math.pi * float(centres_hz[band]) * torch.arange(FRAME) / 16_000)
        level = (encoder.encode(tone)[0, :20] - silent) * 14.3 + encoder._mean_db_M
        assert int(level.argmax()) == band


def test_white_noise_has_the_same_level_in_every_band():
    filters, _ = mel_filterbank(24, 257, 60.0, 7600.0)
    torch.testing.assert_close(filters.sum(dim=1), torch.ones(24))
    assert (filters >= 0).all()


@pytest.mark.parametrize("samples", [torch.zeros(2, 640), torch.full((640,), float("nan"))])
def test_bad_samples(samples):
    with pytest.raises(ValueError, match="audio"):
        LogMel().encode(samples)


@pytest.mark.parametrize(
    "arguments",
    [{"num_mels": 0}, {"context_frames": -1}, {"subframes": 3}, {"high_hz": 9000.0}, {"low_hz": 500.0, "high_hz": 400.0}, {"num_mels": 200}],
)
def test_bad_options(arguments):
    with pytest.raises(ValueError, match=r"LogMel needs|finer than the spectrum"):
        LogMel(**arguments)

from __future__ import annotations

import logging
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from flowact.conditioning import load_audio
from flowact.errors import UserError


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """samples (S,) or (S, channels) in [-1, 1]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return path


def tone(rate: int, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


def test_a_16_khz_mono_file_is_read_exactly(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 5000)
    loaded = load_audio(write_wav(tmp_path / "a.wav", samples, 16_000))
    assert loaded.dtype == np.float32
    assert loaded.shape == (5000,)
    np.testing.assert_allclose(loaded, samples, atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_length_level_and_phase(tmp_path, rate, caplog):
    with caplog.at_level(logging.INFO):
        loaded = load_audio(write_wav(tmp_path / "a.wav", tone(rate), rate))
    assert f"{rate} Hz with 1 channels, resampled" in caplog.text
    assert abs(len(loaded) - 16_000) <= 16
    inner = slice(500, 15_000)
    np.testing.assert_allclose(loaded[inner], tone(16_000)[inner], atol=0.02)


def test_channels_are_averaged_and_never_exceed_full_scale(tmp_path):
    both = np.stack([tone(16_000), tone(16_000)], axis=1) * 1.9
    one = np.stack([tone(16_000), np.zeros(16_000)], axis=1)
    np.testing.assert_allclose(load_audio(write_wav(tmp_path / "both.wav", both, 16_000)), both[:, 0], atol=1e-3)
    np.testing.assert_allclose(load_audio(write_wav(tmp_path / "one.wav", one, 16_000)), one[:, 0] / 2, atol=1e-3)


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no sound file"):
        load_audio(tmp_path / "absent.wav")
    (tmp_path / "noise.wav").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match="cannot decode"):
        load_audio(tmp_path / "noise.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UserError, match="cannot decode"):
        load_audio(tmp_path / "empty.wav")
    with pytest.raises(UserError, match="is empty"):
        load_audio(write_wav(tmp_path / "zero.wav", np.zeros(0), 16_000))
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="no sound track"):
        load_audio(tmp_path / "silent.mp4")


def test_nan_samples(tmp_path):
    with av.open(str(tmp_path / "nan.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 640), np.nan, np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="NaN"):
        load_audio(tmp_path / "nan.wav")


def test_a_playlist_does_not_open_other_files(tmp_path):
    write_wav(tmp_path / "secret.wav", tone(16_000), 16_000)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError):
        load_audio(tmp_path / "list.m3u8")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(UserError):
        load_audio(tmp_path / "list.ffconcat")

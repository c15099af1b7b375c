"""Sound files to waveforms. The one place of the conditioning room that decodes media."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from flowact.errors import UserError
from flowact.types import SAMPLE_RATE

log = logging.getLogger(__name__)

PLAYLISTS = frozenset({"hls", "concat", "dash", "ffmetadata", "image2", "sdp", "rtsp"})  # formats that open other files or the network


def load_audio(path: str | Path) -> np.ndarray:
    """The first sound track of a file as mono float32 in [-1, 1] at 16 kHz, shape (samples,).

    Any container and codec that FFmpeg reads, videos included; channels are averaged. Only the file itself is opened, never one that it names.
    A damaged packet is left out with a warning, as players do.

    Args:
        path: a local file.

    Raises:
        UserError: no such file, no sound track, cannot be decoded, holds no samples, or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no sound file at {path}")
    try:
        with av.open(str(path.absolute()), options={"protocol_whitelist": "file"}) as container:
            if PLAYLISTS & set(container.format.name.split(",")):
                raise UserError(f"{path} is a playlist ({container.format.name}); give the sound file itself")
            if not container.streams.audio:
                raise UserError(f"{path} has no sound track; give a file with sound")
            stream = container.streams.audio[0]
            rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
            blocks = list(_decode(container, path))
    except (FFmpegError, OSError) as error:
        raise UserError(f"cannot decode {path} ({error}); convert it to WAV, FLAC or MP4 first") from error
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not samples.size:
        raise UserError(f"the sound track of {path} is empty; give a file with sound")
    if not np.isfinite(samples).all():
        raise UserError(f"the sound track of {path} holds NaN or infinite samples; export it again")
    if (rate, channels) != (SAMPLE_RATE, 1):
        log.info("%s: %d Hz with %d channels, resampled to %d Hz mono", path, rate, channels, SAMPLE_RATE)
    peak = float(np.abs(samples).max())
    if peak > 1.1:
        log.warning("%s: samples reach %.1f times full scale and are clipped", path, peak)
    return np.clip(samples, -1.0, 1.0)


def _decode(container: av.container.InputContainer, path: Path) -> Iterator[np.ndarray]:
    """Blocks of mono float32 samples at 16 kHz. Channels are averaged here, as FFmpeg's own downmix of floats can exceed full scale."""
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
    num_damaged, num_good = 0, 0
    first_error: FFmpegError | None = None
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except FFmpegError as error:
            num_damaged, first_error = num_damaged + 1, first_error or error
            continue
        for frame in frames:
            num_good += 1
            for resampled in resampler.resample(frame):
                yield resampled.to_ndarray().mean(axis=0, dtype=np.float32)
    if num_good:
        for resampled in resampler.resample(None):
            yield resampled.to_ndarray().mean(axis=0, dtype=np.float32)
    elif first_error is not None:
        raise first_error
    if num_damaged:
        log.warning("%s: %d damaged packets of sound left out", path, num_damaged)

"""Small clips on disk, as synth writes them, and videos as people have them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from flowact.data.media import encode_sound, encode_video
from flowact.data.schema import to_entries


def tone(frames: int, start: float = 0.0) -> np.ndarray:
    """A 300 Hz tone from `start` seconds on, int16 at 16 kHz."""
    seconds = np.arange(frames * 640) / 16_000
    return np.where(seconds >= start, 8000 * np.sin(2 * np.pi * 300 * seconds), 0).astype(np.int16)


def write_clip(folder: Path, key: str, *, frames: int = 21, identity: str | None = None, split: str | None = None, truth: bool = True) -> Path:
    """KEY.mp4 and its companions; frame t is grey of value 8 t."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.zeros((frames, 16, 16, 3), np.uint8) + (8 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    half = frames // 2
    metadata = {
        "key": key,
        "frames": frames,
        "identity": identity or key,
        "fps": 25,
        "width": 16,
        "height": 16,
        "source": {"license": "CC0-1.0", "consent": "synthetic"},
        "captions": to_entries("captions", [(0, half, "speaking", "talks"), (half, frames, "idle", "rests")]),
        "character": None,
        **({"split": split} if split else {}),
    }
    (folder / f"{key}.mp4").write_bytes(encode_video(pictures, crf=1, pixel_format="yuv444p"))
    (folder / f"{key}.wav").write_bytes(encode_sound(tone(frames)))
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(buffer, format="png")
    (folder / f"{key}.ref.png").write_bytes(buffer.getvalue())
    if truth:
        np.save(folder / f"{key}.truth.npy", np.zeros((frames, 2), np.float32))
        np.save(folder / f"{key}.boxes.npy", np.tile(np.array([0.2, 0.1, 0.8, 0.9], np.float32), (frames, 2, 1)))
    (folder / f"{key}.json").write_text(json.dumps(metadata))
    return folder / f"{key}.mp4"


def write_folder(folder: Path, clips: int = 6) -> Path:
    for number in range(clips):
        write_clip(folder, f"clip-{number}")
    return folder


def write_video(
    path: Path, *, fps: int = 30, seconds: float = 3.0, change: float = 1.0, sound: bool = True, size: tuple[int, int] = (48, 32)
) -> Path:
    """A video that turns from black to white, and from silence to a tone, at `change` seconds; stereo at 44.1 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="stereo") if sound else None
        for number in range(round(seconds * fps)):
            value = 255 if number / fps >= change else 0
            picture = np.full((height, width, 3), value, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            times = np.arange(round(seconds * 44_100)) / 44_100
            wave = np.where(times >= change, 0.3 * np.sin(2 * np.pi * 300 * times), 0).astype(np.float32)
            for first in range(0, len(wave), 1024):
                frame = av.AudioFrame.from_ndarray(np.stack([wave[first : first + 1024]] * 2), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44_100, first
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path

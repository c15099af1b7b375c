"""A folder of PNG pictures and a WAV file: lossless, for measuring and for editing."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flowact.errors import UserError
from flowact.writers.base import SYNTHETIC, VideoWriter


@final
class FrameFolderWriter(VideoWriter):
    """`000000.png`, `000001.png`, ... and `audio.wav` (16-bit), each picture tagged as synthetic.

    Args:
        path: the folder; created; it must not hold frames already.
        width: of a frame, in pixels.
        height: of a frame, in pixels.
        fps: frames per second.
        sample_rate: of the sound; None writes no sound.

    Raises:
        UserError: the folder holds other things, or cannot be created.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: int = 25, sample_rate: int | None = 16_000) -> None:
        super().__init__(width, height, fps, sample_rate)
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write frames to {self.path} ({error})") from error
        if any(self.path.iterdir()):
            raise UserError(f"the folder {self.path} is not empty; frames of two videos would mix, choose another")
        self._wave: wave.Wave_write | None = None
        if sample_rate is not None:
            self._wave = wave.open(str(self.path / "audio.wav"), "wb")  # noqa: SIM115 (closed in _finish)
            self._wave.setnchannels(1)
            self._wave.setsampwidth(2)
            self._wave.setframerate(sample_rate)

    def _append(self, frames_THWC: np.ndarray, samples: np.ndarray) -> None:
        for i, frame_HWC in enumerate(frames_THWC):
            note = PngInfo()
            note.add_text("Comment", SYNTHETIC)
            Image.fromarray(np.ascontiguousarray(frame_HWC)).save(self.path / f"{self._num_frames + i:06d}.png", pnginfo=note)
        if self._wave is not None:
            self._wave.writeframes(np.round(samples * 32767.0).astype("<i2").tobytes())

    def _finish(self) -> None:
        if self._wave is not None:
            self._wave.close()

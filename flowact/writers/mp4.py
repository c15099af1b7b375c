"""MP4 with H.264 and AAC, which every browser plays. The one file of the room that needs FFmpeg (PyAV)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, final

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from flowact.errors import UserError
from flowact.writers.base import SYNTHETIC, VideoWriter

BT601 = 6  # smpte170m in H.273: the matrix that untagged small video is read with, so a player that ignores the tag is right as well
LIMITED_RANGE = 1
AAC_FRAME = 1024


@final
class Mp4Writer(VideoWriter):
    """An .mp4 of frames and mono sound, tagged as synthetic.

    Args:
        path: the file; its folder must exist; overwritten.
        width: of the frames given, in pixels.
        height: of the frames given, in pixels.
        fps: frames per second.
        sample_rate: of the sound; None writes no sound track.
        scale: whole number by which the picture is enlarged, so that a tiny video looks well in a browser; None keeps the size.
        filter: "lanczos" is smooth, "nearest" shows the pixels as they are.
        fragmented: write fragments, so that what was written before a crash or a kill can be played.
        fragment_frames: frames of a fragment, all that a kill loses; None is one second.
        crf: H.264 quality, 0 (lossless) to 51; 18 is visually lossless.
        preset: speed of x264, from "ultrafast" to "veryslow".

    Frame t is shown at t / fps and the sound track holds exactly the samples given, but AAC comes in blocks of 1024: a decoder that ignores the
    duration of the last block returns up to 1023 zeros more. A writer closed without a frame leaves no file.

    An odd width or height gains one column or row, a copy of its neighbour: yuv420p needs even sizes.

    Raises:
        UserError: the folder is missing or not writable, or an option is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: int = 25,
        sample_rate: int | None = 16_000,
        scale: int | None = None,
        filter: Literal["lanczos", "nearest"] = "lanczos",
        fragmented: bool = True,
        crf: int = 18,
        preset: str = "veryfast",
        fragment_frames: int | None = None,
    ) -> None:
        super().__init__(width, height, fps, sample_rate)
        self.path = Path(path)
        self.scale = 1 if scale is None else scale
        self.filter = filter
        self.fragment_frames = fps if fragment_frames is None else fragment_frames
        if self.scale < 1 or not 0 <= crf <= 51 or filter not in ("lanczos", "nearest") or self.fragment_frames < 1:
            raise UserError(
                f"Mp4Writer needs scale >= 1, crf 0 to 51, filter lanczos or nearest and fragment_frames >= 1, "
                f"got {scale}, {crf}, {filter!r} and {fragment_frames}"
            )
        if not self.path.parent.is_dir():
            raise UserError(f"cannot write {self.path}: no folder {self.path.parent}; create it first")
        self._coded_width, self._coded_height = (length + length % 2 for length in (width * self.scale, height * self.scale))
        # The header waits for the first packets (delay_moov): only they say how much silence the AAC encoder puts in front, which players skip.
        flags = "frag_keyframe+delay_moov+default_base_moof" if fragmented else "faststart"
        try:
            self._container = av.open(str(self.path.absolute()), "w", format="mp4", options={"movflags": flags, "flush_packets": "1"})
        except (FFmpegError, OSError) as error:
            raise UserError(f"cannot write {self.path} ({error})") from error
        self._container.metadata["title"] = "FlowAct"
        self._container.metadata["comment"] = SYNTHETIC
        self._video = self._open_video(crf, preset)
        self._audio = None if sample_rate is None else self._open_audio(sample_rate)
        self._pending = np.zeros(0, np.float32)  # samples that do not yet fill an AAC frame
        self._num_encoded_samples = 0

    def _open_video(self, crf: int, preset: str) -> Any:
        # No B-frames: frames leave in the order in which they come, and the last one written before a kill can be decoded.
        options = {"crf": str(crf), "preset": preset, "bf": "0"}
        stream: Any = self._container.add_stream("libx264", rate=self.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = self._coded_width, self._coded_height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, self.fps)
        stream.codec_context.gop_size = self.fragment_frames
        stream.codec_context.color_range = LIMITED_RANGE
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = BT601
        return stream

    def _open_audio(self, sample_rate: int) -> Any:
        stream: Any = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        stream.bit_rate = 96_000
        stream.time_base = stream.codec_context.time_base = Fraction(1, sample_rate)
        return stream

    def _append(self, frames_THWC: np.ndarray, samples: np.ndarray) -> None:
        for i, frame_HWC in enumerate(frames_THWC):
            picture = av.VideoFrame.from_ndarray(self._enlarge(frame_HWC), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            picture.pts, picture.time_base = self._num_frames + i, Fraction(1, self.fps)
            self._container.mux(self._video.encode(picture))
            self._encode_sound(samples[i * self.samples_per_frame : (i + 1) * self.samples_per_frame], AAC_FRAME)

    def _encode_sound(self, samples: np.ndarray, block: int) -> None:
        """Encode whole blocks of the pending and the given samples."""
        if self._audio is None or self.sample_rate is None:
            return
        self._pending = np.concatenate([self._pending, samples])
        while len(self._pending) >= block > 0:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(self._pending[None, :block]), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = self.sample_rate, self._num_encoded_samples, Fraction(1, self.sample_rate)
            self._container.mux(self._audio.encode(sound))
            self._pending = self._pending[block:]
            self._num_encoded_samples += block

    def _enlarge(self, frame_HWC: np.ndarray) -> np.ndarray:
        if self.scale > 1 and self.filter == "nearest":
            frame_HWC = frame_HWC.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        elif self.scale > 1:
            image = Image.fromarray(np.ascontiguousarray(frame_HWC))
            frame_HWC = np.asarray(image.resize((self.width * self.scale, self.height * self.scale), Image.Resampling.LANCZOS))
        height, width = frame_HWC.shape[:2]
        return np.pad(frame_HWC, ((0, self._coded_height - height), (0, self._coded_width - width), (0, 0)), mode="edge")

    def _finish(self) -> None:
        try:
            if self._num_frames:
                self._encode_sound(np.zeros(0, np.float32), len(self._pending))
                self._container.mux(self._video.encode(None))
                if self._audio is not None:
                    self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()
        if not self._num_frames:
            self.path.unlink(missing_ok=True)

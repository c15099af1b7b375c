"""Videos as people have them: any container, frame rate and sound, read to a constant rate. Nothing but the file itself is opened."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowact.data.media import MediaError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PLAYLISTS = frozenset({"hls", "concat", "dash", "ffmetadata", "image2", "sdp", "rtsp"})  # formats that open other files or the network
SHORTFALL = 0.02  # of the claimed frames may be missing: containers round


@dataclass(frozen=True)
class Footage:
    """What a media file holds.

    Attributes:
        container: FFmpeg's name of the format.
        seconds: claimed by the container.
        codec: of the picture, None without one.
        width: of the picture as displayed, in pixels.
        height: likewise.
        fps: average frames a second.
        claimed_frames: by the container; 0 when it does not say.
        decoded_frames: None when not counted.
        variable_rate: whether frames differ in duration; None when not counted.
        rotation: degrees counter-clockwise that a player turns the picture.
        audio_codec: None without sound.
        sample_rate: of the sound.
        channels: of the sound.
        audio_offset_seconds: how much later than the picture the sound begins.
        problems: what keeps it from being packed.
    """

    container: str
    seconds: float
    codec: str | None = None
    width: int = 0
    height: int = 0
    fps: float = 0.0
    claimed_frames: int = 0
    decoded_frames: int | None = None
    variable_rate: bool | None = None
    rotation: int = 0
    audio_codec: str | None = None
    sample_rate: int = 0
    channels: int = 0
    audio_offset_seconds: float = 0.0
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def open_media(path: Path) -> Any:
    """The file as a PyAV container.

    Raises:
        MediaError: no file, no media, or a playlist that names other files.
    """
    import av

    if not path.is_file():
        raise MediaError(f"{path} is no file")
    try:
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path} can not be opened as media ({error}); convert it, e.g. to mp4 with h264 and aac") from error
    if PLAYLISTS & set(container.format.name.split(",")):
        container.close()
        raise MediaError(f"{path} is a playlist ({container.format.name}); give the media file itself")
    return container


def survey(path: Path, *, count: bool = True) -> Footage:
    """Read what a file claims and, with `count`, decode it to see what is true.

    Raises:
        MediaError: not to be opened at all.
    """
    import av

    with open_media(path) as container:
        seconds = (container.duration or 0) / 1e6
        values: dict[str, Any] = {"container": container.format.name, "seconds": round(seconds, 3)}
        problems = []
        video = container.streams.video[0] if container.streams.video else None
        audio = container.streams.audio[0] if container.streams.audio else None
        if video is None:
            problems.append("no picture")
        else:
            rate = float(video.average_rate or 0)
            values |= {"codec": video.codec_context.name, "width": video.codec_context.width, "height": video.codec_context.height}
            values |= {"fps": round(rate, 4), "claimed_frames": video.frames}
        if audio is None:
            problems.append("no sound")
        else:
            context = audio.codec_context
            values |= {"audio_codec": context.name, "sample_rate": context.sample_rate, "channels": context.channels}
            if video is not None:
                values["audio_offset_seconds"] = round(_start(audio) - _start(video), 4)
        if count and video is not None:
            times, rotation, damage = [], 0, None
            try:
                for frame in container.decode(video):
                    times.append(frame.time)
                    rotation = getattr(frame, "rotation", 0)
            except (av.error.FFmpegError, ValueError) as error:
                damage = error
            values |= {"decoded_frames": len(times), "rotation": rotation}
            known = [time for time in times if time is not None]
            steps = np.diff(known) if len(known) > 1 else np.zeros(1)
            values["variable_rate"] = bool(np.ptp(steps) > 0.5 * np.median(steps))
            if damage is not None:
                problems.append(f"decoding stops after {len(times)} frames ({damage})")
            elif _is_short(len(times), video.frames):
                problems.append(f"{len(times)} frames decode, {video.frames} are claimed")
            if abs(rotation) % 180 == 90:
                values["width"], values["height"] = values["height"], values["width"]
        return Footage(**values, problems=tuple(problems))


def read_frames(path: Path, fps: int, size: int | None = None) -> Iterator[np.ndarray]:
    """Frames at a constant rate: frame i shows what a player shows at i / fps seconds.

    Args:
        path: of the file.
        fps: frames a second wanted.
        size: crop the centre to a square and scale it to so many pixels; None keeps the picture, cropped to even sides.

    Yields:
        uint8 (H, W, 3), RGB.

    Raises:
        MediaError: no picture, undecodable, or clearly fewer frames than claimed.
    """
    import av

    with open_media(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path} has no picture")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        native = float(stream.average_rate or fps)
        held: np.ndarray | None = None
        start, emitted, decoded, end = None, 0, 0, 0.0
        try:
            for frame in container.decode(stream):
                time = frame.time if frame.time is not None else decoded / native
                start = time if start is None else start
                decoded += 1
                while held is not None and emitted / fps < time - start - 1e-3:
                    yield held
                    emitted += 1
                held = _prepare(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0), size)
                end = time - start + (float(frame.duration * stream.time_base) if frame.duration else 1 / native)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"{path}: decoding stops after {decoded} frames ({error})") from error
        if held is None:
            raise MediaError(f"{path}: no frame can be decoded")
        if _is_short(decoded, stream.frames):
            raise MediaError(f"{path}: {decoded} frames decode, {stream.frames} are claimed: the file was cut")
        while emitted / fps < end - 1e-3:
            yield held
            emitted += 1


def read_sound(path: Path) -> np.ndarray:
    """Sound from the moment of the first frame on: mono float32 at 16 kHz.

    Raises:
        UserError: no sound, or undecodable.
    """
    from flowact.conditioning.media import load_audio
    from flowact.types import SAMPLE_RATE

    with open_media(path) as container:
        streams = container.streams
        offset = _start(streams.audio[0]) - _start(streams.video[0]) if streams.audio and streams.video else 0.0
    samples = load_audio(path)
    shift = round(offset * SAMPLE_RATE)
    return np.concatenate([np.zeros(shift, np.float32), samples]) if shift > 0 else samples[-shift:]


def to_png(picture: np.ndarray) -> bytes:
    """A picture uint8 (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def from_png(data: bytes, where: str) -> np.ndarray:
    """uint8 (H, W, 3) of a picture.

    Raises:
        MediaError: undecodable.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{where}: the picture can not be decoded ({error})") from error


def _prepare(picture: np.ndarray, rotation: int, size: int | None) -> np.ndarray:
    if rotation % 90 == 0 and rotation:
        picture = np.rot90(picture, rotation // 90)
    height, width = picture.shape[:2]
    if size is None:
        return np.ascontiguousarray(picture[: height // 2 * 2, : width // 2 * 2])
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(picture[top : top + side, left : left + side])
    return square if side == size else np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def _start(stream: Any) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _is_short(decoded: int, claimed: int) -> bool:
    return claimed > 0 and decoded < claimed * (1 - SHORTFALL) - 1

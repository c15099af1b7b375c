"""What a media file claims, and what is true."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.media.container import FootageError, open_media, picture_stream, start_of
from data_tools.media.pictures import Pictures


@dataclass(frozen=True)
class Footage:
    """What a media file holds.

    Attributes:
        container: FFmpeg's name of the format.
        seconds: claimed by the container.
        codec: of the picture, None without one.
        width: of the picture as displayed (turned, square pixels).
        height: likewise.
        fps: average frames a second.
        claimed_frames: by the container; 0 when it does not say.
        decoded_frames: None when not counted.
        damaged_frames: of the decoded ones, those that are torn; None when not counted.
        variable_rate: whether frames differ in duration; None when not counted.
        rotation: degrees counter-clockwise that a player turns the picture, 0 to 359.
        pixel_format: of the picture.
        alpha: whether the picture has transparency; it is left out when read.
        interlaced: whether pictures consist of two fields; they are read as they are.
        negative_times: whether the first picture is before the container's zero.
        audio_codec: None without sound.
        sample_rate: of the first soundtrack.
        channels: likewise.
        audio_streams: channels of each soundtrack.
        audio_offset_seconds: how much later than the first picture the sound begins.
        problems: what keeps it from being used.
        code: of the first problem that stopped reading, see `FootageError`; empty without one.
    """

    container: str
    seconds: float
    codec: str | None = None
    width: int = 0
    height: int = 0
    fps: float = 0.0
    claimed_frames: int = 0
    decoded_frames: int | None = None
    damaged_frames: int | None = None
    variable_rate: bool | None = None
    rotation: int = 0
    pixel_format: str = ""
    alpha: bool = False
    interlaced: bool = False
    negative_times: bool = False
    audio_codec: str | None = None
    sample_rate: int = 0
    channels: int = 0
    audio_streams: tuple[int, ...] = ()
    audio_offset_seconds: float = 0.0
    problems: tuple[str, ...] = ()
    code: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def survey(path: Path, *, count: bool = True) -> Footage:
    """Read what a file claims and, with `count`, decode it to see what is true. The first picture is decoded in any case, to see how it is turned.

    Raises:
        FootageError: not to be opened at all, or a picture of absurd size.
    """
    path = Path(path)
    problems: list[str] = []
    code = ""
    with open_media(path) as container:
        values: dict[str, Any] = {"container": container.format.name, "seconds": round((container.duration or 0) / 1e6, 3)}
        audio = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if audio:
            context = audio[0].codec_context
            sound_starts = start_of(audio[0])  # here, as streams are gone with their container
            values |= {"audio_codec": context.name, "sample_rate": context.sample_rate, "channels": context.channels}
            values["audio_streams"] = tuple(stream.codec_context.channels for stream in audio)
        else:
            problems.append("no sound")
        try:
            video = picture_stream(container, path)
        except FootageError as error:
            if error.code == "too-large":
                raise
            video, code = None, error.code
            problems.append("no picture" if error.code == "no-picture" else str(error))
        if video is not None:
            context = video.codec_context
            values |= {"codec": context.name, "width": context.width, "height": context.height, "claimed_frames": video.frames}
            values |= {"fps": round(float(video.average_rate or 0), 4), "pixel_format": context.pix_fmt or ""}
            values["alpha"] = _has_alpha(context.pix_fmt) or video.metadata.get("alpha_mode") == "1"
    if video is not None:
        try:
            with Pictures(path) as pictures:
                values |= {"width": pictures.width, "height": pictures.height, "rotation": pictures.rotation}
                values |= {"claimed_frames": pictures.claimed_frames, "interlaced": pictures.interlaced}
                values["negative_times"] = pictures.origin < 0 or start_of(pictures.stream) < 0
                if audio:
                    values["audio_offset_seconds"] = round(sound_starts - pictures.origin, 4)
                if count:
                    counted, stopped = _count(pictures)
                    values |= counted
                    if stopped is not None:
                        raise stopped
        except FootageError as error:
            code = error.code
            problems.append(str(error))
    return Footage(**values, problems=tuple(problems), code=code)


def _count(pictures: Pictures) -> tuple[dict[str, Any], FootageError | None]:
    """What decoding every picture shows, and what stopped it."""
    starts: list[float] = []
    stopped = None
    try:
        starts.extend(shown.start for shown in pictures.shown())
    except FootageError as error:
        stopped = error
    steps = np.diff(starts) if len(starts) > 1 else np.zeros(1)
    variable = bool(np.ptp(steps) > 0.5 * np.median(steps))
    return {"decoded_frames": pictures.decoded, "damaged_frames": pictures.damaged, "variable_rate": variable}, stopped


def _has_alpha(pixel_format: str | None) -> bool:
    from av import VideoFormat

    return pixel_format is not None and any(component.is_alpha for component in VideoFormat(pixel_format).components)

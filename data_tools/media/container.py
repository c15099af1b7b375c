"""Opening a media file: a regular file of a known format, of a sane size, and nothing that it names."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from flowact.data.media import MediaError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp")
#: pixels of a picture; 8192 x 8192 is more than 8K video has, and a claim beyond it would take gigabytes before anything is seen
MAX_PIXELS = 2**26
#: demuxers that read one file and open no other; FFmpeg tries no others (playlists, image sequences, scripts)
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,swf,asf,ogg,gif,rm,ivf,nut,dv,mxf,h264,hevc,av1,obu,3gp,"
    "wav,w64,flac,mp3,aac,amr,aiff,ac3,eac3,caf,wv,au"
)
#: how files begin that only name others
_PLAYLIST_MARKS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<MPD", b"v=0", b";FFMETADATA", b"RTSPtext", b"<smil", b"<asx")


class FootageError(MediaError):
    """A file that can not be used, with a code for tables beside the message for people.

    Args:
        message: names the file, the rule and the fix.
        code: no-file, not-media, playlist, no-picture, no-sound, truncated, undecodable or too-large; `work` adds timeout and crash.
    """

    def __init__(self, message: str, code: str = "undecodable") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.code)


def open_media(path: Path) -> Any:
    """The file as a PyAV container.

    Raises:
        FootageError: no regular file, no media, or a playlist that names other files.
    """
    import av

    check_file(path)
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MAX_PIXELS)}
    try:
        return av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if _is_playlist(path):
            raise FootageError(f"{path} is a playlist; give the media file itself", "playlist") from error
        raise FootageError(f"{path} can not be opened as media ({_brief(error)}); convert it, e.g. to mp4 with h264 and aac", "not-media") from error


def check_file(path: Path) -> None:
    """Refuse what would hang or is no file, without opening it.

    Raises:
        FootageError: nothing there, a folder, a pipe or device, empty, or not readable.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise FootageError(f"{path} is no file ({getattr(error, 'strerror', None) or error}); check the path", "no-file") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe" if stat.S_ISFIFO(status.st_mode) else "a device or socket"
        raise FootageError(f"{path} is {kind}; only regular files are read", "no-file")
    if not os.access(path, os.R_OK):
        raise FootageError(f"{path} can not be read; give yourself the right to (chmod u+r)", "no-file")
    if status.st_size == 0:
        raise FootageError(f"{path} is empty; copy it again", "not-media")


def picture_stream(container: Any, path: Path) -> Any:
    """The stream of moving pictures; the cover of a song is none.

    Raises:
        FootageError: there is none, no decoder for it, or it claims an absurd size.
    """
    from av.stream import Disposition

    stream = next((entry for entry in container.streams.video if not entry.disposition & Disposition.attached_pic), None)
    if stream is None:
        raise FootageError(f"{path} has no picture; give a video", "no-picture")
    context = stream.codec_context
    if context is None:
        raise FootageError(f"{path}: there is no decoder for its picture; convert it, e.g. to mp4 with h264", "undecodable")
    if not 0 < context.width * context.height <= MAX_PIXELS:
        claim = f"{context.width} x {context.height}" if context.width else "no or too many"  # FFmpeg hides a size beyond `max_pixels`
        raise FootageError(f"{path} claims {claim} pixels, 1 to {MAX_PIXELS} are read; scale it down, or it is damaged", "too-large")
    context.options = {**context.options, "max_pixels": str(MAX_PIXELS)}
    return stream


def start_of(stream: Any) -> float:
    """When the container says that a stream begins, in seconds."""
    return float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0


def _is_playlist(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    return any(head.lower().startswith(mark.lower()) for mark in _PLAYLIST_MARKS) or b"<MPD" in head


def _brief(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

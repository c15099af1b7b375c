"""The decoded pictures of a file with their times, from the beginning or from any moment on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from data_tools.media.container import FootageError, open_media, picture_stream

SHORTFALL = 0.02  # of the claimed frames or seconds may be missing, at most a second: containers round
ROUNDING_SECONDS = 0.25  # a claimed length may be more by so much, besides
TICK = 1e-3  # seconds: the coarsest clock of containers (webm, flv)
HOLD_SECONDS = 60.0  # one picture that is to stand longer than this is a damaged timestamp
#: containers whose index is by time and whose pictures have times of their own
SEEKABLE = frozenset({"mov", "matroska"})
SEEK_FROM = 2.0  # seconds: before this, decoding from the start costs less
_STEPS_BACK = (0.0, 1.0, 4.0, 16.0)  # seconds, until a key picture before the moment is found


class Shown(NamedTuple):
    """A decoded picture and the seconds after the first picture from which and to which it is shown."""

    frame: Any
    start: float
    end: float


class Pictures:
    """The moving picture of one file. Use in a `with` block.

    Args:
        path: of the file.

    Attributes:
        origin: time of the first picture in the container's clock, in seconds.
        rotation: degrees counter-clockwise that a player turns the picture.
        width: as displayed: turned, and with square pixels.
        height: likewise.
        interlaced: whether the first picture consists of two fields.
        decoded: pictures so far.
        damaged: of these, those in which data is missing, and those made of them.

    Raises:
        FootageError: not to be opened, or no picture decodes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()
        try:
            self.first = next(self._raw(), None)
            if self.first is None:
                raise FootageError(f"{path}: no picture can be decoded; the file is damaged or was cut", "truncated")
        except BaseException:
            self.close()
            raise
        # avi has times for packets in the order of decoding; FFmpeg's guess at those of pictures goes astray on packed ones
        self._by_packets = self.container.format.name == "avi"
        self.origin = 0.0
        self.origin = self._time(self.first) or 0.0
        self.rotation = round(getattr(self.first, "rotation", 0) or 0) % 360
        if self.rotation % 90:
            self.rotation = 0
        aspect = self.stream.sample_aspect_ratio or 1
        self.pixel_width = float(aspect) if 0.2 < float(aspect) < 5 and abs(float(aspect) - 1) > 0.01 else 1.0  # others are rounding or damage
        size = round(self.first.width * self.pixel_width), self.first.height
        self.width, self.height = size[::-1] if self.rotation % 180 else size
        self.native = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.interlaced = bool(self.first.interlaced_frame)
        self.decoded = 0
        self.damaged = 0
        self.packets = 0
        self.backwards = 0

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    @property
    def claimed_frames(self) -> int:
        """By the container; 0 when it does not say. Pictures that an edit list leaves out, as it cuts between key pictures, are not claimed."""
        if "mov" not in self.container.format.name or not len(self.stream.index_entries):
            return self.stream.frames
        listed = sum(not entry.is_discard for entry in self.stream.index_entries)
        return min(listed, self.stream.frames or listed)

    def shown(self, seconds: float = 0.0) -> Iterator[Shown]:
        """Every picture that is shown at `seconds` after the first one or later, in order, once.

        Raises:
            FootageError: undecodable, times that run backwards, or, at the end, clearly less than the container claims.
        """
        frames = self._from(seconds)
        before: Shown | None = None
        self.decoded = self.damaged = self.backwards = 0
        torn = False
        for frame in frames:
            self.decoded += 1
            torn = frame.is_corrupt or (torn and not frame.key_frame)  # what follows is made of it
            self.damaged += torn
            start = self._time(frame)
            if before is not None:
                if start is None:
                    start = before.end
                elif start <= before.start:
                    self.backwards += 1
                    self._check_order()
                    continue
                elif start - before.start > HOLD_SECONDS:
                    raise FootageError(f"{self.path}: the picture stands still for {start - before.start:.0f} s; its times are damaged: re-encode it")
                yield before._replace(end=start)
            length = float(frame.duration * self.stream.time_base) if frame.duration else 1 / self.native
            start = start or 0.0
            before = Shown(frame, start, start + min(length, HOLD_SECONDS))
        if before is None:
            raise FootageError(f"{self.path}: nothing can be decoded from {seconds:g} s on; the file was cut, or ends before", "truncated")
        self._check_complete(before.end, from_start=frames is self._whole)
        yield before

    # --- decoding -----------------------------------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self.container = open_media(self.path)
        try:
            self.stream = picture_stream(self.container, self.path)
        except BaseException:
            self.container.close()
            raise
        # in a worker of many, the others use the other cores
        self.stream.thread_type = "NONE" if multiprocessing.parent_process() else "AUTO"
        if multiprocessing.parent_process():
            self.stream.codec_context.thread_count = 1
        self.last_seconds = 0.0
        self._frames = self._decode()
        self._whole: Iterator[Any] | None = None

    def _raw(self) -> Iterator[Any]:
        return self._frames

    def _decode(self) -> Iterator[Any]:
        """Frames from where the container stands."""
        import av

        self.packets, decoded = 0, 0
        others = [] if self.stream.duration else [stream for stream in self.container.streams if stream is not self.stream]  # tell whether it was cut
        try:
            for packet in self.container.demux(self.stream, *others):
                if packet.pts is not None:
                    self.last_seconds = max(self.last_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not self.stream:
                    continue
                if not packet.size and packet.pts is not None:
                    continue  # theora: the picture before stands on; to a decoder nothing means the end
                self.packets += packet.size > 0 and not packet.is_discard
                for frame in packet.decode():
                    decoded += 1
                    yield frame
        except (av.error.FFmpegError, ValueError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or error
            code = "truncated" if isinstance(error, av.error.EOFError) else "undecodable"
            raise FootageError(f"{self.path}: decoding stops after {decoded} frames ({reason}); copy the file again or re-encode it", code) from error

    def _time(self, frame: Any) -> float | None:
        ticks = frame.dts if self._by_packets and frame.dts is not None else frame.pts
        return None if ticks is None else float(ticks * frame.time_base) - self.origin

    def _from(self, seconds: float) -> Iterator[Any]:
        if seconds >= SEEK_FROM and SEEKABLE & set(self.container.format.name.split(",")):
            for back in _STEPS_BACK:
                if seconds - back < SEEK_FROM:
                    break
                frames = self._sought(seconds, back)
                if frames is not None:
                    return frames
            self.container.close()
            self._open()
            self.first = next(self._raw())
        self._whole = self._all()
        return self._whole

    def _all(self) -> Iterator[Any]:
        yield self.first
        yield from self._frames

    def _sought(self, seconds: float, back: float) -> Iterator[Any] | None:
        """Frames from a key picture at or before the moment on; None where none was found. Pictures before it may lack what they refer to."""
        import av

        try:
            self.container.seek(int((self.origin + seconds - back) / float(self.stream.time_base)), stream=self.stream, backward=True)
        except av.error.FFmpegError:
            return None
        frames = self._decode()
        try:
            key = next((frame for frame in frames if frame.key_frame), None)
        except FootageError:
            return None
        if key is None or key.time is None or key.time - self.origin > seconds + TICK:
            return None
        return _after(key, frames)

    # --- checks -------------------------------------------------------------------------------------------------------------------------------------

    def _check_order(self) -> None:
        if self.backwards > 1 + SHORTFALL * self.decoded:
            raise FootageError(f"{self.path}: the times of its pictures run backwards; remux or re-encode it")

    def _check_complete(self, end: float, from_start: bool) -> None:
        self._check_order()
        claimed, avi = self.claimed_frames, self._by_packets
        if from_start and not avi and is_short(self.decoded, claimed, self.native):
            raise FootageError(f"{self.path}: {self.decoded} frames decode, {claimed} are claimed; the file was cut: copy it again", "truncated")
        if from_start and is_short(self.decoded, self.packets, self.native):
            found = f"{self.decoded} frames decode of {self.packets} that it holds"
            raise FootageError(f"{self.path}: {found}; it is damaged: copy it again", "undecodable")
        if from_start and is_short(self.decoded - self.damaged, self.decoded, self.native):
            found = f"{self.damaged} of {self.decoded} pictures are torn"
            raise FootageError(f"{self.path}: {found}; copy the file again, or re-encode it if they can stay", "undecodable")
        if avi:  # it counts pictures that it leaves out as the one before stands on, and FFmpeg guesses its length from the file's
            claimed_seconds, seen = claimed / self.native, self.origin + end
        elif self.stream.duration:
            claimed_seconds, seen = float(self.stream.duration * self.stream.time_base), end
        elif self.container.duration and SEEKABLE & set(self.container.format.name.split(",")):  # others only estimate
            # Matroska counts from its clock's zero, also where the first picture is later
            claimed_seconds, seen = self.container.duration / 1e6, max(self.last_seconds, end)
        else:
            return
        if seen < claimed_seconds - min(SHORTFALL * claimed_seconds, 1.0) - max(ROUNDING_SECONDS, 2 / self.native):
            raise FootageError(
                f"{self.path}: {seen:.2f} s decode, {claimed_seconds:.2f} s are claimed; the file was cut: copy it again", "truncated"
            )


def is_short(decoded: int, claimed: int, fps: float) -> bool:
    """Whether clearly fewer frames decode than are claimed; 0 claims nothing."""
    return claimed > 0 and decoded < claimed - min(SHORTFALL * claimed, fps) - 1


def _after(first: Any, frames: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from frames

"""Tiny films of every kind that people bring. Each picture is grey by its number, so what is shown says which picture of the source it is."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

#: luma between two pictures that follow each other
STEP = 2
#: pictures at most that luma can tell apart
MOST = (235 - 16) // STEP + 1
CLOCK = Fraction(1, 90_000)
TONE_HZ = 300


@dataclass(frozen=True)
class Track:
    """A soundtrack: silence, then a tone from `onset` on.

    Attributes:
        seconds: of sound; None is as long as the picture.
        onset: of the tone.
        rate: samples a second.
        layout: of channels.
        codec: of the sound.
        late: seconds after the first picture at which it begins.
    """

    seconds: float | None = None
    onset: float = 0.5
    rate: int = 48_000
    layout: str = "stereo"
    codec: str = "aac"
    late: float = 0.0


@dataclass(frozen=True)
class Film:
    """What a film holds, as it was meant.

    Attributes:
        path: of the file.
        starts: second at which each picture begins, after the first one.
        end: second at which the last one ends.
        size: width and height as displayed.
        tracks: of sound.
        first: number of the first picture that is shown.
    """

    path: Path
    starts: tuple[float, ...]
    end: float
    size: tuple[int, int]
    tracks: tuple[Track, ...] = ()
    first: int = 0

    def shown_at(self, seconds: float) -> int:
        """Number of the picture that a player shows; clocks of containers round to a millisecond."""
        return self.first + sum(start <= seconds + 1e-3 for start in self.starts) - 1

    @property
    def frames(self) -> int:
        """At 25 a second: those that begin before the last picture ends."""
        return sum(number / 25 < self.end - 1e-3 for number in range(round(self.end * 25) + 2))


@dataclass(frozen=True)
class Style:
    """How a film is written."""

    suffix: str = "mp4"
    codec: str = "libx264"
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "1", "preset": "ultrafast"})
    flags: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (96, 64)
    begin: float = 0.0
    clock: Fraction = CLOCK
    noise: bool = False


def write_film(path: Path, lengths: Sequence[Fraction], style: Style = Style(), tracks: Sequence[Track] = (Track(),)) -> Film:
    """A film whose pictures last so many seconds each. A white square stands in its left upper corner."""
    assert len(lengths) <= MOST
    starts = [sum(lengths[:number], Fraction(0)) for number in range(len(lengths) + 1)]
    with av.open(str(path), "w", format={"mkv": "matroska", "ts": "mpegts"}.get(style.suffix, style.suffix), options=style.flags) as container:
        video: Any = container.add_stream(style.codec, rate=round(1 / lengths[0]), options=style.options)
        video.width, video.height = style.size
        video.pix_fmt = style.pixels
        video.codec_context.time_base = style.clock
        ticks = [round((start + Fraction(style.begin)) / style.clock) for start in starts]
        lasts = {begin: end - begin for begin, end in pairwise(ticks)}
        sounds = []
        for track in tracks:
            sound: Any = container.add_stream(track.codec, rate=track.rate)
            sound.layout = track.layout
            sounds.append(sound)
        for number in range(len(lengths) + 1):
            frame = None
            if number < len(lengths):
                planes = picture(number, style.size, style.noise)
                frame = av.VideoFrame.from_ndarray(planes, format="yuv444p").reformat(format=style.pixels)
                frame.pts, frame.time_base = ticks[number], style.clock
            for packet in video.encode(frame):
                packet.duration = lasts[packet.pts]
                container.mux(packet)
        for sound, track in zip(sounds, tracks, strict=True):
            _write_sound(container, sound, track, float(starts[-1]), style.begin)
    return Film(path, tuple(float(start) for start in starts[:-1]), float(starts[-1]), style.size, tuple(tracks))


def picture(number: int, size: tuple[int, int], noise: bool = False) -> np.ndarray:
    """Grey by its number with a white square in the left upper corner, yuv444p (3, H, W); with noise that moves along its lower quarter if wanted."""
    width, height = size
    planes = np.full((3, height, width), 128, np.uint8)
    planes[0] = 16 + STEP * number
    planes[0, : height // 4, : width // 4] = 235
    if noise:
        planes[0, height * 3 // 4 :] = np.roll(np.random.default_rng(0).integers(16, 236, (height - height * 3 // 4, width)), number, axis=1)
    return planes


def number_in(gray: np.ndarray) -> np.ndarray:
    """Numbers of the pictures shown, from gray (T, H, W) as `look` gives it: luma 16..235 spread over 0..255."""
    height, width = gray.shape[1:3]
    middle = gray[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8].reshape(len(gray), -1).mean(axis=1)
    return np.round(middle / 255 * 219 / STEP).astype(int)


def _write_sound(container: Any, stream: Any, track: Track, seconds: float, begin: float) -> None:
    length = seconds if track.seconds is None else track.seconds
    times = np.arange(round(length * track.rate)) / track.rate
    wave = np.where(times >= track.onset, 0.5 * np.sin(2 * np.pi * TONE_HZ * times), 0).astype(np.float32)
    channels = len(av.AudioLayout(track.layout).channels)
    form = stream.codec_context.format.name if stream.codec_context.format else "fltp"
    for first in range(0, len(wave), 1024):
        block = wave[first : first + 1024]
        frame = av.AudioFrame.from_ndarray(np.stack([block] * channels), format="fltp", layout=track.layout)
        frame.sample_rate, frame.time_base = track.rate, Fraction(1, track.rate)
        frame.pts = first + round((track.late + begin) * track.rate)
        if form != "fltp":
            frame = av.AudioResampler(format=form, layout=track.layout, rate=track.rate).resample(frame)[0]
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


# --- what is done to a file afterwards --------------------------------------------------------------------------------------------------------------


def cut_bytes(path: Path, share: float) -> None:
    """Keep the first bytes only."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def turn(path: Path, degrees: int) -> None:
    """Write a display matrix that turns the picture clockwise by quarter turns into the track header of an mp4."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    matrix = at + (52 if data[at] else 40)
    data[matrix : matrix + 36] = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def black_png(width: int, height: int) -> bytes:
    """A PNG of any size, all black: some hundred kilobytes that want gigabytes."""
    squeeze, row = zlib.compressobj(1), bytes(1 + width)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


# --- the zoo ----------------------------------------------------------------------------------------------------------------------------------------

FAST = {"crf": "1", "preset": "ultrafast"}
AVI = {"b": "20000000"}
#: pictures refer to later ones
TWO_WAY = {"crf": "1", "preset": "veryfast", "x264-params": "bframes=3:b-adapt=0:b-pyramid=none:keyint=12:scenecut=0"}


def even(fps: Fraction | int, seconds: float = 1.6) -> list[Fraction]:
    """Lengths of pictures at a constant rate."""
    return [1 / Fraction(fps)] * round(seconds * fps)


def _variable(path: Path) -> Film:
    lengths = [Fraction(n, 1000) for n in [33, 34, 17, 67, 40, 100, 33, 10, 20, 250] * 3]
    return write_film(path, lengths)


def _turned(degrees: int) -> Callable[[Path], Film]:
    def make(path: Path) -> Film:
        film = write_film(path, even(25))
        turn(path, degrees)
        width, height = film.size
        return Film(path, film.starts, film.end, film.size if degrees == 180 else (height, width), film.tracks)

    return make


def _plain(lengths: Sequence[Fraction], style: Style = Style(), *tracks: Track) -> Callable[[Path], Film]:
    return lambda path: write_film(path, lengths, style, tracks)


def _edit_list(path: Path) -> Film:
    """Five pictures lie before zero, where an edit list begins: they are decoded for what follows and never shown."""
    film = write_film(path, even(25), Style(options=TWO_WAY, begin=-0.2, flags={"avoid_negative_ts": "disabled"}), ())
    return Film(path, tuple(start - 0.2 for start in film.starts[5:]), film.end - 0.2, film.size, (), first=5)


#: name -> how it is written; each can be read from beginning to end
GOOD: dict[str, Callable[[Path], Film]] = {
    "constant.mp4": _plain(even(25), Style(), Track()),
    "variable.mp4": _variable,
    "ntsc.mp4": _plain(even(Fraction(30_000, 1001)), Style(), Track()),
    "film.mkv": _plain(even(Fraction(24_000, 1001)), Style("mkv"), Track()),
    "fifty.mp4": _plain(even(50), Style(), Track()),
    "slow.mp4": _plain(even(10), Style(), Track()),
    "turned90.mp4": _turned(90),
    "turned180.mp4": _turned(180),
    "turned270.mp4": _turned(270),
    "sound-shorter.mp4": _plain(even(25), Style(), Track(seconds=0.9)),
    "sound-longer.mp4": _plain(even(25), Style(), Track(seconds=2.5)),
    "sound-late.mkv": _plain(even(25), Style("mkv"), Track(late=0.3, seconds=1.0, onset=0.2)),
    "silent.mp4": _plain(even(25), Style()),
    "surround.mp4": _plain(even(25), Style(), Track(layout="5.1")),
    "cd.mp4": _plain(even(25), Style(), Track(rate=44_100)),
    "telephone.mkv": _plain(even(25), Style("mkv"), Track(rate=8_000, layout="mono", codec="pcm_s16le")),
    "two-tracks.mp4": _plain(even(25), Style(), Track(onset=0.4), Track(onset=1.0, layout="mono")),
    "one-frame.mp4": _plain(even(25, 0.04), Style()),
    "two-way.mp4": _plain(even(25), Style(options=TWO_WAY), Track()),
    "edit-list.mp4": _edit_list,
    "begins-late.mkv": _plain(even(25), Style("mkv", begin=7.0), Track()),
    "begins-late.mp4": _plain(even(25), Style(begin=7.0), Track()),
    "begins-late.ts": _plain(even(25), Style("ts", options=TWO_WAY, begin=7.0), Track(codec="mp2")),
    "odd-sides.mp4": _plain(even(25), Style(pixels="yuv444p", size=(95, 63)), Track()),
    "alpha.webm": _plain(even(25, 0.8), Style("webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b:v": "0", "cpu-used": "8"}), Track(codec="libopus")),
    "alpha.mov": _plain(even(25, 0.8), Style("mov", "png", "rgba", {}), Track(codec="pcm_s16le")),
    "hevc.mp4": _plain(even(25), Style(codec="libx265", options={"preset": "ultrafast", "x265-params": "crf=1:log-level=none:keyint=10"}), Track()),
    "mpeg4.avi": _plain(even(25), Style("avi", "mpeg4", options=AVI, clock=Fraction(1, 25)), Track(codec="pcm_s16le")),
    "two-way.avi": _plain(even(25), Style("avi", "mpeg4", options={**AVI, "bf": "2"}, clock=Fraction(1, 25))),
    "gaps.avi": _plain(
        [Fraction(n, 25) for n in [1, 1, 2, 3, 1] * 6], Style("avi", "mpeg4", options=AVI, clock=Fraction(1, 25)), Track(codec="pcm_s16le")
    ),
    "fragments.mp4": _plain(even(25), Style(flags={"movflags": "frag_keyframe+empty_moov+delay_moov"}, options={**FAST, "g": "10"}), Track()),
}


def _truncated(path: Path) -> None:
    write_film(path, even(25), Style(flags={"movflags": "faststart"}, options={**FAST, "g": "5"}))
    cut_bytes(path, 0.6)


def _cut_matroska(path: Path) -> None:
    write_film(path, even(25, 3.2), Style("mkv", options={**FAST, "g": "5"}))
    cut_bytes(path, 0.5)


def _no_index(path: Path) -> None:
    write_film(path, even(25))
    cut_bytes(path, 0.5)


def _no_pictures(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        video: Any = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound: Any = container.add_stream("aac", rate=48_000)
        sound.layout = "stereo"
        _write_sound(container, sound, Track(), 1.0, 0.0)


def _only_sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        sound: Any = container.add_stream("aac", rate=48_000)
        sound.layout = "stereo"
        _write_sound(container, sound, Track(), 1.0, 0.0)


def _bomb(path: Path) -> None:
    """The container says 96 x 64, its pictures are larger than any video's."""
    with av.open(str(path), "w", format="mov") as container:
        video: Any = container.add_stream("png", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "gray"
        for number in range(3):
            packet = av.Packet(black_png(8_300, 8_300) if number == 1 else black_png(96, 64))
            packet.pts = packet.dts = number
            packet.duration, packet.stream, packet.time_base = 1, video, Fraction(1, 25)
            container.mux(packet)


def _claims(width: int, height: int) -> Callable[[Path], None]:
    """Pictures without compression have the size that the container says."""

    def make(path: Path) -> None:
        write_film(path, even(25, 0.2), Style("avi", "rawvideo", "bgr24", {}, clock=Fraction(1, 25)), ())
        data = bytearray(path.read_bytes())
        at = data.index(b"strf") + 8 + 4
        data[at : at + 8] = struct.pack("<ii", width, height)
        path.write_bytes(data)

    return make


def _holes(path: Path) -> None:
    """Every packet's bytes from the middle on are overwritten; sizes and index stay."""
    write_film(path, even(25), Style(flags={"movflags": "faststart"}, options={**FAST, "g": "5"}), ())
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle:] = bytes(len(data) - middle)
    path.write_bytes(data)


#: name -> (how it is written, code of the error that it must give)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.mp4": (_truncated, "truncated"),
    "truncated.mkv": (_cut_matroska, "truncated"),
    "no-index.mp4": (_no_index, "not-media"),
    "no-pictures.mkv": (_no_pictures, "truncated"),
    "only-sound.mp4": (_only_sound, "no-picture"),
    "text.mp4": (lambda path: path.write_text("this is no film\n" * 50), "not-media"),
    "playlist.mp4": (lambda path: path.write_text("#EXTM3U\n#EXTINF:10,\n/etc/passwd\n"), "playlist"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "not-media"),
    "pipe.mp4": (os.mkfifo, "no-file"),
    "folder.mp4": (lambda path: path.mkdir(), "no-file"),
    "dangling.mp4": (lambda path: path.symlink_to("nowhere.mp4"), "no-file"),
    "device.mp4": (lambda path: path.symlink_to("/dev/zero"), "no-file"),
    "bomb.mov": (_bomb, "undecodable"),
    "huge.avi": (_claims(9_000, 9_000), "too-large"),
    "absurd.avi": (_claims(16_384, 16_384), "too-large"),
    "holes.mp4": (_holes, "undecodable"),
}

#: names that files really have
ODD_NAMES = (
    "with space.mp4",
    "it's \"quoted\".mp4",
    "žluťoučký 视频.mp4",
    "two\nlines.mp4",
    "-leading.mp4",
    "a..b.mp4",
    "dots.in.name.mp4",
    "%s%n$(id);&.mp4",
    "x" * 200 + ".mp4",
)


class Zoo:
    """The films below a folder, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._films: dict[str, Film] = {}

    def film(self, name: str) -> Film:
        """One of `GOOD`."""
        if name not in self._films:
            self._films[name] = GOOD[name](self.folder / name)
        return self._films[name]

    def bad(self, name: str) -> Path:
        """One of `BAD`."""
        path = self.folder / f"bad-{name}"
        if not os.path.lexists(path):
            BAD[name][0](path)
        return path

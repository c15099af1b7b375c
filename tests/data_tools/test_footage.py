from __future__ import annotations

import os
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_zoo import BAD, GOOD, ODD_NAMES, STEP, TONE_HZ, TWO_WAY, Film, Style, Track, Zoo, cut_bytes, even, number_in, write_film

from data_tools.footage import (
    Footage,
    FootageError,
    View,
    encode_clip,
    from_png,
    look,
    read_clip,
    read_frames,
    read_sound,
    survey,
    to_png,
    write_sound,
)
from data_tools.media import looking
from flowact.data import decode_video
from flowact.errors import UserError
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

pytestmark = pytest.mark.timeout(60)
GRAY = View(pixels="gray")
#: suffixes of containers, with how pictures are coded in them
SUFFIXES = {"mp4": TWO_WAY, "mkv": TWO_WAY, "ts": TWO_WAY, "avi": {"b": "20000000", "g": "12"}}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def long_films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Film]:
    """Four seconds, so that reading a part seeks; a key picture every 12."""
    folder = tmp_path_factory.mktemp("long")
    films = {}
    for suffix, options in SUFFIXES.items():
        codec, clock = ("mpeg4", Fraction(1, 25)) if suffix == "avi" else ("libx264", Fraction(1, 90_000))
        style = Style(suffix, codec, options=options, clock=clock, begin=0.0 if suffix == "avi" else 1.5)
        films[suffix] = write_film(folder / f"long.{suffix}", even(25, 4.0), style, ())
    return films


def shown(path: Path, **arguments: float) -> list[int]:
    """Numbers of the pictures that `look` shows."""
    return [int(number) for block in look(path, [GRAY], **arguments) for number in number_in(block.pictures[GRAY])]


def luma_of(frame: av.VideoFrame) -> np.ndarray:
    """Luma (H, W) of a frame of `read_clip`, 16..235."""
    assert frame.format.name == "yuv420p"
    return frame.to_ndarray()[: frame.height]


def numbers(frames: list[av.VideoFrame]) -> list[int]:
    """Numbers of the pictures that frames of `read_clip` show."""
    middle = [luma_of(frame)[frame.height * 3 // 8 : frame.height * 5 // 8, frame.width * 3 // 8 : frame.width * 5 // 8].mean() for frame in frames]
    return [round((float(value) - 16) / STEP) for value in middle]


def onset(path: Path) -> float:
    """Second at which the tone of a wav begins."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return float(np.argmax(np.abs(samples) > 2500)) / SAMPLE_RATE


def num_samples(path: Path) -> int:
    with wave.open(str(path)) as file:
        return file.getnframes()


# --- pictures ---------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_a_frame_is_what_a_player_shows_at_its_time(zoo: Zoo, name: str) -> None:
    film = zoo.film(name)
    seen = shown(film.path)
    assert seen == [film.shown_at(number / 25) for number in range(film.frames)]
    assert abs(len(seen) - 25 * film.end) < 1 + 0.025
    assert len(set(seen)) > 1 or name == "one-frame.mp4"


@pytest.mark.parametrize("name", GOOD)
def test_frames_of_a_part_are_those_of_the_whole(zoo: Zoo, name: str) -> None:
    film = zoo.film(name)
    first, count = film.frames // 3, film.frames - film.frames // 3
    assert numbers(list(read_clip(film.path, first, count))) == [film.shown_at((first + number) / 25) for number in range(count)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("first", [50, 59, 60, 61, 85, 99])
def test_seeking_finds_the_same_frames_as_reading_from_the_start(long_films: dict[str, Film], suffix: str, first: int) -> None:
    film, count = long_films[suffix], min(7, 100 - first)
    wanted = list(range(first, first + count))
    assert numbers(list(read_clip(film.path, first, count))) == wanted
    assert shown(film.path, start_s=first / 25, end_s=(first + count) / 25) == wanted


def test_a_start_between_frames_shows_what_is_on_screen_then(long_films: dict[str, Film]) -> None:
    path = long_films["mp4"].path
    assert shown(path, start_s=0.99, end_s=1.19) == [24, 25, 26, 27, 28]  # picture 24 is on screen from 0.96 to 1.00
    assert numbers(list(read_clip(path, 2, 3, start_s=0.99))) == [26, 27, 28]


def test_the_rate_may_be_another(zoo: Zoo) -> None:
    film = zoo.film("constant.mp4")
    frames = [number_in(block.pictures[GRAY]) for block in look(film.path, [GRAY], fps=50)]
    assert list(np.concatenate(frames)) == [number // 2 for number in range(80)]


def test_one_decode_gives_every_view_its_size_and_rate(zoo: Zoo) -> None:
    film = zoo.film("constant.mp4")
    views = [View(height=32), View(height=32, pixels="gray"), View(height=500, every=7), View(height=9, pixels="gray", every=3)]
    blocks = list(look(film.path, views, block=16))
    assert [(block.first, block.count) for block in blocks] == [(0, 16), (16, 16), (32, 8)]
    shapes = {view: np.concatenate([block.pictures[view] for block in blocks]).shape for view in views}
    assert shapes[views[0]] == (40, 32, 48, 3)
    assert shapes[views[1]] == (40, 32, 48)
    assert shapes[views[2]] == (6, 64, 96, 3), "nothing is enlarged"
    assert shapes[views[3]] == (14, 8, 12)
    seventh = np.concatenate([block.pictures[views[2]][..., 0] for block in blocks])
    assert list(number_in(seventh)) == [0, 7, 14, 21, 28, 35]


@pytest.mark.parametrize(
    ("name", "corner"), [("constant.mp4", (0, 0)), ("turned90.mp4", (0, -1)), ("turned180.mp4", (-1, -1)), ("turned270.mp4", (-1, 0))]
)
def test_pictures_stand_as_a_player_turns_them(zoo: Zoo, name: str, corner: tuple[int, int]) -> None:
    film = zoo.film(name)
    picture = next(iter(look(film.path, [GRAY]))).pictures[GRAY][0]
    clip = luma_of(next(iter(read_clip(film.path, 0, 1))))
    corners = [(row, column) for row in (0, -1) for column in (0, -1)]
    for pixels in (picture, clip):
        assert pixels.shape == film.size[::-1]
        assert max(corners, key=lambda at: int(pixels[at])) == corner
        assert sum(pixels[at] > 200 for at in corners) == 1


@pytest.mark.parametrize("name", ["constant.mp4", "turned90.mp4", "turned180.mp4", "turned270.mp4", "odd-sides.mp4"])
def test_a_crop_is_where_it_is_in_the_picture_as_displayed(zoo: Zoo, name: str) -> None:
    film = zoo.film(name)
    width, height = film.size
    whole = luma_of(next(iter(read_clip(film.path, 0, 1))))
    crop = (8, 10, width // 2 * 2 - 6, height // 2 * 2 - 4)
    part = luma_of(next(iter(read_clip(film.path, 0, 1, crop=crop))))
    assert part.shape == (crop[3] - crop[1], crop[2] - crop[0])
    np.testing.assert_allclose(part.astype(int), whole[crop[1] : crop[3], crop[0] : crop[2]].astype(int), atol=2)
    half = next(iter(read_clip(film.path, 0, 1, crop=crop, size=(24, 20))))
    assert (half.width, half.height, half.format.name) == (24, 20, "yuv420p")


def test_crops_and_sizes_that_make_no_picture_are_refused(zoo: Zoo) -> None:
    path = zoo.film("constant.mp4").path
    for crop in [(0, 0, 98, 64), (-2, 0, 10, 10), (10, 0, 10, 10), (20, 0, 10, 10)]:
        with pytest.raises(ValueError, match="crop"):
            next(iter(read_clip(path, 0, 1, crop=crop)))
    with pytest.raises(ValueError, match="even"):
        next(iter(read_clip(path, 0, 1, size=(33, 32))))


def test_read_frames_are_those_that_are_looked_at(zoo: Zoo) -> None:
    film = zoo.film("variable.mp4")
    frames = np.stack(list(read_frames(film.path, 25)))
    assert list(number_in(frames[..., 1])) == shown(film.path)
    assert next(read_frames(film.path, 25, size=32)).shape == (32, 32, 3)


def test_a_clip_keeps_every_frame_and_the_same_frames_give_the_same_bytes(zoo: Zoo) -> None:
    film = zoo.film("ntsc.mp4")
    clips = [encode_clip(read_clip(film.path, 4, 30), crf=1) for _ in range(2)]
    assert clips[0] == clips[1]
    assert list(number_in(decode_video(clips[0], "the clip")[..., 1])) == [film.shown_at((4 + number) / 25) for number in range(30)]
    with pytest.raises(ValueError, match="no frames"):
        encode_clip([])


def test_blocks_of_large_pictures_hold_fewer_frames(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MAX_BLOCK_BYTES", 3 * 64 * 96)
    film = zoo.film("constant.mp4")
    blocks = list(look(film.path, [GRAY, View(height=8, every=100)]))
    assert [(block.first, block.count) for block in blocks[:3]] == [(0, 2), (2, 2), (4, 2)]  # the small view takes the rest of the third
    assert [int(number) for block in blocks for number in number_in(block.pictures[GRAY])] == list(range(40))
    monkeypatch.setattr(looking, "MAX_BLOCK_BYTES", 1)
    assert {block.count for block in look(film.path, [View()])} == {1}


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Numpy reports its arrays to tracemalloc; what is held for a film of four times the length is the same."""
    peaks = []
    for seconds in (1.0, 4.0):
        path = tmp_path / f"{seconds}.mp4"
        write_film(path, even(25, seconds))
        tracemalloc.start()
        try:
            for block in look(path, [View(), GRAY], block=10):
                assert block.count <= 10
            write_sound(path, tmp_path / "out.wav")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    held = 10 * 64 * 96 * 4  # one block in both views
    assert held < peaks[0], "the measure sees the blocks"
    assert peaks[1] < 1.1 * peaks[0] + 10_000


# --- sound ------------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_sound_has_640_samples_a_frame_and_stands_where_it_is_heard(zoo: Zoo, name: str, tmp_path: Path) -> None:
    film = zoo.film(name)
    out = tmp_path / "out.wav"
    found = write_sound(film.path, out, frames=film.frames, silence=True)
    assert num_samples(out) == found.samples == film.frames * SAMPLES_PER_FRAME
    assert not found.damaged
    assert list(tmp_path.iterdir()) == [out]
    if film.tracks:
        track = film.tracks[0]
        assert onset(out) == pytest.approx(track.onset + track.late, abs=0.012)
        seconds = min(film.end, track.late + (film.end if track.seconds is None else track.seconds)) - track.late
        assert found.found / SAMPLE_RATE == pytest.approx(seconds, abs=0.065)  # codecs pad to whole packets
    else:
        assert (found.found, found.begins_s) == (0, None)
        with pytest.raises(FootageError, match="no soundtrack") as error:
            write_sound(film.path, out, frames=film.frames)
        assert error.value.code == "no-sound"


def test_sound_of_a_part_is_cut_out_of_the_whole(tmp_path: Path) -> None:
    """Far in, it seeks; samples stay where they are."""
    path, rate = tmp_path / "tone.mkv", 48_000
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        wave_S = (np.sin(2 * np.pi * TONE_HZ * np.arange(70 * rate) / rate) * np.linspace(1000, 20_000, 70 * rate)).astype(np.int16)
        for first in range(0, len(wave_S), rate):
            frame = av.AudioFrame.from_ndarray(wave_S[None, first : first + rate], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_sound(path, tmp_path / "whole.wav")
    write_sound(path, tmp_path / "part.wav", frames=50, start_s=65.0)
    whole, part = ((tmp_path / name).read_bytes()[44:] for name in ("whole.wav", "part.wav"))
    whole_S, part_S = np.frombuffer(whole, "<i2").astype(int), np.frombuffer(part, "<i2").astype(int)
    assert len(part_S) == 50 * SAMPLES_PER_FRAME
    assert np.abs(part_S).max() > 15_000
    assert np.abs(part_S - whole_S[65 * SAMPLE_RATE :][: len(part_S)]).max() <= 64  # a resampler that begins elsewhere rounds otherwise


def test_two_people_are_two_tracks_or_two_channels(zoo: Zoo, tmp_path: Path) -> None:
    out, other = tmp_path / "out.wav", tmp_path / "other.wav"
    film = zoo.film("two-tracks.mp4")
    write_sound(film.path, out, frames=40, tracks="streams", other=other)
    assert onset(out) == pytest.approx(0.4, abs=0.012)
    assert onset(other) == pytest.approx(1.0, abs=0.012)

    stereo = tmp_path / "stereo.wav"
    samples_SC = np.zeros((16_000, 2), "<i2")
    samples_SC[4_000:, 0] = samples_SC[8_000:, 1] = 10_000
    with wave.open(str(stereo), "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples_SC.tobytes())
    write_sound(stereo, out, tracks="channels", other=other)
    assert (onset(out), onset(other)) == pytest.approx((0.25, 0.5), abs=0.001)

    for tracks, name, what in (("streams", "constant.mp4", "2 are needed"), ("channels", "telephone.mkv", "1 channel")):
        with pytest.raises(FootageError, match=what):
            write_sound(zoo.film(name).path, out, tracks=tracks, other=other)
    with pytest.raises(ValueError, match="need a file"):
        write_sound(film.path, out, tracks="streams")
    assert not list(tmp_path.glob(".*"))


def test_read_sound_begins_with_the_first_picture(zoo: Zoo) -> None:
    for name in ("constant.mp4", "sound-late.mkv", "begins-late.mkv"):
        track = zoo.film(name).tracks[0]
        samples = read_sound(zoo.film(name).path)
        assert np.argmax(np.abs(samples) > 0.1) / SAMPLE_RATE == pytest.approx(track.onset + track.late, abs=0.012), name


# --- what files claim -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_a_survey_says_what_a_film_holds(zoo: Zoo, name: str) -> None:
    film = zoo.film(name)
    found = survey(film.path)
    assert set(found.problems) <= {"no sound"}
    assert not found.code
    assert not found.damaged_frames
    assert (found.width, found.height) == film.size
    assert found.decoded_frames == len(film.starts)
    assert found.claimed_frames in (0, len(film.starts), film.frames)  # avi counts those that it leaves out
    assert len(found.audio_streams) == len(film.tracks)
    assert found.variable_rate is (name in ("variable.mp4", "gaps.avi"))
    if film.tracks:
        assert found.sample_rate == film.tracks[0].rate
        assert found.audio_offset_seconds == pytest.approx(film.tracks[0].late, abs=0.07)


FACTS = {
    "turned90.mp4": {"rotation": 270},
    "turned180.mp4": {"rotation": 180},
    "turned270.mp4": {"rotation": 90},
    "alpha.webm": {"alpha": True, "codec": "vp9"},
    "alpha.mov": {"alpha": True, "codec": "png"},
    "hevc.mp4": {"alpha": False, "codec": "hevc"},
    "surround.mp4": {"channels": 6},
    "two-tracks.mp4": {"audio_streams": (2, 1)},
    "telephone.mkv": {"sample_rate": 8_000, "channels": 1},
    "ntsc.mp4": {"fps": 29.97},
    "silent.mp4": {"audio_codec": None, "problems": ("no sound",)},
}


@pytest.mark.parametrize("name", FACTS)
def test_a_survey_says_what_is_special(zoo: Zoo, name: str) -> None:
    found = survey(zoo.film(name).path, count=False).to_json()
    for key, value in FACTS[name].items():
        assert found[key] == (pytest.approx(value, abs=0.01) if isinstance(value, float) else value), key


# --- bad files --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_with_a_code(zoo: Zoo, name: str, tmp_path: Path) -> None:
    path, code = zoo.bad(name), BAD[name][1]
    with pytest.raises(FootageError) as error:
        list(look(path, [View()]))
    assert error.value.code == code
    assert path.name in str(error.value)
    with pytest.raises(FootageError) as error:
        list(read_clip(path, 0, 100))
    assert error.value.code in (code, "truncated")
    try:
        found: Footage | FootageError = survey(path)
    except FootageError as refused:
        found = refused
    assert found.code == code
    if code in ("not-media", "no-file", "playlist"):
        with pytest.raises(FootageError) as error:
            write_sound(path, tmp_path / "out.wav", frames=10, silence=True)
        assert error.value.code == code
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_read_is_an_error_with_a_code(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo.film("constant.mp4").path
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all files
    with pytest.raises(FootageError, match="can not be read") as error:
        survey(path)
    assert error.value.code == "no-file"


def code_or_frames(path: Path) -> tuple[str, int]:
    """Code of the error that looking gives, or the frames that it gave."""
    try:
        return "", len(shown(path))
    except FootageError as error:
        return error.code, 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_whatever_is_cut_off_a_short_decode_is_never_silent(tmp_path: Path, suffix: str) -> None:
    codec, clock = ("mpeg4", Fraction(1, 25)) if suffix == "avi" else ("libx264", Fraction(1, 90_000))
    style = Style(suffix, codec, options=SUFFIXES[suffix], clock=clock, flags={"movflags": "faststart"} if suffix == "mp4" else {})
    path = tmp_path / f"whole.{suffix}"
    film = write_film(path, even(25, 2.4), style, (Track(codec="pcm_s16le"),) if suffix == "avi" else (Track(),))
    whole, refused = path.read_bytes(), 0
    for share in np.linspace(0.05, 0.99, 20):
        path.write_bytes(whole)
        cut_bytes(path, float(share))
        code, frames = code_or_frames(path)
        assert code in ("", "truncated", "undecodable", "not-media", "no-picture")
        refused += bool(code)
        assert code or frames >= film.frames * 0.98 - 0.25 * 25 - 1, f"{share:.0%} of the bytes gave {frames} of {film.frames} frames"
    assert refused >= 12


def torn(path: Path) -> int:
    """Pictures that the decoder makes up, and those made of them; all when it gives up."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        broken = count = 0
        try:
            for frame in container.decode(stream):
                broken = frame.is_corrupt or (broken and not frame.key_frame)
                count += broken
        except av.error.FFmpegError:
            return stream.frames
    return count


def test_a_picture_that_the_decoder_makes_up_is_told(tmp_path: Path) -> None:
    path = tmp_path / "torn.mp4"
    style = Style(options={"crf": "20", "preset": "veryfast", "g": "12"}, flags={"movflags": "faststart"}, noise=True)
    write_film(path, even(25, 1.6), style, ())
    assert not torn(path)
    whole, known = path.read_bytes(), 0
    for at in np.linspace(whole.index(b"mdat") + 700, len(whole) - 40, 24).astype(int):
        path.write_bytes(whole[:at] + bytes(range(20)) + whole[at + 20 :])
        if torn(path) > 2:
            known += 1
            assert code_or_frames(path)[0] == "undecodable", f"damage at byte {at}"
            assert survey(path).code == "undecodable"
    assert known > 10


def test_a_span_beyond_the_end_is_an_error(zoo: Zoo, long_films: dict[str, Film]) -> None:
    for path, first in ((zoo.film("constant.mp4").path, 30), (long_films["mp4"].path, 95), (long_films["mp4"].path, 200)):
        with pytest.raises(FootageError) as error:
            list(read_clip(path, first, 20))
        assert error.value.code == "truncated"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_read(zoo: Zoo, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(zoo.film("constant.mp4").path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(shown(Path(name))) == 40
    assert write_sound(Path(name), tmp_path / "out.wav", frames=40).samples == 40 * SAMPLES_PER_FRAME


def test_pictures_as_png_and_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    np.testing.assert_array_equal(from_png(to_png(picture), "it"), picture)
    for data in (b"", b"no png", to_png(picture)[:40]):
        with pytest.raises(UserError, match=r"face\.png"):
            from_png(data, "face.png")

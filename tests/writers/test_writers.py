from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from flowact.errors import UserError
from flowact.writers import FrameFolderWriter, Mp4Writer, VideoWriter

SAMPLES = 640


def clip(num_frames: int, height: int = 32, width: int = 48, event: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A dark video with a white flash and a beep in frame `event`."""
    frames, samples = np.full((num_frames, height, width, 3), (40, 30, 60), np.uint8), np.zeros(num_frames * SAMPLES, np.float32)
    if event is not None:
        frames[event] = 255
        samples[event * SAMPLES : (event + 1) * SAMPLES] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(SAMPLES) / 16_000)
    return frames, samples


def write(writer: VideoWriter, frames: np.ndarray, samples: np.ndarray | None, step: int = 12) -> None:
    with writer:
        for first in range(0, len(frames), step):
            part = frames[first : first + step]
            writer.write(part, None if samples is None else samples[first * SAMPLES : (first + len(part)) * SAMPLES])


def read(path: Path) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Frame times in seconds, frames, and the sound placed on a time line by its timestamps."""
    with av.open(str(path)) as container:
        decoded = [(float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    sound = np.zeros(0, np.float32)
    with av.open(str(path)) as container:
        if container.streams.audio:
            for frame in container.decode(audio=0):
                start = round(float(frame.pts * frame.time_base) * 16_000)
                sound = np.concatenate([sound, np.zeros(max(start + frame.samples - len(sound), 0), np.float32)])
                sound[start : start + frame.samples] = frame.to_ndarray()[0]
    return [time for time, _ in decoded], np.stack([frame for _, frame in decoded]), sound


@pytest.mark.parametrize("fragmented", [True, False])
@pytest.mark.parametrize(("num_frames", "event", "step"), [(61, 30, 12), (27, 0, 1), (40, 39, 7)])
def test_flash_and_beep_come_out_together(tmp_path, fragmented, num_frames, event, step):
    frames, samples = clip(num_frames, event=event)
    write(Mp4Writer(tmp_path / "a.mp4", 48, 32, fragmented=fragmented), frames, samples, step)
    times, pictures, sound = read(tmp_path / "a.mp4")
    np.testing.assert_allclose(times, np.arange(num_frames) / 25, atol=1e-6)
    assert np.flatnonzero(pictures.mean(axis=(1, 2, 3)) > 200).tolist() == [event]
    heard = np.flatnonzero(np.abs(sound) > 0.2)
    assert heard[0] == pytest.approx(event * SAMPLES, abs=16)  # one millisecond
    assert heard[-1] == pytest.approx((event + 1) * SAMPLES - 1, abs=16)


@pytest.mark.parametrize("num_frames", [1, 2, 25, 33])
def test_the_sound_lasts_exactly_as_long_as_the_picture(tmp_path, num_frames):
    write(Mp4Writer(tmp_path / "a.mp4", 48, 32, fragmented=False), *clip(num_frames))
    with av.open(str(tmp_path / "a.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.duration * video.time_base == pytest.approx(num_frames / 25)
        assert audio.duration * audio.time_base == pytest.approx(num_frames / 25)
    sound = read(tmp_path / "a.mp4")[2]
    assert 0 <= len(sound) - num_frames * SAMPLES < 1024  # the AAC block that the last samples share


def test_silence_is_written_where_no_samples_are_given(tmp_path):
    frames, samples = clip(30, event=20)
    with Mp4Writer(tmp_path / "a.mp4", 48, 32) as writer:
        writer.write(frames[:13])
        writer.write(frames[13:], samples[13 * SAMPLES :])
    heard = np.flatnonzero(np.abs(read(tmp_path / "a.mp4")[2]) > 0.2)
    assert heard[0] == pytest.approx(20 * SAMPLES, abs=16)


def test_without_sound_there_is_no_track(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", 48, 32, sample_rate=None) as writer:
        writer.write(clip(5)[0])
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert not container.streams.audio
    assert len(read(tmp_path / "a.mp4")[1]) == 5


def test_the_file_says_that_it_is_synthetic(tmp_path):
    write(Mp4Writer(tmp_path / "a.mp4", 48, 32), *clip(5))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert "Synthetic" in container.metadata["comment"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"


def test_what_was_written_before_a_kill_can_be_played(tmp_path):
    frames, samples = clip(130, event=30)
    with Mp4Writer(tmp_path / "a.mp4", 48, 32) as writer:
        writer.write(frames, samples)
        (tmp_path / "killed.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    _, pictures, sound = read(tmp_path / "killed.mp4")
    assert 50 <= len(pictures) < 130
    assert np.flatnonzero(pictures.mean(axis=(1, 2, 3)) > 200).tolist() == [30]
    assert np.flatnonzero(np.abs(sound) > 0.2)[0] == pytest.approx(30 * SAMPLES, abs=16)


def test_a_kill_loses_at_most_the_latest_chunk(tmp_path):
    frames, samples = clip(72)
    with Mp4Writer(tmp_path / "a.mp4", 48, 32, fragment_frames=12) as writer:
        for first in range(0, 72, 12):
            writer.write(frames[first : first + 12], samples[first * SAMPLES : (first + 12) * SAMPLES])
            if first:
                (tmp_path / "killed.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
                assert len(read(tmp_path / "killed.mp4")[1]) >= first


@pytest.mark.parametrize(("scale", "size"), [(None, (8, 6)), (4, (28, 20))])
def test_odd_sizes_become_even_and_scale_is_whole(tmp_path, scale, size):
    write(Mp4Writer(tmp_path / "a.mp4", 7, 5, scale=scale), *clip(4, height=5, width=7))
    width, height = size
    assert read(tmp_path / "a.mp4")[1].shape == (4, height, width, 3)


@pytest.mark.parametrize("filter", ["nearest", "lanczos"])
def test_colours_and_places_survive(tmp_path, filter):
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    frames[:, :8, :8], frames[:, :8, 8:], frames[:, 8:, :8], frames[:, 8:, 8:] = (200, 40, 30), (20, 180, 60), (30, 50, 210), (128, 128, 128)
    write(Mp4Writer(tmp_path / "a.mp4", 16, 16, scale=4, filter=filter, crf=8), frames, None)
    decoded = read(tmp_path / "a.mp4")[1][-1].astype(int)
    for y, x in ((16, 16), (16, 48), (48, 16), (48, 48)):
        assert np.abs(decoded[y, x] - frames[0, y // 4, x // 4]).max() <= 6


def test_an_error_inside_leaves_a_playable_file(tmp_path):
    def generate() -> None:
        with Mp4Writer(tmp_path / "a.mp4", 48, 32) as writer:
            writer.write(*clip(10))
            raise RuntimeError("generation failed")

    with pytest.raises(RuntimeError, match="generation failed"):
        generate()
    assert len(read(tmp_path / "a.mp4")[1]) == 10


def test_no_frames_no_file(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", 48, 32):
        pass
    assert not (tmp_path / "a.mp4").exists()


def test_frame_folder_is_lossless(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    samples = np.random.default_rng(1).uniform(-1, 1, 5 * SAMPLES).astype(np.float32)
    write(FrameFolderWriter(tmp_path / "out" / "frames", 7, 6), frames, samples, step=2)
    folder = tmp_path / "out" / "frames"
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{i:06d}.png" for i in range(5)), "audio.wav"]
    for i, frame_HWC in enumerate(frames):
        with Image.open(folder / f"{i:06d}.png") as image:
            assert np.array_equal(np.asarray(image), frame_HWC)
            assert "Synthetic" in image.info["Comment"]
    with wave.open(str(folder / "audio.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 5 * SAMPLES)
        heard = np.frombuffer(file.readframes(5 * SAMPLES), "<i2") / 32767
    np.testing.assert_allclose(heard, samples, atol=2e-5)
    with pytest.raises(UserError, match="not empty"):
        FrameFolderWriter(folder, 7, 6)


@pytest.fixture(params=["mp4", "frames"])
def writer(request, tmp_path):
    made = Mp4Writer(tmp_path / "a.mp4", 48, 32) if request.param == "mp4" else FrameFolderWriter(tmp_path / "frames", 48, 32)
    yield made
    made.close()


def test_every_writer_counts_and_checks(writer):
    frames, samples = clip(10)
    writer.write(frames, samples)
    assert (writer.num_frames, writer.seconds) == (10, 0.4)
    writer.write(frames[:0], samples[:0])
    writer.write(frames[:2], samples[: 2 * SAMPLES] + 7.0)  # louder than full scale: clipped
    assert writer.num_frames == 12
    for bad_frames, bad_samples, message in (
        (frames.astype(np.float32), samples, "expected uint8 frames"),
        (frames[:, :16], samples, "expected uint8 frames"),
        (frames[0], samples[:SAMPLES], "expected uint8 frames"),
        (frames, samples[:-1], "drift apart"),
        (frames, samples * np.nan, "NaN"),
        (frames, (samples * 32767).astype(np.int16), "float samples"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write(bad_frames, bad_samples)
    assert writer.num_frames == 12
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(frames, samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "at least one pixel"),
        ({"sample_rate": 22_050, "fps": 30, "width": 47}, None),
        ({"sample_rate": 16_000, "fps": 30}, "not a whole number per frame"),
        ({"scale": 0}, "scale >= 1"),
        ({"crf": 52}, "crf 0 to 51"),
        ({"filter": "bicubic"}, "lanczos or nearest"),
        ({"path": "absent/a.mp4"}, "create it first"),
    ],
)
def test_mp4_options(tmp_path, arguments, message):
    options = {"path": "a.mp4", "width": 48, "height": 32} | arguments
    options["path"] = tmp_path / options["path"]
    if message is None:
        Mp4Writer(**options).close()
    else:
        with pytest.raises(UserError, match=message):
            Mp4Writer(**options)


def test_importing_the_rooms_loads_no_media_or_model_library():
    heavy = "av", "transformers", "tokenizers"
    program = f"import sys, flowact.writers, flowact.planning, flowact.conditioning; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"

"""Films of clips: every frame with its own sound, beside each other what is stored and what the model sees."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clip_folder import tone, write_folder

import data_tools.inspect
from data_tools.cli import main
from data_tools.inspect import film, spread
from data_tools.reporting.drawing import MARGIN, read_story
from data_tools.reporting.watching import LINE, canvas_size, factor, film_frames
from flowact.data.media import decode_video
from flowact.data.shards import ClipRef, Split, open_split

FRAMES = 21


class OneLess:
    """Stands for decoded latents: the stored frames, negative, two fewer, as of a clip whose length is not 4 n + 1."""

    name = "latents-Negative"

    def __init__(self, split: Split, name: str = "latents") -> None:
        self.split = split

    def frames(self, clip: ClipRef) -> np.ndarray:
        return 255 - decode_video(self.split.read(clip, "mp4"), clip.key)[:-2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    write_folder(root / "clips", 4)
    assert main(["pack", str(root / "clips"), "--out", str(root / "shards"), "--val-identities", "clip-1"]) == 0
    return root / "shards"


def read(path: Path | str, data: bytes | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames (T, H, W, 3), samples in [-1, 1], and seconds that the sound track lasts."""
    if data is not None:
        Path(path).write_bytes(data)
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        return frames, samples, float(stream.duration * stream.time_base)


def test_a_film_shows_every_frame_of_every_clip_with_its_sound(packed: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(packed / "train"), "--out", str(tmp_path / "film.mp4"), "--clips", "3"]) == 0
    frames, samples, seconds = read(tmp_path / "film.mp4")
    assert len(frames) == 3 * FRAMES
    assert seconds == pytest.approx(3 * FRAMES / 25, abs=1e-9)
    assert np.corrcoef(samples[: 3 * FRAMES * 640], np.tile(tone(FRAMES), 3))[0, 1] > 0.99
    side = 16 * factor(16)
    shown = frames[:, LINE : LINE + side, MARGIN : MARGIN + side].mean(axis=(1, 2, 3)) / 8
    assert np.array_equal(shown.round(), np.tile(np.arange(FRAMES), 3)), "frame t of the film is frame t of the clip"


def test_latents_stand_beside_the_frames_that_they_are_of(packed: Path, tmp_path: Path) -> None:
    split = open_split(packed / "train")
    frames, _, seconds = read(tmp_path / "film.mp4", film(split, split.clips[:1], OneLess(split)))
    side = 16 * factor(16)
    left = frames[:, LINE : LINE + side, MARGIN : MARGIN + side].mean(axis=(1, 2, 3))
    right = frames[:, LINE : LINE + side, 2 * MARGIN + side : 2 * MARGIN + 2 * side].mean(axis=(1, 2, 3))
    assert len(frames) == FRAMES
    assert seconds == pytest.approx(FRAMES / 25)
    assert np.abs(left[:-2] + right[:-2] - 255).max() < 3
    assert np.ptp(right[-2:]) < 1, "where there is no latent, nothing is shown instead"
    assert np.abs(left[-2:] + right[-2:] - 255).min() > 3


def test_every_frame_says_where_it_is(packed: Path) -> None:
    split = open_split(packed / "train")
    story = read_story(split, split.clips[0])
    stored = decode_video(split.read(split.clips[0], "mp4"), "clip")
    size = canvas_size([(16, 16)], 1)
    drawn = list(film_frames([("stored", stored)], story, size))
    assert {frame.shape for frame in drawn} == {(size[1], size[0], 3)}
    assert size[0] % 2 == size[1] % 2 == 0
    below = LINE + 16 * factor(16)
    assert all((first[below:] != second[below:]).any() for first, second in pairwise(drawn)), "number and mark move on"
    assert len(story.samples_S) == FRAMES * 640
    assert story.states == ("speaking",) * 10 + ("idle",) * 11


def test_the_same_clips_give_the_same_film(packed: Path) -> None:
    split = open_split(packed / "train")
    assert film(split, split.clips[:1], None) == film(split, split.clips[:1], None)


def test_plain_is_what_is_stored(packed: Path, tmp_path: Path) -> None:
    split = open_split(packed / "train")
    key = split.clips[1].key
    assert main(["inspect", str(packed / "train"), "--out", str(tmp_path / "plain.mp4"), "--plain", "--key", key]) == 0
    frames, samples, seconds = read(tmp_path / "plain.mp4")
    assert frames.shape == (FRAMES, 16, 16, 3)
    assert seconds == pytest.approx(FRAMES / 25)
    assert 0 <= len(samples) - FRAMES * 640 < 1024


def test_sound_that_is_too_short_is_said_and_filled(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_split(packed / "train")
    whole = split.read

    def short(clip: ClipRef, suffix: str) -> bytes:
        from flowact.data.media import encode_sound

        return encode_sound(tone(FRAMES - 5)) if suffix == "wav" else whole(clip, suffix)

    monkeypatch.setattr(split, "read", short)
    with pytest.warns(UserWarning, match="lacks 3200 samples"):
        data = film(split, split.clips[:1], None)
    frames, _, seconds = read(tmp_path / "film.mp4", data)
    assert (len(frames), seconds) == (FRAMES, pytest.approx(FRAMES / 25))


def test_clips_are_chosen_by_key_or_evenly(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    split = open_split(packed / "train")
    assert spread(split, 1) == split.clips[:1]
    assert [clip.key for clip in spread(split, 2)] == [split.clips[0].key, split.clips[-1].key]
    assert len(spread(split, 99)) == len(split)
    monkeypatch.setattr(data_tools.inspect, "DecodedLatents", OneLess)
    assert main(["inspect", str(packed), "--out", str(tmp_path / "both.mp4"), "--latents", "--key", split.clips[2].key]) == 0
    assert "decoded from latents-Negative" in capsys.readouterr().out
    assert main(["inspect", str(packed), "--out", str(tmp_path / "x.mp4"), "--key", "clip-77"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    "arguments",
    [["--out", "x.gif"], ["--out", "x.mp4", "--clips", "0"], ["--out", "x.png", "--plain"], ["--out", "x.mp4", "--plain", "--latents"]],
)
def test_what_can_not_be_is_refused(packed: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(packed), *arguments]) == 2
    assert not list(tmp_path.iterdir())


def test_a_film_of_an_unmarked_tar_is_made_too(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(packed / "train" / "000000.tar", tmp_path / "other" / "000000.tar")
    with pytest.warns(UserWarning, match="no index"):
        split = open_split(tmp_path / "other" / "000000.tar")
    frames, _, _ = read(tmp_path / "film.mp4", film(split, split.clips[:1], None))
    assert len(frames) == FRAMES

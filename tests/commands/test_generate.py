"""`flowact generate`: input that cannot work is refused before a checkpoint is loaded."""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from flowact.cli import main
from flowact.commands.arguments import guidance_scales
from flowact.commands.generate import Job, add_arguments, fit_length, plan_jobs


def call(tmp_path: Path, **replaced: str) -> list[str]:
    for name in ("speech.wav", "face.png"):
        (tmp_path / name).write_bytes(b"not media")
    options = {"checkpoint": tmp_path, "audio": tmp_path / "speech.wav", "reference": tmp_path / "face.png", "out": tmp_path / "out.mp4", **replaced}
    return ["generate", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"out": "movie.avi"}, ".mp4"),
        ({"audio": "absent.wav"}, "--audio absent.wav"),
        ({"reference": "absent.png"}, "--reference absent.png"),
        ({"prompts": "absent.yaml"}, "--prompts absent.yaml"),
        ({"seconds": "-1"}, "above 0"),
        ({}, "speech.wav"),
    ],
)
def test_bad_input_is_named(replaced: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call(tmp_path, **replaced)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out.mp4").exists()


def several(tmp_path: Path, **replaced: list[str]) -> list[str]:
    for name in ("a.wav", "b.wav", "face.png", "other.png"):
        (tmp_path / name).write_bytes(b"not media")
    options = {"checkpoint": ["c"], "audio": ["a.wav", "b.wav"], "reference": ["face.png"], "out": ["films"], **replaced}
    return ["generate", *(word for name, values in options.items() if values for word in (f"--{name}", *values))]


def jobs_of(argv: list[str]) -> list[Job]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return plan_jobs(parser.parse_args(argv[1:]))


def test_several_sounds_share_a_picture_or_have_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(several(tmp_path))
    assert [(str(job.audio), str(job.reference), job.prompts, str(job.out)) for job in jobs] == [
        ("a.wav", "face.png", None, "films/a.mp4"),
        ("b.wav", "face.png", None, "films/b.mp4"),
    ]
    assert [str(job.reference) for job in jobs_of(several(tmp_path, reference=["face.png", "other.png"]))] == ["face.png", "other.png"]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"reference": ["face.png", "other.png", "face.png"]}, "names 3 files for 2 sounds"),
        ({"out": ["film.mp4"]}, "2 videos go into a folder"),
        ({"audio": ["a.wav", "./a.wav"]}, "two sounds are called 'a'"),
        ({"reference": []}, "--reference is missing"),
        ({"audio": ["a.wav", "absent.wav"]}, "--audio absent.wav"),
    ],
)
def test_files_that_do_not_go_together_are_named(replaced, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(several(tmp_path, **replaced)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "films").exists()


def test_the_model_that_comes_along_streams_films_of_their_own_lengths(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("short", 0.3), ("long", 1.0)):
        with wave.open(f"{name}.wav", "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((8_000 * np.sin(np.arange(round(16_000 * seconds)) / 10)).astype(np.int16).tobytes())
    assert main(["generate", "--audio", "short.wav", "long.wav", "--out", "films", "--refine", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["out"] == ["films/short.mp4", "films/long.mp4"]
    assert (facts["num_chunks"], facts["evaluations_per_chunk"], facts["duration_seconds"]) == (3, 3, 1.44)
    lengths = {}
    for name in ("short", "long"):
        with av.open(f"films/{name}.mp4") as film:
            lengths[name] = sum(1 for _ in film.decode(video=0))
    assert lengths == {"short": 12, "long": 36}
    for wrong in (["--refine", "often"], ["--refine", "0"], ["--refine-sigma", "0.2"], ["--refine", "3", "--refine-sigma", "2"]):
        assert main(["generate", "--audio", "short.wav", "--out", "film.mp4", *wrong]) == 2
        assert "--refine" in capsys.readouterr().err
    assert not Path("film.mp4").exists()


def test_guidance_is_one_scale_or_one_for_text_and_one_for_audio() -> None:
    assert guidance_scales("2") == 2.0
    assert guidance_scales("1,3.5") == (1.0, 3.5)
    for text in ("", "high", "1,2,3", "1,", "nan", "inf,1"):
        with pytest.raises(argparse.ArgumentTypeError, match="TEXT,AUDIO"):
            guidance_scales(text)


def test_fit_length_cuts_and_pads_with_silence() -> None:
    samples = np.arange(1, 5, dtype=np.float32)
    assert fit_length(samples, 2).tolist() == [1, 2]
    assert fit_length(samples, 6).tolist() == [1, 2, 3, 4, 0, 0]

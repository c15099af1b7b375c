"""`flowact generate`: input that cannot work is refused before a checkpoint is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from flowact.cli import main
from flowact.commands.arguments import guidance_scales
from flowact.commands.generate import fit_length


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

"""Damaged files: whatever is in them, the build goes on, nothing hangs, and nothing is short without a word."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fuzzing import Read, mutate, read_or_fault
from media_zoo import TWO_WAY, Style, Track, even, write_film
from worker_items import nothing

from data_tools.footage import to_png, write_sound
from data_tools.workplace import Failed, work

pytest.importorskip("pebble", reason="workers that may die are pebble's")
KINDS = ("mp4", "fragments.mp4", "mkv", "avi", "wav", "png", "json")
LIMIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Kind -> a file without damage."""
    folder = tmp_path_factory.mktemp("whole")
    two_way, films = Style(options=TWO_WAY), {}
    films["mp4"] = write_film(folder / "film.mp4", even(25, 1.6), two_way)
    films["mkv"] = write_film(folder / "film.mkv", even(25, 1.6), Style("mkv", options=TWO_WAY))
    films["fragments.mp4"] = write_film(
        folder / "fragments.mp4", even(25, 1.6), Style(options={**TWO_WAY, "g": "12"}, flags={"movflags": "frag_keyframe+empty_moov+delay_moov"})
    )
    avi = Style("avi", "mpeg4", options={"b": "20000000", "g": "12"}, clock=Fraction(1, 25))
    films["avi"] = write_film(folder / "film.avi", even(25, 1.6), avi, (Track(codec="pcm_s16le"),))
    write_sound(films["mp4"].path, folder / "sound.wav")
    picture = np.linspace(0, 255, 40 * 30 * 3).astype(np.uint8).reshape(40, 30, 3)
    return {
        **{kind: film.path.read_bytes() for kind, film in films.items()},
        "wav": (folder / "sound.wav").read_bytes(),
        "png": to_png(picture),
        "json": json.dumps({"identity": "Anna", "caption": "She nods.", "split": "val", "source": {"license": "CC0-1.0"}}).encode(),
    }


def damaged(folder: Path, kind: str, data: bytes, name: str) -> Path:
    """A file of a kind; a .json lies in a folder of its own with a film to stand beside."""
    path = folder / f"{name}.{kind}"
    path.write_bytes(data)
    if kind == "json":
        path.with_suffix("").mkdir()
        (path.with_suffix("") / "film.mp4").write_bytes(b"stands for a film")
        (path.with_suffix("") / "film.json").write_bytes(data)
    return path


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("number", "seed"), [(42, 0), pytest.param(560, 1, marks=pytest.mark.slow)])
def test_damage_crashes_nothing_hangs_nothing_and_is_told(whole: dict[str, bytes], tmp_path: Path, number: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    kinds = [KINDS[count % len(KINDS)] for count in range(number)]
    paths = [damaged(tmp_path, kind, mutate(whole[kind], generator), f"{count}") for count, kind in enumerate(kinds)]
    found: list[Read | Failed] = list(work(read_or_fault, paths, 2, nothing, (), timeout=LIMIT_SECONDS, keep_going=True))
    results = dict(zip(paths, found, strict=True))
    assert not {path.name: result for path, result in results.items() if isinstance(result, Failed)}
    codes = {path.name: result.code for path, result in results.items() if isinstance(result, Read)}
    assert not {name: code for name, code in codes.items() if code.startswith("fault")}
    assert not {path.name: result for path, result in results.items() if isinstance(result, Read) and result.silently_short}
    told = Counter(path.suffix for path, result in results.items() if isinstance(result, Read) and result.code)
    assert all(told[f".{kind.rpartition('.')[2]}"] for kind in KINDS), f"damages that no reader noticed test nothing: {told}"


def test_files_without_damage_are_read_whole(whole: dict[str, bytes], tmp_path: Path) -> None:
    """What the test above measures is right where nothing is wrong, and sees what is cut."""
    for kind, data in whole.items():
        read = read_or_fault(damaged(tmp_path, kind, data, "whole"))
        assert not read.code, (kind, read)
        assert not read.silently_short
        if kind not in ("png", "json", "wav"):
            assert (read.decoded, read.declared, read.frames) == (40, 40, 40), kind
    assert Read(declared=40, decoded=20, frames=40).silently_short
    assert Read(declared=40, decoded=40, frames=20, seconds=1.6).silently_short

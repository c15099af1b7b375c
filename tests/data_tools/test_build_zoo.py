"""A build over every kind of file that people bring: none stops it, each is in or out with its own reason, and nothing is written elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from media_zoo import BAD, GOOD, ODD_NAMES, Zoo
from recordings import metadata, write_recipe

from data_tools.cli import main
from flowact.data import open_split
from flowact.data.media import decode_sound, decode_video

BAD_FILES = [f"bad-{name}" for name in BAD if name != "folder.mp4"]  # a folder is looked into
STEPS = {"Container": {"min_seconds": 0.5, "min_fps": 5.0, "sound": False}, "Length": {"min_seconds": 0.5}, "Sharpness": {}, "Loudness": {}}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, dict]:
    """A data set of the whole zoo in two processes, and what the build said."""
    folder = tmp_path_factory.mktemp("zoo")
    raw = folder / "raw"
    raw.mkdir()
    zoo = Zoo(raw)
    for name in GOOD:
        zoo.film(name)
    for name in BAD:
        zoo.bad(name)
    for name in ODD_NAMES:
        GOOD["constant.mp4"](raw / name)
    (raw / "out.mp4").symlink_to(Path("/etc/hostname"))
    recipe = write_recipe(folder / "r.yaml", raw, steps=STEPS, output={"size": 64, "val_fraction": 0.0})
    command = ["build", str(recipe), "--out", str(folder / "out"), "-j", "2", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert main(command) == 0
    assert {entry.name for entry in folder.iterdir()} == {"raw", "r.yaml", "out"}
    return folder / "out", json.loads("\n".join(said))


def test_every_file_is_kept_or_told_with_a_reason(built):
    out, said = built
    kept = {entry["source"]["uri"] for entry in metadata(out).values()}
    told = {Path(entry["address"]).name for entry in said["skipped"]}
    rejected = {entry["key"]: entry for entry in said["rejected"]}
    assert not kept & set(BAD_FILES)
    for name in (*GOOD, *BAD_FILES, *ODD_NAMES, "out.mp4"):
        stem = name.rpartition(".")[0]
        assert name in kept or name in told or any(key.startswith(stem) for key in rejected), f"nothing is said about {name!r}"
    assert set(GOOD) - {"one-frame.mp4"} <= kept
    for entry in rejected.values():
        assert entry["reason"]
        assert entry["step"]


def test_damaged_files_have_their_code(built):
    _, said = built
    codes: dict[str, set[str]] = {}
    for name, (_, code) in BAD.items():
        codes.setdefault(f"bad-{name.rpartition('.')[0]}", set()).add(code)
    found = [entry for entry in said["rejected"] if entry["step"] == "Reading"]
    assert len(found) >= 8
    for entry in found:
        stem = max((stem for stem in codes if entry["key"].startswith(stem)), key=len)
        assert entry["value"] in codes[stem], entry


def test_odd_names_are_kept_under_plain_keys(built):
    out, _ = built
    keys = {entry["source"]["uri"]: key for key, entry in metadata(out).items()}
    assert len(set(ODD_NAMES) & set(keys)) >= 5
    for name in set(ODD_NAMES) & set(keys):
        assert all(character.isalnum() or character in "-_" for character in keys[name])
        assert keys[name].isascii()


def test_every_clip_is_as_long_in_picture_sound_and_states(built):
    split = open_split(built[0] / "train")
    for clip in split.clips:
        assert clip.frames % 4 == 1
        assert len(decode_video(split.decode(clip, "mp4"), clip.key)) == clip.frames
        assert len(decode_sound(split.decode(clip, "wav"), clip.key)) == clip.frames * 640
        assert split.decode(clip, "states.npy").shape == (clip.frames,)

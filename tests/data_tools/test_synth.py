"""`flowact-data synth`: whole clips, held-out people and sentences, resumable, the same for any number of processes."""

from __future__ import annotations

import argparse
import io
import json
import wave
from collections import namedtuple
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_tools import synth
from flowact import registry
from flowact.characters.speech import load_speech
from flowact.data.media import encode_video
from flowact.data.schema import check_metadata, from_entries
from flowact.errors import UserError
from flowact.types import SAMPLES_PER_FRAME, STATES

SMALL = ("--train-identities", "3", "--val-identities", "1", "--seconds", "2", "--size", "48")
SUFFIXES = {"mp4", "wav", "json", "states.npy", "truth.npy", "boxes.npy", "ref.png", "txt"}


def run(out: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    return synth.run(parser.parse_args(["--out", str(out), *SMALL, *options]))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "clips"
    assert run(out, "-j", "1") == 0
    return out


def test_every_clip_is_whole(clips):
    for split, count in (("train", 3), ("val", 1)):
        by_key: dict[str, set[str]] = {}
        for path in (clips / split).iterdir():
            key, _, suffix = path.name.partition(".")
            by_key.setdefault(key, set()).add(suffix)
        assert len(by_key) == count
        assert all(suffixes == SUFFIXES for suffixes in by_key.values())


def test_members_agree(clips):
    for path in sorted(clips.rglob("puppet-*.json")):
        metadata = check_metadata(json.loads(path.read_text()), path.name)
        member = {suffix: path.with_name(f"{metadata['key']}.{suffix}") for suffix in SUFFIXES}
        frames = metadata["frames"]
        assert frames == 49  # 4 n + 1
        with wave.open(str(member["wav"])) as sound:
            assert (sound.getnframes(), sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (frames * SAMPLES_PER_FRAME, 16000, 1, 2)
        states, truth = np.load(member["states.npy"]), np.load(member["truth.npy"])
        assert (states.shape, states.dtype) == ((frames,), np.uint8)
        assert truth.shape[0] == frames
        assert truth.dtype == np.float32
        captions = from_entries("captions", metadata)
        assert [state for start, end, state, _ in captions for _ in range(start, end)] == [STATES[state] for state in states]

        with av.open(str(member["mp4"])) as container:
            video = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            assert float(container.streams.video[0].average_rate) == 25
        character = registry.instantiate(metadata["character"], kind="characters")
        exact = character.render(metadata["appearance"], truth)
        assert video.shape == exact.shape
        assert np.abs(video.astype(float) - exact).mean() < 4  # of 255
        readout = character.read(video, metadata["appearance"])
        assert readout.identity_error.mean() < 0.03

        reference = np.asarray(Image.open(member["ref.png"]))
        assert reference.shape == exact.shape[1:]
        assert character.identity_distance(reference[None], metadata["appearance"]) < 0.02
        assert member["txt"].read_text().startswith(metadata["captions"][0]["text"])


def test_people_and_sentences_of_validation_are_never_trained_on(clips):
    metadata = [json.loads(path.read_text()) for path in clips.rglob("puppet-*.json")]
    splits = {piece.name: piece.split for piece in load_speech()}
    assert all(splits[name] == clip["split"] for clip in metadata for name in clip["recordings"])
    people = [json.dumps(clip["appearance"]) for clip in metadata]
    assert len(set(people)) == len(people)


def test_clips_do_not_depend_on_the_number_of_processes(clips, tmp_path):
    assert run(tmp_path / "two", "-j", "2") == 0
    assert contents(tmp_path / "two") == contents(clips)


def test_another_seed_gives_other_people(clips, tmp_path):
    assert run(tmp_path / "seeded", "-j", "1", "--seed", "1", "--limit", "1") == 0
    ours, theirs = (json.loads((folder / "train" / "puppet-train-00000.json").read_text()) for folder in (clips, tmp_path / "seeded"))
    assert ours["appearance"] != theirs["appearance"]


def test_continues_where_it_stopped(clips, tmp_path, monkeypatch):
    out = tmp_path / "resumed"
    assert run(out, "-j", "1", "--limit", "1") == 0
    first = out / "train" / "puppet-train-00000.mp4"
    written = first.stat().st_mtime_ns
    (out / "val" / "puppet-val-00000.json").unlink()  # as if it had been stopped before the clip was whole
    made = []
    make = synth.ClipMaker.make
    monkeypatch.setattr(synth.ClipMaker, "make", lambda self, task: made.append(task.key) or make(self, task))
    assert run(out, "-j", "1") == 0
    assert made == ["puppet-train-00001", "puppet-train-00002", "puppet-val-00000"]
    assert first.stat().st_mtime_ns == written
    assert contents(out) == contents(clips)


def test_a_clip_that_fails_leaves_no_metadata(tmp_path, monkeypatch):
    def fail(frames, **_):
        raise OSError("disk on fire")

    monkeypatch.setattr(synth, "encode_video", fail)
    with pytest.raises(OSError, match="fire"):
        run(tmp_path / "out", "-j", "1")
    assert not list((tmp_path / "out").rglob("puppet-*.json"))


def test_other_settings_and_other_peoples_folders_are_refused(clips, tmp_path):
    with pytest.raises(UserError, match=r"other settings: seed 0, now 5"):
        run(clips, "--seed", "5")
    with pytest.raises(UserError, match=r"frames 49, now 73"):
        run(clips, "--seconds", "3")
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="not empty"):
        run(foreign)
    assert [path.name for path in foreign.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seconds", "0"), "0.2 to 3600"),
        (("--train-identities", "-1"), "at least 0 clips"),
        (("--jobs", "0"), "at least 1 process"),
        (("--character", "Pupet"), "Puppet"),
        (("--size", "4"), "16 pixels"),
    ],
)
def test_impossible_wishes_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_noticed_before_work_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(synth.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(UserError, match="GB free"):
        run(tmp_path / "out")


def test_lengths_become_whole_latents():
    assert [synth.frames_of(seconds) for seconds in (20, 2, 0.2, 10.01)] == [501, 49, 5, 249]


def test_video_keeps_the_colours_of_small_parts():
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[:, 10:12, 10:12] = (230, 60, 180)
    with av.open(io.BytesIO(encode_video(frames, crf=synth.VIDEO_CRF, pixel_format="yuv444p", preset="ultrafast"))) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(decoded[10:12, 10:12].astype(int) - (230, 60, 180)).max() < 40

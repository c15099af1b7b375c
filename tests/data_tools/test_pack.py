from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clip_folder import tone, write_clip, write_folder, write_video

from data_tools.cli import main
from flowact.data import decode_sound, decode_video, encode_sound, iterate_samples, open_split, read_dataset
from flowact.errors import UserError


def pack(clips: Path, out: Path, *options: str) -> int:
    return main(["pack", str(clips), "--out", str(out), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def identities(out: Path, split: str) -> set[str]:
    return {json.loads(members["json"])["identity"] for _, members in iterate_samples(open_split(out / split))} if (out / split).is_dir() else set()


def test_clips_are_copied_as_they_are(tmp_path):
    clips = write_folder(tmp_path / "clips")
    assert pack(clips, tmp_path / "out", "--val-identities", "clip-2") == 0
    info = read_dataset(tmp_path / "out")
    assert {name: counts["samples"] for name, counts in info.splits.items()} == {"train": 5, "val": 1}
    assert info.name == "clips"
    for split in ("train", "val"):
        for clip, members in iterate_samples(open_split(tmp_path / "out" / split)):
            assert set(members) == {"boxes.npy", "json", "mp4", "ref.png", "states.npy", "truth.npy", "txt", "wav"}
            for suffix in ("mp4", "wav", "ref.png", "truth.npy", "boxes.npy"):
                assert members[suffix] == (clips / f"{clip.key}.{suffix}").read_bytes()
            assert json.loads(members["json"])["split"] == split
            assert members["txt"] == b"talks rests"
    states = open_split(tmp_path / "out" / "val")
    assert states.decode(states.clips[0], "states.npy").tolist() == [0] * 10 + [3] * 11


def test_packing_again_gives_the_same_bytes(tmp_path):
    clips = write_folder(tmp_path / "clips")
    for name in ("one", "two"):
        assert pack(clips, tmp_path / name, "--shard-clips", "2", "--val-fraction", "0") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one" / "train").glob("*.tar"))) == 3


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, finished):
    clips = write_folder(tmp_path / "clips")
    write_clip(clips, "silent")
    (clips / "silent.wav").write_bytes(encode_sound(np.zeros(21 * 640, np.int16)))
    pack(clips, tmp_path / "out", "--shard-clips", "2", "--val-fraction", "0")
    whole = contents(tmp_path / "out")
    train = tmp_path / "out" / "train"
    untouched = [path.stat().st_mtime_ns for path in sorted(train.glob("*.tar"))[:finished]]
    for path in sorted(train.glob("*.tar"))[finished:]:
        path.with_suffix(".json").unlink()
        if path.stem != f"{finished:06d}":
            path.unlink()  # one tar stays without an index: killed between the two
    (train / f"{finished + 1:06d}.tar.part").write_bytes(b"half a shard")
    (tmp_path / "out" / "dataset.yaml").unlink()
    assert pack(clips, tmp_path / "out", "--shard-clips", "2", "--val-fraction", "0") == 0
    assert contents(tmp_path / "out") == whole
    assert [path.stat().st_mtime_ns for path in sorted(train.glob("*.tar"))[:finished]] == untouched


def test_other_settings_or_clips_are_refused(tmp_path, capsys):
    clips = write_folder(tmp_path / "clips", 3)
    pack(clips, tmp_path / "out")
    assert pack(clips, tmp_path / "out", "--shard-clips", "1") == 2
    assert "shard_clips was None, now 1" in capsys.readouterr().err
    write_clip(clips, "more")
    assert pack(clips, tmp_path / "out") == 2
    assert "clips was 3, now 4" in capsys.readouterr().err
    assert pack(clips, clips) == 2
    assert "is not empty" in capsys.readouterr().err


def test_two_runs_in_one_folder(tmp_path, capsys):
    from data_tools.workplace import locked

    clips = write_folder(tmp_path / "clips", 2)
    with locked(tmp_path / "out"):
        assert pack(clips, tmp_path / "out") == 2
    assert "another flowact-data run" in capsys.readouterr().err


def test_no_person_is_in_two_splits(tmp_path):
    clips = tmp_path / "clips"
    for number in range(12):
        write_clip(clips, f"clip-{number:02d}", identity=f"person-{number // 2}", truth=False)
    pack(clips, tmp_path / "out", "--val-fraction", "0.3")
    train, val = (identities(tmp_path / "out", split) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val
    assert len(train | val) == 6
    for number in range(12, 24):  # appended clips move nobody
        write_clip(clips, f"clip-{number:02d}", identity=f"person-{number // 2}", truth=False)
    pack(clips, tmp_path / "more", "--val-fraction", "0.3")
    assert train <= identities(tmp_path / "more", "train")
    assert val <= identities(tmp_path / "more", "val")


def test_the_clips_own_split_is_kept(tmp_path, capsys):
    clips = tmp_path / "clips"
    for number in range(4):
        write_clip(clips / ("val" if number == 1 else "train"), f"clip-{number}", split="val" if number == 1 else "train")
    pack(clips, tmp_path / "out")
    assert identities(tmp_path / "out", "val") == {"clip-1"}
    write_clip(clips, "clip-5", identity="clip-1", split="train")
    assert pack(clips, tmp_path / "torn") == 2
    assert "clip-1" in capsys.readouterr().err
    assert pack(clips, tmp_path / "named", "--val-identities", "clip-9") == 2
    assert "Did you mean clip-" in capsys.readouterr().err


def test_bad_clips_are_listed_and_the_rest_is_packed(tmp_path, capsys):
    clips = write_folder(tmp_path / "clips", 3)
    for key in ("silent", "short", "no-truth", "bad-states", "bad-boxes"):
        write_clip(clips, key)
    (clips / "silent.wav").write_bytes(encode_sound(np.zeros(21 * 640, np.int16)))
    (clips / "short.wav").write_bytes(encode_sound(tone(20)))
    (clips / "no-truth.truth.npy").unlink()
    np.save(clips / "bad-states.states.npy", np.full(21, 9, np.uint8))
    np.save(clips / "bad-boxes.boxes.npy", np.tile(np.array([0.8, 0.1, 0.2, 0.9], np.float32), (21, 2, 1)))
    assert pack(clips, tmp_path / "out", "--val-fraction", "0", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["splits"]["train"]["samples"] == 3
    reasons = {entry["name"]: entry["reason"] for entry in result["rejected"]}
    assert set(reasons) == {"silent", "short", "no-truth", "bad-states", "bad-boxes"}
    assert "left <= right" in reasons["bad-boxes"]
    assert "12800 samples, 21 frames need 13440" in reasons["short"]
    assert json.loads((tmp_path / "out" / "rejected-train.json").read_text()) == result["rejected"]


def test_nothing_left(tmp_path, capsys):
    clips = write_folder(tmp_path / "clips", 1)
    (clips / "clip-0.wav").write_bytes(b"no wav")
    assert pack(clips, tmp_path / "out") == 2
    assert "every clip to train on was left out" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert pack(tmp_path / "empty", tmp_path / "out2") == 2
    assert "holds no clips" in capsys.readouterr().err


def test_bad_metadata_is_named(tmp_path, capsys):
    clips = write_folder(tmp_path / "clips", 1)
    good = json.loads((clips / "clip-0.json").read_text())
    for change, match in [
        ({"key": "other"}, "key is 'other'"),
        ({"frames": "21"}, "'frames' is '21'"),
        ({"captions": [[0, 20, "idle", "x"]]}, "captions end at frame 20 of 21"),
        ({"fps": 30}, "30 frames a second"),
    ]:
        (clips / "clip-0.json").write_text(json.dumps({**good, **change}))
        assert pack(clips, tmp_path / "out") == 2
        assert match in capsys.readouterr().err


def test_min_shards(tmp_path):
    clips = write_folder(tmp_path / "clips", 5)
    pack(clips, tmp_path / "out", "--min-shards", "3", "--val-fraction", "0")
    assert read_dataset(tmp_path / "out").splits["train"]["shards"] >= 3


@pytest.mark.parametrize("fps", [25, 30, 24])
def test_videos_become_clips_of_exact_length(tmp_path, fps):
    """What is seen and heard at one second is at frame 25 and sample 16 000, whatever the video's own rates."""
    videos = tmp_path / "videos"
    write_video(videos / "anna" / "a talk.mp4", fps=fps)
    (videos / "anna" / "a talk.txt").write_text("a woman in red\n")
    write_video(videos / "ben" / "b.mp4", fps=fps)
    assert pack(videos, tmp_path / "out", "--val-identities", "ben", "--clip-seconds", "2", "--min-seconds", "0.5", "--size", "32", "-j", "1") == 0
    clips = list(iterate_samples(open_split(tmp_path / "out" / "train")))
    assert sorted(clip.frames for clip, _ in clips) == [25, 50]
    for clip, members in clips:
        metadata = json.loads(members["json"])
        assert metadata["identity"] == "anna"
        assert {caption["text"] for caption in metadata["captions"]} == {"a woman in red"}
        frames, samples = decode_video(members["mp4"], clip.key), decode_sound(members["wav"], clip.key)
        assert frames.shape == (clip.frames, 32, 32, 3)
        assert len(samples) == clip.frames * 640
        if clip.frames == 50:
            bright = frames.mean(axis=(1, 2, 3)) > 128
            assert abs(int(np.argmax(bright)) - 25) <= 1
            assert abs(int(np.argmax(np.abs(samples) > 2000)) - 16_000) < 320
            assert metadata["source"]["end_s"] == 2.0


def test_bad_videos_never_stop_the_run(tmp_path, capsys):
    videos = tmp_path / "videos"
    good = write_video(videos / "good.mp4")
    data = good.read_bytes()
    (videos / "cut.mp4").write_bytes(data[: len(data) // 2])
    (videos / "text.mp4").write_text("not a video")
    (videos / "empty.mp4").write_bytes(b"")
    secret = tmp_path / "secret.mp4"
    write_video(secret)
    (videos / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    write_video(videos / "mute.mp4", sound=False)
    write_video(videos / "brief.mp4", seconds=0.5, change=0.1)
    assert pack(videos, tmp_path / "out", "--val-fraction", "0", "--json", "-j", "1") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["splits"]["train"]["samples"] == 1
    reasons = {entry["name"].partition("-")[0]: entry["reason"] for entry in result["rejected"]}
    assert set(reasons) == {"cut", "text", "empty", "list", "mute", "brief"}
    assert "no sound" in reasons["mute"]
    assert "shorter than --min-seconds" in reasons["brief"]


def test_videos_in_processes_give_the_same_bytes(tmp_path):
    videos = tmp_path / "videos"
    for name in ("a", "b"):
        write_video(videos / f"{name}.mp4", seconds=1.0, change=0.2)
    for jobs in ("1", "2"):
        assert pack(videos, tmp_path / jobs, "--val-fraction", "0", "--min-seconds", "0.5", "-j", jobs) == 0
    assert contents(tmp_path / "1" / "train") == contents(tmp_path / "2" / "train")


def test_numbers_out_of_range(tmp_path, capsys):
    for option, value in (("--shard-mb", "0"), ("--val-fraction", "1"), ("--size", "33"), ("--min-shards", "0")):
        assert pack(tmp_path, tmp_path / "out", option, value) == 2
        assert option in capsys.readouterr().err


def test_room_on_the_disk_is_checked_first(tmp_path, monkeypatch):
    from data_tools import workplace

    monkeypatch.setattr(workplace.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match="needs about"):
        workplace.check_room(tmp_path, 11, "it")

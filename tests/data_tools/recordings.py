"""Recordings for builds: a person whose face is known from boxes beside the clip, moving and speaking, in a few frames that differ."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from flowact.data.media import encode_sound, encode_video

#: where the face is, as shares of the picture
FACE = [0.4, 0.3, 0.6, 0.5]


def write_recording(path: Path, *, frames: int = 60, seed: int = 0, size: int = 48, sound: bool = True) -> Path:
    """PATH.mp4 with its wav and boxes; every frame differs from the last, and recordings of other seeds differ from each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 200, (6, 6, 3)).astype(np.uint8)
    still = np.kron(coarse, np.ones((size // 6, size // 6, 1), np.uint8))
    pictures = np.stack([np.roll(still, frame, axis=1) for frame in range(frames)])
    path.with_suffix(".mp4").write_bytes(encode_video(pictures, crf=12))
    if sound:
        times = np.arange(frames * 640) / 16_000
        wave = 6000 * np.sin(2 * np.pi * (200 + 40 * seed) * times) * (np.sin(2 * np.pi * 3 * times) > 0)
        path.with_suffix(".wav").write_bytes(encode_sound(wave.astype(np.int16)))
    boxes_TX4 = np.tile(np.array([FACE, [0.45, 0.43, 0.55, 0.46]], np.float32), (frames, 1, 1))
    boxes_TX4[:, 1, 3] += (0.03 * (np.sin(2 * np.pi * 3 * np.arange(frames) / 25) > 0)).astype(np.float32)
    np.save(path.with_suffix(".boxes.npy"), boxes_TX4)
    return path.with_suffix(".mp4")


def write_people(folder: Path, people: int = 3, takes: int = 2, frames: int = 60) -> Path:
    """FOLDER/pN/takeM.mp4."""
    for person in range(people):
        for take in range(takes):
            write_recording(folder / f"p{person}" / f"take{take}", seed=10 * person + take, frames=frames)
    return folder


def write_recipe(path: Path, recordings: Path | str, **changes: object) -> Path:
    """A recipe of few cheap steps; `changes` replace its top level, JSON is YAML."""
    recipe: dict[str, object] = {
        "name": "small",
        "input": str(recordings),
        "steps": {"Container": {}, "FaceTracks": {"detector": {"class_path": "SidecarBoxes"}}, "Length": {"min_seconds": 1.0}, "Sharpness": {}},
        "output": {"size": 32, "val_identities": ["p1"]},
    }
    path.write_text(json.dumps({**recipe, **changes}))
    return path


def shards(dataset: Path) -> dict[str, bytes]:
    """What a build promises to make again byte for byte: everything but its working folder."""
    found = {path.relative_to(dataset).as_posix(): path for path in sorted(dataset.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("work/")}


def members(shard: Path) -> dict[str, bytes]:
    """Members of a tar by name."""
    with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive.getmembers()}  # type: ignore[union-attr]


def metadata(dataset: Path) -> dict[str, dict]:
    """KEY.json of every clip by key."""
    found = {}
    for shard in sorted(dataset.glob("*/*.tar")):
        for name, data in members(shard).items():
            if name.endswith(".json"):
                found[name.removesuffix(".json")] = json.loads(data)
    return found

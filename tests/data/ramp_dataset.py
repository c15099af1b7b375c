"""A small dataset without rendering: every feature holds its own frame number, so alignment can be read off."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowact.data.media import encode_sound
from flowact.data.schema import ColumnInfo, DatasetInfo, write_column, write_dataset
from flowact.data.shards import ShardWriter, encode_array, encode_json

STRIDE = 4
ENCODERS = {"latents": "CausalVideoAutoencoder", "audio": "LogMel", "text": "HashedText"}
SHAPES = {
    "latents": {"latents.npy": [2, 1, 1], "reference.npy": [2, 1, 1]},
    "audio": {"audio.npy": [3]},
    "text": {"text.npy": [2, 2]},
}


def caption_list(frames: int) -> list[list]:
    third = frames // 3
    return [[0, third, "speaking", "talks"], [third, 2 * third, "listening", "listens"], [2 * third, frames, "speaking", "talks"]]


def boxes_of(frames: int) -> np.ndarray:
    """Frame t has a face that begins at t/1000 on both axes and is 0.1 wide and high; its mouth is known in even frames only."""
    corner = np.arange(frames, dtype=np.float32)[:, None, None] / 1000
    found = np.concatenate([corner, corner, corner + 0.1, corner + 0.1], axis=2).repeat(2, axis=1)
    found[1::2, 1] = np.nan
    return found


def write_clip(
    writer: ShardWriter,
    key: str,
    frames: int,
    split: str = "train",
    video: bytes = b"no video",
    identity: str = "ana",
    boxes: bool = False,
    more: dict | None = None,
) -> dict:
    metadata = {"key": key, "frames": frames, "identity": identity, "split": split, "captions": caption_list(frames), "fps": 25, **(more or {})}
    sound = np.arange(frames * 640) % 100
    members = {
        "json": encode_json(metadata),
        "mp4": video,
        "ref.png": b"no picture",
        "states.npy": encode_array(np.zeros(frames, np.uint8)),
        "txt": b"talks",
        "wav": encode_sound(sound.astype(np.int16)),
    }
    if boxes:
        members["boxes.npy"] = encode_array(boxes_of(frames))
    writer.write(key, members, frames)
    return metadata


def column_members(column: str, frames: int, captions: list[list], size: tuple[int, int] = (1, 1), number: int = 0) -> dict[str, bytes]:
    """Latent k holds k in channel 0; audio of frame t holds t; text of caption i holds its first frame and 1 + the text's length.

    Reference pictures hold 100, 101, 102 in channel 0 and the clip's number in channel 1. `size` is width and height of the latents.
    """
    if column == "latents":
        latents = np.zeros(((frames - 1) // STRIDE + 1, 2, size[1], size[0]), np.float16)
        latents[:, 0] = np.arange(len(latents))[:, None, None]
        reference = np.full((3, 2, size[1], size[0]), number, np.float16)
        reference[:, 0] = np.asarray([100, 101, 102])[:, None, None]
        return {"latents.npy": encode_array(latents), "reference.npy": encode_array(reference)}
    if column == "audio":
        return {"audio.npy": encode_array(np.repeat(np.arange(frames, dtype=np.float16)[:, None], 3, axis=1))}
    text = np.zeros((len(captions), 2, 2), np.float16)
    for i, (first, _, _, words) in enumerate(captions):
        text[i] = [[first, 1 + len(words)]] * 2
    return {"text.npy": encode_array(text)}


def make_dataset(
    root: Path,
    lengths: dict[str, list[int]],
    per_shard: int = 3,
    boxes: bool = True,
    *,
    name: str = "ramp",
    info: dict | None = None,
    encoders: dict[str, str] | None = None,
    people: list[str] | None = None,
    sizes: list[tuple[int, int]] | None = None,
    scores: list[float] | None = None,
) -> Path:
    """Shards and columns of clips with these numbers of frames.

    Args:
        info: further entries of dataset.yaml.
        encoders: column -> class, instead of ENCODERS.
        people: who is in the clips, in turn.
        sizes: width and height of pictures, in turn; latents have the same.
        scores: `scores.Sync.confidence` of the clips, in turn.
    """
    splits = {}
    for split, frames_of in lengths.items():
        clips = []
        with ShardWriter(root / split, max_samples=per_shard) as writer:
            for number, frames in enumerate(frames_of):
                more: dict = {}
                if sizes:
                    more |= dict(zip(("width", "height"), sizes[number % len(sizes)]))
                if scores:
                    more["scores"] = {"Sync": {"confidence": scores[number % len(scores)]}}
                identity = people[number % len(people)] if people else "ana"
                clips.append(write_clip(writer, f"{split}-{number:03d}", frames, split, boxes=boxes, identity=identity, more=more))
        splits[split] = {"shards": len(writer.finished), "samples": len(clips), "frames": sum(frames_of)}
        for column in ENCODERS:
            encoder = {"class_path": (encoders or ENCODERS)[column], "init_args": {}}
            shapes = {suffix: [2, *sizes[0][::-1]] for suffix in SHAPES[column]} if sizes and column == "latents" else SHAPES[column]
            stride = {"temporal_stride": STRIDE, "spatial_stride": 1} if column == "latents" else {}
            described = ColumnInfo(column, encoder, "0123abcd", shapes, **stride)
            with ShardWriter(root / "columns" / described.folder_name / split, max_samples=per_shard) as writer:
                for number, clip in enumerate(clips):
                    own = {"number": number, "size": sizes[number % len(sizes)] if sizes else (1, 1)} if sizes or people else {}
                    writer.write(clip["key"], column_members(column, clip["frames"], clip["captions"], **own), clip["frames"])
            write_column(root / "columns" / described.folder_name, described)
    write_dataset(root, DatasetInfo(name, splits=splits, **(info or {})))
    return root

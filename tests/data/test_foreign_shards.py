"""Shards that were made elsewhere, with other names for their members and hardly any metadata."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from ramp_dataset import ENCODERS, SHAPES, STRIDE, column_members

from flowact.data import FrameDataModule, ShardDataModule, ShardError, Source, build_index, encode_video, open_split
from flowact.data.foreign import RenamedShard, check_names, completed
from flowact.data.media import count_frames
from flowact.data.schema import ColumnInfo, from_entries, write_column
from flowact.errors import UserError
from flowact.signatures import check_arguments

FRAMES = 37
KEYS = {"mp4": "video.mp4", "txt": "caption.txt", "latents.npy": "latent.npy", "audio.npy": "features.audio.npy"}


def saved(array: np.ndarray) -> bytes:
    """As torch.save writes it, which is a pickle in a zip."""
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(array), buffer)
    return buffer.getvalue()


def write_foreign(root: Path, *, pickled: bool = False, index: bool = True, clips: int = 4) -> Path:
    """Clips as another tool would pack them: no KEY.json, no dataset.yaml, features among the members."""
    (root / "train").mkdir(parents=True)
    video = encode_video(np.zeros((FRAMES, 16, 16, 3), np.uint8))
    with webdataset.TarWriter(str(root / "train" / "part-0.tar"), encoder=False) as writer:
        for number in range(clips):
            latents = column_members("latents", FRAMES, [])["latents.npy"]
            sample = {
                "__key__": f"sub/clip_{number}",
                "video.mp4": video,
                "caption.txt": b"She talks.\n",
                "features.audio.npy": column_members("audio", FRAMES, [])["audio.npy"],
                "text.npy": column_members("text", FRAMES, [[0, FRAMES, "", "She talks."]])["text.npy"],
            }
            sample |= {"latent.pth": saved(np.load(io.BytesIO(latents)))} if pickled else {"latent.npy": latents}
            writer.write(sample)
    if index:
        path = root / "train" / "part-0.tar"
        path.with_suffix(".json").write_bytes(build_index(path).to_bytes())
    for column, encoder in ENCODERS.items():
        stride = {"temporal_stride": STRIDE, "spatial_stride": 1} if column == "latents" else {}
        info = ColumnInfo(column, {"class_path": encoder, "init_args": {}}, "0123abcd", SHAPES[column], **stride)
        (root / "columns" / info.folder_name).mkdir(parents=True)
        write_column(root / "columns" / info.folder_name, info)
    return root


@pytest.mark.parametrize("index", [True, False])
def test_members_are_found_by_their_names(tmp_path, index, caplog, recwarn):
    root = write_foreign(tmp_path, index=index)
    data = ShardDataModule(str(root / "train"), keys=KEYS, batch_size=2, window_frames=4, windows_per_clip=2)
    with caplog.at_level("INFO", "lightning.pytorch"):
        batches = list(data.train_dataloader())
    assert len(batches) == 4
    for batch in batches:
        first = int(batch.keys[0].rpartition("@")[2])
        assert batch.latents_BFCHW[0, :, 0, 0, 0].tolist() == [first + 1 + i for i in range(4)]
        assert batch.audio_BFAD[0, :, :, 0].flatten().tolist() == list(range(4 * first + 1, 4 * first + 17))
        assert batch.text_BNLD[0, 0, 0, 1] == 1 + len("She talks.")
        assert batch.reference_BFCHW[0].flatten().tolist() == [0, 0]  # no candidates there: the clip's first frame
    assert "4 of 4 clips state no identity: each is a person of its own" in caplog.text
    assert "4 of 4 clips state no captions: the whole KEY.txt is their caption" in caplog.text


def test_names_are_given_for_one_set_of_several_too(tmp_path):
    root = write_foreign(tmp_path)
    data = ShardDataModule([Source(str(root / "train"), keys=KEYS)], batch_size=2, window_frames=4)
    assert len(list(data.train_dataloader())) == 16
    for arguments in ({"train": "x", "keys": KEYS}, {"train": [{"folder": "x", "keys": KEYS}]}):
        check_arguments(ShardDataModule, arguments, "data.init_args")


def test_pixels_need_no_metadata(tmp_path):
    root = write_foreign(tmp_path)
    data = FrameDataModule(str(root / "train"), keys={"mp4": "video.mp4"}, batch_size=2, num_frames=9)
    assert next(iter(data.train_dataloader())).frames_BCTHW.shape == (2, 3, 9, 16, 16)
    with pytest.raises(ShardError, match=r"member \.mp4: not in the index; the sample has .*video\.mp4"):
        next(iter(FrameDataModule(str(root / "train"), batch_size=2, num_frames=9).train_dataloader()))


def test_frames_are_counted_when_the_index_is_made(tmp_path):
    root = write_foreign(tmp_path)
    assert [clip.frames for clip in open_split(root / "train").clips] == [FRAMES] * 4
    assert count_frames(b"no video") == 0


def test_pickles_are_refused_and_the_way_is_shown(tmp_path):
    root = write_foreign(tmp_path, pickled=True)
    way = r"never opened.*numpy\.save\('latents\.npy', torch\.load\('latent\.pth', weights_only=True, map_location='cpu'\)\.half\(\)\.numpy\(\)\)"
    with pytest.raises(UserError, match=way):
        ShardDataModule(str(root / "train"), keys={**KEYS, "latents.npy": "latent.pth"})
    with pytest.raises(UserError, match="never opened"):
        Source("x/train", keys={"text.npy": "embedding.pkl"})
    for keys in (None, {"mp4": "video.mp4"}):
        split = open_split(root / "train", keys)
        with pytest.raises(UserError, match=way):
            split.read(split.clips[0], "latents.npy")


def test_the_script_of_the_documentation_converts_pickles(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    (script,) = re.findall(r"```python\n(# convert\.py\n.*?)```", page, re.DOTALL)
    root = write_foreign(tmp_path / "theirs", pickled=True, clips=2)
    (tmp_path / "convert.py").write_text(script)
    subprocess.run([sys.executable, "convert.py", str(root / "train"), str(tmp_path / "ours" / "train")], cwd=tmp_path, check=True)
    (root / "columns").rename(tmp_path / "ours" / "columns")
    keys = {name: theirs for name, theirs in KEYS.items() if name != "latents.npy"}
    data = ShardDataModule(str(tmp_path / "ours" / "train"), keys=keys, batch_size=2, window_frames=4)
    assert len(list(data.train_dataloader())) == 8


def test_nothing_is_lost_under_a_new_name(tmp_path):
    split = open_split(write_foreign(tmp_path) / "train", KEYS)
    shard = split.shards[0]
    assert isinstance(shard, RenamedShard)
    assert split.indexed
    assert set(split.members(split.clips[0])) == {"mp4", "txt", "latents.npy", "audio.npy", "text.npy"}
    assert split.read(split.clips[0], "txt") == b"She talks.\n"
    with pytest.raises(ShardError, match=r"no member \.wav; the sample has"):
        split.read(split.clips[0], "wav")
    renamed = open_split(tmp_path / "train", {"ref.png": "still.png"})
    with pytest.raises(ShardError, match=r"no member \.ref\.png \(\.still\.png by `keys`\)"):
        renamed.read(renamed.clips[0], "ref.png")


def test_our_names_stand_on_the_left():
    with pytest.raises(UserError, match=r"there is no member 'latent\.npy'; on the left stand our names.*Did you mean latents\.npy"):
        check_names({"latent.npy": "latents.npy"})


def test_what_is_stated_is_kept():
    stated = {"identity": "ana", "frames": 8, "more": 1}
    metadata, added = completed(stated, "key", 9, "text")
    assert {**metadata, **stated} == metadata
    assert added == ["captions"]
    assert from_entries("captions", metadata) == [(0, 8, "unknown", "text")]

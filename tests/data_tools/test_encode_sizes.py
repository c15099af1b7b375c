"""Clips whose pictures have several sizes: one column, batches of one size each."""

from __future__ import annotations

from collections import Counter

import torch
from clip_folder import write_video

from data_tools.cli import main
from flowact.autoencoders import CausalVideoAutoencoder, save_autoencoder
from flowact.data import ShardDataModule, open_split, read_column


def test_several_sizes_are_encoded_and_trained_on_by_size(tmp_path):
    for number, size in enumerate([(32, 16), (16, 32), (16, 32), (16, 32), (32, 16), (16, 32)]):
        write_video(tmp_path / "videos" / f"person{number}.mp4", fps=25, seconds=1.0, change=0.5, size=size)
    root = tmp_path / "shards"
    assert main(["pack", str(tmp_path / "videos"), "--out", str(root), "--min-seconds", "0.5", "--shard-clips", "2", "--val-fraction", "0"]) == 0
    torch.manual_seed(0)
    autoencoder = CausalVideoAutoencoder(latent_channels=4, width=8)
    save_autoencoder(autoencoder, autoencoder.spec, tmp_path / "autoencoder")
    assert main(["encode", "all", str(root), "--autoencoder", str(tmp_path / "autoencoder"), "-j", "1"]) == 0
    (latents,) = (root / "columns").glob("latents-*")
    assert read_column(latents).shapes["latents.npy"] == [4, 2, 1]  # of most clips
    split = open_split(root / "train")
    column = split.column(latents)
    for clip in split.clips:
        metadata = split.decode(clip, "json")
        assert column.decode(clip, "latents.npy").shape[2:] == (metadata["height"] // 16, metadata["width"] // 16)
    assert main(["lint", str(root), "-j", "1"]) == 0
    data = ShardDataModule(str(root / "train"), batch_size=2, window_frames=4, windows_per_clip=2, reference="random")
    assert Counter(tuple(batch.latents_BFCHW.shape[3:]) for batch in data.train_dataloader()) == {(1, 2): 2, (2, 1): 4}

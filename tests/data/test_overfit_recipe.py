"""The overfit recipes do what they are for: one clip is learnt by heart."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import ramp_dataset

from flowact.commands.build import build
from flowact.data.shards import encode_array
from flowact.recipe import load_recipe

#: as small as the data below; no checkpoint, since these latents belong to no autoencoder
SMALL = [
    "trainer.callbacks.checkpoint=null", "trainer.callbacks.preview=null", "trainer.logger=false", "vars.steps=150", "data.init_args.batch_size=8",
    *(f"model.init_args.denoiser.init_args.{name}={value}" for name, value in {
        "latent_channels": 2, "text_width": 2, "audio_width": 3, "width": 32, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1,
    }.items()),
]  # fmt: skip


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["train/loss"]))


ramps = ramp_dataset.column_members


def turning(column, frames, captions):
    """Features of unit size: latents go round a circle, sound says how far."""
    if column == "latents":
        angle = np.arange((frames - 1) // ramp_dataset.STRIDE + 1) / 4
        latents = np.stack([np.sin(angle), np.cos(angle)], axis=1)[:, :, None, None].astype(np.float16)
        return {"latents.npy": encode_array(latents), "reference.npy": encode_array(latents[:1])}
    if column == "audio":
        angle = np.arange(frames) / ramp_dataset.STRIDE / 4
        return {"audio.npy": encode_array(np.stack([np.sin(angle), np.cos(angle), 0 * angle], axis=1).astype(np.float16))}
    return ramps(column, frames, captions)


@pytest.mark.slow  # a training of some hundred steps
def test_one_clip_is_learnt_by_heart(tmp_path, monkeypatch):
    monkeypatch.setattr(ramp_dataset, "column_members", turning)
    ramp_dataset.make_dataset(tmp_path / "shards", {"train": [120, 101], "val": [95]})
    run = build(load_recipe("overfit/pretraining.yaml", [f"vars.run={tmp_path}", *SMALL]), quiet=True)
    losses = Losses()
    run.trainer.callbacks.append(losses)
    run.trainer.fit(run.stage, datamodule=run.data)
    assert len(losses.values) == 150
    assert len(run.data._clips["train"].split) == 1
    assert np.mean(losses.values[-10:]) < 0.6 * np.mean(losses.values[:10])

from __future__ import annotations

import pytest

from flowact.data import FrameDataModule, ShardDataModule
from flowact.errors import UserError

MODULES = {ShardDataModule: {"history_frames": 3, "window_frames": 5}, FrameDataModule: {"num_frames": 17}}


@pytest.mark.parametrize("cls", MODULES)
def test_limited_clips_are_the_first_of_each_split(cls, ramp):
    def clips(**options):
        data = cls(str(ramp / "train"), str(ramp / "val"), batch_size=2, **MODULES[cls], **options)
        data.setup("fit")
        return {split: [clip.key for clip in data._clips[split].parts[0].split.clips] for split in ("train", "val")}, len(data.train_dataloader())

    everything, steps = clips()
    assert (len(everything["train"]), steps) == (7, 7 * 8 // 2)
    assert clips(limit_clips=1) == ({split: keys[:1] for split, keys in everything.items()}, 8 // 2)
    assert clips(limit_clips=100) == (everything, steps)
    with pytest.raises(UserError, match="limit_clips is 0; it is at least 1, or null"):
        clips(limit_clips=0)


def test_every_window_is_of_the_clip_that_is_left(ramp):
    data = ShardDataModule(str(ramp / "train"), batch_size=4, limit_clips=1, **MODULES[ShardDataModule])
    keys = {key.partition("@")[0] for batch in data.train_dataloader() for key in batch.keys}
    assert keys == {"train-000"}

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ramp_dataset import STRIDE, caption_list, make_dataset, write_clip

from flowact.data import FrameDataModule, ShardDataModule, ShardError, ShardWriter, encode_video
from flowact.data.datamodule import around
from flowact.data.schema import ColumnInfo, DatasetInfo, read_dataset, write_column, write_dataset
from flowact.errors import UserError
from flowact.types import Batch, FrameBatch


def module(root: Path, **options) -> ShardDataModule:
    options = {"batch_size": 4, "history_frames": 3, "window_frames": 5, "windows_per_clip": 4, "val": str(root / "val"), **options}
    data = ShardDataModule(str(root / "train"), **options)
    data.setup("fit")
    return data


def test_batch_shapes(ramp):
    batch = next(iter(module(ramp).train_dataloader()))
    assert isinstance(batch, Batch)
    assert batch.latents_BFCHW.shape == (4, 8, 2, 1, 1)
    assert batch.reference_BFCHW.shape == (4, 1, 2, 1, 1)
    assert batch.audio_BFAD.shape == (4, 8, STRIDE, 3)
    assert batch.text_BNLD.shape == (4, 4, 2, 2)
    assert batch.text_index_BF.shape == (4, 8)
    assert batch.text_index_BF.dtype == torch.int64
    assert {t.dtype for t in (batch.latents_BFCHW, batch.reference_BFCHW, batch.audio_BFAD, batch.text_BNLD)} == {torch.float32}


def test_sound_and_captions_belong_to_the_same_pixel_frames(ramp):
    """Latent k holds k and covers frames 4k-3..4k; audio of frame t holds t; a caption's feature holds its first frame of its first use."""
    data = module(ramp)
    frames_of = {clip.key: clip.frames for clip in data._clips["train"].parts[0].split.clips}
    seen_first, seen_last, changes = False, False, 0
    for epoch in range(3):
        for batch in data.loader("train") if epoch == 0 else data.train_dataloader():
            for b, name in enumerate(batch.keys):
                key, _, first = name.rpartition("@")
                latent_F = batch.latents_BFCHW[b, :, 0, 0, 0]
                assert latent_F.tolist() == [int(first) + 1 + i for i in range(8)]
                for f, k in enumerate(latent_F.int().tolist()):
                    covered = [4 * k - 3, 4 * k - 2, 4 * k - 1, 4 * k]
                    assert batch.audio_BFAD[b, f, :, 0].tolist() == covered
                    middle = covered[2]
                    words = next(text for start, end, _, text in caption_list(frames_of[key]) if start <= middle < end)
                    assert batch.text_BNLD[b, batch.text_index_BF[b, f], 0, 1] == 1 + len(words)
                changes += len(set(batch.text_index_BF[b].tolist())) - 1
                used = int(batch.text_index_BF[b].max()) + 1
                assert (batch.text_BNLD[b, used:] == 0).all()
                seen_first |= int(first) == 0
                seen_last |= int(latent_F[-1]) == (frames_of[key] - 1) // 4
    assert changes
    assert seen_first
    assert seen_last


def test_a_caption_that_returns_shares_its_slot(ramp):
    data = module(ramp, history_frames=0, window_frames=22, max_captions=2, batch_size=1)
    batch = next(iter(data.loader("train")))
    index = batch.text_index_BF[0].tolist()
    assert index[0] == 0
    assert index[-1] == 0
    assert set(index) == {0, 1}  # talks, listens, talks


def test_boxes_lie_around_those_of_the_same_pixel_frames(ramp):
    data = module(ramp, boxes=True)
    for batch in data.train_dataloader():
        first_B = torch.tensor([int(key.split("@")[1]) for key in batch.keys])
        start_BF = (first_B[:, None] + torch.arange(8)) * STRIDE + 1
        end_BF = start_BF + STRIDE - 1
        corners = [torch.stack([start_BF, start_BF, end_BF + 100, end_BF + 100], dim=-1) / 1000]
        known = [start_BF + start_BF % 2, end_BF - end_BF % 2]
        corners.append(torch.stack([known[0], known[0], known[1] + 100, known[1] + 100], dim=-1) / 1000)
        assert torch.allclose(batch.boxes_BFX4, torch.stack(corners, dim=2), atol=1e-6)
    assert next(iter(module(ramp).train_dataloader())).boxes_BFX4 is None


def test_clips_without_boxes_are_named(tmp_path):
    make_dataset(tmp_path, {"train": [60, 60, 60, 60], "val": [60]}, boxes=False)
    with pytest.raises(UserError, match=r"4 of 4 clips .* no boxes of face and mouth, the first is train-000; set data.boxes to false"):
        module(tmp_path, boxes=True)


def test_boxes_of_nothing_are_unknown():
    found = around(np.full((8, 2, 4), np.nan, np.float32), 4)
    assert found.shape == (2, 2, 4)
    assert np.isnan(found).all()


def test_reference_pictures(ramp):
    found = {name: set() for name in ("first", "random")}
    for name, values in found.items():
        for batch in module(ramp, reference=name).train_dataloader():
            values.update(batch.reference_BFCHW[:, 0, 0, 0, 0].tolist())
    assert found == {"first": {100.0}, "random": {100.0, 101.0, 102.0}}


def test_cache_and_workers_change_nothing(ramp):
    expected = list(module(ramp).train_dataloader())
    for options in ({"cache_bytes": 0}, {"num_workers": 2}, {"cache_bytes": 300}):
        batches = list(module(ramp, **options).train_dataloader())
        assert [batch.keys for batch in batches] == [batch.keys for batch in expected]
        assert all(torch.equal(a.latents_BFCHW, b.latents_BFCHW) and torch.equal(a.text_BNLD, b.text_BNLD) for a, b in zip(batches, expected))


def test_two_processes_have_equal_batches(ramp):
    data = module(ramp)
    ranks = [[batch.keys for batch in data.loader("train", rank, 2)] for rank in range(2)]
    assert [len(batches) for batches in ranks] == [3, 3]
    with pytest.raises(UserError, match="shards fewer than processes"):
        module(ramp, windows_per_clip=1).loader("train", 0, 8)


def test_validation_uses_what_there_is(ramp):
    batches = list(module(ramp, batch_size=100, windows_per_clip=1).val_dataloader())
    assert [len(batch.keys) for batch in batches] == [2]


def test_short_clips_are_counted_and_can_be_excluded(ramp, tmp_path):
    with pytest.raises(UserError, match=r"7 of 7 clips .* need 201 pixel frames; lower window_frames .* at most 32"):
        module(ramp, window_frames=47)
    with pytest.raises(UserError, match=r"2 of 7 clips.*'train/000000/train-000', 'train/000001/train-004'"):
        module(ramp, window_frames=20)
    root = tmp_path / "shards"
    shutil.copytree(ramp, root)
    info = read_dataset(root)
    write_dataset(root, DatasetInfo(**{**info.__dict__, "exclude": ("train/000000/train-000", "train/000001/train-004")}))
    keys = {key.partition("@")[0] for batch in module(root, window_frames=20).train_dataloader() for key in batch.keys}
    assert keys
    assert not keys & {"train-000", "train-004"}


def test_too_many_captions(ramp):
    with pytest.raises(UserError, match=r"holds 2 different captions, max_captions is 1"):
        module(ramp, max_captions=1)


def test_conditions_need_no_shard(ramp, tmp_path):
    root = tmp_path / "shards"
    shutil.copytree(ramp, root)
    for path in root.rglob("*.tar"):
        path.unlink()
    conditions = ShardDataModule(str(root / "train")).conditions
    assert conditions["latent_space"] == "0123abcd"
    assert conditions["encoders"]["audio"] == {"class_path": "LogMel", "init_args": {}}
    assert (conditions["temporal_stride"], conditions["fps"]) == (4, 25)
    assert (conditions["latent_shape"], conditions["text_shape"], conditions["audio_shape"]) == ([2, 1, 1], [2, 2], [4, 3])
    assert str(tmp_path) not in str(ShardDataModule(str(root / "train")).lineage)


def test_columns_are_chosen_by_name(ramp, tmp_path):
    root = tmp_path / "shards"
    shutil.copytree(ramp, root)
    old = next((root / "columns").glob("audio-*"))
    other = ColumnInfo("audio", {"class_path": "WhisperAudio", "init_args": {}}, "9999aaaa", {"audio.npy": [3]})
    shutil.copytree(old, root / "columns" / other.folder_name)
    write_column(root / "columns" / other.folder_name, other)
    with pytest.raises(UserError, match=r"2 audio columns.*audio=NAME"):
        module(root)
    assert module(root, audio=other.folder_name).conditions["encoders"]["audio"]["class_path"] == "WhisperAudio"
    with pytest.raises(UserError, match="Did you mean audio-WhisperAudio-9999aaaa"):
        module(root, audio="audio-WhisperAudio-9999aaab")
    shutil.rmtree(root / "columns")
    with pytest.raises(UserError, match="flowact-data encode latents"):
        module(root)


def test_features_of_another_shape_are_named(ramp, tmp_path):
    root = tmp_path / "shards"
    shutil.copytree(ramp, root)
    folder = next((root / "columns").glob("audio-*"))
    write_column(folder, ColumnInfo("audio", {"class_path": "LogMel", "init_args": {}}, "0123abcd", {"audio.npy": [5]}))
    with pytest.raises(ShardError, match=r"train/.*audio\.npy has shape .*, 3\], expected .*, 5\]"):
        next(iter(module(root).train_dataloader()))


def test_bad_options():
    for options in ({"window_frames": 0}, {"history_frames": -1}, {"max_captions": 0}, {"reference": "last"}):
        with pytest.raises(UserError, match=next(iter(options))):
            ShardDataModule("x/train", **options)


class Recorder(pl.LightningModule):
    """Writes down what it was trained on."""

    def __init__(self, crash_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(batch.keys)
        return self.weight * batch.latents_BFCHW.mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated = batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(root: Path, folder: Path, steps: int, num_workers: int, resume: Path | None = None) -> list[tuple[str, ...]]:
    recorder = Recorder()
    save = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[save],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    trainer.fit(recorder, module(root, num_workers=num_workers), ckpt_path=resume, weights_only=True)
    return recorder.seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lightning_run_resumes_exactly(ramp, tmp_path, num_workers):
    """7 steps an epoch; stopped inside, at the last step of, and after an epoch. The checkpoint loads without unpickling."""
    expected = train(ramp, tmp_path / "whole", 10, num_workers)
    assert len(expected) == 10
    for stop in (3, 7, 8):
        rest = train(ramp, tmp_path / f"rest{stop}", 10, num_workers, tmp_path / "whole" / f"step={stop}.ckpt")
        assert rest == expected[stop:]


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    """Clips whose frame t is grey of value 2 t (and + 1 for the clip), so that a window can be read off."""
    root = tmp_path_factory.mktemp("grey") / "shards"
    for split, count in (("train", 4), ("val", 1)):
        with ShardWriter(root / split, max_samples=2) as writer:
            for number in range(count):
                frames = np.zeros((60, 16, 16, 3), np.uint8) + (4 * np.arange(60, dtype=np.uint8))[:, None, None, None]
                video = encode_video(frames, crf=1, pixel_format="yuv444p")
                write_clip(writer, f"{split}-{number}", 60, split, video)
    write_dataset(root, DatasetInfo("grey"))
    return root


def frame_module(root: Path, **options) -> FrameDataModule:
    data = FrameDataModule(str(root / "train"), str(root / "val"), **{"batch_size": 3, "num_frames": 9, "windows_per_clip": 6, **options})
    data.setup("fit")
    return data


@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0}, {"cache_bytes": 60 * 16 * 16 * 3 + 100}, {"num_workers": 2}])
def test_frames_are_those_of_the_key(grey, options):
    """From memory and by seeking, the window starts at the frame that its key names."""
    data = frame_module(grey, **options)
    for _ in range(2):
        for batch in data.train_dataloader():
            assert isinstance(batch, FrameBatch)
            assert batch.frames_BCTHW.shape == (3, 3, 9, 16, 16)
            assert batch.frames_BCTHW.min() >= -1
            assert batch.frames_BCTHW.max() <= 1
            for b, name in enumerate(batch.keys):
                first = int(name.rpartition("@")[2])
                grey_T = (batch.frames_BCTHW[b].mean(dim=(0, 2, 3)) + 1) * 127.5 / 4
                assert torch.allclose(grey_T, first + torch.arange(9.0), atol=0.45)


def test_frame_windows_resume(grey):
    expected = [batch.keys for batch in frame_module(grey).train_dataloader()]
    loader = frame_module(grey).train_dataloader()
    seen = [batch.keys for batch, _ in zip(loader, range(3))]
    resumed = frame_module(grey).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert seen[:3] + [batch.keys for batch in resumed] == [*expected[:3], *expected[4:]]  # zip took a fourth batch


def test_frames_of_a_cut_video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    video = encode_video(frames)
    for data in (video[: len(video) * 2 // 3], b"not a video", encode_video(frames[:20])):
        root = tmp_path / str(len(data))
        with ShardWriter(root / "train") as writer:
            write_clip(writer, "clip", 40, video=data)
        with pytest.raises(UserError, match="train/000000/clip"):
            list(FrameDataModule(str(root / "train"), batch_size=1, num_frames=25).train_dataloader())


def test_clips_shorter_than_frames(grey):
    with pytest.raises(UserError, match=r"4 of 4 clips .* num_frames=61.* shortest 60"):
        frame_module(grey, num_frames=61)


def test_a_missing_shard_stops_before_training(tmp_path):
    root = make_dataset(tmp_path / "shards", {"train": [90] * 4, "val": [90]})
    (root / "train" / "000001.tar").unlink()
    with pytest.raises(ShardError, match="000001"):
        module(root)

"""Data modules with several data sets and pictures of several sizes."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import ramp_dataset
from ramp_dataset import ENCODERS, make_dataset

from flowact.commands.build import build
from flowact.data import FrameDataModule, ShardDataModule, ShardError, ShardWriter, Source, encode_video
from flowact.data.schema import DatasetInfo, read_column, write_column, write_dataset
from flowact.errors import UserError
from flowact.recipe import load_recipe

OPTIONS = {"batch_size": 4, "history_frames": 3, "window_frames": 5, "windows_per_clip": 4}


@pytest.fixture(scope="module")
def anna(tmp_path_factory) -> Path:
    """Eight clips."""
    return make_dataset(tmp_path_factory.mktemp("anna"), {"train": [90] * 8, "val": [90]}, name="anna")


@pytest.fixture(scope="module")
def bob(tmp_path_factory) -> Path:
    """Four longer clips; their reference pictures hold their numbers."""
    return make_dataset(tmp_path_factory.mktemp("bob"), {"train": [130] * 4, "val": [130, 130]}, name="bob", people=["bob"])


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Ten clips, every other one wide."""
    return make_dataset(tmp_path_factory.mktemp("wide"), {"train": [90] * 10, "val": [90] * 4}, name="wide", sizes=[(2, 2), (3, 1)])


def module(*train, **options) -> ShardDataModule:
    sources = [each if isinstance(each, Source) else str(each / "train") for each in train]
    data = ShardDataModule(sources[0] if len(sources) == 1 and isinstance(sources[0], str) else sources, **{**OPTIONS, **options})
    data.setup("fit")
    return data


def batches_of(data: ShardDataModule, epochs: int = 1) -> list:
    loader = data.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


def test_sets_share_an_epoch_by_weight(anna, bob):
    for sources, expected in (((anna, bob), (32, 16)), ((Source(str(anna / "train"), 1), Source(str(bob / "train"), 3)), (12, 36))):
        data = module(*sources, reference="first")
        assert sum(len(batch.keys) for batch in data.train_dataloader()) == 48
        counters = data.counters()
        assert (counters["data/anna/windows"], counters["data/bob/windows"]) == expected
        assert (counters["data/anna/epochs"], counters["data/bob/epochs"]) == (expected[0] / 32, expected[1] / 16)


def test_windows_are_those_of_their_own_set(anna, bob):
    """A mix reads for a clip what that set alone holds: reference pictures tell the sets apart, sound and latents stay together."""
    seen = set()
    for batch in batches_of(module(anna, bob, reference="first")):
        for b, name in enumerate(batch.keys):
            first = int(name.rpartition("@")[2])
            latent_F = batch.latents_BFCHW[b, :, 0, 0, 0]
            assert latent_F.tolist() == [first + 1 + i for i in range(8)]
            assert batch.audio_BFAD[b, :, :, 0].flatten().tolist() == list(range(4 * first + 1, 4 * first + 33))
            seen.add((name.partition("@")[0], float(batch.reference_BFCHW[b, 0, 1, 0, 0])))
    assert {("train-003", 3.0), ("train-003", 0.0), ("train-007", 0.0)} <= seen  # bob's, anna's, and a clip that only anna has


def test_one_set_in_a_list_is_that_set(anna):
    alone = batches_of(module(anna), 2)
    listed = batches_of(module(Source(str(anna / "train"), weight=7)), 2)
    assert [batch.keys for batch in alone] == [batch.keys for batch in listed]
    assert module(anna).counters() == {}


def test_what_a_mix_gives_is_said_once(anna, bob, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        batches_of(module(Source(str(anna / "train"), 1), Source(str(bob / "train"), 3)), 3)
    told = [line for line in caplog.text.splitlines() if "windows of an epoch" in line]
    assert len(told) == 2
    assert "anna: 12 of 48 windows of an epoch (25.0%), 0.38 times its own 32" in told[0]
    assert "bob: 36 of 48 windows of an epoch (75.0%), 2.25 times its own 16: it is smaller than its weight asks for" in told[1]


def test_a_mix_resumes_exactly_and_ranks_agree(anna, wide):
    options = {"num_workers": 0, "batch_size": 2}
    sources = [Source(str(wide / "train"), 2), Source(str(anna / "train"), 1)]
    expected = [batch.keys for batch in batches_of(module(*sources, batch_size=4), 2)]
    ranks = [module(*sources, **options).loader("train", rank, 2) for rank in range(2)]
    seen = [list(islice(loader, 5)) for loader in ranks]
    shapes = [[batch.latents_BFCHW.shape for batch in batches] for batches in seen]
    assert shapes[0] == shapes[1]
    resumed = module(*sources, batch_size=4).train_dataloader()
    resumed.load_state_dict(ranks[1].state_dict())
    rest = [batch.keys for _ in range(2) for batch in resumed]
    assert [a.keys + b.keys for a, b in zip(*seen)] + rest == expected


def test_clips_of_several_sizes_are_batched_by_size(wide, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        batches = batches_of(module(wide, reference="other"))
    shapes = Counter(tuple(batch.latents_BFCHW.shape[2:]) for batch in batches)
    assert shapes == {(2, 2, 2): 5, (2, 1, 3): 5}
    assert all(batch.reference_BFCHW.shape[2:] == batch.latents_BFCHW.shape[2:] for batch in batches)
    assert "2x2 latents: 20 windows, 5 steps of 4 an epoch" in caplog.text
    validation = module(wide, val=str(wide / "val")).val_dataloader()
    assert {tuple(batch.latents_BFCHW.shape[3:]) for batch in validation} == {(2, 2), (1, 3)}


def test_latents_of_another_size_than_stated_are_named(tmp_path):
    def squeezed(column, frames, captions, size=(1, 1), number=0):
        return original(column, frames, captions, (size[0], 1), number)

    original = ramp_dataset.column_members
    ramp_dataset.column_members = squeezed
    try:
        root = make_dataset(tmp_path, {"train": [90] * 4}, sizes=[(2, 2)])
    finally:
        ramp_dataset.column_members = original
    with pytest.raises(ShardError, match=r"latents\.npy has shape \[23, 2, 1, 2\], expected \[23, 2, 2, 2\]"):
        batches_of(module(root))


def test_sets_that_do_not_mean_the_same_are_refused(anna, tmp_path):
    other = make_dataset(tmp_path / "a", {"train": [90] * 4}, info={"sample_rate": 8000, "states": ("talking", "quiet")})
    differing = r"can not be mixed with .*sample rate is 8000, there it is 16000; states is talking, quiet, there it is speaking"
    with pytest.raises(UserError, match=differing):
        module(anna, other)
    whisper = make_dataset(tmp_path / "b", {"train": [90] * 4}, encoders={**ENCODERS, "audio": "WhisperAudio"})
    with pytest.raises(UserError, match=r"audio column is audio-WhisperAudio-0123abcd, there it is audio-LogMel-0123abcd; encode both with one"):
        module(anna, whisper)
    hashes = make_dataset(tmp_path / "c", {"train": [90] * 4})
    for folder in (hashes / "columns").glob("text-*"):
        info = read_column(folder)
        renamed = folder.rename(folder.with_name(folder.name.replace("0123abcd", "99999999")))
        write_column(renamed, type(info)(**{**vars(info), "hash": "99999999"}))
    with pytest.raises(UserError, match="text column is text-HashedText-99999999"):
        module(anna, hashes)


def test_weights_are_given_to_all_or_none(anna, bob):
    with pytest.raises(UserError, match=r"anna.*train has no weight and others have"):
        ShardDataModule([str(anna / "train"), Source(str(bob / "train"), 2)])
    with pytest.raises(UserError, match="train is an empty list"):
        ShardDataModule([])


def test_several_validation_sets(anna, bob):
    data = module(anna, bob, val=[str(anna / "val"), str(bob / "val")])
    assert data.val == str(anna / "val")
    keys = [key for batch in data.val_dataloader() for key in batch.keys]
    assert len(keys) == 3 * 4
    assert keys == [key for batch in data.val_dataloader() for key in batch.keys]


def test_a_recipe_builds_a_mix(anna, bob, tmp_path, monkeypatch):
    (tmp_path / "mixed.yaml").write_text(
        "_base_: debug/pretraining.yaml\n"
        "data:\n  init_args:\n    reference: far\n    train:\n"
        f"      - {{folder: {anna}/train, weight: 2}}\n      - {{folder: {bob}/train, weight: 1}}\n"
    )
    small = ["trainer.callbacks.checkpoint=null", "trainer.callbacks.preview=null", "trainer.logger=false", f"data.init_args.columns={anna}/columns"]
    data = build(load_recipe(tmp_path / "mixed.yaml", small)).data
    assert [(source.folder, source.weight) for source in data.sources["train"]] == [(f"{anna}/train", 2), (f"{bob}/train", 1)]
    assert data.reference == "far"


def test_pixels_of_several_sizes_and_sets(tmp_path):
    for name, sizes in (("square", [(16, 16)]), ("mixed", [(16, 16), (32, 16)])):
        with ShardWriter(tmp_path / name / "train") as writer:
            for number in range(4):
                width, height = sizes[number % len(sizes)]
                video = encode_video(np.full((20, height, width, 3), 50 * number, np.uint8))
                more = {"width": width, "height": height}
                ramp_dataset.write_clip(writer, f"{name}-{number}", 20, video=video, more=more)
        write_dataset(tmp_path / name, DatasetInfo(name))
    folders = [str(tmp_path / name / "train") for name in ("square", "mixed")]
    data = FrameDataModule(folders, batch_size=2, num_frames=9, windows_per_clip=2)
    shapes = Counter(tuple(batch.frames_BCTHW.shape[3:]) for batch in data.train_dataloader())
    assert shapes == {(16, 16): 6, (16, 32): 2}


def test_a_stage_trains_on_several_sizes_and_sets(wide, anna, tmp_path):
    """Through the whole stack; a run that was stopped goes on with the sizes that would have come."""
    small = {"latent_channels": 2, "text_width": 2, "audio_width": 3, "width": 32, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1}
    options = [
        "trainer.callbacks.checkpoint=null", "trainer.callbacks.preview=null", "trainer.callbacks.average=null", "trainer.logger=false",
        "data.init_args.columns=null", "vars.steps=9", "data.init_args.windows_per_clip=1", "data.init_args.val=null", "trainer.limit_val_batches=0",
        *(f"model.init_args.denoiser.init_args.{name}={value}" for name, value in small.items()),
    ]  # fmt: skip
    (tmp_path / "sizes.yaml").write_text(
        f"_base_: debug/pretraining.yaml\ndata:\n  init_args:\n    train: [{wide}/train, {anna}/train]\n"
    )

    class Seen(pl.Callback):
        def __init__(self):
            self.shapes, self.losses = [], []

        def on_train_batch_end(self, trainer, stage, outputs, batch, index):
            self.shapes.append(tuple(batch.latents_BFCHW.shape[3:]))
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def fit(steps: int, resume: Path | None = None) -> tuple[Seen, Path, dict[str, float]]:
        run, seen = build(load_recipe(tmp_path / "sizes.yaml", [*options, f"trainer.max_steps={steps}"]), quiet=True), Seen()
        run.trainer.callbacks.append(seen)
        run.trainer.fit(run.stage, datamodule=run.data, ckpt_path=resume, weights_only=True)
        path = tmp_path / f"{steps}.ckpt"
        run.trainer.save_checkpoint(path)
        return seen, path, run.data.counters()

    whole, _, counters = fit(9)
    first, path, _ = fit(4)
    rest, _, resumed = fit(9, path)
    # an epoch of 18 windows and a step of 2
    assert sum(value for name, value in counters.items() if name.endswith("windows")) == 20
    assert resumed == counters
    assert set(whole.shapes) == {(2, 2), (1, 3), (1, 1)}
    assert first.shapes + rest.shapes == whole.shapes
    assert first.losses == whole.losses[:4]

"""Licence and consent go from the shards into the checkpoint of every stage, and on to its descendants."""

from __future__ import annotations

import logging
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ramp_dataset import ENCODERS, make_dataset, write_clip

from flowact.autoencoders import CausalVideoAutoencoder, save_autoencoder
from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.checkpoints import open_checkpoint
from flowact.data import FrameDataModule, ShardDataModule, ShardWriter
from flowact.data.rights import UNKNOWN, TrainingData, count_rights, silent, stated, total, trained_on
from flowact.data.split import open_split
from flowact.memory import NoMemory
from flowact.models import MMDiT
from flowact.schedulers import UniformLevel
from flowact.stages import AutoencoderTraining, ChunkwiseDiffusionForcing
from flowact.writers import Mp4Writer

SHAPE = {"latent_channels": 2, "text_width": 2, "audio_width": 3, "width": 16, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
SIGNED = {"license": "CC-BY-4.0", "consent": "signed 2026-01"}


@pytest.fixture
def told(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if "clips state no" in record.getMessage()]


def shards(root, name, sources, people=("ana",)):
    """A data set whose clips state these sources, in turn."""
    make_dataset(root, {"train": [60] * len(sources)}, name=name)
    for path in (root / "train").iterdir():
        path.unlink()
    with ShardWriter(root / "train", max_samples=3) as writer:
        for number, source in enumerate(sources):
            more = {} if source is None else {"source": source}
            write_clip(writer, f"train-{number:03d}", 60, boxes=True, identity=people[number % len(people)], more=more)
    arguments = {"latent_channels": 2, "width": 8}
    column = next((root / "columns").glob(f"latents-{ENCODERS['latents']}-*"))
    spec = {"class_path": "CausalVideoAutoencoder", "init_args": arguments}
    save_autoencoder(CausalVideoAutoencoder(**arguments), spec, column / "autoencoder")
    return root


def fit(cls, root, folder, parent=None, **options):
    """One step of a stage, as `flowact fit` does it; the lineage that its checkpoint holds."""
    torch.manual_seed(0)
    stage = cls(MMDiT(**SHAPE), NoMemory(), UniformLevel(), chunk_frames=2, num_chunks=2)
    stage.recipe = {"model": {"init_args": {}}}
    if parent is not None:
        stage.initialise_from(parent)
    data = ShardDataModule(train=str(root / "train"), batch_size=2, window_frames=4, reference="first", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(max_steps=1, callbacks=[CheckpointFolder(str(folder))], **QUIET).fit(stage, datamodule=data)
    return open_checkpoint(folder).lineage


def test_a_training_leaves_licence_and_consent_in_its_checkpoint_and_in_its_descendants(tmp_path, told):
    crowd = shards(tmp_path / "crowd", "crowd", [SIGNED, SIGNED | {"license": "CC0-1.0"}, None], ("ana", "bob", "cem"))
    own = shards(tmp_path / "anna", "anna", [{"license": "proprietary", "consent": "contract 7"}] * 2)
    first = fit(ChunkwiseDiffusionForcing, crowd, tmp_path / "first")
    expected = {
        "name": "crowd", "clips": 3, "seconds": 7.2, "people": 3, "character": None, "states": ["listening", "speaking"],
        "licenses": {"CC-BY-4.0": 1, "CC0-1.0": 1, UNKNOWN: 1}, "consents": {"signed 2026-01": 2, UNKNOWN: 1},
    }  # fmt: skip
    assert first["training_data"] == [expected]
    assert len(told()) == 1
    assert "1 of 3 clips state no licence and 1 of 3 clips state no consent" in told()[0]

    second = fit(ChunkwiseDiffusionForcing, own, tmp_path / "second", tmp_path / "first")
    assert [entry["name"] for entry in second["training_data"]] == ["anna"]
    assert second["ancestors"][0]["training_data"] == [expected]
    assert len(told()) == 1, "all of these clips state both"
    stages = trained_on(second)
    assert [entry["stage"] for entry in stages] == ["diffusion_forcing"] * 2
    sets = [data for entry in stages for data in entry["training_data"]]
    assert total(sets, "licenses") == {"CC-BY-4.0": 1, "CC0-1.0": 1, "proprietary": 2, UNKNOWN: 1}
    assert total(sets, "consents") == {"contract 7": 2, "signed 2026-01": 2, UNKNOWN: 1}


def test_an_autoencoder_says_what_it_was_trained_on(tmp_path):
    root = tmp_path / "films"
    with Mp4Writer(tmp_path / "film.mp4", 32, 32, scale=1) as film:
        film.write(np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8), np.zeros(9 * 640, np.float32))
    with ShardWriter(root / "train") as writer:
        for number, source in enumerate((SIGNED, None)):
            more = {} if source is None else {"source": source}
            write_clip(writer, f"clip-{number}", 9, video=(tmp_path / "film.mp4").read_bytes(), more=more)
    stage = AutoencoderTraining(CausalVideoAutoencoder(latent_channels=2, width=8), principal_clips=0)
    data = FrameDataModule(train=str(root / "train"), batch_size=1, num_frames=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(max_steps=1, callbacks=[CheckpointFolder(str(tmp_path / "ae"))], **QUIET).fit(stage, datamodule=data)
    (entry,) = open_checkpoint(tmp_path / "ae").lineage["training_data"]
    assert (entry["name"], entry["clips"]) == ("films", 2)
    assert (entry["licenses"], entry["consents"]) == ({"CC-BY-4.0": 1, UNKNOWN: 1}, {"signed 2026-01": 1, UNKNOWN: 1})


def test_only_clips_that_are_trained_on_count(tmp_path):
    root = shards(tmp_path / "crowd", "crowd", [SIGNED, None, None], ("ana", "bob", "bob"))
    (entry,) = fit(ChunkwiseDiffusionForcing, root, tmp_path / "out", where=["identity == ana"])["training_data"]
    assert (entry["clips"], entry["licenses"], entry["people"]) == (1, {"CC-BY-4.0": 1}, 1)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"source": {"license": "CC0-1.0"}}, "CC0-1.0"),
        ({"source": {"license": " two\nlines "}}, "two lines"),
        *(({"source": source}, UNKNOWN) for source in ({"license": "None"}, {"license": 0}, {}, None, "youtube")),
        ({}, UNKNOWN),
    ],
)
def test_what_states_nothing_is_unknown(metadata, text):
    assert stated(metadata, "license") == text


def test_shards_made_elsewhere_state_nothing(tmp_path):
    root = shards(tmp_path / "foreign", "foreign", [None, None])
    (root / "dataset.yaml").unlink()
    found = count_rights(open_split(root / "train"))
    assert (found.name, found.clips, found.licenses, found.consents) == ("foreign", 2, {UNKNOWN: 2}, {UNKNOWN: 2})


def test_teachers_count_and_nothing_twice():
    teacher = {"stage": "pretraining", "step": 9, "training_data": [{"name": "t", "licenses": {"MIT": 4}}]}
    parent = {"stage": "self_forcing", "step": 2, "training_data": [{"name": "a", "licenses": {"CC0-1.0": 5}}]}
    own = {"stage": "distribution_matching", "step": 3, "training_data": [{"name": "a", "licenses": {"CC0-1.0": 5}}], "teachers": [teacher]}
    stages = trained_on({"ancestors": [{"stage": "pretraining", "step": 1}, parent], **own})
    assert [entry["stage"] for entry in stages] == ["pretraining", "self_forcing", "pretraining", "distribution_matching"]
    assert stages[0]["training_data"] is None
    sets = [data for entry in stages for data in entry["training_data"] or []]
    assert total(sets, "licenses") == {"CC0-1.0": 5, "MIT": 4}


def test_a_set_that_states_everything_is_not_remarked_upon():
    entry = TrainingData("a", 2, 1.0, 1, {"CC0-1.0": 2}, {"signed": 2})
    assert silent([entry]) == ""

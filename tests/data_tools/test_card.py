from __future__ import annotations

import json
import shutil

import pytest
import yaml
from made_dataset import write_dataset_folder

from data_tools.card import is_ours, write_card
from data_tools.cli import main
from flowact.data import decode_sound, decode_video, open_split


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_dataset_folder(tmp_path_factory.mktemp("card"), truth=True)


@pytest.fixture
def dataset(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


def front_matter(path):
    return yaml.safe_load(path.read_text().split("---")[1])


def test_front_matter_finds_the_shards_and_nothing_else(dataset):
    front = front_matter(write_card(dataset))
    for entry in front["configs"][0]["data_files"]:
        split = {"train": "train", "validation": "val"}[entry["split"]]
        assert sorted(dataset.glob(entry["path"])) == sorted((dataset / split).glob("*.tar"))
    assert front["license"] == "cc0-1.0"
    split = open_split(dataset / "train")
    assert {feature["name"] for feature in front["dataset_info"]["features"]} == {*split.shards[0].entries[0].members, "__key__", "__url__"}


def test_the_same_dataset_gives_the_same_card(dataset):
    first = write_card(dataset).read_bytes()
    assert write_card(dataset).read_bytes() == first


def test_what_is_not_stated_is_said(tmp_path):
    from clip_folder import write_folder

    write_folder(tmp_path / "clips", 3)
    path = tmp_path / "clips" / "clip-1.json"
    metadata = json.loads(path.read_bytes())
    path.write_text(json.dumps({**metadata, "source": {}}))
    assert main(["pack", str(tmp_path / "clips"), "--out", str(tmp_path / "shards"), "--val-fraction", "0"]) == 0
    card = write_card(tmp_path / "shards")
    assert "1 of 3 clips state no licence" in card.read_text()
    assert "1 of 3 clips state no consent" in card.read_text()
    assert front_matter(card)["license"] == "unknown"


def test_a_card_of_ones_own_stays(dataset, capsys):
    (dataset / "README.md").write_text("mine")
    assert not is_ours(dataset / "README.md")
    assert main(["stats", str(dataset), "--write"]) == 0
    assert (dataset / "README.md").read_text() == "mine"
    assert "stays as it is" in capsys.readouterr().err


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_reads_folder_and_shards(dataset, tmp_path, streaming):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'datasets>=4.7'")
    write_card(dataset)
    split = open_split(dataset / "train")
    by_folder = datasets.load_dataset(str(dataset), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
    files = {"train": str(dataset / "train" / "*.tar")}
    by_files = datasets.load_dataset(
        "webdataset", data_files=files, features=by_folder.features, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    for samples in (by_folder, by_files):
        rows = list(samples)
        assert [row["__key__"] for row in rows] == [clip.key for clip in split.clips]
        for row, clip in zip(rows, split.clips):
            assert row["json"] == split.decode(clip, "json")
            assert row["mp4"] == split.read(clip, "mp4")
            assert decode_video(row["mp4"], clip.key).shape == (21, 16, 16, 3)
            assert len(decode_sound(row["wav"], clip.key)) == 21 * 640
            assert list(row["states.npy"]) == split.decode(clip, "states.npy").tolist()
            assert row["ref.png"].size == (16, 16)
    validation = datasets.load_dataset(str(dataset), split="validation", streaming=True)
    assert [row["__key__"] for row in validation] == [clip.key for clip in open_split(dataset / "val").clips]

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folder import write_clip, write_folder, write_video
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from data_tools.cli import VERBS, main
from data_tools.encode import reference_frames
from flowact.autoencoders import Autoencoder, CausalVideoAutoencoder, latent_space, load_autoencoder, save_autoencoder
from flowact.conditioning.audio import LogMel
from flowact.conditioning.text import HashedText
from flowact.data import DatasetInfo, ShardDataModule, ShardIndex, decode_video, open_split, read_column, read_dataset, write_dataset


class MeanAutoencoder(Autoencoder):
    """Latent k is the mean grey of the last frame it covers: its value says which frame it came from."""

    temporal_stride, spatial_stride, latent_channels = 4, 8, 1

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        picked = frames_BCTHW.mean(dim=(1, 3, 4))[:, :: self.temporal_stride]
        return picked[:, :, None, None, None].expand(-1, -1, 1, frames_BCTHW.shape[3] // 8, frames_BCTHW.shape[4] // 8)

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        grey_BF = latents_BFCHW.mean(dim=(2, 3, 4))
        grey_BT = grey_BF.repeat_interleave(self.temporal_stride, dim=1)[:, self.temporal_stride - 1 :]
        return grey_BT[:, None, :, None, None].expand(-1, 3, -1, 16, 16)

    def decode_stream(self, latents_BFCHW: Tensor, state=None):
        raise NotImplementedError


@pytest.fixture
def autoencoder(tmp_path, monkeypatch) -> Path:
    import flowact.autoencoders
    from data_tools import encode

    for module in (flowact.autoencoders, encode):
        monkeypatch.setattr(module, "load_autoencoder", lambda path: MeanAutoencoder())
    folder = tmp_path / "autoencoder"
    folder.mkdir()
    (folder / "autoencoder.json").write_text(json.dumps({"class_path": "CausalVideoAutoencoder", "init_args": {}}))
    save_file({"x": torch.zeros(1)}, folder / "autoencoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    write_folder(root / "clips", 5)
    assert main(["pack", str(root / "clips"), "--out", str(root / "shards"), "--shard-clips", "2", "--val-identities", "clip-1"]) == 0
    return root / "shards"


@pytest.fixture
def dataset(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def grey(latent: np.ndarray) -> np.ndarray:
    """Frame number from a latent's value: frame t is grey 8 t."""
    return (latent.astype(np.float32) + 1) * 127.5 / 8


# --- encode -------------------------------------------------------------------------------------------------------------------------------------


def test_columns_describe_the_same_frames(dataset, autoencoder, capsys):
    assert main(["encode", "all", str(dataset), "--autoencoder", str(autoencoder), "--references", "3", "--json"]) == 0
    made = {entry["column"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(made) == {"latents", "audio", "text"}
    assert set(read_dataset(dataset).columns) == {Path(entry["folder"]).name for entry in made.values()}
    split = open_split(dataset / "train")
    latents, audio, text = (split.column(Path(made[name]["folder"])) for name in ("latents", "audio", "text"))
    assert len(split) == 4
    for clip in split.clips:
        values = latents.decode(clip, "latents.npy")
        assert values.dtype == np.float16
        assert values.shape == (6, 1, 2, 2)  # 21 frames = 4 * 5 + 1
        np.testing.assert_allclose(grey(values[:, 0, 0, 0]), [0, 4, 8, 12, 16, 20], atol=0.15)
        references = latents.decode(clip, "reference.npy")
        np.testing.assert_allclose(grey(references[:, 0, 0, 0]), [25, *reference_frames(21, 2)], atol=0.15)  # ref.png is grey 200
        assert audio.decode(clip, "audio.npy").shape == (21, LogMel().width)
        np.testing.assert_array_equal(text.decode(clip, "text.npy"), HashedText().encode(["talks", "rests"]).half().numpy())
    info = read_column(Path(made["latents"]["folder"]))
    assert (info.temporal_stride, info.spatial_stride, info.shapes["latents.npy"]) == (4, 8, [1, 2, 2])
    assert (Path(made["latents"]["folder"]) / "autoencoder" / "autoencoder.safetensors").is_file()
    assert main(["lint", str(dataset), "-j", "1"]) == 0
    data = ShardDataModule(str(dataset / "train"), str(dataset / "val"), batch_size=2, window_frames=3)
    data.setup("fit")
    for batch in data.train_dataloader():
        first = torch.tensor([int(key.rpartition("@")[2]) for key in batch.keys])
        frame_B = (batch.latents_BFCHW[:, 0, 0, 0, 0] + 1) * 127.5 / 8
        torch.testing.assert_close(frame_B, 4.0 * (first + 1), atol=0.15, rtol=0)


def test_finished_columns_are_not_made_again(dataset, capsys):
    assert main(["encode", "audio", str(dataset)]) == 0
    [folder] = (dataset / "columns").glob("audio-*")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.tar")}
    (folder / "train" / "000001.json").unlink()  # killed before the last index
    (folder / "val" / "000000.tar.part").write_bytes(b"half")
    assert main(["encode", "audio", str(dataset)]) == 0
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.tar")}
    assert {path: data for path, (_, data) in after.items()} == {path: data for path, (_, data) in before.items()}
    assert [path.relative_to(folder).as_posix() for path in after if after[path][0] != before[path][0]] == ["train/000001.tar"]
    assert not list(folder.rglob("*.part"))


def test_another_encoder_is_another_column(dataset):
    assert main(["encode", "text", str(dataset)]) == 0
    assert main(["encode", "text", str(dataset), "--encoder", "HashedText", "num_tokens=4"]) == 0
    folders = sorted((dataset / "columns").glob("text-*"))
    assert len(folders) == 2
    assert {tuple(read_column(folder).shapes["text.npy"]) for folder in folders} == {(8, 256), (4, 256)}
    assert all(set(read_column(folder).encoder["init_args"]) == {"num_tokens", "buckets"} for folder in folders)


def test_encoding_in_processes_gives_the_same_bytes(packed, tmp_path):
    columns = []
    for jobs in ("1", "2"):
        root = Path(shutil.copytree(packed, tmp_path / jobs))
        assert main(["encode", "audio", str(root), "-j", jobs]) == 0
        columns.append({path.relative_to(root): path.read_bytes() for path in (root / "columns").rglob("*") if path.is_file()})
    assert columns[0] == columns[1]


def test_latents_travel_with_their_autoencoder(dataset, tmp_path):
    """A column is named after its latent space, and holds what decodes it; other weights are another column."""
    for name in ("one", "two"):
        model = CausalVideoAutoencoder(latent_channels=4, width=8)
        save_autoencoder(model, {"class_path": "CausalVideoAutoencoder", "init_args": {"latent_channels": 4, "width": 8}}, tmp_path / name)
        assert main(["encode", "latents", str(dataset), "--autoencoder", str(tmp_path / name)]) == 0
    columns = {read_column(folder).hash: folder for folder in (dataset / "columns").glob("latents-*")}
    assert set(columns) == {latent_space(tmp_path / name) for name in ("one", "two")}
    folder = columns[latent_space(tmp_path / "two")]
    assert latent_space(folder / "autoencoder") == folder.name[-8:]
    split = open_split(dataset / "train")
    stored = torch.from_numpy(split.column(folder).decode(split.clips[0], "latents.npy").astype(np.float32))
    frames = decode_video(split.read(split.clips[0], "mp4"), "clip")
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    torch.testing.assert_close(stored, load_autoencoder(folder / "autoencoder").encode(pixels)[0].half().float())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["latents"], "needs --autoencoder"),
        (["latents", "--autoencoder", "nowhere"], "nowhere has no autoencoder.json"),
        (["audio", "--encoder", "LogMell"], "Did you mean LogMel"),
        (["audio", "--encoder", "HashedText"], "no AudioEncoder"),
        (["audio", "--encoder", "LogMel", "num_mel=3"], "Did you mean num_mels"),
        (["audio", "--encoder", "LogMel", "num_mels"], "KEY=VALUE"),
        (["all", "--encoder", "LogMel"], "--audio-encoder"),
        (["audio", "--encoder", "os.system"], "os.system"),
    ],
)
def test_wrong_encoders_are_explained(dataset, capsys, arguments, match):
    assert main(["encode", arguments[0], str(dataset), *arguments[1:]]) == 2
    assert match in capsys.readouterr().err


def test_a_column_of_repacked_clips_is_refused(dataset, capsys):
    assert main(["encode", "audio", str(dataset)]) == 0
    train = dataset / "train"
    for suffix in (".tar", ".json"):
        shutil.copy(train / f"000000{suffix}", train / f"000001{suffix}")
    assert main(["encode", "audio", str(dataset)]) == 2
    assert "packed anew" in capsys.readouterr().err


# --- lint ---------------------------------------------------------------------------------------------------------------------------------------


def lint(dataset: Path, capsys) -> dict:
    capsys.readouterr()
    code = main(["lint", str(dataset), "-j", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == (1 if result["problems"] else 0)
    return result


def test_a_clean_dataset(dataset, capsys):
    assert lint(dataset, capsys) == {"clips": 5, "frames": 105, "problems": [], "exclude": []}


@pytest.mark.parametrize("suffix", ["mp4", "wav", "json", "truth.npy", "boxes.npy", "ref.png"])
def test_a_flipped_byte_names_its_clip(dataset, capsys, suffix):
    path = dataset / "train" / "000000.tar"
    entry = ShardIndex.read(path.with_suffix(".json")).samples[1]
    offset, size, _ = entry.members[suffix]
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 4
    path.write_bytes(data)
    result = lint(dataset, capsys)
    assert result["exclude"] == [f"train/000000/{entry.key}"]
    write_dataset(dataset, DatasetInfo(**{**vars(read_dataset(dataset)), "exclude": tuple(result["exclude"])}))
    assert [problem["where"] for problem in lint(dataset, capsys)["problems"]] == [
        "train/000000"
    ]  # the file as a whole is still not what was written
    assert len(open_split(dataset / "train")) == 3


def test_cut_and_missing_shards(dataset, capsys):
    path = dataset / "train" / "000001.tar"
    path.write_bytes(path.read_bytes()[:2048])
    result = lint(dataset, capsys)
    assert result["exclude"] == ["train/000001"]
    write_dataset(dataset, DatasetInfo(**{**vars(read_dataset(dataset)), "exclude": ("train/000001",)}))
    assert lint(dataset, capsys)["problems"] == []
    assert len(open_split(dataset / "train")) == 2
    path.unlink()
    messages = [problem["message"] for problem in lint(dataset, capsys)["problems"]]
    assert any("shard is missing" in message for message in messages)
    assert any("dataset.yaml says 2" in message for message in messages)


def test_people_in_two_splits_and_wrong_lengths(tmp_path, capsys):
    """Shards made by others: everything that pack would have refused."""
    from flowact.data.shards import ShardWriter, encode_array, iterate_samples

    clips = tmp_path / "clips"
    for key in ("a", "b"):
        write_clip(clips, key, identity="ana", truth=False)
    assert main(["pack", str(clips), "--out", str(tmp_path / "good"), "--val-fraction", "0"]) == 0
    samples = list(iterate_samples(open_split(tmp_path / "good" / "train")))
    for split, (clip, members) in zip(("train", "val"), samples):
        metadata = json.loads(members["json"])
        changed = {**members, "states.npy": encode_array(np.zeros(20, np.uint8)), "json": json.dumps({**metadata, "split": split}).encode()}
        if split == "val":
            changed["mp4"] = b"\0" * 100
        with ShardWriter(tmp_path / "bad" / split) as writer:
            writer.write(clip.key, changed, 22)
    messages = " | ".join(problem["message"] for problem in lint(tmp_path / "bad", capsys)["problems"])
    for match in ("21 frames, the index 22", "states.npy should be", "can not be decoded", "'ana' is in train and val"):
        assert match in messages


def test_damaged_columns(dataset, capsys):
    main(["encode", "audio", str(dataset)])
    [folder] = (dataset / "columns").glob("audio-*")
    path = folder / "train" / "000000.tar"
    data = bytearray(path.read_bytes())
    offset, size, _ = ShardIndex.read(path.with_suffix(".json")).samples[0].members["audio.npy"]
    data[offset + size - 3] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    [problem] = lint(dataset, capsys)["problems"]
    assert folder.name in problem["message"]
    assert "crc32" in problem["message"]


def test_an_exclusion_that_names_nothing(dataset, capsys):
    write_dataset(dataset, DatasetInfo(**{**vars(read_dataset(dataset)), "exclude": ("train/000007", "train/000000/nobody")}))
    assert [problem["where"] for problem in lint(dataset, capsys)["problems"]] == ["dataset.yaml"] * 2


# --- the small ones -----------------------------------------------------------------------------------------------------------------------------


def test_stats(dataset, capsys):
    assert main(["stats", str(dataset), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["clips"] == 4
    assert found["train"]["identities"] == 4
    assert found["val"]["frames"] == 21
    assert found["train"]["states"] == {"idle": pytest.approx(11 / 21), "speaking": pytest.approx(10 / 21)}
    assert found["train"]["licenses"] == {"CC0-1.0": 4}
    assert main(["stats", str(dataset)]) == 0
    assert "identities" in capsys.readouterr().out


def test_index_makes_foreign_shards_readable(dataset, capsys):
    for path in (dataset / "train").glob("*.json"):
        path.unlink()
    with pytest.warns(UserWarning, match="no index"):
        split = open_split(dataset / "train")
    assert not split.indexed
    assert main(["index", str(dataset / "train")]) == 0
    assert open_split(dataset / "train").indexed
    assert lint(dataset, capsys)["problems"] == []


def test_probe(tmp_path, capsys):
    path = write_video(tmp_path / "a.mp4", fps=30, seconds=1.0)
    assert main(["probe", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["codec"], found["width"], found["height"], found["fps"]) == ("h264", 48, 32, 30.0)
    assert (found["claimed_frames"], found["decoded_frames"], found["variable_rate"]) == (30, 30, False)
    assert (found["audio_codec"], found["sample_rate"], found["channels"]) == ("aac", 44_100, 2)
    mute = write_video(tmp_path / "mute.mp4", sound=False, seconds=0.5)
    assert main(["probe", str(mute)]) == 1
    assert "no sound" in capsys.readouterr().out
    (tmp_path / "x.mp4").write_text("x")
    assert main(["probe", str(tmp_path / "x.mp4")]) == 2
    assert main(["probe", str(tmp_path / "nowhere.mp4")]) == 2


def test_inspect_draws_clips_and_latents(dataset, autoencoder, tmp_path, capsys):
    assert main(["inspect", str(dataset / "train"), "--out", str(tmp_path / "sheet.png"), "--clips", "2", "--frames", "3"]) == 0
    assert "2 of 4 clips" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        video = np.asarray(sheet.convert("L")).astype(int)
    assert main(["encode", "latents", str(dataset), "--autoencoder", str(autoencoder)]) == 0
    assert main(["inspect", str(dataset), "--column", "latents", "--out", str(tmp_path / "latents.png"), "--clips", "2", "--frames", "3"]) == 0
    with Image.open(tmp_path / "latents.png") as sheet:
        latents = np.asarray(sheet.convert("L")).astype(int)
    assert video.shape == latents.shape
    assert abs(video[60, 250] - latents[60, 250]) < 20  # the last frame shown is the same grey
    assert main(["inspect", str(dataset), "--out", str(tmp_path / "sheet.jpg")]) == 2
    assert main(["inspect", str(dataset), "--out", str(tmp_path / "x.png"), "--column", "latents-x"]) == 2


def test_help_imports_no_verb():
    code = "import sys, data_tools.cli as c\ntry:\n c.main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'av'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "usage: flowact-data " + verb in capsys.readouterr().out


def test_errors_are_one_line(capsys):
    assert main(["lnt"]) == 2
    assert capsys.readouterr().err == "flowact-data: error: there is no verb 'lnt'. Did you mean lint?\n"
    assert main(["lnt", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err

"""Folders of safetensors: read lazily and only where they say, written in shards; and modules built in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowact.errors import UserError
from flowact.models.translation import outline_of
from flowact.models.weights import build_outline, build_partly, read_folder, write_folder

NAME = "diffusion_pytorch_model"
INDEX = f"{NAME}.safetensors.index.json"


def state(count: int = 5) -> dict[str, Tensor]:
    return {f"t.{i}": torch.full((4, 4), float(i), dtype=torch.bfloat16) for i in range(count)}


def shard(number: int, count: int) -> str:
    return f"{NAME}-{number:05d}-of-{count:05d}.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder of three shards: tensors 0 and 1, 2 and 3, 4."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_folder(folder, state().items(), outline_of(state()), max_shard_bytes=64)
    return folder


def rewrite_index(folder: Path, **changes: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].update(changes)
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_are_as_large_as_allowed_and_read_back(sharded: Path) -> None:
    assert sorted(path.name for path in sharded.iterdir()) == sorted([INDEX, *(shard(n, 3) for n in (1, 2, 3))])
    assert set(load_file(sharded / shard(2, 3))) == {"t.2", "t.3"}
    index = json.loads((sharded / INDEX).read_text())
    assert index["metadata"] == {"total_size": 5 * 32}
    assert index["weight_map"]["t.4"] == shard(3, 3)
    files = read_folder(sharded)
    assert len(files.files) == 3
    assert dict(files).keys() == state().keys()
    assert all(torch.equal(files[name], tensor) and files[name].dtype == torch.bfloat16 for name, tensor in state().items())


def test_one_file_needs_no_index_and_a_large_tensor_has_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_folder(tmp_path / "one", state().items(), outline_of(state()), max_shard_bytes=5 * 32)
    assert [path.name for path in (tmp_path / "one").iterdir()] == [f"{NAME}.safetensors"]
    assert set(read_folder(tmp_path / "one")) == set(state())
    (tmp_path / "each").mkdir()
    write_folder(tmp_path / "each", state().items(), outline_of(state()), max_shard_bytes=1)
    assert len(read_folder(tmp_path / "each").files) == 5


def test_a_shard_is_not_opened_for_a_tensor_of_another(sharded: Path) -> None:
    files = read_folder(sharded)
    for number in (1, 3):
        (sharded / shard(number, 3)).unlink()
    assert files["t.2"].sum() == 32


# --- what is wrong with a folder is said before anything is read


def test_missing_shards_are_named(sharded: Path) -> None:
    (sharded / shard(1, 3)).unlink()
    (sharded / shard(3, 3)).unlink()
    with pytest.raises(UserError, match=f"lacks 2 of 3 shards.*{shard(1, 3)}, {shard(3, 3)}"):
        read_folder(sharded)
    (sharded / INDEX).unlink()
    with pytest.raises(UserError, match="not their index"):
        read_folder(sharded)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_shard_is_noticed(sharded: Path, keep: int) -> None:
    path = sharded / shard(2, 3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{shard(2, 3)} is damaged"):
        read_folder(sharded)


@pytest.mark.parametrize("target", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..", "", "a\\x.safetensors", "x.bin"])
def test_an_index_cannot_name_a_file_elsewhere(sharded: Path, target: str) -> None:
    save_file({"t.0": torch.ones(1)}, sharded.parent / "x.safetensors")
    rewrite_index(sharded, **{"t.0": target})
    with pytest.raises(UserError, match="in the same folder"):
        read_folder(sharded)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"t.0": 1}}', "{", "\xff"])
def test_an_index_that_is_none_is_refused(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index, encoding="latin-1")
    with pytest.raises(UserError, match=INDEX.replace(".", r"\.")):
        read_folder(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    save_file({**load_file(sharded / shard(3, 3)), "t.0": torch.ones(1)}, sharded / shard(3, 3))
    with pytest.raises(UserError, match=f"{shard(1, 3)} and {shard(3, 3)} both hold the tensor t.0"):
        read_folder(sharded)


def test_a_tensor_that_is_not_where_the_index_says_is_refused(sharded: Path) -> None:
    rewrite_index(sharded, **{"t.0": shard(2, 3)})
    with pytest.raises(UserError, match=f"1 tensors.*t.0 should be in {shard(2, 3)} and is in {shard(1, 3)}"):
        read_folder(sharded)
    rewrite_index(sharded, **{"t.0": shard(1, 3), "t.9": shard(1, 3)})
    with pytest.raises(UserError, match=r"t.9 should be in .* and is in none"):
        read_folder(sharded)


def test_links_may_not_lead_out_of_the_folder(sharded: Path) -> None:
    outside = sharded.parent / "outside.safetensors"
    path = sharded / shard(2, 3)
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*outside of the folder"):
        read_folder(sharded)
    path.unlink()
    path.symlink_to(sharded / "renamed.data")
    outside.rename(sharded / "renamed.data")
    assert set(read_folder(sharded)) == set(state())


def test_links_of_the_hugging_face_cache_are_followed(sharded: Path) -> None:
    model = sharded.parent / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / "1234").mkdir(parents=True)
    sharded.rename(model / "snapshots" / "1234" / "transformer")
    folder = model / "snapshots" / "1234" / "transformer"
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(model / "blobs" / str(i))
        path.symlink_to(Path("../../../blobs") / str(i))
    assert set(read_folder(folder)) == set(state())


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for name in (f"{NAME}.bin", "model.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04canary")
    with pytest.raises(UserError, match=r"\.bin, model\.pth.*never read.*safe_serialization=True"):
        read_folder(tmp_path)


def test_what_is_not_one_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no .safetensors"):
        read_folder(tmp_path)
    for name in ("a", "b"):
        save_file(state(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors, b\.safetensors\. Keep the one"):
        read_folder(tmp_path)
    save_file(state(2), tmp_path / f"{NAME}.safetensors")
    assert set(read_folder(tmp_path)) == {"t.0", "t.1"}
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="several indices"):
        read_folder(tmp_path)


# --- modules built in part


class Towers(nn.Module):
    """Two linear maps; `filled` says where each was when its weights were drawn."""

    filled: list[str] = []

    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Linear(300, 300)
        self.fresh = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.LayerNorm(3)])
        self.register_buffer("table", torch.arange(3.0))
        nn.init.constant_(self.fresh[0].weight, 7.0)
        Towers.filled.append(self.big.weight.device.type)


def test_only_what_is_wanted_is_made_and_as_the_constructor_makes_it() -> None:
    Towers.filled.clear()
    made = build_partly(Towers, lambda name: name.startswith("fresh"))
    assert {name: tensor.device.type for name, tensor in made.items()} == dict.fromkeys(["fresh.0.weight", "fresh.1.weight", "fresh.1.bias"], "cpu")
    assert torch.equal(made["fresh.0.weight"], torch.full((2, 3), 7.0))
    assert torch.equal(made["fresh.1.weight"], torch.ones(3))
    assert Towers.filled == ["meta", "meta"]
    assert torch.equal(build_partly(Towers, {"table"}.__contains__)["table"], torch.arange(3.0))


def test_the_same_seed_makes_the_same_numbers_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_partly(lambda: nn.Linear(4, 4), lambda name: True, seed) for seed in (0, 0, 1))
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], other["weight"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert nn.Linear(2, 2).weight.device.type == "cpu"  # and modules register parameters as before
    assert "register_and_call" not in nn.Module.register_parameter.__qualname__


def test_an_outline_has_shapes_and_no_numbers() -> None:
    outline = build_outline(Towers)
    assert {name: tuple(tensor.shape) for name, tensor in outline.items()} == {n: tuple(t.shape) for n, t in Towers().state_dict().items()}
    assert all(tensor.is_meta for tensor in outline.values())

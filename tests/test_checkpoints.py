from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from torch import nn

import flowact.checkpoints as checkpoints
from flowact.checkpoints import COMPARED, check_compatible, latest_checkpoint, load_into, open_checkpoint, write_checkpoint
from flowact.errors import UserError

LINEAGE = {
    "schema": 1,
    "stage": "pretraining",
    "step": 3,
    "latent_space": "0123abcd",
    "chunk_frames": 3,
    "fps": 25,
    "encoders": {"text": {"class_path": "HashedText"}, "audio": None},
    "ancestors": [{"stage": "autoencoder", "step": 9, "weights_sha256": "00"}],
}
RECIPE = {"seed": 0, "data": {"class_path": "ShardDataModule", "init_args": {"lr": 1e-5, "note": "costs ${5}"}}}


def write(folder: Path, *, value: float = 1.0, step: int = 3, keep: int = 1, autoencoder: Path | None = None, ema: bool = True) -> Path:
    def save_engine(path: Path) -> None:
        (path / "checkpoint").mkdir(parents=True)
        (path / "checkpoint" / "state.pt").write_bytes(bytes(range(256)))

    return write_checkpoint(
        folder,
        weights={"weight": torch.full((2, 3), value), "bias": torch.zeros(2)},
        ema={"weight": torch.full((2, 3), value / 2)} if ema else None,
        recipe=RECIPE,
        lineage=LINEAGE | {"step": step},
        autoencoder_folder=autoencoder,
        engine_saver=save_engine,
        keep=keep,
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    autoencoder = tmp_path / "autoencoder"
    autoencoder.mkdir()
    (autoencoder / "autoencoder.json").write_text("{}")
    checkpoint = open_checkpoint(write(tmp_path / "run" / "pretraining", autoencoder=autoencoder))

    assert checkpoint.recipe == RECIPE
    assert checkpoint.lineage == LINEAGE
    assert checkpoint.has_ema
    assert checkpoint.step == 3
    assert torch.equal(checkpoint.weights(ema=False)["weight"], torch.ones(2, 3))
    assert torch.equal(checkpoint.weights()["weight"], torch.full((2, 3), 0.5))
    assert torch.equal(checkpoint.weights()["bias"], torch.zeros(2))
    assert checkpoint.engine is not None
    assert (checkpoint.engine / "checkpoint" / "state.pt").is_file()
    assert checkpoint.autoencoder is not None
    assert len(checkpoint.weights_sha256) == 64


def test_without_ema_the_weights_are_the_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "a", ema=False))
    assert not checkpoint.has_ema
    assert torch.equal(checkpoint.weights(ema=True)["weight"], torch.ones(2, 3))


def test_the_new_checkpoint_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a", value=1.0, step=1)
    write(tmp_path / "a", value=2.0, step=2)
    assert open_checkpoint(tmp_path / "a").step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_older_checkpoints_are_kept_on_request(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path / "a", step=step, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a@00000002", "a@00000003"]


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("function", ["rename", "fsync"])
def test_a_write_that_fails_at_any_point_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, atomic: bool
) -> None:
    if not atomic:
        monkeypatch.setattr(checkpoints, "_exchange", lambda first, second: False)
    original = getattr(os, function)
    for fails_at in range(40):
        folder = tmp_path / f"{fails_at}" / "a"
        write(folder, step=1)
        calls = iter(range(1000))

        def failing(*args: object, calls: object = calls, fails_at: int = fails_at, **kwargs: object) -> object:
            if next(calls) == fails_at:  # type: ignore[call-overload]
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing)
            try:
                write(folder, step=2)
                failed = False
            except OSError:
                failed = True
        assert latest_checkpoint(folder).step in (1, 2)
        if not failed:
            assert open_checkpoint(folder).step == 2
            assert fails_at > 0
            break
        write(folder, step=3)
        assert [path.name for path in folder.parent.iterdir()] == ["a"]
    else:
        pytest.fail("the failure was never outlived")


def test_a_killed_writer_leaves_rests_that_the_next_write_removes(tmp_path: Path) -> None:
    write(tmp_path / "a", step=1)
    (tmp_path / "a.tmp-01234567").mkdir()
    (tmp_path / "a.tmp-01234567" / "denoiser.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path / "a").step == 1
    assert latest_checkpoint(tmp_path).step == 1
    write(tmp_path / "a", step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_but_a_checkpoint_of_the_same_stage_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"miau")
    with pytest.raises(UserError, match="not a checkpoint"):
        write(tmp_path / "photos")
    write(tmp_path / "a")
    with pytest.raises(UserError, match="stage pretraining"):
        write_checkpoint(
            tmp_path / "a", weights={}, ema=None, recipe={}, lineage={"stage": "distillation", "step": 1}, autoencoder_folder=None, engine_saver=None
        )
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"miau"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(tmp_path: Path, bad: float) -> None:
    write(tmp_path / "a", value=1.0)
    with pytest.raises(UserError, match="weight"):
        write(tmp_path / "a", value=bad)
    assert torch.equal(open_checkpoint(tmp_path / "a").weights(ema=False)["weight"], torch.ones(2, 3))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    generator = random.Random(0)
    for path in files:
        data = bytearray(path.read_bytes())
        for _ in range(8):
            at, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
            data[at] ^= bit
            path.write_bytes(data)
            with pytest.raises(UserError, match=path.name):
                open_checkpoint(folder)
            data[at] ^= bit
        path.write_bytes(data)
    open_checkpoint(folder)


def test_truncated_missing_and_added_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    weights = folder / "denoiser.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"denoiser\.safetensors has"):
        open_checkpoint(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"denoiser\.safetensors is listed"):
        open_checkpoint(folder)
    weights.write_bytes(whole)
    (folder / "engine" / "gadget.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"engine/gadget\.pt"):
        open_checkpoint(folder)
    (folder / "engine" / "gadget.pt").unlink()
    (folder / "link").symlink_to(weights)
    with pytest.raises(UserError, match="link"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": "flowact-checkpoint"}', "[" * 5000, '{"kind": "flowact-checkpoint", "files": {"a": 1}, "weights": "a", "schema": 1}'],
)
def test_a_bad_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "a")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_checkpoint(folder)


def test_a_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 2}))
    with pytest.raises(UserError, match="Update FlowAct"):
        open_checkpoint(folder)


def test_latest_falls_back_with_a_warning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path / "a", step=step, keep=3)
    assert latest_checkpoint(tmp_path / "a").step == 3
    (tmp_path / "a" / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"ema\.safetensors"):
        assert latest_checkpoint(tmp_path / "a").step == 2
    for path in tmp_path.iterdir():
        (path / "manifest.json").unlink()
    with pytest.raises(UserError):
        latest_checkpoint(tmp_path / "a")


def test_an_absent_checkpoint_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "pretraining")
    with pytest.raises(UserError, match="pretraining"):
        open_checkpoint(tmp_path / "pretrained")
    with pytest.raises(UserError, match="no checkpoint"):
        latest_checkpoint(tmp_path / "nowhere")


def test_every_difference_of_two_lineages_is_told_and_what_was_allowed_before_stays_allowed() -> None:
    with pytest.raises(UserError) as caught:
        check_compatible(LINEAGE, LINEAGE | {"fps": 30, "chunk_frames": 4, "latent_space": "ffff0000"}, allow=["fps"])
    message = str(caught.value)
    assert "stage pretraining, step 3" in message
    assert "chunk_frames: 3 in the checkpoint, 4 in this run" in message
    assert 'latent_space: "0123abcd" in the checkpoint, "ffff0000" in this run' in message
    assert "\n  fps" not in message
    assert 'allow_lineage=["chunk_frames", "fps", "latent_space"]' in message


def test_hashes_and_shapes_are_read_without_the_numbers(tmp_path: Path) -> None:
    checkpoint, other = open_checkpoint(write(tmp_path / "a")), open_checkpoint(write(tmp_path / "b", value=2.0))
    assert checkpoint.shapes() == {"weight": (2, 3), "bias": (2,)}
    assert checkpoint.hashes()["denoiser.safetensors"] == checkpoint.weights_sha256
    assert checkpoint.hashes().keys() == {"denoiser.safetensors", "ema.safetensors"}
    assert all(checkpoint.hashes()[name] != sha256 for name, sha256 in other.hashes().items())


def test_loading_lists_every_problem_and_changes_nothing() -> None:
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_into(module, {"weight": torch.zeros(2, 4), "scale": torch.zeros(1)})
    for words in ("missing: bias", "unexpected: scale", "(2, 4)", "(2, 3)"):
        assert words in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_loading_reports_what_was_allowed() -> None:
    module = nn.Linear(3, 2)
    report = load_into(module, {"weight": torch.ones(2, 3), "audio.scale": torch.zeros(1)}, allow_missing=["bias"], allow_unexpected=["audio.*"])
    assert report.matched == ("weight",)
    assert report.missing == ("bias",)
    assert report.unexpected == ("audio.scale",)
    assert report.wrong_shape == ()
    assert torch.equal(module.weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "other"), [("latent_space", "ffff0000"), ("chunk_frames", 4), ("fps", 30), ("encoders", {"text": None, "audio": None})]
)
def test_incompatible_lineages_name_both_values(name: str, other: object) -> None:
    check_compatible(LINEAGE, LINEAGE | {"stage": "self_forcing", "step": 99})
    changed = LINEAGE | {name: other}
    with pytest.raises(UserError) as caught:
        check_compatible(LINEAGE, changed)
    assert json.dumps(LINEAGE[name]) in str(caught.value)
    assert json.dumps(other) in str(caught.value)
    assert COMPARED[name] in str(caught.value)
    assert f'model.init_args.allow_lineage=["{name}"]' in str(caught.value)
    check_compatible(LINEAGE, changed, allow=[name])
    with pytest.raises(UserError, match="one of"):
        check_compatible(LINEAGE, changed, allow=["everything"])

"""A data set whose shards are half swapped is not read."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from ramp_dataset import make_dataset

from data_tools import rewrite
from data_tools.cli import main
from flowact.data import ShardDataModule, ShardError, open_split
from flowact.data.split import CHANGE_FOLDER, COMMIT_FILE


def test_the_place_is_the_one_that_the_tools_use():
    assert (CHANGE_FOLDER, COMMIT_FILE) == (rewrite.CHANGE_FOLDER, rewrite.COMMIT_FILE)


def test_every_point_at_which_a_change_may_stop(tmp_path, monkeypatch):
    """Stopped before its moment the old set is read, after it nothing, finished by the same command the new set."""
    base = make_dataset(tmp_path / "base", {"train": [60] * 4, "val": [60]}, per_shard=2)
    refused = whole = 0
    for stop in range(40):
        root = shutil.copytree(base, tmp_path / str(stop))
        command = ["edit", str(root), "delete", "train-001"]
        calls = iter(range(1000))

        def replace(source, target, stop=stop, calls=calls):
            if next(calls) == stop:
                raise KeyboardInterrupt
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("data_tools.rewrite.os.replace", replace)
            code = main(command)
        if code == 0:
            break
        counted = (root / CHANGE_FOLDER / COMMIT_FILE).is_file()
        if counted:
            refused += 1
            command_again = re.escape(f"flowact-data edit {root} delete ... (keys: ['train-001'])")
            told = f"halfway through a change .* Run the command again, .*{command_again}"
            with pytest.raises(ShardError, match=told):
                open_split(root / "train")
            with pytest.raises(ShardError, match=told):
                ShardDataModule(str(root / "train"), window_frames=4).setup("fit")
        else:
            whole += 1
            assert len(open_split(root / "train")) == 4
        assert main(command) == 0
        assert [clip.key for clip in open_split(root / "train").clips] == ["train-000", "train-002", "train-003"]
    else:
        pytest.fail("the change was stopped at every point that was tried")
    assert refused > 3
    assert whole > 0

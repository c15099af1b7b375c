"""What a training prints: lines that tell of the run, and no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.ramp_dataset import make_dataset

SMALL = {"latent_channels": 2, "text_width": 2, "audio_width": 3, "width": 32, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1}
NUMBER = r"[\d.]+(e[+-]?\d+)?"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("ramp") / "shards", {"train": [90] * 8, "val": [90] * 4})


def lines_of(tmp_path: Path, shards: Path, *options: str) -> list[str]:
    """What a fit of two steps by two processes prints, on both streams."""
    command = [sys.executable, "-m", "flowact", "fit", "--config", "quickstart/pretraining.yaml", f"vars.run={tmp_path}", "vars.steps=2"]
    command += [f"data.init_args.{name}={shards}/{name}" for name in ("train", "val", "columns")]
    command += [f"model.init_args.denoiser.init_args.{name}={value}" for name, value in SMALL.items()]
    command += ["data.init_args.batch_size=2", "trainer.precision=32-true", "trainer.limit_val_batches=1"]
    command += ["trainer.callbacks.preview=null", "trainer.callbacks.checkpoint=null", *options]  # the shards have no autoencoder
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.timeout(700)  # two processes that start torch, on a machine that may be busy
def test_a_fit_tells_of_the_run_alone(tmp_path: Path, shards: Path) -> None:
    logs = re.escape(f"{tmp_path}/logs/pretraining")
    expected = [
        rf"flowact: step 0 of 2, logs in {logs}",
        rf"pretraining: step 1 of 2, loss {NUMBER}, {NUMBER} steps/s, \d+:\d\d left",
        rf"pretraining: step 2 of 2, loss {NUMBER}, {NUMBER} steps/s, 0:00 left",
        rf"flowact: step 2: val/loss {NUMBER}",
        rf"flowact: finished 2 steps in .*, see {logs}/README.md",
    ]
    lines = lines_of(tmp_path, shards)
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert "**Finished** at step 2 of 2" in (tmp_path / "logs" / "pretraining" / "README.md").read_text()


@pytest.mark.timeout(700)
def test_a_quiet_fit_says_nothing(tmp_path: Path, shards: Path) -> None:
    assert lines_of(tmp_path, shards, "--quiet", "trainer.devices=1", "trainer.strategy=auto") == []

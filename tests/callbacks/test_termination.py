"""SIGTERM in a run of several processes: all of them end after the same step, with a checkpoint, whenever it comes to whom."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowact.callbacks.termination import AgreedTermination
from flowact.checkpoints import open_checkpoint

HERE = Path(__file__).parent
RECIPE = """
seed: 1
data: {class_path: NoiseFrames}
model:
  class_path: AutoencoderTraining
  init_args:
    principal_clips: 0
    autoencoder: {class_path: CausalVideoAutoencoder, init_args: {latent_channels: 2, width: 8}}
trainer:
  accelerator: cpu
  strategy: {class_path: DeepSpeed, init_args: {stage: 2}}
  max_steps: 100000
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 0
  use_distributed_sampler: false
  callbacks:
    checkpoint: {class_path: CheckpointFolder, init_args: {dirpath: run, every_n_steps: 3}}
"""


class Process:
    """What the callback sees of a trainer; `others` says what the other processes know."""

    def __init__(self, world_size: int, others: bool = False) -> None:
        self.world_size, self.training, self.others = world_size, True, others
        self.killed: list[int] = []
        self._signal_connector = SimpleNamespace(received_sigterm=False, _sigterm_notifier_fn="Lightning's")
        self.strategy = SimpleNamespace(reduce_boolean_decision=self.any_of, launcher=SimpleNamespace(kill=self.killed.append))

    def any_of(self, decision: bool, all: bool) -> bool:
        assert not all
        return decision or self.others


def start(process: Process) -> tuple[AgreedTermination, Any]:
    callback, trainer = AgreedTermination(), process
    callback.on_fit_start(trainer, None)  # type: ignore[arg-type]
    return callback, trainer


def test_one_process_ends_lightnings_way():
    callback, trainer = start(Process(1))
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer._signal_connector._sigterm_notifier_fn == "Lightning's"
    assert not trainer._signal_connector.received_sigterm


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("here", [False, True])
def test_who_hears_of_it_ends_after_the_batch_and_not_before(here, others):
    callback, trainer = start(Process(2, others))
    if here:
        for _ in range(2):
            trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    assert not trainer._signal_connector.received_sigterm, "the signal itself ends nothing and communicates nothing"
    assert trainer.killed == [signal.SIGTERM] * here
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer._signal_connector.received_sigterm == (here or others)


def test_a_new_fit_begins_without_a_signal():
    callback, trainer = start(Process(2))
    trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    callback.on_fit_start(trainer, None)
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert not trainer._signal_connector.received_sigterm


def nodes(folder: Path) -> list[subprocess.Popen[str]]:
    """`flowact fit` as two tasks of a SLURM job, one on each of two nodes, which are this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plugin = str(HERE.parent / "strategies" / "node_frames.py")
    command = [sys.executable, "-m", "flowact", "fit", "--config", "my.yaml", "--plugin", plugin, "trainer.num_nodes=2", "trainer.devices=1"]
    slurm = {"JOB_ID": "7", "JOB_NAME": "flowact", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "NODELIST": "127.0.0.1", "LOCALID": "0"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_"))}
    clean |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    started = []
    for node in ("0", "1"):
        environment = clean | {f"SLURM_{name}": value for name, value in (slurm | {"PROCID": node, "NODEID": node}).items()}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=folder, **pipes))
    return started


@pytest.mark.slow  # two interpreters for each trial
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trial", range(3))
def test_a_job_that_is_told_to_end_leaves_a_checkpoint(tmp_path, trial):
    (tmp_path / "my.yaml").write_text(RECIPE)
    tasks = nodes(tmp_path)
    try:
        while not (tmp_path / "run" / "manifest.json").is_file():
            assert [task.poll() for task in tasks] == [None, None], tasks[0].communicate()[0]
            time.sleep(0.2)
        time.sleep(0.2 + 0.13 * trial)
        for task in tasks:
            task.send_signal(signal.SIGTERM)
        ends = [task.communicate(timeout=120)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [143, 143], "".join(ends)
    assert "checkpoint in run" in ends[0].splitlines()[-2], "the last step is kept, whatever the interval"
    assert open_checkpoint(tmp_path / "run").step >= 3

"""`flowact fit` on two nodes of one process each, started as docs/scaling.md says. Both nodes are this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowact.checkpoints import open_checkpoint

pytestmark = pytest.mark.timeout(900)  # each node starts two interpreters

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
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
  max_steps: 2
  logger: false
  enable_model_summary: false
  limit_val_batches: 0
  use_distributed_sampler: false
  callbacks:
    checkpoint: {class_path: CheckpointFolder, init_args: {dirpath: FOLDER/run}}
    witness: {class_path: Witness, init_args: {folder: FOLDER}}
"""


def documented(program: str) -> list[str]:
    """The command of the page that begins with a program, as words."""
    command = re.search(rf"^({program} (?:.*\\\n)*.*)$", PAGE.read_text(), re.MULTILINE)
    assert command is not None
    return shlex.split(command[1].replace("\\\n", " "))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """The documented command of a node, with one process for its eight, here."""
    here = {"$NODE_RANK": str(node), "node0": "127.0.0.1", "29500": str(port), "8": "1", "trainer.devices=8": "trainer.devices=1"}
    return [sys.executable, "-m", "torch.distributed.run", *(here.get(word, word) for word in documented("torchrun")[1:])], {}


def srun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """The documented command, and what SLURM would put into the environment of its task on a node."""
    slurm = {
        "JOB_ID": "7", "JOB_NAME": "flowact", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "NODELIST": "127.0.0.1", "PROCID": str(node),
        "LOCALID": "0", "NODEID": str(node),
    }  # fmt: skip
    words = [{"trainer.devices=8": "trainer.devices=1"}.get(word, word) for word in documented("srun")[1:]]
    assert words[0] == "flowact"
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [sys.executable, "-m", *words], environment


@pytest.mark.parametrize("launch", [torchrun, pytest.param(srun, marks=pytest.mark.slow)])
def test_two_nodes_train_one_network(launch, tmp_path):
    (tmp_path / "my.yaml").write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    plugin = str(Path(__file__).with_name("node_frames.py"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_"))}
    clean = {name: value for name, value in clean.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK")}
    port, nodes = free_port(), []
    for node in (0, 1):
        command, environment = launch(node, port)
        environment = clean | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        nodes.append(subprocess.Popen([*command, "--plugin", plugin], env=environment, cwd=tmp_path, **pipes))
    try:
        outputs = [node.communicate(timeout=400)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(output[-3000:] for output in outputs)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["node"], second["node"], first["of"], second["of"]) == (0, 1, 2, 2)
    assert first["weights"] == second["weights"]
    assert first["loss"] != second["loss"], "each node has data of its own"
    assert first["pid"] != second["pid"]
    assert open_checkpoint(tmp_path / "run").step == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and (path / "manifest.json").is_file()] == ["run"]

"""The road of the rigged human, by the commands of the page, at debug size."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from pages import ROOT

from flowact.checkpoints import open_checkpoint
from flowact.models.mmdit import MMDiT

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SMALL = {"--size": "64", "--train-identities": "8", "--val-identities": "1", "--seconds": "6"}
DEBUG = ("vars.steps=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "data.init_args.batch_size=2", "trainer.limit_val_batches=1")
NARROW = ("model.init_args.denoiser.init_args.width=32", "model.init_args.denoiser.init_args.num_heads=2")


def commands() -> list[list[str]]:
    block = re.search(r"^## The rigged human$.*?^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in block[1].splitlines()]


def at_debug_size(words: list[str]) -> list[str]:
    if words[0] == "flowact-data":
        small = [SMALL.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        program = "from data_tools.cli import main; raise SystemExit(main())"
        return [sys.executable, "-c", program, *small[1:], *(("-j", "1") if words[1] == "synth" else ())]
    narrow = () if "human/autoencoder.yaml" in words else NARROW
    return [sys.executable, "-m", "flowact", *words[1:], *DEBUG, *narrow]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_page_runs(tmp_path):
    for words in commands():
        done = subprocess.run(at_debug_size(words), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stderr[-3000:]}"
    checkpoint = open_checkpoint(tmp_path / "runs" / "human" / "checkpoints" / "distillation")
    assert [ancestor["stage"] for ancestor in checkpoint.lineage["ancestors"]] == ["pretraining", "diffusion_forcing", "self_forcing"]
    assert checkpoint.lineage["character"]["class_path"].endswith("RiggedHuman")


def test_at_full_size_its_model_is_small_enough_to_ship():
    """Eight bits a number: at most 16 MB, of which the autoencoder takes 5.6."""
    import torch

    from flowact.recipe import load_recipe

    arguments = load_recipe("human/distillation.yaml").config["model"]["init_args"]["denoiser"]["init_args"]
    with torch.device("meta"):
        network = MMDiT(**arguments)
    assert 8e6 < sum(parameter.numel() for parameter in network.parameters()) < 10.4e6

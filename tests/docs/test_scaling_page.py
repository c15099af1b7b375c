"""The figures of docs/scaling.md are those that plans give."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess

import pytest
import torch
from pages import ROOT

from flowact.budget import DEVICES, Wishes, make_plan, records
from flowact.budget.costs import Precision
from flowact.budget.states import RoleSize, Strategy, states
from flowact.models.presets import PUBLISHED_INPUTS, preset
from flowact.recipe import load_recipe

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
GIB = 1 << 30


def rows(heading):
    """Cells of the table below a heading, without its first two lines."""
    table = re.search(r"\n(\|.*?)\n\n", PAGE[PAGE.index(f"## {heading}") :], re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("row", rows("Choose a ZeRO stage"), ids=lambda row: " ".join(row[:2]))
def test_what_stays_on_a_device(row):
    name, precision, *figures = row
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in preset(name, **PUBLISHED_INPUTS).parameters())
    roles = [RoleSize("denoiser", count, count, averaged=True)]
    found = [f"{states(roles, Precision(precision), Strategy(processes=8, zero=stage)).total / GIB:.1f}" for stage in range(4)]
    assert figures == (found if precision == "bf16-mixed" else ["-", *found[1:]])


@pytest.mark.slow  # half a minute for the largest
@pytest.mark.parametrize("row", rows("Sizes"), ids=lambda row: row[0])
def test_sizes(row, tmp_path):
    pytest.importorskip("diffusers")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"_base_: [base/diffusion_forcing_1.3B.yaml, shapes/_{row[0]}.yaml]\nvars: {{batch_size: 1}}\n")
    plan = make_plan(load_recipe(recipe), DEVICES["h100"], wishes=Wishes(size=(480, 832), autoencoder="AutoencoderKLWan"))
    whole, before, _ = plan.evaluations
    kept = [f"{plan.training.saved_bytes_per_sample[choice] / GIB:.1f} GiB" for choice in ("none", "selective", "full")]
    flops = [f"{evaluation.flops / 1e12:.0f} TFLOP" for evaluation in (whole, before)]
    assert row == [row[0], *flops, *kept, f"{plan.stream.frames_per_second:.0f} frames a second"]
    assert f"{plan.tokens.memory + plan.tokens.stream:,} tokens" in PAGE


def test_the_job_goes_on_by_itself(tmp_path):
    (script,) = [text for text in re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "requeue" in text]
    (tmp_path / "job.sh").write_text(script)
    codes, kept = tmp_path / "codes", "runs/mine/checkpoints/pretraining"
    codes.write_text("143\n143\n0\n")
    stands_in = {
        "srun": f'echo "$@" >> {tmp_path}/srun.txt\nmkdir -p {kept}; touch {kept}/manifest.json\n'
        f"code=$(head -1 {codes}); sed -i 1d {codes}; exit $code\n",
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol.txt\n',
    }
    for program, body in stands_in.items():
        (tmp_path / program).write_text("#!/bin/bash\n" + body)
        (tmp_path / program).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    ends = [subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, check=False).returncode for _ in range(3)]
    assert ends == [143, 143, 0]
    first, second, third = (tmp_path / "srun.txt").read_text().splitlines()
    assert second == third == f"{first} --resume {kept}"
    assert (tmp_path / "scontrol.txt").read_text().splitlines() == ["requeue 7"] * 2


def test_every_key_of_the_json_is_in_the_table():
    named = {key for cells in rows("As JSON") for key in re.findall(r"`(\w+)`", cells[0])}
    assert named == {field.name for field in dataclasses.fields(records.Plan)}

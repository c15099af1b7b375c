"""What `init_from` took from a checkpoint is told once, and kept in the lineage."""

from __future__ import annotations

import json
import logging

import pytest
from stage_data import denoiser, write_parent

from flowact.memory import StructuredMemory
from flowact.stages import CFGDistillation, ChunkwiseDiffusionForcing

SIZES = {"chunk_frames": 2, "num_chunks": 2}
GRANDPARENT = {"stage": "pretraining", "step": 3, "weights_sha256": "0" * 64}


@pytest.fixture
def told(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.getMessage().startswith("init_from=")]


def test_what_was_taken_is_told_once_with_its_ancestry(tmp_path, told):
    parent = denoiser(seed=1)
    folder = write_parent(tmp_path / "parent", parent, dict(parent.named_parameters()), stage="diffusion_forcing", ancestors=[GRANDPARENT])
    stage = ChunkwiseDiffusionForcing(denoiser(), StructuredMemory(long=1, chunk_frames=2), **SIZES)
    stage.initialise_from(folder)
    (line,) = told()
    assert str(folder) in line
    assert "stage diffusion_forcing, step 7 after pretraining (step 3); moving average" in line
    assert f"{len(parent.state_dict())} tensors taken, none left over" in line
    assert stage.ancestors[0] == GRANDPARENT
    own = stage.ancestors[1]
    assert (own["stage"], own["step"], len(own["weights_sha256"])) == ("diffusion_forcing", 7, 64)
    assert (own["moving_average"], own["matched"], own["left_as_made"]) == (True, len(parent.state_dict()), [])


def test_weights_that_a_stage_adds_are_named_as_left_as_they_were_made(tmp_path, told):
    parent = denoiser(seed=1)
    student = denoiser(guidance_embedding=True)
    added = sorted(student.state_dict().keys() - parent.state_dict().keys())
    stage = CFGDistillation(student, StructuredMemory(long=1, chunk_frames=2), **SIZES)
    stage.initialise_from(write_parent(tmp_path / "parent", parent))
    (line,) = told()
    assert "without a moving average" in line
    assert f"{len(added)} that it lacks stay as they were made: {', '.join(added)}" in line
    assert json.loads(json.dumps(stage.ancestors))[0]["left_as_made"] == added

"""Stages and streams say themselves how often they evaluate what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowact.budget.recording import Recorder, record_stream, record_training
from flowact.errors import UserError
from flowact.memory import GeneratedMemory, GroundTruthMemory, NoMemory, RolloutMemory, StructuredMemory
from flowact.sampling.window import Guidance, WindowEngine
from flowact.schedulers.staircase import Staircase
from flowact.stages import ChunkwiseDiffusionForcing, DistributionMatching, FlowMatchingPretraining, SelfForcing, StepDistillation
from flowact.types import Visibility


def recorder():
    return Recorder(latent_channels=3, text_width=5, audio_width=6, audio_per_latent=4)


def recorded(stage):
    return record_training(stage, stage.denoiser, 4, (stage.history_frames, stage.num_chunks * stage.chunk_frames))


def rates(stage):
    """(role, gradient) -> evaluations of a step."""
    found: dict[tuple[str, bool], float] = {}
    for evaluation, rate in recorded(stage).items():
        key = (evaluation.role, evaluation.gradient)
        found[key] = found.get(key, 0) + rate
    return found


def test_plain_stages_evaluate_once():
    for make in (FlowMatchingPretraining, ChunkwiseDiffusionForcing):
        stage = make(recorder())
        assert rates(stage) == {("denoiser", True): 1}
        (evaluation,) = recorded(make(recorder()))
        assert evaluation.layout.num_stream_frames == stage.num_chunks * stage.chunk_frames
        assert evaluation.layout.num_memory_frames == stage.memory.num_frames
        assert not evaluation.kept


def test_generated_memory_costs_evaluations_of_the_intermediate_checkpoint():
    # four chunks of history, three at a time; sometimes only a part of it is there
    always = rates(SelfForcing(recorder(), memory=StructuredMemory(long=3), start=0.0))
    assert always == {("denoiser", True): 1, ("intermediate", False): 2}
    assert ("intermediate", False) not in rates(SelfForcing(recorder(), corruptor=GroundTruthMemory()))
    some = rates(SelfForcing(recorder(), memory=StructuredMemory(long=3), start=1.0))
    assert 0 < some["intermediate", False] < 2


@pytest.mark.parametrize(("corruptor", "evaluations"), [(GeneratedMemory(by="average"), 2), (RolloutMemory(chunks=3, micro_steps=4), 12)])
def test_memory_of_the_trained_network_costs_evaluations_of_it(corruptor, evaluations):
    stage = SelfForcing(recorder(), memory=StructuredMemory(long=3), corruptor=corruptor, start=0.0)
    assert rates(stage) == {("denoiser", True): 1, ("denoiser", False): evaluations}


@pytest.mark.parametrize(("guidance", "halves"), [(1.0, 1), (2.0, 2)])
def test_a_teacher_takes_its_steps(guidance, halves):
    stage = StepDistillation(recorder(), corruptor=GroundTruthMemory(), teacher_steps=3, guidance=guidance)
    assert rates(stage) == {("denoiser", True): 1, ("intermediate", False): 3 * halves}


def test_roles_take_their_turns():
    found = rates(DistributionMatching(recorder(), student_every=4, guidance=2.0))
    assert found == {
        ("denoiser", True): 1 / 4,  # the student's turn
        ("denoiser", False): 3 / 4,
        ("fake_score", True): 1,
        ("fake_score", False): 1 / 4,
        ("real_score", False): 2 / 4,
    }


def test_data_that_do_not_fit_are_told():
    stage = ChunkwiseDiffusionForcing(recorder())
    with pytest.raises(UserError, match="history frames: the data has 3, the stage wants 12"):
        record_training(stage, stage.denoiser, 4, (3, 9))


def test_recording_leaves_random_numbers_as_they_were():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    recorded(SelfForcing(recorder()))
    assert torch.equal(torch.get_rng_state(), before)


def stream(bank, **options):
    network = recorder()
    engine = WindowEngine(network, bank, Staircase(micro_steps=options.pop("micro_steps", 1)), **options)
    calls = record_stream(engine, chunk_frames=3, audio_per_latent=4)
    return {(e.encodes_memory, e.kept, len(e.layout.segments)): rate for e, rate in calls.items()}


def test_a_stream_evaluates_once_for_each_chunk_that_leaves():
    assert stream(StructuredMemory()) == {(False, False, 8): 1}
    assert stream(NoMemory()) == {(False, False, 4): 1}
    assert stream(StructuredMemory(), guidance=Guidance(2.0)) == {(False, False, 8): 2}


def test_kept_memory_is_encoded_once_for_all_micro_steps():
    assert stream(StructuredMemory(), micro_steps=4) == {(True, False, 5): 1, (False, True, 8): 4}
    assert stream(StructuredMemory(), micro_steps=4, reuse_memory=False) == {(False, False, 8): 4}


def test_isolated_entries_are_encoded_when_they_come():
    found = stream(StructuredMemory(), visibility=Visibility(memory="isolated"))
    (encoded,) = (key for key in found if key[0])
    assert found == {encoded: 1, (False, True, 8): 1}
    assert encoded[2] < 5  # not all entries anew


def test_a_network_that_keeps_nothing_is_asked_for_nothing():
    network = recorder()
    network.reuses_memory = False
    calls = record_stream(WindowEngine(network, StructuredMemory(), Staircase(micro_steps=2)), 3, 4)
    assert [(e.encodes_memory, e.kept, rate) for e, rate in calls.items()] == [(False, False, 2)]


def test_a_recorder_is_no_network_to_stream_with():
    assert sum(parameter.numel() for parameter in recorder().parameters()) == 1
    assert isinstance(recorder(), nn.Module)

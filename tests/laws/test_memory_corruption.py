"""What corruptors make with a stage: rollouts in their place in time, the network's own errors, no gradient, and the same work on every process."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from oracle import PerfectDenoiser, knowing_batch, learning_denoiser

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory import (
    CorruptorChain,
    ErrorBufferMemory,
    GaussianMemory,
    GeneratedMemory,
    GroundTruthMemory,
    RolloutMemory,
    SlidingWindowMemory,
    StructuredMemory,
)
from flowact.memory.corruptors import Ramp
from flowact.schedulers import IndependentLevels
from flowact.stages import SelfForcing

N, W = 2, 3


def structured():
    return StructuredMemory(long=3, short=1, chunk_frames=N)


def stage_of(denoiser, corruptor=None, intermediate=None, **options):
    settings = {"memory": structured(), "chunk_frames": N, "num_chunks": W, "start": 0.0, "dropout": ConditionDropout(0.0, 0.0)} | options
    stage = SelfForcing(denoiser, corruptor=corruptor, **settings).train()
    stage.intermediate.copy_from(intermediate or denoiser)
    return stage


def batch_for(stage, **options):
    return knowing_batch(stage.history_frames + stage.num_chunks * stage.chunk_frames, **options)


class Run:
    """As much of a trainer as a stage looks at in a step."""

    def __init__(self, number=0, step=0, max_steps=100):
        self.fit_loop = SimpleNamespace(total_batch_idx=number)
        self.global_step, self.max_steps, self.callbacks = step, max_steps, []


def assert_same_memory(made, clean, **tolerance):
    torch.testing.assert_close(made.latents_BFCHW, clean.latents_BFCHW, **tolerance)
    assert torch.equal(made.audio_BFAD, clean.audio_BFAD)
    assert torch.equal(made.text_BSLD, clean.text_BSLD)
    assert made.segments == clean.segments


# --- rollouts


@pytest.mark.parametrize("memory", [structured(), SlidingWindowMemory(chunks=2, chunk_frames=N)], ids=["structured", "sliding"])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize(("num_chunks", "micro_steps", "shift"), [(3, 1, 1.0), (3, 4, 5.0), (2, 2, 1.0), (1, 3, 2.0)])
def test_what_a_perfect_model_streams_is_the_true_history(memory, chunks, num_chunks, micro_steps, shift):
    """The oracle knows each chunk by its own sound: a chunk in another place of time, or one that left unfinished, would be another."""
    torch.manual_seed(0)
    stage = stage_of(PerfectDenoiser(), RolloutMemory(1.0, chunks, micro_steps, shift), memory=memory, num_chunks=num_chunks)
    batch = batch_for(stage)
    made, clean = stage.memory_of(batch), stage.remember(batch, stage.history(batch))
    assert_same_memory(made, clean, atol=1e-5, rtol=1e-4)
    assert stage.denoiser.evaluations == min(chunks, stage.memory.history_chunks) * micro_steps


def test_only_the_last_chunks_are_streamed_and_each_is_off_by_what_the_model_errs():
    """Under a constant velocity a chunk moves by the level that it began at: its own stair where it stood in the window, 1 where it entered."""

    class Straight(PerfectDenoiser):
        def velocity(self, latents, sigma, known):
            return torch.ones_like(latents)

    stage = stage_of(Straight())
    batch = batch_for(stage)
    history = stage.chunks(batch, 0, 4)
    zeros = replace(batch, latents_BFCHW=torch.zeros_like(batch.latents_BFCHW))
    torch.manual_seed(0)
    made = stage.roll_out(zeros, stage.chunks(zeros, 0, 4), 3, 1, 1.0)
    torch.manual_seed(0)  # the noise of the two that stand in the window, then of each that enters
    noise = [torch.randn_like(history[0].latents_BFCHW) for _ in range(2 + 3)]
    assert torch.equal(made[0].latents_BFCHW, torch.zeros_like(made[0].latents_BFCHW)), "earlier history stays true"
    for chunk, clean, level, drawn in zip(made[1:], history[1:], (1 / 3, 2 / 3, 1.0), noise, strict=False):
        torch.testing.assert_close(chunk.latents_BFCHW, level * drawn - level, atol=1e-5, rtol=1e-4)
        assert torch.equal(chunk.audio_BFAD, clean.audio_BFAD)
        assert torch.equal(chunk.text_BLD, clean.text_BLD)


def test_a_streamed_chunk_is_remembered_before_the_next_one_leaves():
    class Watching(PerfectDenoiser):
        def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
            self.memories = [*getattr(self, "memories", []), latents_BFCHW[:, : layout.num_memory_frames]]
            return super().forward(latents_BFCHW, sigma_BF, conditions, layout) + 0.5

    stage = stage_of(Watching())
    batch = batch_for(stage)
    made = stage.roll_out(batch, stage.chunks(batch, 0, 4), 2, 1, 1.0)
    before, after = stage.denoiser.memories
    true = stage.remember(batch, stage.chunks(batch, 0, 2)).latents_BFCHW
    assert torch.equal(before, true)
    assert torch.equal(after[:, -1:], made[2].latents_BFCHW[:, -1:])
    assert not torch.allclose(made[2].latents_BFCHW, stage.chunks(batch, 0, 4)[2].latents_BFCHW)


def test_a_stream_that_has_just_begun_is_rolled_out_from_its_reference():
    torch.manual_seed(0)
    stage = stage_of(PerfectDenoiser(), RolloutMemory(1.0, chunks=4), start=1.0)
    batch = batch_for(stage)
    lengths = set()
    for _ in range(20):
        view = stage.memory_of(batch)
        history = stage._corruption[0] if stage._corruption else []
        assert_same_memory(view, stage.remember(batch, history), atol=1e-5, rtol=1e-4)
        lengths.add(len(history))
    assert lengths == {0, 1, 2, 3}


# --- the network's own errors


class Erring(PerfectDenoiser):
    def velocity(self, latents, sigma, known):
        return super().velocity(latents, sigma, known) + 2.0


def test_the_buffer_holds_what_the_estimates_are_off_by():
    """A velocity that is 2 too large leaves the clean estimate 2 sigma too small."""
    torch.manual_seed(0)
    corruptor = ErrorBufferMemory(1.0, bins=10, size=4, min_sigma=0.5, max_sigma=0.8, min_scale=1.0, max_scale=1.0)
    stage = stage_of(Erring(), corruptor, levels=IndependentLevels())
    batch = batch_for(stage)
    clean = stage.remember(batch, stage.history(batch)).latents_BFCHW
    assert torch.equal(stage.memory_of(batch).latents_BFCHW, clean), "nothing was learnt yet"
    for _ in range(40):
        stage.flow_matching(batch)
    assert corruptor.errors.shape[:2] == (10, 4)
    assert sum(corruptor.counts) <= 40
    for index, count in enumerate(corruptor.counts):
        errors = corruptor.errors[index, :count]
        assert ((errors <= -2 * index / 10 + 1e-4) & (errors >= -2 * (index + 1) / 10 - 1e-4)).all()
    off = stage.memory_of(batch).latents_BFCHW - clean
    assert not off[:, 0].any(), "the reference is no history"
    assert ((off[:, 1:] < -2 * 0.5 + 1e-4) & (off[:, 1:] > -2 * 0.8 - 1e-4)).all()


def test_a_perfect_model_leaves_no_errors():
    torch.manual_seed(0)
    corruptor = ErrorBufferMemory(1.0)
    stage = stage_of(PerfectDenoiser(), corruptor, levels=IndependentLevels())
    batch = batch_for(stage)
    for _ in range(4):
        stage.flow_matching(batch)
    assert sum(corruptor.counts) == 4 * 2 * W
    assert float(corruptor.errors.abs().max()) < 1e-5
    assert_same_memory(stage.memory_of(batch), stage.remember(batch, stage.history(batch)), atol=1e-5, rtol=0)


def test_validation_neither_corrupts_nor_is_learnt_from():
    corruptor = CorruptorChain({"errors": ErrorBufferMemory(1.0), "noise": GaussianMemory(1.0)})
    stage = stage_of(Erring(), corruptor).eval()
    batch = batch_for(stage)
    stage.flow_matching(batch)
    assert corruptor.members["errors"].errors is None
    assert torch.equal(stage.memory_of(batch).latents_BFCHW, stage.remember(batch, stage.history(batch)).latents_BFCHW)


# --- whatever the corruptor


def corruptors():
    members = {"model": GeneratedMemory(1.0), "errors": ErrorBufferMemory(1.0), "own": RolloutMemory(1.0, chunks=3), "noise": GaussianMemory()}
    return [GroundTruthMemory(), *members.values(), CorruptorChain(members)]


@pytest.mark.parametrize("corruptor", corruptors(), ids=lambda corruptor: corruptor.name)
def test_no_gradient_flows_into_memory(corruptor):
    torch.manual_seed(0)
    stage = stage_of(learning_denoiser(), corruptor)
    stage.flow_matching(batch_for(stage))[2].backward()  # errors to draw from
    assert corruptor.name != "error_buffer" or any(corruptor.counts)
    stage.zero_grad()
    batch = batch_for(stage)
    latents, reference = batch.latents_BFCHW.requires_grad_(), batch.reference_BFCHW.requires_grad_()
    assert not stage.memory_of(batch).latents_BFCHW.requires_grad
    stage.flow_matching(batch)[2].backward()
    assert not latents.grad[:, : stage.history_frames].any()
    assert latents.grad[:, stage.history_frames :].any()
    assert reference.grad is None or not reference.grad.any()
    assert all(parameter.grad is None for parameter in stage.intermediate.network.parameters())


@pytest.mark.parametrize("corruptor", corruptors(), ids=lambda corruptor: corruptor.name)
def test_conditions_and_places_of_memory_stay_as_they_are(corruptor):
    torch.manual_seed(0)
    stage = stage_of(Erring(), corruptor)
    batch = batch_for(stage)
    stage.flow_matching(batch)
    made, clean = stage.memory_of(batch), stage.remember(batch, stage.history(batch))
    assert_same_memory(replace(made, latents_BFCHW=clean.latents_BFCHW), clean)
    assert made.latents_BFCHW.shape == clean.latents_BFCHW.shape
    assert torch.equal(made.latents_BFCHW[:, :1], batch.reference_BFCHW)


# --- the same work on every process


def work(rank, number):
    """What a step of a process evaluates: its network and the frozen one, on windows of these lengths."""
    calls = []

    def noting(who):
        class Noting(PerfectDenoiser):
            def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
                calls.append((who, tuple(segment.num_frames for segment in layout.segments)))
                return super().forward(latents_BFCHW, sigma_BF, conditions, layout)

        return Noting()

    members = {"model": GeneratedMemory(1.0), "own": RolloutMemory(1.0, chunks=3, ramp=Ramp(steps=5)), "noise": GaussianMemory()}
    stage = stage_of(noting("trained"), CorruptorChain(members, clean=0.5), noting("frozen"), start=0.7)
    run = Run(number, step=3)
    stage.trainer = run
    torch.manual_seed(1000 * rank + number)  # as each process has it
    stage.flow_matching(batch_for(stage, seed=rank))
    chosen = tuple(stage._corruption[1].chosen_B.tolist()) if stage._corruption else None
    return tuple(calls), chosen


def test_every_process_evaluates_as_often_whatever_it_draws(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    steps = [[work(rank, number) for rank in range(2)] for number in range(40)]
    for first, second in steps:
        assert first[0] == second[0]
    assert len({first[0] for first, _ in steps}) > 5, "steps differ, in length of history and in member"
    assert any(first[1] != second[1] for first, second in steps), "each process chooses samples of its own"


def test_shared_randomness_is_of_the_seed_the_batch_and_the_purpose(monkeypatch):
    stage = stage_of(PerfectDenoiser())
    assert stage.shared_generator("a") is None, "without a trainer it is torch's own"

    def drawn(seed, number, purpose):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        run = Run(number)
        stage.trainer = run
        return float(torch.rand((), generator=stage.shared_generator(purpose), dtype=torch.float64))

    places = [(seed, number, purpose) for seed in range(3) for number in range(30) for purpose in ("history", "corruptor")]
    values = [drawn(*place) for place in places]
    assert values == [drawn(*place) for place in places]
    assert len(set(values)) == len(values)
    assert abs(sum(values) / len(values) - 0.5) < 4 * (1 / 12 / len(values)) ** 0.5

"""What a graded rollout promises: each chunk has a gradient through exactly one evaluation, and the stream is that of the engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matching import N, batch_for, stage_of
from oracle import CHANNELS, SIZE, KnowingDenoiser, PerfectDenoiser, clean_chunks, knowing_chunk, learning_denoiser
from torch import nn

from flowact.errors import UserError
from flowact.memory import NoMemory, SlidingWindowMemory, StructuredMemory
from flowact.memory.structured import reference_chunk
from flowact.models.base import Denoiser
from flowact.sampling.window import WindowEngine, WindowState
from flowact.schedulers import Staircase
from flowact.stages import DistributionMatching
from flowact.stages.student_rollout import clean_estimate, graded_rollout
from flowact.types import FULL_VISIBILITY, Visibility

#: W, M, and the exits of the windows
ROLLOUTS = [(1, 4, (0, 3, 2)), (1, 1, (0, 0)), (3, 1, (0, 0, 0)), (2, 3, (1, 0, 2)), (3, 2, (1,))]


class EveryEvaluation(KnowingDenoiser):
    """Adds a number of its own in each evaluation, and listens to memory: what a result depends on shows in the gradient."""

    def __init__(self):
        super().__init__()
        self.biases, self.enabled, self.memories = nn.Parameter(torch.zeros(64)), [], []

    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        memory_BFCHW = latents_BFCHW[:, : layout.num_memory_frames]
        self.enabled.append(torch.is_grad_enabled())
        self.memories.append(memory_BFCHW)
        velocity = super().forward(latents_BFCHW, sigma_BF, conditions, layout)
        return velocity + self.biases[self.evaluations - 1] + memory_BFCHW.mean()

    def velocity(self, latents, sigma, known):
        return 0.5 * latents - known


def start_of(denoiser, num_chunks, micro_steps, windows, **options):
    """An engine, a stream in its middle, the chunks that enter, and the clean latents of all in order."""
    clean = clean_chunks(windows * num_chunks, N)
    engine = WindowEngine(denoiser, SlidingWindowMemory(chunks=1, chunk_frames=N), Staircase(num_chunks, micro_steps), reuse_memory=False, **options)
    chunks = [knowing_chunk(latents, seed=seed) for seed, latents in enumerate(clean)]
    stairs = engine.staircase.stairs(0.0).tolist()
    standing = [replace(c, latents_BFCHW=(1 - s) * x + s * c.latents_BFCHW) for c, x, s in zip(chunks[: num_chunks - 1], clean, stairs, strict=False)]
    reference = torch.randn(2, 1, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    memory = engine.bank.reset(reference_chunk(reference, chunks[0]))
    return engine, WindowState(memory, tuple(standing)), chunks[num_chunks - 1 :], clean


@pytest.mark.parametrize(("num_chunks", "micro_steps", "exits"), ROLLOUTS)
def test_each_chunk_has_a_gradient_through_exactly_one_evaluation(num_chunks, micro_steps, exits):
    denoiser = EveryEvaluation()
    engine, state, entering, clean = start_of(denoiser, num_chunks, micro_steps, len(exits))
    samples = graded_rollout(engine, state, entering, exits)
    assert len(samples) == len(exits) * num_chunks
    graded = [number for number, enabled in enumerate(denoiser.enabled) if enabled]
    assert len(graded) == len(exits)
    for window, exit_step in enumerate(exits):
        levels = engine.staircase.stairs(exit_step)
        torch.testing.assert_close(denoiser.levels[graded[window]][0, ::N], levels, msg="graded on the stairs of its exit")
        for k in range(num_chunks):
            chunk = samples[window * num_chunks + k]
            assert torch.equal(chunk.audio_BFAD.flatten(2), clean[window * num_chunks + k].flatten(2)), "in order of time, none twice"
            (gradient,) = torch.autograd.grad(chunk.latents_BFCHW.mean(), denoiser.biases, retain_graph=True)
            expected = torch.zeros(64).index_fill(0, torch.tensor(graded[window]), -float(levels[k]))
            torch.testing.assert_close(gradient, expected, msg="none through another evaluation, nor through memory")


@pytest.mark.parametrize(("num_chunks", "micro_steps", "exits"), ROLLOUTS)
def test_evaluations_are_those_that_the_stream_needs(num_chunks, micro_steps, exits):
    denoiser = EveryEvaluation()
    graded_rollout(*start_of(denoiser, num_chunks, micro_steps, len(exits))[:3], exits)
    if num_chunks == 1:  # nothing below the exit
        assert denoiser.evaluations == sum(exits) + len(exits)
    else:  # W steps from one graded window to the next
        assert denoiser.evaluations == (len(exits) - 1) * num_chunks * micro_steps + exits[-1] + 1


@pytest.mark.parametrize("exits", [(0, 0, 0), (1, 0, 2), (2, 2, 1)])
def test_a_window_streams_on_as_the_engine_does_whatever_was_graded(exits):
    """By the deterministic solver; with W > 1."""
    denoiser = EveryEvaluation()
    engine, state, entering, _ = start_of(denoiser, 2, 3, len(exits))
    samples = graded_rollout(engine, state, entering, exits)
    with torch.no_grad():
        denoiser.evaluations = 32  # biases are zero: it is the same denoiser
        for chunk in entering[:-1]:
            state, _ = engine.step(state, chunk)
        stream = [*state.stream, entering[-1]]
        for micro_step in range(exits[-1]):
            stream = engine.descend(stream, engine.velocity(engine.bank.read(state.memory), stream, micro_step), micro_step)
        velocity = engine.velocity(engine.bank.read(state.memory), stream, exits[-1])
    for chunk, sample in zip(clean_estimate(stream, velocity, engine.staircase.stairs(exits[-1])), samples[-2:], strict=True):
        torch.testing.assert_close(sample.latents_BFCHW, chunk.latents_BFCHW)


def test_a_single_chunk_leaves_as_the_estimate_that_was_graded():
    denoiser = EveryEvaluation()
    samples = graded_rollout(*start_of(denoiser, 1, 4, 3)[:3], (1, 0, 2))
    graded = [number for number, enabled in enumerate(denoiser.enabled) if enabled]
    for sample, number in zip(samples[:-1], graded[1:], strict=True):
        assert torch.equal(denoiser.memories[number][:, -N:], sample.latents_BFCHW)
        assert not denoiser.memories[number].requires_grad


@pytest.mark.parametrize("solver", ["euler", "renoise"])
@pytest.mark.parametrize(("num_chunks", "micro_steps", "windows", "depth"), [(1, 4, 3, 0), (1, 4, 2, 2), (3, 1, 2, 1), (2, 2, 2, 0)])
def test_the_rollout_of_a_perfect_student_is_the_data(solver, num_chunks, micro_steps, windows, depth):
    stage = stage_of(
        PerfectDenoiser(), solver=solver, num_chunks=num_chunks, micro_steps=micro_steps, windows=windows, rollout=depth,
        memory=SlidingWindowMemory(chunks=2, chunk_frames=N),
    )  # fmt: skip
    for training in (True, False):
        stage.train(training)
        stage.trainer = SimpleNamespace(global_step=0, fit_loop=SimpleNamespace(total_batch_idx=0), strategy=None)
        batch = batch_for(stage)
        memory, samples = stage.sample(batch)
        for sample, clean in zip(samples, stage.stream(batch), strict=True):
            torch.testing.assert_close(sample.latents_BFCHW, clean.latents_BFCHW, atol=1e-4, rtol=1e-4)
            assert torch.equal(sample.audio_BFAD, clean.audio_BFAD)
            assert torch.equal(sample.text_BLD, clean.text_BLD)
        history = stage.remember(batch, stage.chunks(batch, 0, 2))
        torch.testing.assert_close(memory.latents_BFCHW, history.latents_BFCHW, atol=1e-4, rtol=1e-4)
        assert not memory.latents_BFCHW.requires_grad


def test_exits_are_equal_on_processes_differ_between_seeds_and_are_uniform(monkeypatch):
    stage = stage_of(PerfectDenoiser(), num_chunks=1, micro_steps=4, windows=2).train()

    def drawn(process, seed, steps=2000):
        torch.manual_seed(process)
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        exits = []
        for step in range(steps):
            stage.trainer = SimpleNamespace(global_step=step, fit_loop=SimpleNamespace(total_batch_idx=step))
            exits.append(stage.exits())
        return torch.tensor(exits)

    first = drawn(0, 1)
    assert torch.equal(first[:100], drawn(1, 1, 100))
    assert not torch.equal(first[:100], drawn(0, 2, 100))
    pairs = torch.bincount(4 * first[:, 0] + first[:, 1], minlength=16)  # uniform, and independent of one another
    assert float(((pairs - 125.0).square() / 125.0).sum()) < 45, "chi square of 15 degrees is below 45 but once in 10000"
    stage.eval()
    assert stage.exits() == [3, 3]


class Noting(Denoiser):
    """Notes the layouts that it is asked for."""

    latent_channels, text_width, audio_width = CHANNELS, 3, 2

    def __init__(self):
        super().__init__()
        self.scale, self.layouts = nn.Parameter(torch.ones(())), []

    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        self.layouts.append(layout)
        return self.scale * latents_BFCHW[:, layout.num_memory_frames :]


@pytest.mark.parametrize("sees", ["memory", "reference"])
def test_scores_see_the_whole_clip_as_one_stream(sees):
    visibility = Visibility(stream="block_causal")
    stage = stage_of(Noting(), Noting(), Noting(), num_chunks=2, windows=2, scores_see=sees, visibility=visibility)
    batch = batch_for(stage)
    memory, samples = stage.sample(batch)
    stage.student_loss(memory, samples)
    stage.fake_score_loss(memory, samples)
    (real,), (fake, trained) = stage.real_score.network.layouts, stage.fake_score.layouts
    assert real == fake == trained
    assert [segment.position for segment in real.segments if not segment.is_memory] == [0, N, 2 * N, 3 * N]
    state = stage.memory.reset(reference_chunk(batch.reference_BFCHW, samples[0]))
    expected = stage.memory.read(state) if sees == "memory" else NoMemory().read(NoMemory().reset(state.reference))
    assert real.memory.segments == expected.segments
    assert real.visibility == (visibility if sees == "memory" else FULL_VISIBILITY)
    if sees == "reference":
        assert torch.equal(memory.latents_BFCHW, batch.reference_BFCHW)
    assert all(layout.visibility == visibility for layout in stage.denoiser.layouts), "the student keeps its own"


# --- what cannot be


def test_entering_chunks_and_exits_must_fit():
    engine, state, entering, _ = start_of(learning_denoiser(), 2, 2, 2)
    with pytest.raises(ValueError, match="2 windows of 2 chunks take 3 entering chunks, got 2"):
        graded_rollout(engine, state, entering[:-1], (0, 1))
    with pytest.raises(ValueError, match=r"micro-steps, 0 to 1, got \[0, 2\]"):
        graded_rollout(engine, state, entering, (0, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"windows": 0}, "windows is 0"), ({"micro_steps": 0}, "micro_steps is 0"), ({"scores_see": "all"}, "scores_see is 'all'")],
)
def test_impossible_clips_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        stage_of(PerfectDenoiser(), **options)


def test_data_whose_window_is_not_the_clip_are_refused():
    stage = stage_of(PerfectDenoiser(), windows=2)
    stage.trainer = SimpleNamespace(datamodule=SimpleNamespace(window_frames=6))
    with pytest.raises(UserError, match=r"2 windows of 3 chunks of 2 latent frames has 12, but the data's window has 6: set data\.window_frames"):
        DistributionMatching.setup(stage, "fit")


@pytest.mark.parametrize(
    ("sees", "memory", "lineage", "words"),
    [
        ("reference", None, {"stage": "self_forcing", "memory": "StructuredMemory"}, "was trained on a stream"),
        ("reference", None, {"stage": "diffusion_forcing", "memory": "NoMemory", "stream_chunks": 3}, "was trained on a stream"),
        ("memory", None, {"stage": "pretraining", "memory": "NoMemory"}, "never saw StructuredMemory"),
        ("reference", None, {"stage": "pretraining", "memory": "NoMemory"}, None),
        ("reference", None, {"stage": "imported"}, None),
        ("memory", None, {"stage": "imported"}, None),
        ("memory", None, {"stage": "diffusion_forcing", "memory": "SlidingWindowMemory", "stream_chunks": 1}, None),
        ("memory", NoMemory(), {"stage": "diffusion_forcing", "memory": "NoMemory", "stream_chunks": 3}, None),
    ],
)
def test_scores_must_have_seen_what_they_are_shown(sees, memory, lineage, words):
    stage = stage_of(PerfectDenoiser(), scores_see=sees, memory=memory or StructuredMemory(chunk_frames=N))
    if words is None:
        stage._check_what_scores_see(lineage)
        return
    with pytest.raises(UserError, match=words):
        stage._check_what_scores_see(lineage)

"""The window engine: exact for fields that are known, W forwards to the first chunk and one per chunk after."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from oracle import ConstantDenoiser, PerfectDenoiser, clean_chunks, knowing_chunk, learning_denoiser

from flowact.memory import NoMemory, SlidingWindowMemory, StructuredMemory
from flowact.sampling import Guidance, WindowEngine, predict_velocity
from flowact.schedulers import Euler, Renoise, Staircase
from flowact.types import Segment, Visibility


def started(engine, clean, num_frames=3):
    """State before the first chunk, with still chunks that are the first `W - 1` of `clean`."""
    reference = knowing_chunk(clean[0][:, :1], clean[0][:, :1])
    still = [knowing_chunk(x, x) for x in clean[: engine.staircase.num_chunks - 1]]
    return engine.start(reference, still, torch.Generator().manual_seed(1))


def run(engine, clean):
    """Every chunk enters; what leaves, in order, still chunks included."""
    generator = torch.Generator().manual_seed(2)
    state, left = started(engine, clean), []
    with torch.no_grad():
        for k, x in enumerate(clean[engine.staircase.num_chunks - 1 :]):
            state, done = engine.step(state, knowing_chunk(x, seed=k), generator)
            left.append(done.latents_BFCHW)
    return state, left


@pytest.mark.parametrize(("num_chunks", "micro_steps", "solver", "shift"), list(product((1, 2, 3), (1, 2, 4), (Euler(), Renoise()), (1.0, 5.0))))
def test_a_perfect_denoiser_gives_back_the_clean_latents(num_chunks, micro_steps, solver, shift):
    clean = clean_chunks(6)
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase(num_chunks, micro_steps, shift), solver=solver)
    _, left = run(engine, clean)
    assert len(left) == 7 - num_chunks
    for made, x in zip(left, clean, strict=False):
        torch.testing.assert_close(made, x, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("micro_steps", "shift"), list(product((1, 3), (0.5, 1.0, 5.0))))
def test_euler_is_exact_on_a_constant_velocity(micro_steps, shift):
    """A chunk falls from level 1 to 0, so it leaves as its noise less the velocity, whatever stairs it takes."""
    velocity = clean_chunks(5)
    engine = WindowEngine(ConstantDenoiser(), StructuredMemory(), Staircase(3, micro_steps, shift))
    _, left = run(engine, velocity)
    for k, made in enumerate(left[2:]):  # the first two stood still and began lower
        torch.testing.assert_close(made, knowing_chunk(velocity[2 + k], seed=k).latents_BFCHW - velocity[2 + k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_chunks", "micro_steps", "scale"), [(3, 1, 1.0), (3, 4, 1.0), (2, 2, 3.0), (1, 4, 1.0)])
def test_the_first_chunk_costs_w_steps_and_every_later_one_a_single_step(num_chunks, micro_steps, scale):
    denoiser = PerfectDenoiser()
    engine = WindowEngine(denoiser, StructuredMemory(), Staircase(num_chunks, micro_steps), Guidance(scale))
    clean = clean_chunks(num_chunks + 4)
    state, emitted_at = started(engine, clean), []
    assert denoiser.evaluations == 0
    assert state.emitted == 1 - num_chunks
    for k, x in enumerate(clean[num_chunks - 1 :]):
        was_still = state.emitted < 0
        state, _ = engine.step(state, knowing_chunk(x, seed=k))
        assert len(state.stream) == num_chunks - 1
        if not was_still:
            emitted_at.append(denoiser.evaluations)
    per_step = micro_steps * (1 if scale == 1.0 else 2)
    assert emitted_at == [per_step * (num_chunks + i) for i in range(len(emitted_at))]
    assert state.emitted == len(emitted_at)
    assert engine.evaluations_per_chunk == num_chunks * per_step


def test_each_chunk_meets_the_levels_of_the_staircase():
    denoiser = PerfectDenoiser()
    run(WindowEngine(denoiser, StructuredMemory(), Staircase(3, 2, 5.0)), clean_chunks(6))
    for call, sigma_BF in enumerate(denoiser.levels):
        torch.testing.assert_close(sigma_BF[0, ::3], Staircase(3, 2, 5.0).stairs(call % 2))
        assert torch.equal(sigma_BF, sigma_BF[:1, ::3].repeat_interleave(3, 1).expand_as(sigma_BF))


def test_what_leaves_is_written_to_memory_and_what_stays_keeps_its_conditions():
    engine = WindowEngine(PerfectDenoiser(), SlidingWindowMemory(chunks=1), Staircase())
    clean = clean_chunks(6)
    state, left = run(engine, clean)
    assert torch.equal(engine.bank.read(state.memory).latents_BFCHW[:, 1:], left[-1])
    assert torch.equal(engine.bank.read(state.memory).latents_BFCHW[:, :1], clean[0][:, :1])
    for chunk, x in zip(state.stream, clean[-2:], strict=True):
        assert torch.equal(chunk.audio_BFAD, knowing_chunk(x).audio_BFAD)


def test_a_step_is_pure():
    engine = WindowEngine(learning_denoiser().eval(), StructuredMemory(), Staircase())
    state = started(engine, clean_chunks(3))
    before = [chunk.latents_BFCHW.clone() for chunk in state.stream]
    entering = knowing_chunk(clean_chunks(3)[2])
    with torch.no_grad():
        (first, done), (second, again) = engine.step(state, entering), engine.step(state, entering)
    assert torch.equal(done.latents_BFCHW, again.latents_BFCHW)
    assert first.emitted == second.emitted == state.emitted + 1
    assert all(torch.equal(a, b.latents_BFCHW) for a, b in zip(before, state.stream, strict=True))


def test_guidance_extrapolates_from_no_conditions_and_scale_one_is_none():
    """Without sound the oracle believes in an empty picture, so v = x / sigma - scale * x0 / sigma."""
    bank = NoMemory()
    (clean,) = clean_chunks(1)
    chunk = knowing_chunk(clean)
    memory = bank.read(bank.reset(knowing_chunk(clean[:, :1])))
    sigma = torch.full((2, 1), 0.5)
    none = predict_velocity(PerfectDenoiser(), memory, [chunk], sigma)
    one = PerfectDenoiser()
    assert torch.equal(predict_velocity(one, memory, [chunk], sigma, guidance=Guidance(1.0)), none)
    assert one.evaluations == Guidance(1.0).evaluations == 1
    two = PerfectDenoiser()
    guided = predict_velocity(two, memory, [chunk], sigma, guidance=Guidance(3.0))
    assert two.evaluations == Guidance(3.0).evaluations == 2
    torch.testing.assert_close(guided, (chunk.latents_BFCHW - 3.0 * clean) / 0.5)


def test_dropped_conditions_are_dropped_for_their_samples_only():
    bank = NoMemory()
    (clean,) = clean_chunks(1)
    chunk = knowing_chunk(clean)
    memory = bank.read(bank.reset(knowing_chunk(clean[:, :1])))
    nobody, first = torch.tensor([False, False]), torch.tensor([True, False])
    velocity = predict_velocity(PerfectDenoiser(), memory, [chunk], torch.ones(2, 1), drop=(nobody, first))
    torch.testing.assert_close(velocity[0], chunk.latents_BFCHW[0])
    torch.testing.assert_close(velocity[1], (chunk.latents_BFCHW - clean)[1])


def test_the_geometry_of_a_window_never_changes_along_the_stream():
    seen = []

    class Watching(PerfectDenoiser):
        def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
            seen.append((layout, latents_BFCHW.shape))
            return super().forward(latents_BFCHW, sigma_BF, conditions, layout)

    run(WindowEngine(Watching(), StructuredMemory(), Staircase()), clean_chunks(9))
    assert len(set(seen)) == 1
    assert seen[0][0].segments[-3:] == (Segment("stream", 3, 0), Segment("stream", 3, 3), Segment("stream", 3, 6))
    assert seen[0][0].visibility.causal


@pytest.mark.parametrize(("stream", "sees"), [("block_causal", False), ("bidirectional", True)])
def test_the_chunk_that_leaves_sees_the_one_that_enters_if_it_is_let(stream, sees):
    engine = WindowEngine(learning_denoiser().eval(), StructuredMemory(), Staircase(), visibility=Visibility(stream=stream))
    clean = clean_chunks(4)
    state = started(engine, clean)
    with torch.no_grad():
        left = [engine.step(state, knowing_chunk(x))[1].latents_BFCHW for x in clean[2:]]
    assert torch.allclose(*left, atol=1e-5) != sees


@pytest.mark.parametrize("solver", [Euler(), Renoise()], ids=["euler", "renoise"])
def test_chunks_in_the_stream_lie_between_the_clean_latents_and_noise(solver):
    """One stair down, a chunk is (1 - s) x0 + s eps: with the noise that it came with (euler) or with fresh noise."""
    engine = WindowEngine(PerfectDenoiser(), NoMemory(), Staircase(3, shift=2.0), solver=solver)
    clean = [torch.full((64, 3, 2, 2, 2), 5.0) for _ in range(3)]
    entering = knowing_chunk(clean[2])
    state, _ = engine.step(started(engine, clean), entering, torch.Generator().manual_seed(3))
    for chunk, level in zip(state.stream, engine.staircase.stairs(1)[1:].tolist(), strict=True):
        noise = (chunk.latents_BFCHW - (1 - level) * 5.0) / level
        assert float(noise.mean()) == pytest.approx(0, abs=0.1)
        assert float(noise.std()) == pytest.approx(1, abs=0.1)
    assert torch.allclose(noise, entering.latents_BFCHW, atol=1e-4) == (not solver.draws_noise)


def test_a_start_needs_the_right_number_of_still_chunks():
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase(3))
    clean = clean_chunks(1)
    with pytest.raises(ValueError, match="starts with 2 still chunks, got 1"):
        engine.start(knowing_chunk(clean[0][:, :1]), [knowing_chunk(clean[0])])


def test_still_chunks_stand_on_their_stairs():
    """With latents of zero a still chunk is noise of its level."""
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase(3))
    zeros = [torch.zeros(64, 3, 2, 2, 2) for _ in range(2)]
    state = engine.start(knowing_chunk(zeros[0][:, :1]), [knowing_chunk(x, x) for x in zeros], torch.Generator().manual_seed(0))
    for chunk, level in zip(state.stream, (1 / 3, 2 / 3), strict=True):
        assert float(chunk.latents_BFCHW.std()) == pytest.approx(level, abs=0.03)

"""What a solver remembers travels with the chunk: a stream of many chunks takes each one down as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import KnowingDenoiser, PerfectDenoiser, clean_chunks, knowing_chunk

from flowact.memory import SlidingWindowMemory, StructuredMemory
from flowact.memory.records import from_plain, tensors_of, to_plain
from flowact.sampling import WindowEngine
from flowact.sampling.stream import ChunkStream
from flowact.schedulers import AdamsBashforth, Euler, Renoise, Staircase
from flowact.schedulers.adams_bashforth import LastVelocity
from flowact.stages.student_rollout import graded_rollout
from flowact.testing.solvers import follow
from flowact.types import Chunk


class BentDenoiser(KnowingDenoiser):
    """A velocity that bends along the way, so that a solver's order shows."""

    def velocity(self, latents, sigma, known):
        return 0.8 * latents - sigma * known


def bent(known):
    return lambda latents, sigma: 0.8 * latents - sigma * known


def engine(num_chunks=3, micro_steps=1, solver=None, denoiser=None, bank=None):
    staircase = Staircase(num_chunks, micro_steps, 2.0)
    return WindowEngine(denoiser or BentDenoiser(), bank or StructuredMemory(), staircase, solver=solver or AdamsBashforth())


def begun(window, clean):
    still = [knowing_chunk(x, x) for x in clean[: window.staircase.num_chunks - 1]]
    return window.start(knowing_chunk(clean[0][:, :1], clean[0][:, :1]), still, torch.Generator().manual_seed(1))


@torch.no_grad()
def streamed(window, clean, state=None):
    """The state after all chunks entered, and every chunk that left."""
    state, left = state or begun(window, clean), []
    for k, x in enumerate(clean[window.staircase.num_chunks - 1 :]):
        state, done = window.step(state, knowing_chunk(x, seed=k))
        left.append(done)
    return state, left


@pytest.mark.parametrize(("num_chunks", "micro_steps"), [(3, 1), (1, 4), (2, 3), (4, 1)])
def test_each_chunk_of_a_stream_goes_down_as_it_would_alone(num_chunks, micro_steps):
    window = engine(num_chunks, micro_steps)
    clean = clean_chunks(num_chunks + 4)
    _, left = streamed(window, clean)
    for k, done in enumerate(left[num_chunks - 1 :]):
        known = clean[num_chunks - 1 + k]
        alone = follow(AdamsBashforth(), bent(known), knowing_chunk(known, seed=k).latents_BFCHW, window.staircase.descent(num_chunks - 1))
        torch.testing.assert_close(done.latents_BFCHW, alone, atol=1e-5, rtol=1e-5)
    straight = follow(Euler(), bent(known), knowing_chunk(known, seed=k).latents_BFCHW, window.staircase.descent(num_chunks - 1))
    assert not torch.allclose(alone, straight, atol=1e-2)


def test_chunks_that_began_on_a_lower_stair_have_trails_that_begin_there():
    window, clean = engine(3, 1), clean_chunks(6)
    state = begun(window, clean)
    assert [chunk.trail for chunk in state.stream] == [None, None]
    _, left = streamed(window, clean, state)
    for place, done in enumerate(left[:2]):
        alone = follow(AdamsBashforth(), bent(clean[place]), state.stream[place].latents_BFCHW, window.staircase.descent(place))
        torch.testing.assert_close(done.latents_BFCHW, alone, atol=1e-5, rtol=1e-5)


def test_a_trail_ends_when_its_chunk_leaves_and_no_memory_holds_one():
    window, clean = engine(3, 2, bank=SlidingWindowMemory(chunks=2)), clean_chunks(8)
    state, left = streamed(window, clean)
    assert all(isinstance(chunk.trail, LastVelocity) for chunk in state.stream)
    assert all(chunk.trail is None for chunk in left)
    held = [part for part in (state.memory.reference, *state.memory.entries) if isinstance(part, Chunk)]
    assert len(held) == 3
    assert all(chunk.trail is None for chunk in held)


@pytest.mark.parametrize("solver", [Euler(), Renoise()], ids=["euler", "renoise"])
def test_solvers_that_remember_nothing_leave_no_trail(solver):
    state, _ = streamed(engine(solver=solver), clean_chunks(5))
    assert [chunk.trail for chunk in state.stream] == [None, None]


def test_a_stream_saved_in_its_middle_goes_on_as_if_nothing_had_been():
    window, clean = engine(), clean_chunks(9)
    state, _ = streamed(window, clean[:5])
    saved = {place: value.clone() if isinstance(value, torch.Tensor) else value for place, value in to_plain(state.stream).items()}
    assert any("trail" in place and isinstance(value, torch.Tensor) for place, value in saved.items())
    other, _ = streamed(window, clean_chunks(6, seed=8))
    restored = replace(state, stream=from_plain(other.stream, saved))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(restored.stream), tensors_of(state.stream), strict=True))
    without = replace(state, stream=tuple(replace(chunk, trail=None) for chunk in state.stream))
    on, same, other = (streamed(window, clean[3:], begin)[1][0].latents_BFCHW for begin in (state, restored, without))
    assert torch.equal(on, same)
    assert not torch.equal(on, other)


def test_a_chunk_moves_with_its_trail():
    state, _ = streamed(engine(), clean_chunks(5))
    moved = state.stream[0].to(torch.float64)
    assert moved.latents_BFCHW.dtype == moved.trail.velocity_BFCHW.dtype == torch.float64
    assert moved.trail.level == state.stream[0].trail.level


def test_conditions_that_change_in_mid_stream_and_other_micro_steps_keep_the_trail():
    window, clean = engine(denoiser=PerfectDenoiser()), clean_chunks(8)
    state, _ = streamed(window, clean[:4])
    faster = replace(window, staircase=replace(window.staircase, micro_steps=3))
    with torch.no_grad():
        for k, x in enumerate(clean[4:]):
            trails = [chunk.trail for chunk in state.stream]
            state = replace(state, stream=tuple(replace(chunk, text_BLD=chunk.text_BLD + 1) for chunk in state.stream))
            assert all(chunk.trail is trail for chunk, trail in zip(state.stream, trails, strict=True))
            state, done = faster.step(state, knowing_chunk(x, seed=k))
            torch.testing.assert_close(done.latents_BFCHW, clean[2 + k], atol=1e-4, rtol=1e-4)


def test_a_window_that_begins_anew_leaves_old_trails_behind():
    window, clean = engine(3, 2), clean_chunks(8)
    state, _ = streamed(window, clean)
    entering = [knowing_chunk(x, seed=k) for k, x in enumerate(clean[:3])]
    with torch.no_grad():
        state, done = window.step_anew(state, entering, torch.Generator().manual_seed(0))
    alone = follow(AdamsBashforth(), bent(clean[0]), entering[0].latents_BFCHW, window.staircase.descent(2))
    torch.testing.assert_close(done.latents_BFCHW, alone, atol=1e-5, rtol=1e-5)
    assert [chunk.trail for chunk in state.stream] == [None, None]


def test_samples_of_a_batch_go_their_own_ways():
    window, clean = engine(), clean_chunks(6)
    _, both = streamed(window, clean)
    keep = replace(begun(window, clean))
    rows = [replace(chunk, **{name: getattr(chunk, name)[:1] for name in ("latents_BFCHW", "audio_BFAD", "text_BLD")}) for chunk in keep.stream]
    memory = window.bank.reset(knowing_chunk(clean[0][:1, :1], clean[0][:1, :1]))
    state = replace(keep, memory=memory, stream=tuple(rows))
    with torch.no_grad():
        for k, x in enumerate(clean[2:]):
            entering = knowing_chunk(x, seed=k)
            one = replace(entering, **{name: getattr(entering, name)[:1] for name in ("latents_BFCHW", "audio_BFAD", "text_BLD")})
            state, done = window.step(state, one)
            torch.testing.assert_close(done.latents_BFCHW, both[k].latents_BFCHW[:1], atol=1e-5, rtol=1e-5)


def test_a_stream_that_became_no_numbers_begins_again_without_trails():
    window, clean = engine(), clean_chunks(3, batch=1)
    silence, rest = knowing_chunk(clean[0]).audio_BFAD[0, 0], knowing_chunk(clean[0]).text_BLD[0]
    still = torch.cat(clean[:2], dim=1)
    stream = ChunkStream(window, _Decoder(), clean[0][:, :1], still, silence, rest, 3, torch.Generator().manual_seed(0))
    pair = (knowing_chunk(clean[2]).audio_BFAD, knowing_chunk(clean[2]).text_BLD)
    for _ in range(4):
        stream.enter(*pair)
    poisoned = [replace(c, trail=LastVelocity(c.trail.velocity_BFCHW.fill_(float("nan")), c.trail.level)) for c in stream._state.stream]
    stream._state = replace(stream._state, stream=tuple(poisoned))
    done = stream.enter(*pair)
    assert stream.take_notes() == ["recovered"]
    assert done is not None
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(stream._state.stream))


class _Decoder:
    """Decodes nothing; the stream's denoising half is looked at."""

    temporal_stride = 4

    def decode_stream(self, latents_BFCHW, state=None):
        return latents_BFCHW, state


def test_a_students_rollout_descends_by_the_solver_and_its_samples_carry_no_trail():
    window, clean = engine(1, 4), clean_chunks(1)
    state = begun(window, clean)
    entering = [knowing_chunk(clean[0], seed=5)]
    (sample,) = graded_rollout(window, state, entering, [3])
    alone = follow(AdamsBashforth(), bent(clean[0]), entering[0].latents_BFCHW, window.staircase.descent(0)[:4])
    level = window.staircase.descent(0)[3]
    torch.testing.assert_close(sample.latents_BFCHW, alone - level * bent(clean[0])(alone, level), atol=1e-5, rtol=1e-5)
    assert sample.trail is None

"""A live session is the offline loop with the same seed; its frames are the batch decode of what left the stream."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import AUDIO, AUDIO_WIDTH, CHANNELS, SIZE, TEXT_WIDTH, TOKENS, learning_denoiser, small_autoencoder

from flowact.memory import NoMemory, SlidingWindowMemory, StructuredMemory
from flowact.memory.structured import reference_chunk
from flowact.sampling import ChunkStream, Guidance, LatencyBudget, WindowEngine
from flowact.sampling.stream import evaluations_per_chunk
from flowact.sampling.window import gaussian
from flowact.schedulers import Renoise, Staircase
from flowact.types import Chunk, ConditionTokens, Segment, Visibility, WindowLayout

N = 3
AUTOENCODER = small_autoencoder()


def engine(num_chunks=3, micro_steps=1, bank=None, **options):
    return WindowEngine(learning_denoiser().eval(), bank or StructuredMemory(), Staircase(num_chunks, micro_steps), **options)


def start(batch=2, num_chunks=3):
    generator = torch.Generator().manual_seed(5)
    return {
        "reference_B1CHW": torch.randn(batch, 1, CHANNELS, SIZE, SIZE, generator=generator),
        "still_BFCHW": torch.randn(batch, (num_chunks - 1) * N, CHANNELS, SIZE, SIZE, generator=generator),
        "silence_AD": torch.randn(AUDIO, AUDIO_WIDTH, generator=generator),
        "rest_LD": torch.randn(TOKENS, TEXT_WIDTH, generator=generator),
    }


def conditions(count, batch=2):
    generator = torch.Generator().manual_seed(6)
    return [
        (torch.randn(batch, N, AUDIO, AUDIO_WIDTH, generator=generator), torch.randn(batch, TOKENS, TEXT_WIDTH, generator=generator))
        for _ in range(count)
    ]


def session(engine, seed=0, **options):
    begin = start(num_chunks=engine.staircase.num_chunks) | options
    return ChunkStream(engine, AUTOENCODER, **begin, chunk_frames=N, generator=torch.Generator().manual_seed(seed))


def offline(engine, conditions, seed=0):
    """The same stream by hand: latents of every chunk that leaves, still ones included."""
    begin, generator = start(num_chunks=engine.staircase.num_chunks), torch.Generator().manual_seed(seed)
    like = begin["reference_B1CHW"].expand(-1, N, -1, -1, -1)
    rest = begin["rest_LD"].expand(2, -1, -1)
    silence = begin["silence_AD"].expand(2, N, -1, -1)
    still = [Chunk(run, silence, rest) for run in begin["still_BFCHW"].split(N, dim=1)][: engine.staircase.num_chunks - 1]
    state = engine.start(reference_chunk(begin["reference_B1CHW"], Chunk(like, silence, rest)), still, generator)
    left = []
    with torch.no_grad():
        for audio, text in conditions:
            state, done = engine.step(state, Chunk(gaussian(like, generator), audio, text), generator)
            left.append(done.latents_BFCHW)
    return left


@pytest.mark.parametrize(
    "options",
    [{}, {"solver": Renoise(), "micro_steps": 2}, {"bank": SlidingWindowMemory()}, {"bank": NoMemory()},
     {"visibility": Visibility(stream="block_causal")}, {"num_chunks": 2, "guidance": Guidance(2.0)}],
)  # fmt: skip
def test_a_session_is_the_offline_loop_and_its_frames_are_the_batch_decode(options):
    entering = conditions(6)
    stream, by_hand = session(engine(**options)), offline(engine(**options), entering)
    num_chunks = stream.engine.staircase.num_chunks
    frames = [stream.next_chunk(*pair) for pair in entering]
    assert [piece is None for piece in frames] == [step < num_chunks - 1 for step in range(6)]
    emitted = torch.cat(by_hand[num_chunks - 1 :], dim=1)
    with torch.no_grad():
        whole = AUTOENCODER.decode(torch.cat([start(num_chunks=num_chunks)["reference_B1CHW"], emitted], dim=1))
    streamed = torch.cat([piece for piece in frames if piece is not None], dim=2)
    torch.testing.assert_close(streamed, whole[:, :, 1:], atol=1e-5, rtol=1e-4)
    assert stream.emitted == 7 - num_chunks


def test_without_still_chunks_every_step_emits():
    entering = conditions(3)
    stream = session(engine(num_chunks=1, micro_steps=4))
    assert all(stream.next_chunk(*pair) is not None for pair in entering)
    assert stream.emitted == 3


def test_the_seed_decides():
    entering = conditions(3)
    outcomes = []
    for seed in (0, 0, 1):
        stream = session(engine(), seed)
        outcomes.append([stream.next_chunk(*pair) for pair in entering][-1])
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.allclose(outcomes[0], outcomes[2], atol=1e-3)


def test_a_prompt_set_now_is_not_seen_before_its_chunk_leaves_under_a_block_causal_mask():
    entering = conditions(5)
    other = [*entering[:2], (entering[2][0] + 1, entering[2][1] + 1), *entering[3:]]
    causal = Visibility(stream="block_causal")
    first, second = session(engine(visibility=causal)), session(engine(visibility=causal))
    pairs = [(first.next_chunk(*a), second.next_chunk(*b)) for a, b in zip(entering, other, strict=True)]
    for step, (a, b) in enumerate(pairs[2:]):
        assert torch.allclose(a, b, atol=1e-5) == (step < 2)


@pytest.mark.parametrize(("options", "expected"), [({}, 3), ({"micro_steps": 4}, 12), ({"guidance": Guidance(2.0)}, 6), ({"num_chunks": 2}, 2)])
def test_evaluations_per_chunk(options, expected):
    stream = session(engine(**options))
    for pair in conditions(5):
        stream.next_chunk(*pair)
        assert evaluations_per_chunk(stream) == expected == stream.engine.evaluations_per_chunk


def test_counting_leaves_no_hook_on_the_denoiser():
    window = engine()
    stream = session(window)
    stream.next_chunk(*conditions(1)[0])
    assert not window.denoiser._forward_hooks
    tokens = ConditionTokens(torch.zeros(1, 1, TOKENS, TEXT_WIDTH), torch.zeros(1, 1, AUDIO, AUDIO_WIDTH))
    window.denoiser(torch.zeros(1, 1, CHANNELS, SIZE, SIZE), torch.ones(1, 1), tokens, WindowLayout((Segment("stream", 1, 0),)))
    assert stream.evaluations == 1


def test_times_are_kept_for_emitted_chunks_only():
    stream = session(engine())
    assert stream.frames_per_second != stream.frames_per_second  # not a number yet
    for step, pair in enumerate(conditions(5)):
        stream.next_chunk(*pair)
        assert len(stream.timing.chunk_seconds) == max(step - 1, 0)
    assert stream.timing.first_frame_seconds >= stream.timing.chunk_seconds[0] > 0
    assert stream.frames_per_second > 0
    assert stream.seconds_per_chunk == pytest.approx(0.48)


def test_the_latency_budget_of_the_papers_geometry():
    budget = LatencyBudget(window=3, chunk_latents=3, temporal_stride=4)
    assert budget.chunk_seconds == pytest.approx(0.48)
    assert budget.audio_lookahead_seconds == budget.prompt_to_motion_seconds == budget.sound_to_motion_seconds == pytest.approx(1.44)
    assert budget.evaluations_per_chunk == 3
    at_once = replace(budget, at_once=True)
    assert at_once.audio_lookahead_seconds == at_once.sound_to_motion_seconds == at_once.prompt_to_motion_seconds == pytest.approx(0.48)
    assert replace(at_once, encoder_lookahead_frames=5).audio_lookahead_seconds == pytest.approx(0.68)


def test_too_few_still_frames_are_refused():
    with pytest.raises(ValueError, match="6 still latent frames, got 5"):
        session(engine(), still_BFCHW=start()["still_BFCHW"][:, :5])

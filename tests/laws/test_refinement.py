"""Memory refinement: only the short memory changes, a model that knows brings it back, and the stream is never looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from laws.oracle import PerfectDenoiser, clean_chunks, knowing_chunk, learning_denoiser

from flowact.errors import UserError
from flowact.memory import MemoryBank, NoMemory, NoveltyMemory, PackedMemory, SlidingWindowMemory, StructuredMemory
from flowact.memory.entries import MemoryState, tail, view
from flowact.sampling.refinement import (
    DriftRefinement,
    NoisyMemory,
    NoRefinement,
    PeriodicRefinement,
    Watch,
    channel_statistics,
    drift_of,
    held_and_short,
    without_short,
)
from flowact.sampling.window import Guidance, WindowEngine, predict_velocity
from flowact.schedulers.staircase import Staircase
from flowact.testing import check_constructor
from flowact.testing.laws import tensors_of
from flowact.types import Segment, Visibility

BANKS = [
    StructuredMemory(),
    StructuredMemory(short=3, entry="chunk"),
    StructuredMemory(reference_position="future", reference_gap=12),
    SlidingWindowMemory(chunks=2),
    PackedMemory(short=2, levels=(2,), strides=(1,)),
    NoveltyMemory(long=2, among=3),
]
ISOLATED = Visibility(memory="isolated")


def started(engine, clean, seed=1):
    """State before the first chunk; the first two clean chunks stand still."""
    count = engine.staircase.num_chunks - 1
    still = [knowing_chunk(x, x) for x in clean[:count]]
    return engine.start(knowing_chunk(clean[0][:, :1], clean[0][:, :1]), still, torch.Generator().manual_seed(seed))


def streamed(engine, num_steps=5):
    """State after some steps."""
    clean = clean_chunks(num_steps + engine.staircase.num_chunks - 1)
    state = started(engine, clean)
    for k, x in enumerate(clean[engine.staircase.num_chunks - 1 :]):
        state, _ = engine.step(state, knowing_chunk(x, seed=k))
    return state


def parts(engine, state):
    """Latents of the short memory, and everything else that memory reads as."""
    read = engine.bank.read(state.memory)
    kinds = [segment.kind for segment in read.segments]
    short, others = ([i for i, kind in enumerate(kinds) if (kind == "short") == want] for want in (True, False))
    return read.entries(short).latents_BFCHW, [read.entries(others).latents_BFCHW, read.audio_BFAD, read.text_BSLD]


def shown(value):
    """Options as they are, objects by class."""
    return str(value) if isinstance(value, float | int | str) else type(value).__name__


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: type(bank).__name__)
@pytest.mark.parametrize("condition", ["clean_tokens", "clean_copies"])
def test_reference_and_long_memory_stay_to_the_bit_and_so_does_the_stream(bank, condition):
    engine = WindowEngine(learning_denoiser(reference="channels").eval(), bank, Staircase())
    with torch.no_grad():
        state = streamed(engine)
        refined = PeriodicRefinement(condition=condition, steps=2).refine(engine, state, seeded())
    (short, others), (new, kept) = parts(engine, state), parts(engine, refined)
    assert not torch.equal(short, new)
    assert all(torch.equal(a, b) for a, b in zip(others, kept, strict=True))
    assert refined.stream is state.stream
    assert refined.emitted == state.emitted


@pytest.mark.parametrize(
    ("bank", "steps", "sigma"),
    list(product(BANKS, (1, 3), (0.3, 1.0))),
    ids=shown,
)
def test_a_perfect_denoiser_brings_a_corrupted_short_memory_back(bank, steps, sigma):
    engine = WindowEngine(PerfectDenoiser(), bank, Staircase())
    state = streamed(engine)
    clean, others = parts(engine, state)
    corrupted = replace(state, memory=bank.with_short(state.memory, clean + torch.randn(clean.shape, generator=seeded(5))))
    before = engine.denoiser.evaluations
    refinement = PeriodicRefinement(sigma=sigma, steps=steps)
    refined, kept = parts(engine, refinement.refine(engine, corrupted, seeded(3)))
    assert not torch.allclose(parts(engine, corrupted)[0], clean, atol=0.1)
    torch.testing.assert_close(refined, clean, atol=2e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(others, kept, strict=True))
    assert engine.denoiser.evaluations - before == refinement.evaluations(engine) == steps


@pytest.mark.parametrize("condition", ["clean_tokens", "clean_copies"])
def test_the_stream_is_never_read(condition):
    engine = WindowEngine(learning_denoiser(reference="channels").eval(), StructuredMemory(), Staircase())
    with torch.no_grad():
        state = streamed(engine)
        other = replace(
            state, stream=tuple(replace(chunk, latents_BFCHW=chunk.latents_BFCHW + 1, text_BLD=-chunk.text_BLD) for chunk in state.stream)
        )
        refinement = PeriodicRefinement(condition=condition)
        results = [parts(engine, refinement.refine(engine, each, seeded()))[0] for each in (state, other)]
    assert torch.equal(*results)


def test_what_is_held_on_to_has_a_say():
    """With other long memory the refined short memory is another one, under either condition."""
    engine = WindowEngine(learning_denoiser(reference="channels").eval(), StructuredMemory(), Staircase())
    with torch.no_grad():
        state = streamed(engine)
        longer = (replace(entry, latents_BFCHW=entry.latents_BFCHW + 1) for entry in state.memory.entries[:-1])
        other = replace(state, memory=replace(state.memory, entries=(*longer, state.memory.entries[-1])))
        for condition in ("clean_tokens", "clean_copies"):
            made = [parts(engine, PeriodicRefinement(condition=condition).refine(engine, each, seeded()))[0] for each in (state, other)]
            assert not torch.allclose(*made, atol=1e-4), condition


@pytest.mark.parametrize("channels", [True, False], ids=["reference beside all", "copies beside memory"])
def test_noisy_memory_with_clean_copies_is_plain_memory_where_the_noise_is_nothing(channels):
    denoiser = learning_denoiser(reference="channels").eval()
    if not channels:  # as the image-to-video models of plugins have it
        denoiser.reference, denoiser.clean_copies = "segment", True
    engine = WindowEngine(denoiser, StructuredMemory(), Staircase())
    with torch.no_grad():
        held, short = held_and_short(engine, streamed(engine))
        noise = torch.randn(held.latents_BFCHW.shape, generator=seeded())
        window = held, short, torch.full((2, 1), 0.3)
        plain, nothing = predict_velocity(denoiser, *window), predict_velocity(NoisyMemory(denoiser, noise, 0.0), *window)
        torch.testing.assert_close(nothing, plain)
        assert not torch.allclose(predict_velocity(NoisyMemory(denoiser, noise, 0.3), *window), plain, atol=1e-4)
        seen = []
        handle = denoiser.visual_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        predict_velocity(NoisyMemory(denoiser, noise, 0.3), *window)
        handle.remove()
    first = 1 if channels else 0
    clean, eps = (tensor[:, first:].flatten(3).transpose(2, 3) for tensor in (held.latents_BFCHW, noise))
    noisy, copies, mask = seen[0][:, : clean.shape[1]].split([2, 2, 1], dim=3)
    torch.testing.assert_close(noisy, 0.7 * clean + 0.3 * eps)
    assert torch.equal(copies, clean)
    assert bool((mask == 1).all())


def test_a_denoiser_without_channels_for_copies_says_what_to_do():
    engine = WindowEngine(learning_denoiser().eval(), StructuredMemory(), Staircase())
    with torch.no_grad(), pytest.raises(UserError, match=r"MMDiT has no channels for clean copies.*condition: clean_tokens"):
        PeriodicRefinement(condition="clean_copies").refine(engine, streamed(engine))


def test_a_bank_without_short_memory_says_what_to_do():
    engine = WindowEngine(PerfectDenoiser(), NoMemory(), Staircase())
    with pytest.raises(UserError, match=r"NoMemory has no short memory to refine; choose StructuredMemory"):
        PeriodicRefinement().refine(engine, streamed(engine))
    with pytest.raises(UserError, match="NoMemory has no short memory to measure"):
        DriftRefinement().after(engine, streamed(engine), Watch())


def test_short_memory_in_pieces_is_refused():
    class Scattered(MemoryBank[MemoryState]):
        num_frames, num_segments, history_chunks = 3, 3, 2

        def reset(self, reference):
            return MemoryState(tail(reference, 1), (tail(reference, 1), tail(reference, 1)))

        def write(self, state, chunk):
            return replace(state, entries=(state.entries[1], tail(chunk, 1)))

        def read(self, state):
            return view([(state.reference, "reference", -9), (state.entries[0], "short", -4), (state.entries[1], "short", -1)])

    engine = WindowEngine(PerfectDenoiser(), Scattered(), Staircase())
    with pytest.raises(UserError, match=r"in pieces at \[-4, -1\]"):
        PeriodicRefinement().refine(engine, streamed(engine))


def test_guidance_counts_twice_and_scales_reach_the_denoiser():
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase(), Guidance(2.0))
    refinement = PeriodicRefinement(steps=3, every=2)
    state, watch = streamed(engine), Watch()
    before = engine.denoiser.evaluations
    for emitted in (2, 3, 4):
        state, watch = refinement.after(engine, replace(state, emitted=emitted), watch, seeded())
    assert engine.denoiser.evaluations - before == watch.evaluations == 2 * 2 * 3
    assert (watch.refinements, watch.refined_at) == (2, 4)
    scaled = replace(engine, denoiser=learning_denoiser(guidance_embedding=True).eval(), guidance=Guidance())
    with torch.no_grad():
        made = [parts(scaled, refinement.refine(replace(scaled, scales=scales), state, seeded()))[0] for scales in ((1.0, 1.0), (3.0, 5.0))]
    assert not torch.equal(*made)


# --- when


@pytest.mark.parametrize("every", [1, 3, 8])
def test_the_period_is_exact_and_still_chunks_do_not_count(every):
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase())
    clean = clean_chunks(19)
    state, watch, at = started(engine, clean), Watch(), []
    refinement = PeriodicRefinement(every=every)
    for k, x in enumerate(clean[2:]):
        state, _ = engine.step(state, knowing_chunk(x, seed=k))
        state, watch = refinement.after(engine, state, watch, seeded(k))
        if watch.refinements > len(at):
            at.append(state.emitted)
    assert state.emitted == 15
    assert at == list(range(every, 16, every))
    assert watch.evaluations == len(at)


def test_off_changes_nothing_and_draws_nothing():
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase())
    state, generator = streamed(engine), seeded()
    before = generator.get_state()
    for number in range(20):
        here = replace(state, emitted=number)
        after, watch = NoRefinement().after(engine, here, Watch(), generator)
        assert after is here
        assert watch == Watch()
    assert NoRefinement().refine(engine, state) is state
    assert NoRefinement().evaluations(engine) == 0
    assert torch.equal(generator.get_state(), before)


def drifting(refinement, shifts, engine=None):
    """Chunks at which memory is refined when the short memory's latents are shifted by so much."""
    engine = engine or WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase())
    state, watch, at = streamed(engine), Watch(), []
    short, _ = parts(engine, state)
    for emitted, shift in enumerate(shifts, start=1):
        moved = replace(state, memory=engine.bank.with_short(state.memory, short + shift), emitted=emitted)
        _, watch = refinement.after(engine, moved, watch, seeded())
        if watch.refined_at == emitted:
            at.append(emitted)
    return at


def test_drift_asks_for_it_once_the_beginning_is_known_with_pauses_and_stillness_never():
    assert drifting(DriftRefinement(early=3, pause=1), [0.0] * 12) == []
    assert drifting(DriftRefinement(early=3, pause=1), [0.0] * 5 + [5.0] * 4) == [6, 7, 8, 9]
    assert drifting(DriftRefinement(early=3, pause=3), [0.0] * 5 + [5.0] * 7) == [6, 9, 12]
    assert drifting(DriftRefinement(early=3, threshold=100.0), [0.0] * 5 + [5.0] * 4) == []
    assert drifting(DriftRefinement(early=6), [5.0] * 12) == []  # a stream that began like that has not drifted


def test_drift_against_the_reference_needs_no_beginning():
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase())
    state = streamed(engine)
    reference = engine.bank.read(state.memory).latents_BFCHW[:, :1]
    refinement = DriftRefinement(against="reference")
    for shift, expected in ((0.0, False), (5.0, True)):
        moved = replace(state, memory=engine.bank.with_short(state.memory, reference + shift), emitted=1)
        watch = refinement.observe(engine, moved, Watch())
        assert refinement.due(moved, watch) is expected
    assert refinement.observe(engine, replace(state, emitted=0), Watch()) == Watch()


def test_drift_is_shift_in_deviations_and_contrast_in_powers_of_e():
    x = torch.randn(2, 3, 4, 8, 8, generator=seeded())
    then = channel_statistics(x)
    torch.testing.assert_close(then[..., 0], x.mean((1, 3, 4)))
    torch.testing.assert_close(drift_of(then, then), torch.zeros(2))
    deviation = x.transpose(1, 2).flatten(2).std(2, correction=0)[:, None, :, None, None]
    torch.testing.assert_close(drift_of(channel_statistics(x + 0.5 * deviation), then), torch.full((2,), 0.5))
    mean = x.mean((1, 3, 4), keepdim=True)
    torch.testing.assert_close(drift_of(channel_statistics(mean + torch.e * (x - mean)), then), torch.ones(2), atol=1e-4, rtol=0)


# --- kept features


@pytest.mark.parametrize(("visibility", "micro_steps", "guidance"), [(ISOLATED, 1, 1.0), (ISOLATED, 2, 2.0), (Visibility(), 2, 1.0)])
@pytest.mark.parametrize("bank", [StructuredMemory(), SlidingWindowMemory(chunks=2), StructuredMemory(long=0)], ids=lambda bank: type(bank).__name__)
def test_kept_features_of_what_was_refined_are_computed_again(bank, visibility, micro_steps, guidance):
    """A stream with kept memory equals one without, refinements included."""
    denoiser, left = learning_denoiser().eval(), []
    for reuse in (False, True):
        engine = WindowEngine(denoiser, bank, Staircase(micro_steps=micro_steps), Guidance(guidance), visibility=visibility, reuse_memory=reuse)
        clean = clean_chunks(14)
        state, watch, generator = started(engine, clean), Watch(), seeded()
        with torch.no_grad():
            for k, x in enumerate(clean[2:]):
                state, done = engine.step(state, knowing_chunk(x, seed=k))
                state, watch = PeriodicRefinement(every=3).after(engine, state, watch, generator)
                left.append(done.latents_BFCHW)
        assert watch.refinements == 3
    torch.testing.assert_close(torch.stack(left[12:]), torch.stack(left[:12]), atol=1e-5, rtol=1e-4)


def test_only_features_of_the_short_memory_are_dropped_and_it_gets_a_number_of_its_own():
    engine = WindowEngine(learning_denoiser().eval(), StructuredMemory(), Staircase(), visibility=ISOLATED)
    with torch.no_grad():
        state = streamed(engine, 7)
        refined = PeriodicRefinement().refine(engine, state, seeded())
    assert [name[1] for name, _ in state.features.entries] == ["reference", "long", "long", "long", "short"]
    assert [name[1] for name, _ in refined.features.entries] == ["reference", "long", "long", "long"]
    before, after = (engine.bank.read(each.memory).identities for each in (state, refined))
    assert after[:-1] == before[:-1]
    assert after[-1] < min(before)
    assert without_short(refined.features) == refined.features


def test_a_result_that_is_not_finite_leaves_the_sample_as_it_was():
    class Failing(PerfectDenoiser):
        def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
            velocity = super().forward(latents_BFCHW, sigma_BF, conditions, layout)
            return torch.cat([velocity[:1] + float("nan"), velocity[1:]])

    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase())
    state = streamed(engine)
    corrupted = replace(state, memory=engine.bank.with_short(state.memory, parts(engine, state)[0] + 1))
    refined = PeriodicRefinement().refine(replace(engine, denoiser=Failing()), corrupted, seeded())
    assert torch.equal(parts(engine, refined)[0][0], parts(engine, corrupted)[0][0])
    torch.testing.assert_close(parts(engine, refined)[0][1], parts(engine, state)[0][1], atol=2e-5, rtol=1e-4)
    assert all(tensor.isfinite().all() for tensor in tensors_of(engine.bank.read(refined.memory)))


def test_number_types_of_memory_stay():
    engine = WindowEngine(learning_denoiser().eval(), StructuredMemory(), Staircase())
    with torch.no_grad():
        state = streamed(engine)
        half = replace(state, memory=state.memory.to(torch.bfloat16))
        refined = PeriodicRefinement().refine(engine, half, seeded())
    assert {tensor.dtype for tensor in tensors_of(refined.memory.entries)} == {torch.bfloat16}


# --- options


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PeriodicRefinement(sigma=0.0), r"sigma=0\.0"),
        (lambda: PeriodicRefinement(sigma=1.5), r"0 < sigma <= 1"),
        (lambda: PeriodicRefinement(steps=0), "steps=0"),
        (lambda: PeriodicRefinement(every=0), "every=0"),
        (lambda: PeriodicRefinement(condition="noisy"), "clean_tokens or clean_copies"),
        (lambda: DriftRefinement(threshold=0.0), "threshold > 0"),
        (lambda: DriftRefinement(pause=0), "pause >= 1"),
        (lambda: DriftRefinement(early=0), "early >= 1"),
        (lambda: DriftRefinement(against="late"), "early or reference"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("cls", [PeriodicRefinement, DriftRefinement, NoRefinement])
def test_every_refinement_documents_its_arguments(cls):
    check_constructor(cls)


@dataclass(frozen=True)
class Twice(PeriodicRefinement):
    """One of a user's own: every second chunk.

    Args:
        sigma: level.
        steps: steps.
        condition: condition.
        every: unused.
    """

    def due(self, state, watch):
        return state.emitted in (2, 4)


def test_a_subclass_decides_when_and_layouts_put_the_short_memory_where_the_stream_stands():
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase())
    state = streamed(engine)
    held, short = held_and_short(engine, state)
    assert held.segments == (Segment("reference", 1, -12), Segment("long", 1, -9), Segment("long", 1, -6), Segment("long", 1, -3))
    assert [chunk.num_frames for chunk in short] == [1]
    assert [Twice().due(replace(state, emitted=n), Watch()) for n in range(6)] == [False, False, True, False, True, False]

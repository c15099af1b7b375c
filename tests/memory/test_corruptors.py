"""Corruptors: how often, how much, and always aligned with the target."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowact.memory import CorruptorChain, ErrorBufferMemory, GaussianMemory, GeneratedMemory, GroundTruthMemory, RolloutMemory
from flowact.memory.corruptors import Offer, Ramp, noised
from flowact.testing import check_corruptor
from flowact.types import Chunk


def history(batch=2, chunks=3):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(batch, *shape, generator=generator)

    return [Chunk(noise(2, 3, 4, 4), noise(2, 4, 5), noise(6, 7)) for _ in range(chunks)]


def plus_one(chunks, *_):
    return [replace(chunk, latents_BFCHW=chunk.latents_BFCHW + 1) for chunk in chunks]


OFFER = Offer(checkpoint=plus_one, average=plus_one, rollout=plus_one)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chain(**options):
    members = {
        "truth": GroundTruthMemory(),
        "noise": GaussianMemory(),
        "model": GeneratedMemory(1.0),
        "errors": ErrorBufferMemory(1.0),
        "own": RolloutMemory(1.0),
    }
    return CorruptorChain(members, **options)


@pytest.mark.parametrize(
    "corruptor",
    [
        GroundTruthMemory(),
        GaussianMemory(),
        GaussianMemory(0.0),
        GeneratedMemory(),
        GeneratedMemory(1.0, 1.0, 1.0),
        GeneratedMemory(by="average"),
        ErrorBufferMemory(),
        ErrorBufferMemory(1.0, bins=1, size=1),
        RolloutMemory(),
        RolloutMemory(1.0, chunks=9),
        chain(clean=0.3),
        CorruptorChain({"inner": CorruptorChain({"errors": ErrorBufferMemory(1.0)}), "truth": GroundTruthMemory()}),
    ],
    ids=lambda corruptor: corruptor.name,
)
def test_corruptors_keep_their_laws(corruptor):
    check_corruptor(corruptor)


def test_ground_truth_is_the_identity():
    chunks = history()
    made = GroundTruthMemory().corrupt(chunks)
    assert all(chunk is clean for chunk, clean in zip(made.history, chunks, strict=True))
    assert not made.chosen_B.any()


# --- how often


def rate(corruptor, step=0, total_steps=1, batch=600):
    """Share of samples that are changed, in all their chunks by the same; and nothing else is changed."""
    chunks = history(batch)
    made = corruptor.corrupt(chunks, replace(OFFER, step=step, total_steps=total_steps), seeded())
    changes = torch.stack([a.latents_BFCHW - b.latents_BFCHW for a, b in zip(made.history, chunks, strict=True)], dim=1).flatten(1)
    torch.testing.assert_close(changes, made.chosen_B[:, None].float().expand_as(changes), atol=1e-5, rtol=0)
    return float(made.chosen_B.float().mean())


@pytest.mark.parametrize("make", [GeneratedMemory, RolloutMemory], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_sample_is_changed_with_the_given_probability_in_all_chunks_or_none(make, probability):
    assert abs(rate(make(probability)) - probability) < 0.06


@pytest.mark.parametrize(("ramp", "total_steps"), [(Ramp(steps=100), 7), (Ramp(share=0.25), 400)])
def test_a_ramp_brings_the_probability_in_from_nothing(ramp, total_steps):
    corruptor = GeneratedMemory(0.8, ramp=ramp)
    assert rate(corruptor, 0, total_steps) == 0.0
    assert abs(rate(corruptor, 50, total_steps) - 0.4) < 0.06
    for step in (100, 399):
        assert abs(rate(corruptor, step, total_steps) - 0.8) < 0.06
    assert [ramp.at(step, total_steps) for step in (0, 25, 100, 1000)] == [0.0, 0.25, 1.0, 1.0]
    assert Ramp().at(0, total_steps) == 1.0


def test_the_members_of_a_chain_have_the_shares_that_were_asked():
    """Binomial bounds of four deviations."""
    weights = {"truth": 4.0, "noise": 1.0, "model": 3.0, "errors": 0.0, "own": 2.0}
    corruptor = chain(weights=weights, clean=0.25)
    steps, batch = 600, 4
    chunks, turns, changed = history(batch, chunks=1), dict.fromkeys(corruptor.names, 0), dict.fromkeys(corruptor.names, 0)
    for step in range(steps):
        made = corruptor.corrupt(chunks, replace(OFFER, shared=seeded(step)), seeded(step))
        turns[made.by] += 1
        changed[made.by] += int(made.chosen_B.sum())
    assert "errors" not in turns, "weight 0 is off"
    for name, count in turns.items():
        share = weights[name] / 10
        assert abs(count / steps - share) < 4 * (share * (1 - share) / steps) ** 0.5, name
        kept = changed[name] / (count * batch)
        assert kept == 0 if name == "truth" else abs(kept - 0.75) < 4 * (0.75 * 0.25 / (count * batch)) ** 0.5, name


def test_a_step_has_one_member_on_every_process():
    corruptor = chain()
    for step in range(40):
        ranks = [corruptor.corrupt(history(), replace(OFFER, shared=seeded(step)), seeded(1000 * rank + step)) for rank in range(3)]
        assert len({made.by for made in ranks}) == 1
    assert {corruptor.draw(seeded(step)) for step in range(40)} == set(corruptor.names)


def test_a_member_may_come_in_later_than_the_others():
    corruptor = CorruptorChain({"own": RolloutMemory(1.0, ramp=Ramp(steps=100))}, ramp=Ramp(steps=10))
    assert abs(rate(corruptor, step=5) - 0.5 * 0.05) < 0.03
    assert abs(rate(corruptor, step=50) - 0.5) < 0.06


def test_the_model_runs_whatever_was_drawn():
    """A rank that skipped the evaluation would leave the others waiting in a collective."""
    calls = []
    offer = replace(OFFER, checkpoint=lambda chunks, sigma_B: calls.append(1) or list(chunks))
    GeneratedMemory(0.0).corrupt(history(), offer, seeded())
    CorruptorChain({"model": GeneratedMemory(1.0)}, clean=1.0).corrupt(history(), offer, seeded())
    assert calls == [1, 1]


# --- by a model


def test_levels_of_generated_memory_lie_in_their_range():
    seen = []
    offer = Offer(checkpoint=lambda chunks, sigma_B: seen.append(sigma_B) or list(chunks))
    GeneratedMemory(1.0, 0.4, 0.6).corrupt(history(batch=500), offer, seeded())
    assert 0.4 <= float(seen[0].min()) < 0.42 < 0.58 < float(seen[0].max()) <= 0.6


@pytest.mark.parametrize("by", ["checkpoint", "average"])
def test_memory_is_generated_by_whom_it_says(by):
    made = GeneratedMemory(1.0, by=by).corrupt(history(), Offer(**{by: plus_one}), seeded())
    assert made.chosen_B.all()
    other = {"checkpoint": "average", "average": "checkpoint"}[by]
    with pytest.raises(ValueError, match=f"GeneratedMemory needs a model \\({by}\\).*SelfForcing"):
        GeneratedMemory(1.0, by=by).corrupt(history(), Offer(**{other: plus_one}), seeded())


def test_a_rollout_is_never_longer_than_its_history():
    asked = []
    offer = Offer(rollout=lambda chunks, *sizes: asked.append(sizes) or list(chunks))
    RolloutMemory(1.0, chunks=3, micro_steps=4, shift=5.0).corrupt(history(chunks=5), offer, seeded())
    RolloutMemory(1.0, chunks=3).corrupt(history(chunks=2), offer, seeded())
    assert asked == [(3, 4, 5.0), (2, 1, 1.0)]


@pytest.mark.parametrize(("corruptor", "source"), [(GeneratedMemory(), "checkpoint"), (RolloutMemory(), "rollout"), (chain(), "rollout")])
def test_without_a_model_it_is_said_where_it_belongs(corruptor, source):
    assert source in corruptor.needs
    with pytest.raises(ValueError, match="SelfForcing"):
        [corruptor.corrupt(history(), Offer(shared=seeded(step)), seeded()) for step in range(20)]


# --- noise


def test_gaussian_noise_is_of_one_level_per_sample_and_never_above_its_limit():
    clean = history(batch=400, chunks=2)
    made = GaussianMemory(0.3).corrupt(clean, generator=seeded()).history
    zeros = [replace(chunk, latents_BFCHW=torch.zeros_like(chunk.latents_BFCHW)) for chunk in clean]
    noise = GaussianMemory(0.3).corrupt(zeros, generator=seeded()).history
    levels = torch.stack([chunk.latents_BFCHW.flatten(1).std(1) for chunk in noise])
    assert float(levels.max()) < 0.3 * 1.25
    torch.testing.assert_close(levels[0], levels[1], atol=0.08, rtol=0)
    assert abs(float(levels.mean()) - 0.15) < 0.02
    assert not torch.equal(made[0].latents_BFCHW, clean[0].latents_BFCHW)


def test_noise_of_level_zero_and_one():
    chunk = history()[0]
    assert torch.equal(noised(chunk, torch.zeros(2), seeded()).latents_BFCHW, chunk.latents_BFCHW)
    pure = noised(chunk, torch.ones(2), seeded()).latents_BFCHW
    assert torch.equal(pure, noised(replace(chunk, latents_BFCHW=chunk.latents_BFCHW + 5), torch.ones(2), seeded()).latents_BFCHW)


# --- errors


def buffer(**options):
    """A full buffer whose errors say the level at which they were made: all values of an error at sigma are sigma."""
    made = ErrorBufferMemory(**({"probability": 1.0, "bins": 4, "size": 3, "min_scale": 1.0, "max_scale": 1.0} | options))
    generator = seeded(5)
    for _ in range(20):
        sigma_BK = torch.rand(4, 3, generator=generator)
        made.observe(sigma_BK.repeat_interleave(2, 1)[:, :, None, None, None].expand(-1, -1, 3, 4, 4), sigma_BK, generator)
    return made


def errors_in(corruptor, batch=64, chunks=3):
    clean = history(batch, chunks)
    made = corruptor.corrupt(clean, generator=seeded(1)).history
    return torch.stack([a.latents_BFCHW - b.latents_BFCHW for a, b in zip(made, clean, strict=True)], dim=1)


def test_a_buffer_is_bounded_and_keeps_errors_by_their_level():
    full = buffer()
    assert full.errors.shape == (4, 3, 2, 3, 4, 4)
    assert full.counts == [3] * 4
    assert (full.errors.flatten(2) == full.errors.flatten(2)[..., :1]).all(), "errors are whole chunks"
    levels = full.errors[:, :, 0, 0, 0, 0]
    assert ((levels * 4).long() == torch.arange(4)[:, None]).all()


def test_new_errors_take_the_places_of_old_ones():
    full = buffer()
    before = full.errors.clone()
    for step in range(30):
        full.observe(torch.full((1, 2, 3, 4, 4), 9.0), torch.full((1, 1), 0.6), seeded(step))
    assert (full.errors[2] == 9.0).any()
    assert torch.equal(full.errors[[0, 1, 3]], before[[0, 1, 3]])
    assert full.counts == [3] * 4


def test_memory_gets_errors_of_the_levels_that_were_asked():
    errors = errors_in(buffer(min_sigma=0.25, max_sigma=0.5))
    assert 0.25 - 1e-5 <= float(errors.min()) <= float(errors.max()) <= 0.5 + 1e-5
    whole = errors_in(buffer(min_sigma=0.0, max_sigma=1.0))
    assert float(whole.min()) < 0.25 < 0.75 < float(whole.max())
    bins = (whole.flatten(2).mean(2) * 4 - 1e-4).long()
    assert (bins == bins[:, :1]).all(), "all chunks of a sample have errors of one bin"
    assert (whole.flatten(2).std(2) < 1e-5).all(), "a chunk has one error"


def test_errors_are_scaled_within_their_range():
    plain = buffer(min_sigma=0.5, max_sigma=0.75, size=1)
    error = float(plain.errors[2, 0, 0, 0, 0, 0])
    scales = errors_in(buffer(min_sigma=0.5, max_sigma=0.75, size=1, min_scale=0.7, max_scale=1.3), batch=200).flatten(2).mean(2) / error
    assert 0.7 - 1e-4 < float(scales.min()) < 0.72 < 1.28 < float(scales.max()) < 1.3 + 1e-4


def test_memory_stays_clean_until_there_is_an_error_of_its_levels():
    corruptor = ErrorBufferMemory(1.0, bins=4, min_sigma=0.5, max_sigma=1.0)
    assert not corruptor.corrupt(history()).chosen_B.any()
    corruptor.observe(torch.ones(1, 2, 3, 4, 4), torch.full((1, 1), 0.3))
    assert not corruptor.corrupt(history()).chosen_B.any()
    corruptor.observe(torch.full((1, 2, 3, 4, 4), torch.nan), torch.full((1, 1), 0.9))
    assert not corruptor.corrupt(history()).chosen_B.any(), "an error that is not finite is none"
    corruptor.observe(torch.ones(1, 2, 3, 4, 4), torch.ones(1, 1))
    assert corruptor.corrupt(history()).chosen_B.all(), "level 1 belongs to the last bin"


def test_errors_of_a_perfect_model_change_nothing():
    corruptor = ErrorBufferMemory(1.0)
    corruptor.observe(torch.zeros(2, 6, 3, 4, 4), torch.rand(2, 3, generator=seeded()) * 0.5 + 0.35)
    assert not corruptor.errors.any()
    chunks = history()
    made = corruptor.corrupt(chunks, generator=seeded())
    assert made.chosen_B.all()
    assert all(torch.equal(a.latents_BFCHW, b.latents_BFCHW) for a, b in zip(made.history, chunks, strict=True))


def test_a_buffer_goes_on_where_its_state_was_taken():
    first, second = buffer(), ErrorBufferMemory(1.0, bins=4, size=3, min_scale=1.0, max_scale=1.0)
    state = first.state()
    second.restore(state)
    for corruptor in (first, second):
        corruptor.observe(torch.full((3, 4, 3, 4, 4), 7.0), torch.rand(3, 2, generator=seeded(2)), seeded(3))
    assert torch.equal(first.errors, second.errors)
    assert first.counts == second.counts
    assert torch.equal(errors_in(first), errors_in(second))
    assert not torch.equal(state["errors"], first.errors), "a state does not change any more"


def test_a_chain_keeps_the_states_of_its_members():
    def both():
        return CorruptorChain({"low": buffer(max_sigma=0.5), "high": buffer(min_sigma=0.5), "noise": GaussianMemory()})

    first, second = both(), CorruptorChain({"low": ErrorBufferMemory(1.0, 4, 3), "high": ErrorBufferMemory(1.0, 4, 3), "noise": GaussianMemory()})
    assert first.has_state
    assert first.needs == {"errors"}
    second.restore(first.state())
    for name in ("low", "high"):
        assert torch.equal(second.members[name].errors, first.members[name].errors)
    second.observe(torch.full((1, 2, 3, 4, 4), 7.0), torch.full((1, 1), 0.1), seeded())
    assert all((second.members[name].errors[0] == 7.0).any() for name in ("low", "high"))
    with pytest.raises(KeyError):
        second.restore({"low": first.state()["low"]})


@pytest.mark.parametrize("change", [{"bins": 5}, {"size": 2}])
def test_the_state_of_another_buffer_is_refused(change):
    with pytest.raises(ValueError, match="saved with bins=4 and size=3"):
        ErrorBufferMemory(**({"bins": 4, "size": 3} | change)).restore(buffer().state())


# --- settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianMemory(1.5), "got 1.5"),
        (lambda: GeneratedMemory(probability=-0.1), "got -0.1"),
        (lambda: GeneratedMemory(min_sigma=0.0), "got 0.0 and 0.9"),
        (lambda: GeneratedMemory(min_sigma=0.8, max_sigma=0.5), "got 0.8 and 0.5"),
        (lambda: GeneratedMemory(by="teacher"), "by is 'teacher'.*'checkpoint'.*'average'"),
        (lambda: Ramp(steps=-1), "steps=-1"),
        (lambda: Ramp(share=1.5), "share=1.5"),
        (lambda: Ramp(steps=5, share=0.5), "one length.*set one of them to 0"),
        (lambda: ErrorBufferMemory(bins=0), "bins=0 and size=32"),
        (lambda: ErrorBufferMemory(size=0), "bins=8 and size=0"),
        (lambda: ErrorBufferMemory(min_sigma=0.5, max_sigma=0.4), "got 0.5 and 0.4"),
        (lambda: ErrorBufferMemory(min_scale=2.0), "got 2.0 and 1.3"),
        (lambda: RolloutMemory(chunks=0), "chunks=0"),
        (lambda: RolloutMemory(micro_steps=0), "micro_steps=0"),
        (lambda: RolloutMemory(shift=0.0), "shift=0.0"),
        (lambda: CorruptorChain({}), "at least one member"),
        (lambda: chain(weights=dict.fromkeys(chain().names, 0.0)), "at least one member"),
        (lambda: chain(weights={"noise": -1.0}), "noise=-1.0"),
        (lambda: chain(weights={"nose": 1.0}), "'nose', which is no member. Did you mean noise"),
        (lambda: chain(clean=1.2), "got 1.2"),
        (lambda: CorruptorChain({"model": GeneratedMemory()}), "set probability to 1.0; model has 0.5"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()

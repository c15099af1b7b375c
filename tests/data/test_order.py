"""The order of windows with one and several data sets and shapes: the laws that training relies on."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest

from flowact.data.order import Mix, WindowOrder, apportion, epoch_order
from flowact.data.pipeline import ShardLoader, Window, WindowSource
from flowact.errors import UserError

WINDOWS = 5
# three sets in nine shards; the second has clips of both shapes
SETS = np.repeat([0, 1, 2], [12, 10, 6])
BUCKETS = np.asarray([0] * 12 + [0, 1] * 5 + [1] * 6)
SHARDS = np.repeat(np.arange(7), 4)
ONE_SHAPE = np.zeros_like(SETS)
NAMES = ("anna", "bob", "carla")


def mix(weights=None, buckets=BUCKETS) -> Mix:
    return Mix(SETS, buckets, NAMES, ("8x8 latents", "8x12 latents")[: buckets.max() + 1], weights)


def order(*args, seed: int = 3, shuffle: bool = True) -> WindowOrder:
    return WindowOrder(SHARDS, mix(*args), windows_per_clip=WINDOWS, seed=seed, shuffle=shuffle, shards_in_flight=2)


def read(window: Window) -> Window:
    return window


def loader(
    weights=(4, 1, 1), buckets=BUCKETS, *, batch_size: int = 4, rank: int = 0, world_size: int = 1, num_workers: int = 0, shuffle: bool = True
) -> ShardLoader:
    source = WindowSource(
        SHARDS, windows_per_clip=WINDOWS, batch_size=batch_size, seed=3, rank=rank, world_size=world_size, shuffle=shuffle, mix=mix(weights, buckets)
    )
    return ShardLoader(source, read, list, num_workers)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_one_set_of_one_shape_has_the_order_that_it_always_had(epoch):
    """Written out: a checkpoint of an earlier release goes on with the same windows."""
    single = WindowOrder(SHARDS, Mix.single(len(SHARDS)), windows_per_clip=WINDOWS, seed=3, shuffle=True, shards_in_flight=2)
    generator = np.random.default_rng((3, epoch))
    rank = np.empty(7, dtype=np.int64)
    rank[generator.permutation(7)] = np.arange(7) // 2
    draws = generator.permutation(len(SHARDS) * WINDOWS)
    expected = draws[np.argsort(rank[SHARDS[draws // WINDOWS]], kind="stable")]
    for step_samples in (4, 9):
        found, epochs = single.epoch(epoch, step_samples)
        np.testing.assert_array_equal(found, expected)
        assert set(epochs) == {epoch}
    np.testing.assert_array_equal(epoch_order(SHARDS, WINDOWS, 3, epoch, 2), expected)
    assert single.fingerprint == 0


def test_the_state_of_one_set_is_that_of_earlier_releases():
    source = WindowSource(SHARDS, windows_per_clip=WINDOWS, batch_size=4, seed=3)
    assert source.state_dict() == {"epoch": 0, "position": 0, "seed": 3, "num_samples": 140}


@pytest.mark.parametrize("buckets", [ONE_SHAPE, BUCKETS], ids=["one-shape", "two-shapes"])
def test_without_weights_an_epoch_visits_every_window_once(buckets):
    for epoch in range(3):
        draws, epochs = order(None, buckets).epoch(epoch, 1)
        assert sorted(draws) == list(range(140))
        assert set(epochs) == {epoch}


@pytest.mark.parametrize("buckets", [ONE_SHAPE, BUCKETS], ids=["one-shape", "two-shapes"])
def test_weights_hold_in_every_epoch_and_every_set_is_visited_evenly(buckets):
    mixed = order((4, 1, 2), buckets)
    seen: Counter[int] = Counter()
    for epoch in range(6):
        draws, _ = mixed.epoch(epoch, 1)
        shares = np.bincount(mixed.sets_of(draws), minlength=3) / 140
        np.testing.assert_allclose(shares, np.array([4, 1, 2]) / 7, atol=1 / 140)
        seen.update(draws.tolist())
    for number, clips in enumerate(np.split(np.arange(28), [12, 22])):
        counts = [seen[clip * WINDOWS + draw] for clip in clips for draw in range(WINDOWS)]
        # a pool goes through all it has before it begins anew; the second set has two pools
        assert max(counts) - min(counts) <= (2 if number == 1 and buckets is BUCKETS else 1)


def test_a_set_gives_its_windows_in_its_own_order():
    """What the weight of another set is changes when a set's windows come, never which come first."""
    first, second = (order(weights, ONE_SHAPE) for weights in ((1, 1, 1), (1, 1, 5)))
    for number in range(3):
        own = [[pair for e in range(4) for pair in zip(*map(np.ndarray.tolist, each.epoch(e, 4))) if each.sets_of(np.asarray(pair[0])) == number]
               for each in (first, second)]  # fmt: skip
        count = min(map(len, own))
        assert count > 30
        assert own[0][:count] == own[1][:count]


def test_every_visit_draws_its_own_numbers():
    opened = loader()
    windows = [window for _ in range(2) for batch in opened for window in batch]
    visits = [window.visit for window in windows]
    assert len(set(visits)) == len(visits)
    assert all(window.clip == window.visit[2] // WINDOWS for window in windows)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_step_holds_one_shape_on_all_ranks(num_workers):
    ranks = [list(loader(rank=rank, world_size=2, batch_size=3, num_workers=num_workers)) for rank in range(2)]
    shapes = [[{int(BUCKETS[window.clip]) for window in batch} for batch in batches] for batches in ranks]
    assert shapes[0] == shapes[1]
    assert all(len(shape) == 1 for shape in shapes[0])
    assert {shape for step in shapes[0] for shape in step} == {0, 1}
    changes = sum(a != b for a, b in zip(shapes[0], shapes[0][1:]))
    assert changes > 3  # mixed, not one shape after the other


def test_shapes_come_in_proportion_to_windows():
    steps = [{int(BUCKETS[window.clip]) for window in batch}.pop() for batch in loader(None)]
    assert Counter(steps) == {0: 17 * WINDOWS // 4, 1: 11 * WINDOWS // 4}


@pytest.mark.parametrize("buckets", [ONE_SHAPE, BUCKETS], ids=["one-shape", "two-shapes"])
def test_a_step_is_the_same_set_of_windows_on_1_2_and_4_ranks(buckets):
    steps = {}
    for world_size in (1, 2, 4):
        batches = [list(loader(buckets=buckets, rank=rank, world_size=world_size, batch_size=8 // world_size)) for rank in range(world_size)]
        steps[world_size] = [[window for batch in step for window in batch] for step in zip(*batches, strict=True)]
    assert len(steps[1]) > 10
    assert steps[1] == steps[2] == steps[4]


@pytest.mark.parametrize("buckets", [ONE_SHAPE, BUCKETS], ids=["one-shape", "two-shapes"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_with_any_number_of_ranks_and_workers(buckets, num_workers):
    """Two epochs, stopped anywhere: what two ranks saw and one goes on with is what one would have seen."""
    whole = loader(buckets=buckets)
    steps = len(whole)
    expected = [*whole, *whole]
    for stop in (0, 1, steps - 1, steps, steps + 2) if not num_workers else (1, steps + 2):
        ranks = [loader(buckets=buckets, rank=rank, world_size=2, batch_size=2, num_workers=num_workers) for rank in range(2)]
        seen = []
        for each in ranks:
            batches = list(islice(each, min(stop, steps)))
            seen.append(batches + (list(islice(each, stop - steps)) if stop > steps else []))
        assert [a + b for a, b in zip(*seen, strict=True)] == expected[:stop]
        assert ranks[0].state_dict() == ranks[1].state_dict()
        resumed = loader(buckets=buckets)
        resumed.load_state_dict(ranks[0].state_dict())
        rest = []
        while len(rest) < 2 * steps - stop:
            rest += list(resumed)
        assert rest[: 2 * steps - stop] == expected[stop:]


def test_with_one_shape_the_size_of_a_step_may_change():
    first = loader(buckets=ONE_SHAPE, batch_size=4)
    seen = [window for batch in islice(first, 6) for window in batch]
    resumed = loader(buckets=ONE_SHAPE, batch_size=3)
    resumed.load_state_dict(first.state_dict())
    seen += [window for batch in resumed for window in batch]
    assert seen == [window for batch in loader(buckets=ONE_SHAPE, batch_size=1) for window in batch][: len(seen)]


def test_states_of_another_mix_are_refused():
    opened = loader()
    next(iter(opened))
    state = opened.state_dict()
    with pytest.raises(UserError, match=r"steps of 4 windows, this run has 6 .* choose batch_size so that it is 4"):
        loader(batch_size=6).load_state_dict(state)
    for other in (loader(weights=(4, 1, 2)), loader(buckets=ONE_SHAPE), loader(None, np.zeros_like(BUCKETS))):
        with pytest.raises(UserError, match="another mix of data"):
            other.load_state_dict(state)
    loader().load_state_dict(state)
    at_an_end = {**loader().state_dict(), "epoch": 2}
    loader(batch_size=6).load_state_dict(at_an_end)  # between epochs nothing was begun


def test_validation_visits_every_clip_before_any_again_and_knows_no_weights():
    validation = loader((4, 1, 2), ONE_SHAPE, shuffle=False, batch_size=28)
    first = [window.clip for window in next(iter(validation))]
    assert first == list(range(28))
    assert list(validation) == list(validation)
    by_shape = list(loader((4, 1, 2), shuffle=False, batch_size=5))
    assert all(len({int(BUCKETS[window.clip]) for window in batch}) == 1 for batch in by_shape)
    assert len({window for batch in by_shape for window in batch}) == 140


def test_what_was_seen_of_each_set():
    opened = loader((4, 1, 1), ONE_SHAPE, batch_size=7)
    seen: Counter[int] = Counter()
    for _ in range(2):
        for batch in opened:
            seen.update(int(SETS[window.clip]) for window in batch)
            state = opened.state_dict()
            assert opened.source.seen(state["epoch"], state["position"]).tolist() == [seen[number] for number in range(3)]
    assert seen.total() == 280


def test_a_shape_with_less_than_a_step_is_named():
    expected = r"needs 60 \(batch_size 30 times 2 processes\) windows; an epoch has 55 of 8x12 latents: raise windows_per_clip"
    with pytest.raises(UserError, match=expected):
        loader(None, batch_size=30, world_size=2)


def test_weights_that_give_nothing_are_refused():
    with pytest.raises(UserError, match=r"weight 0.001 of carla gives its clips of 8x12 latents none of the 140 windows"):
        order((1, 1, 0.001))
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="weight of bob is"):
            mix((1, bad, 1))


def test_shares_are_rounded_to_the_whole():
    generator = np.random.default_rng(0)
    for _ in range(50):
        shares = [Fraction(int(n)) for n in generator.integers(1, 100, generator.integers(1, 6))]
        total = int(generator.integers(1, 200))
        counts = apportion(shares, total)
        assert sum(counts) == total
        assert all(abs(count - total * share / sum(shares)) < 1 for count, share in zip(counts, shares))

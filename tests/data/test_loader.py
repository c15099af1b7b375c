from __future__ import annotations

import gc
from itertools import islice

import av
import numpy as np
import pytest
import torch

from flowact.data.cache import ByteCache
from flowact.data.pipeline import ShardLoader, Window, WindowSource, epoch_order
from flowact.errors import UserError

SHARDS = [0, 0, 0, 1, 1, 2, 2]  # seven clips in three shards


def read(window: Window) -> tuple[int, float]:
    return window.clip, float(window.generator().random())


def collate(samples: list) -> list:
    return list(samples)


def fail(window: Window) -> None:
    raise UserError(f"clip {window.clip} is damaged; copy it again")


def read_and_collect(window: Window) -> int:
    gc.collect()
    return window.clip


def loader(num_workers: int = 0, rank: int = 0, world_size: int = 1, batch_size: int = 4, **options) -> ShardLoader:
    source = WindowSource(SHARDS, windows_per_clip=5, batch_size=batch_size, seed=3, rank=rank, world_size=world_size, **options)
    return ShardLoader(source, read, collate, num_workers)


def take(batches, count: int) -> list:
    return list(islice(batches, count))


def test_an_epoch_visits_every_window_once():
    order = epoch_order(np.asarray(SHARDS), 5, seed=1, epoch=0)
    assert sorted(order) == list(range(35))
    assert not np.array_equal(order, epoch_order(np.asarray(SHARDS), 5, seed=1, epoch=1))
    assert not np.array_equal(order, epoch_order(np.asarray(SHARDS), 5, seed=2, epoch=0))
    np.testing.assert_array_equal(order, epoch_order(np.asarray(SHARDS), 5, seed=1, epoch=0))


def test_few_shards_are_in_flight():
    shards = np.repeat(np.arange(6), 4)
    order = shards[epoch_order(shards, 3, seed=0, epoch=0, shards_in_flight=2) // 3]
    groups = [set(order[i : i + 24]) for i in range(0, 72, 24)]
    assert all(len(group) == 2 for group in groups)
    assert set().union(*groups) == set(range(6))
    assert len(set(order[:8])) == 2  # mixed inside the group


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 3, 8, 11])
def test_resume_is_exact(num_workers, stop):
    """Two epochs of 8 batches each, cut anywhere, also at the seam: the continued run sees what the whole run saw."""
    whole = loader(num_workers)
    assert len(whole) == 8
    expected = [*whole, *whole]
    first = loader(num_workers)
    seen = take(first, stop) if stop <= 8 else [*first, *take(first, stop - 8)]
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())  # plain numbers: they go into a checkpoint that is never unpickled
    resumed = loader(num_workers)
    resumed.load_state_dict(state)
    rest = []
    while len(rest) < 16 - stop:
        rest += list(resumed)
    assert seen + rest[: 16 - stop] == expected


def test_workers_do_not_change_the_order():
    expected = list(loader(0))
    assert list(loader(2)) == expected
    assert list(loader(3)) == expected


def test_resume_with_another_number_of_workers():
    expected = list(loader(0))
    first = loader(2)
    seen = take(first, 3)
    resumed = loader(0)
    resumed.load_state_dict(first.state_dict())
    assert seen + list(resumed) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_have_equal_batches_and_share_nothing(num_workers):
    ranks = [list(loader(num_workers, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [4, 4]  # 35 windows, 8 a step: 3 are dropped
    windows = [sample for batches in ranks for batch in batches for sample in batch]
    assert len(set(windows)) == len(windows) == 32


def test_one_process_sees_what_two_see():
    """A step of two processes with batch 2 is a step of one process with batch 4, also after a resume in between."""
    one = list(loader(batch_size=4))
    two = [loader(rank=rank, world_size=2, batch_size=2) for rank in range(2)]
    start = [take(each, 3) for each in two]
    assert [a + b for a, b in zip(*start)] == one[:3]
    resumed = loader(batch_size=4)
    assert two[0].state_dict() == two[1].state_dict()
    resumed.load_state_dict(two[0].state_dict())
    assert list(resumed) == one[3:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_was_left_is_followed_by_the_next(num_workers):
    """Lightning's limit_train_batches leaves every epoch early; it must not train on the same first batches for ever."""
    reference = loader()
    epochs = [list(reference) for _ in range(3)]
    limited = loader(num_workers)
    assert [take(limited, 2) for _ in range(3)] == [batches[:2] for batches in epochs]


def test_iterating_without_taking_changes_nothing():
    expected = list(loader())
    opened = loader()
    iter(opened)
    iter(opened)
    assert list(opened) == expected


def test_validation_is_the_same_each_time():
    validation = loader(shuffle=False)
    assert list(validation) == list(validation)
    assert [clip for clip, _ in next(iter(validation))] == [0, 1, 2, 3]  # different clips first, so that a limit sees them


def test_state_of_another_order_is_refused():
    state = {**loader().state_dict(), "position": 4}
    with pytest.raises(UserError, match=r"seed 9.*this run has 3"):
        loader().load_state_dict({**state, "seed": 9})
    with pytest.raises(UserError, match="num_samples 99"):
        loader().load_state_dict({**state, "num_samples": 99})


def test_too_few_samples():
    with pytest.raises(UserError, match=r"shards fewer than processes: 1 shards hold 2 usable clips, 2 windows, for 4 processes"):
        WindowSource([0, 0], windows_per_clip=1, batch_size=1, world_size=4)
    with pytest.raises(UserError, match="lower batch_size to 3"):
        WindowSource([0, 0], windows_per_clip=3, batch_size=4, world_size=2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_for_users_come_without_a_traceback(num_workers):
    source = WindowSource(SHARDS, windows_per_clip=5, batch_size=4, seed=3)
    with pytest.raises(UserError, match=r"^clip \d is damaged; copy it again$"):
        list(ShardLoader(source, fail, collate, num_workers))


def test_the_draws_do_not_touch_global_generators():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader())
    list(loader())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.timeout(60)
def test_workers_do_not_wait_for_threads_that_were_not_forked():
    """A picture that PyAV converted owns threads; as garbage of this process it must not be collected by a worker, which would wait for ever."""
    gc.disable()
    try:
        for _ in range(4):
            picture = av.VideoFrame.from_ndarray(np.zeros((720, 1280, 3), np.uint8), format="rgb24")
            picture.reformat(format="yuv420p")
            cycle = [picture]
            cycle.append(cycle)
        del picture, cycle
        source = WindowSource(SHARDS, windows_per_clip=1, batch_size=3, seed=3)
        assert len(list(ShardLoader(source, read_and_collect, collate, 2))) == 2
    finally:
        gc.enable()


def test_cache_is_bounded():
    cache: ByteCache[str] = ByteCache(10)
    for key in "abc":
        cache.put(key, key.upper(), 4)
    assert cache.get("a") is None
    assert (cache.get("b"), cache.get("c"), cache.num_bytes) == ("B", "C", 8)
    cache.get("b")
    cache.put("d", "D", 4)
    assert cache.get("c") is None
    cache.put("huge", "H", 11)
    assert cache.get("huge") is None
    assert cache.has_room(2)
    assert not cache.has_room(3)

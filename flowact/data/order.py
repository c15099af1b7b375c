"""The order of windows: a pure function of (seed, epoch, position), for one data set and for several, for clips of one shape and of many.

A *pool* holds the clips of one data set that have one shape; a *bucket* the pools of one shape, whose windows may share a batch. An epoch has as
many windows as all pools together. Each pool gives a fixed number of them, its quota, and goes on in the next epoch where it stopped, in an order of
its own that visits every window once before it begins anew. So all weights hold in every epoch, and (seed, epoch) is enough to say what comes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from flowact.errors import UserError

# last number of a generator's seed: what it draws. Orders of pools have none, draws inside windows neither
_TURNS, _STEPS = 1, 2


@dataclass(frozen=True)
class Mix:
    """Which set and bucket each clip belongs to.

    Attributes:
        set_of_clip: number of the data set of each clip, int64 (N,).
        bucket_of_clip: number of the bucket of each clip, int64 (N,).
        sets: names of the data sets.
        buckets: names of the buckets.
        weights: what of an epoch comes from each set, in proportion; None for as much as it has.

    Raises:
        UserError: a weight that is not positive.
    """

    set_of_clip: np.ndarray
    bucket_of_clip: np.ndarray
    sets: tuple[str, ...]
    buckets: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, weight in zip(self.sets, self.weights or ()):
            if not 0 < weight < float("inf"):
                raise UserError(f"weight of {name} is {weight}; a weight is a positive number, and a set that is not wanted is left out")

    @classmethod
    def single(cls, num_clips: int) -> Mix:
        """One set whose clips have one shape."""
        nothing = np.zeros(num_clips, dtype=np.int64)
        return cls(nothing, nothing, ("data",), ("one shape",))


@dataclass(frozen=True)
class Pool:
    """Clips of one set and one bucket.

    Attributes:
        clips: their numbers, ascending.
        quota: windows that they give to an epoch.
    """

    set: int
    bucket: int
    clips: np.ndarray
    quota: int


class WindowOrder:
    """Draws in training order; draw d is a window of clip d // windows_per_clip.

    Args:
        shard_of_clip: shard number of each clip, int64 (N,).
        mix: sets and buckets of the clips.
        windows_per_clip: draws of a clip, counted from 0 in each epoch of its pool.
        seed: of the run.
        shuffle: False visits clip after clip, the same draws in every epoch, and knows no weights.
        shards_in_flight: see `epoch_order`.

    Attributes:
        bucket_windows: windows of an epoch by bucket, int64.
        set_windows: likewise by data set.

    Raises:
        UserError: a weight so small that its set gives no window to an epoch.
    """

    def __init__(self, shard_of_clip: np.ndarray, mix: Mix, *, windows_per_clip: int, seed: int, shuffle: bool, shards_in_flight: int) -> None:
        self.shard_of_clip = shard_of_clip
        self.mix = mix
        self.windows_per_clip = windows_per_clip
        self.seed = seed
        self.shuffle = shuffle
        self.shards_in_flight = shards_in_flight
        self.pools = self._pools()
        self.bucket_windows = self._windows_by([pool.bucket for pool in self.pools], len(mix.buckets))
        self.set_windows = self._windows_by([pool.set for pool in self.pools], len(mix.sets))

    def _pools(self) -> list[Pool]:
        mix = self.mix
        kinds = list(zip(mix.set_of_clip.tolist(), mix.bucket_of_clip.tolist()))
        found: dict[tuple[int, int], list[int]] = {kind: [] for kind in sorted(set(kinds))}
        for clip, kind in enumerate(kinds):
            found[kind].append(clip)
        in_set = np.bincount(mix.set_of_clip, minlength=len(mix.sets)).tolist()
        weights = mix.weights if mix.weights is not None and self.shuffle else in_set
        shares = [Fraction(weights[of]) * Fraction(len(clips), in_set[of]) for (of, _), clips in found.items()]
        pools = []
        for (kind, clips), quota in zip(found.items(), apportion(shares, len(kinds) * self.windows_per_clip)):
            if not quota:
                raise UserError(
                    f"the weight {weights[kind[0]]} of {mix.sets[kind[0]]} gives its clips of {mix.buckets[kind[1]]} none of the "
                    f"{len(kinds) * self.windows_per_clip} windows of an epoch; raise the weight or windows_per_clip, or leave the clips out"
                )
            pools.append(Pool(*kind, np.asarray(clips, dtype=np.int64), quota))
        return pools

    def _windows_by(self, kinds: Sequence[int], count: int) -> np.ndarray:
        return np.bincount(kinds, [pool.quota for pool in self.pools], count).astype(np.int64)

    @property
    def num_samples(self) -> int:
        """Windows of an epoch."""
        return len(self.shard_of_clip) * self.windows_per_clip

    @cached_property
    def fingerprint(self) -> int:
        """Of what decides the order beside seed and number of windows; 0 for one set of one shape."""
        if len(self.pools) == 1:
            return 0
        return zlib.crc32(repr([(pool.set, pool.bucket, pool.quota, zlib.crc32(pool.clips.tobytes())) for pool in self.pools]).encode())

    def num_steps(self, step_samples: int) -> int:
        """Steps of an epoch: each bucket gives its whole ones, the remainder is left out."""
        return int((self.bucket_windows // step_samples).sum())

    def epoch(self, epoch: int, step_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws of an epoch in training order, and for each the epoch of its pool.

        With several buckets a step's windows are of one, and which one is the same for all processes. With one bucket the order does not depend on
        the size of a step, and the remainder that is no whole step is at the end.

        Returns:
            draws and epochs, int64 (windows,).
        """
        found = [self._bucket(bucket, epoch) for bucket in range(len(self.mix.buckets))]
        if len(found) == 1:
            return found[0]
        counts = self.bucket_windows // step_samples
        bucket_of_step = np.repeat(np.arange(len(found)), counts)
        if self.shuffle:
            bucket_of_step = np.random.default_rng((self.seed, epoch, 0, _STEPS)).permutation(bucket_of_step)
        flat = np.empty((2, len(bucket_of_step), step_samples), dtype=np.int64)
        for bucket, (count, windows) in enumerate(zip(counts, found)):
            flat[:, bucket_of_step == bucket] = np.stack(windows)[:, : count * step_samples].reshape(2, count, step_samples)
        draws, epochs = flat.reshape(2, -1)
        return draws, epochs

    def sets_of(self, draws: np.ndarray) -> np.ndarray:
        """The data set of each draw."""
        return self.mix.set_of_clip[draws // self.windows_per_clip]

    def _bucket(self, bucket: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        pools = [(number, pool) for number, pool in enumerate(self.pools) if pool.bucket == bucket]
        if not self.shuffle:
            clips = np.sort(np.concatenate([pool.clips for _, pool in pools]))
            draws = (clips[None] * self.windows_per_clip + np.arange(self.windows_per_clip)[:, None]).reshape(-1)
            return draws, np.zeros_like(draws)
        windows = np.concatenate([self._pool(number, pool, epoch) for number, pool in pools], axis=1)
        if len(pools) > 1:
            turns = np.repeat(np.arange(len(pools)), [pool.quota for _, pool in pools])
            turns = np.random.default_rng((self.seed, epoch, bucket, _TURNS)).permutation(turns)
            mixed = np.empty_like(windows)
            mixed[:, np.argsort(turns, kind="stable")] = windows  # each pool keeps its order, so that its shards stay together
            windows = mixed
        return windows[0], windows[1]

    def _pool(self, number: int, pool: Pool, epoch: int) -> np.ndarray:
        """What a pool gives to an epoch: draws and its own epochs, int64 (2, quota)."""
        size, start, missing = len(pool.clips) * self.windows_per_clip, epoch * pool.quota, pool.quota
        parts = []
        while missing:
            own, first = divmod(start, size)
            taken = min(size - first, missing)
            order = epoch_order(self.shard_of_clip[pool.clips], self.windows_per_clip, self.seed, own, self.shards_in_flight, stream=number)
            clips, draws = np.divmod(order[first : first + taken], self.windows_per_clip)
            parts.append(np.stack([pool.clips[clips] * self.windows_per_clip + draws, np.full(taken, own)]))
            start, missing = start + taken, missing - taken
        return np.concatenate(parts, axis=1)


def epoch_order(
    shard_of_clip: np.ndarray, windows_per_clip: int, seed: int, epoch: int, shards_in_flight: int = 16, stream: int = 0
) -> np.ndarray:
    """Draws of an epoch in training order: shards are shuffled, then all windows inside each group of `shards_in_flight` shards.

    Args:
        shard_of_clip: shard number of each clip, int64 (N,).
        windows_per_clip: draws a clip.
        seed: of the run.
        epoch: counted from 0.
        shards_in_flight: shards that are read from at a time; bounds what a cache must hold.
        stream: number of the pool that is ordered.

    Returns:
        A permutation of arange(N * windows_per_clip); draw d is a window of clip d // windows_per_clip.
    """
    generator = np.random.default_rng((seed, epoch, stream) if stream else (seed, epoch))
    shards = generator.permutation(np.unique(shard_of_clip))
    rank = np.empty(int(shard_of_clip.max()) + 1, dtype=np.int64)
    rank[shards] = np.arange(len(shards)) // shards_in_flight
    draws = generator.permutation(len(shard_of_clip) * windows_per_clip)
    return draws[np.argsort(rank[shard_of_clip[draws // windows_per_clip]], kind="stable")]


def apportion(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers in proportion to shares that sum to `total`: rounded down, then the largest remainders up (Hamilton's method).

    >>> apportion([Fraction(1), Fraction(2), Fraction(1)], 6)
    [2, 3, 1]
    """
    exact = [share * total / sum(shares) for share in shares]
    counts = [int(count) for count in exact]
    most = sorted(range(len(shares)), key=lambda place: (counts[place] - exact[place], place))
    for place in most[: total - sum(counts)]:
        counts[place] += 1
    return counts

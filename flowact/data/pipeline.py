"""Shard source and loader: an order that is a pure function of (seed, epoch, position), so that resume needs two numbers.

    WindowSource -> read one window -> batch -> ShardLoader

The source decides which window comes when; the stages after it are ordinary WebDataset stages. Position counts samples of the whole job, so
a run may go on with another number of workers or processes: the same windows are seen in the same order.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from flowact.data.order import Mix, WindowOrder, epoch_order
from flowact.errors import UserError

__all__ = ["ShardLoader", "Window", "WindowSource", "epoch_order"]


@dataclass(frozen=True)
class Window:
    """One draw of a window from a clip; what is inside is decided by `generator`, the same at every visit of (seed, epoch, draw).

    Attributes:
        clip: number of the clip in the split.
        visit: (seed, epoch, draw), draw < clips * windows_per_clip.
    """

    clip: int
    visit: tuple[int, int, int]

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.visit)


class WindowSource(IterableDataset[Window]):
    """First stage of a pipeline: windows of this process and this worker, in an order that does not depend on how many there are.

    One step takes `batch_size` consecutive positions for each process; workers take whole steps in turn. Where clips have several shapes, a step
    holds one of them, the same on every process.

    Args:
        shard_of_clip: shard number of each clip.
        windows_per_clip: draws a clip and epoch.
        batch_size: windows a step and process.
        seed: of the order and of every draw.
        rank: of this process.
        world_size: number of processes.
        shuffle: False visits clip after clip, the same draws in every epoch (validation).
        shards_in_flight: see `epoch_order`.
        mix: data sets and shapes of the clips; None for one set of one shape.

    Raises:
        UserError: fewer windows than one step of all processes needs, in all or of one shape.
    """

    def __init__(
        self,
        shard_of_clip: Sequence[int] | np.ndarray,
        *,
        windows_per_clip: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        shards_in_flight: int = 16,
        mix: Mix | None = None,
    ) -> None:
        for name, value in (("windows_per_clip", windows_per_clip), ("batch_size", batch_size), ("shards_in_flight", shards_in_flight)):
            if value < 1:
                raise UserError(f"{name} is {value}, must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}, must not be negative")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside a world of {world_size}")
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        shard_of_clip = np.asarray(shard_of_clip, dtype=np.int64)
        mix = mix or Mix.single(len(shard_of_clip))
        self.order = WindowOrder(
            shard_of_clip, mix, windows_per_clip=windows_per_clip, seed=seed, shuffle=shuffle, shards_in_flight=shards_in_flight
        )
        self._check_size()
        self._sets = (-1, np.zeros(0, dtype=np.int16))  # of an epoch's windows; ordering an epoch anew for every question would take seconds
        # shared, so that workers that live on see where the next epoch starts
        self._cursor = torch.zeros(2, dtype=torch.int64).share_memory_()

    def _check_size(self) -> None:
        clips, shards = len(self.order.shard_of_clip), len(np.unique(self.order.shard_of_clip))
        if self.num_samples < self.world_size:
            raise UserError(
                f"shards fewer than processes: {shards} shards hold {clips} usable clips, {self.num_samples} windows, for "
                f"{self.world_size} processes; use at most {self.num_samples} processes, add clips, or raise windows_per_clip"
            )
        needed = f"{self.step_samples} (batch_size {self.batch_size} times {self.world_size} processes)"
        if self.num_samples < self.step_samples:
            raise UserError(
                f"{clips} usable clips with windows_per_clip={self.order.windows_per_clip} give {self.num_samples} windows, one step needs {needed}; "
                f"lower batch_size to {self.num_samples // self.world_size} or raise windows_per_clip"
            )
        # left out they would be, with more processes, clips that were trained on with fewer: data never depends on the machine
        small = {name: count for name, count in zip(self.order.mix.buckets, self.order.bucket_windows.tolist()) if count < self.step_samples}
        if small:
            raise UserError(
                f"a step holds clips of one shape and needs {needed} windows; an epoch has {', '.join(f'{n} of {k}' for k, n in small.items())}: "
                "raise windows_per_clip, lower batch_size, or leave these clips out by `where` or by `exclude` in dataset.yaml"
            )

    @property
    def num_samples(self) -> int:
        """Windows of an epoch, over all processes."""
        return self.order.num_samples

    @property
    def step_samples(self) -> int:
        """Windows that one step of all processes takes."""
        return self.batch_size * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same for every process; the remainder of each shape is dropped."""
        return self.order.num_steps(self.step_samples)

    @property
    def _end(self) -> int:
        """Positions of an epoch. Where a step holds one of several shapes the remainders are no positions."""
        return self.num_samples if self._one_bucket else self.steps_per_epoch * self.step_samples

    @property
    def _one_bucket(self) -> bool:
        return len(self.order.mix.buckets) == 1

    def state_dict(self) -> dict[str, int]:
        """Where the next iteration starts: epoch, and position in samples of the whole job."""
        epoch, position = self._cursor.tolist()
        state = {"epoch": epoch, "position": position, "seed": self.seed, "num_samples": self.num_samples}
        if self.order.fingerprint:
            state["order"] = self.order.fingerprint
        return state if self._one_bucket else {**state, "step_samples": self.step_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration there.

        Raises:
            UserError: a state of another seed, of another number of windows or of another mix, so of another order.
        """
        for name, here in (("seed", self.seed), ("num_samples", self.num_samples)):
            if state[name] != here:
                raise UserError(
                    f"the checkpoint was reading an order with {name} {state[name]}, this run has {here}: data, windows_per_clip, window length "
                    "or seed changed, so it can not go on exactly; restore them, or start a new run with init_from"
                )
        if state.get("order", 0) != self.order.fingerprint:
            raise UserError(
                "the checkpoint was reading another mix of data: sets, their order, weights, conditions (`where`) or sizes of pictures changed, "
                "so it can not go on exactly; restore them, or start a new run with init_from"
            )
        if state["position"] and state.get("step_samples", self.step_samples) != self.step_samples:
            raise UserError(
                f"the checkpoint was reading steps of {state['step_samples']} windows, this run has {self.step_samples} (batch_size "
                f"{self.batch_size} times {self.world_size} processes): with pictures of several sizes the order depends on it; choose batch_size so "
                f"that it is {state['step_samples']} again, or start a new run with init_from"
            )
        self.seek(state["epoch"], state["position"])

    def seek(self, epoch: int, position: int) -> None:
        """Start the next iteration at a position of an epoch; the end of an epoch is the start of the next."""
        if position + self.step_samples > self._end:
            epoch, position = epoch + 1, 0
        self._cursor.copy_(torch.tensor([epoch, position]))

    def seen(self, epoch: int, position: int) -> np.ndarray:
        """Windows that the order took from each data set before a position of an epoch, int64 (sets,); epochs before it count whole."""
        if self._sets[0] != epoch:
            draws, _ = self.order.epoch(epoch, self.step_samples)
            self._sets = (epoch, self.order.sets_of(draws).astype(np.int16))
        return epoch * self.order.set_windows + np.bincount(self._sets[1][:position], minlength=len(self.order.set_windows))

    def __iter__(self) -> Iterator[Window]:
        epoch, start = self._cursor.tolist()
        return self._windows(epoch, start)

    def _windows(self, epoch: int, start: int) -> Iterator[Window]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        draws, epochs = self.order.epoch(epoch, self.step_samples)
        for step in range(first, (self._end - start) // self.step_samples, stride):
            begin = start + step * self.step_samples + self.rank * self.batch_size
            for draw, visit in zip(draws[begin : begin + self.batch_size].tolist(), epochs[begin : begin + self.batch_size].tolist()):
                yield Window(draw // self.order.windows_per_clip, (self.seed, visit, draw))


class ShardLoader(StatefulDataLoader):
    """Batches of a `WindowSource`, resumable exactly with any number of workers.

    What torchdata would store per worker is replaced by the source's two numbers, counted where batches are handed out, so that
    batches which workers had already prepared are made again and none is lost. The length is known: Lightning then fetches no batch ahead.

    Args:
        source: decides which windows.
        read: one window to a sample; runs in the worker.
        collate: samples of a step to a batch; runs in the worker.
        num_workers: processes that read ahead; 0 reads in this one.
    """

    def __init__(self, source: WindowSource, read: Callable[[Window], Any], collate: Callable[[list[Any]], Any], num_workers: int = 0) -> None:
        pipeline = webdataset.DataPipeline(source, webdataset.map(read), webdataset.batched(source.batch_size, collation_fn=collate, partial=False))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*set_vital.*")  # torchdata calls what newer torch deprecates
            super().__init__(
                pipeline,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                # a generator of its own: starting an epoch must not move the global one, or a resumed run would draw other noise
                generator=torch.Generator().manual_seed(source.seed),
            )
        self.source = source
        self._epoch, self._position = 0, 0
        self._yielded = False

    def __len__(self) -> int:
        return self.source.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self._yielded:  # an epoch that was begun, finished or not, is followed by the next one
            self._epoch, self._position = self._epoch + 1, 0
        self.source.seek(self._epoch, self._position)
        state = self.source.state_dict()
        self._epoch, self._position = state["epoch"], state["position"]
        self._yielded = False
        if self.num_workers and self._iterator is None:
            # a forked worker that collected this process's garbage would wait for threads that only exist here (pictures of PyAV own some)
            gc.collect()
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            for batch in batches:
                self._position += self.source.step_samples
                self._yielded = True
                yield batch
        except UserError as error:
            message = str(error)
            if not message.startswith("Caught "):
                raise
            # from a worker comes a traceback as text; the user needs its last line
            raise UserError(message.rpartition("Error: ")[2].strip()) from None

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position after the last batch that was handed out."""
        return {**self.source.state_dict(), "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of any number of workers or processes; takes effect with the next iteration."""
        if state_dict:
            self.source.load_state_dict(state_dict)
            self._epoch, self._position, self._yielded = state_dict["epoch"], state_dict["position"], False


def _as_it_is(batch: Any) -> Any:
    return batch

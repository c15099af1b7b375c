"""What was decoded stays in memory, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from torch.utils.data import get_worker_info

from flowact.errors import UserError

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by key up to a number of bytes; the least recently used leave first.

    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise UserError(f"cache_bytes is {max_bytes}, must not be negative; 0 keeps nothing in memory")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def has_room(self, num_bytes: int) -> bool:
        """Whether a value fits without another one leaving."""
        return self.num_bytes + num_bytes <= self.max_bytes

    def get(self, key: Hashable) -> Value | None:
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: Value, num_bytes: int) -> None:
        if num_bytes > self.max_bytes or key in self._values:
            return
        self._values[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            _, (_, freed) = self._values.popitem(last=False)
            self.num_bytes -= freed


class WorkerCache(Generic[Value]):
    """A `ByteCache` that is made where it is used first: each worker of a loader has its share of the bytes.

    Args:
        max_bytes: over all workers; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._cache: ByteCache[Value] | None = None

    @property
    def here(self) -> ByteCache[Value]:
        """The cache of this process."""
        if self._cache is None:
            worker = get_worker_info()
            self._cache = ByteCache(self._max_bytes // (worker.num_workers if worker else 1))
        return self._cache

"""What a worker does before and around its items. Imports next to nothing, as it is what a worker reads first."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

_refused: Exception | None = None


def begin(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Prepare a worker that ends with the process that started it. What keeps it from beginning is told with its first item."""
    global _refused
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        start(*arguments)
    except Exception as error:  # pools would only say that a worker is gone
        _refused = error


def run(function: Callable[[Any], Any], item: Any) -> Any:
    """The function's result."""
    if _refused is not None:
        raise _refused
    return function(item)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # whoever would take the result is gone

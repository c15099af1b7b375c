"""What workers do in the tests of `workplace`: a module of its own, as they import it anew and should be quick."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

_begun: list[str] = []


def nothing() -> None:
    """Prepare a worker that needs nothing."""


def remember(word: str) -> None:
    """Prepare a worker that is told a word."""
    _begun.append(word)


def refuse() -> None:
    """Prepare a worker in vain."""
    raise RuntimeError("no model there")


def told(item: int) -> tuple[int, list[str], str | None, int]:
    """Item, what the worker was told, its threads, its process."""
    return item, list(_begun), os.environ.get("OMP_NUM_THREADS"), os.getpid()


def do(item: str) -> str:
    """Do what the item says."""
    what, _, argument = item.partition(" ")
    if what == "exit":
        os._exit(int(argument))
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        os.abort()
    if what == "leave":
        sys.exit(3)
    if what == "sleep":
        time.sleep(float(argument))
    if what == "raise":
        raise ValueError(argument)
    if what == "hold":  # says that it is there, then does not give its process back
        folder = Path(argument)
        (folder / str(os.getpid())).touch()
        time.sleep(120)
    return item

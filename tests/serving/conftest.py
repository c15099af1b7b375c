"""Servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="flowact[serve] is not installed")

from server_fixture import Client, Served, start_server


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """`start(...)` as `start_server`."""
    running: list[Served] = []

    def begin(*args: Any, **options: Any) -> Served:
        running.append(start_server(*args, **options))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    """A server with the usual limits."""
    return start()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client whose session moves."""
    with served.socket() as socket:
        yield Client(socket).running()

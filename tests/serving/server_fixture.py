"""A real server on a free port of this machine, in a thread of its own, and small clients."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fake_avatar import FakeModel
from websockets.sync.client import ClientConnection, connect

from flowact.serving.app import create_app
from flowact.serving.encoding import Enlarger
from flowact.serving.frames import BinaryFrame
from flowact.serving.limits import Limits
from flowact.serving.manager import SessionManager
from flowact.serving.provenance import NoSessionLog, SessionLog
from flowact.serving.responders import EchoResponder, Responder
from flowact.serving.server import AvatarServer, bound_socket
from flowact.serving.watermark import TextWatermark


@dataclass
class Served:
    """A running server."""

    manager: SessionManager
    model: FakeModel
    server: AvatarServer
    thread: threading.Thread
    port: int

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one HTTP request."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None and "content-type" not in names:
            names["content-type"] = "application/json"
        client.request(method, path, data, names)
        answer = client.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        client.close()
        return found

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The JSON of an answer that must be good."""
        status, _, data = self.request(method, path, body, **headers)
        assert status < 300, data
        return json.loads(data) if data else None

    def socket(self, query: str = "", **options: Any) -> ClientConnection:
        """A WebSocket at /v1/realtime."""
        return connect(f"ws://127.0.0.1:{self.port}/v1/realtime{query}", max_size=None, **{"proxy": None, **options})

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for something that the server does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)

    @property
    def counts(self) -> tuple[int, int]:
        """Running and waiting sessions, as /health says."""
        found = self.json("GET", "/health")
        return found["running"], found["waiting"]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def start_server(
    limits: Limits | None = None, responder: Responder | None = None, session_log: SessionLog | None = None, model: Any = None, **app_options: Any
) -> Served:
    """A server of the fake model."""
    model = model or FakeModel()
    limits = limits or Limits(absent_seconds=0.5)
    enlarger = Enlarger(*model.picture_size, 3)
    watermark = TextWatermark(enlarger.height, enlarger.width)
    manager = SessionManager(model, responder or EchoResponder(), limits, enlarger, watermark, session_log or NoSessionLog(), sweep_seconds=0.05)
    place = bound_socket("127.0.0.1", 0)
    server = AvatarServer(create_app(manager, **app_options), limits, place)
    ready = threading.Event()
    server.when_ready = lambda port: ready.set()
    thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
    thread.start()
    assert ready.wait(20)
    return Served(manager, model, server, thread, place.getsockname()[1])


@dataclass
class Client:
    """A WebSocket client that keeps what it got."""

    socket: ClientConnection
    events: list[dict[str, Any]] = field(default_factory=list)
    frames: list[BinaryFrame] = field(default_factory=list)

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def read(self, seconds: float = 20.0) -> dict[str, Any] | BinaryFrame:
        """The next message."""
        message = self.socket.recv(timeout=seconds)
        if isinstance(message, bytes):
            self.frames.append(BinaryFrame.unpack(message))
            return self.frames[-1]
        self.events.append(json.loads(message))
        return self.events[-1]

    def until(self, kind: str, seconds: float = 20.0, **wanted: Any) -> dict[str, Any]:
        """The next event of a kind, with given fields."""
        end = time.monotonic() + seconds
        while True:
            assert time.monotonic() < end, f"no {kind}; last: {[event['type'] for event in self.events[-10:]]}"
            event = self.read(end - time.monotonic() + 0.1)
            if isinstance(event, dict) and event["type"] == kind and all(event.get(name) == value for name, value in wanted.items()):
                return event

    def ask(self, kind: str, answer: str, **fields: Any) -> dict[str, Any]:
        """Send an event and return its answer."""
        name = f"ask-{len(self.events)}-{time.monotonic_ns()}"
        self.send(kind, event_id=name, **fields)
        return self.until(answer, client_event_id=name)

    def running(self) -> Client:
        """Wait until the session moves."""
        if self.until("session.created")["session"]["status"] != "running":
            while self.until("session.updated")["session"]["status"] != "running":
                pass
        return self

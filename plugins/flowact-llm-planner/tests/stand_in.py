"""A language model's endpoint on loopback that answers as it is told, and notes what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: a body, a body that trickles, or a status with a body and headers
Reply = bytes | list[bytes] | tuple[int, bytes] | tuple[int, bytes, dict[str, str]]


def completion(content: Any) -> bytes:
    """A chat completion with this message."""
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}).encode()


def advice(state: str, prompt: str) -> bytes:
    return completion(json.dumps({"state": state, "prompt": prompt}))


@dataclass
class StandIn:
    """The server.

    Attributes:
        url: its endpoint.
        reply: what it answers to a request; called on a thread of the server.
        requests: (path, headers, body) of each.
        held: answers wait for it; set at first.
    """

    url: str
    reply: Callable[[dict], Reply]
    requests: list[tuple[str, dict[str, str], dict]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(reply: Callable[[dict], Reply]) -> Iterator[StandIn]:
    """A server for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.requests.append((self.path, dict(self.headers), body))
            stand_in.held.wait(30)
            answer = stand_in.reply(body)
            status, data, *more = answer if isinstance(answer, tuple) else (200, answer)
            parts = data if isinstance(data, list) else [data]
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(sum(map(len, parts))), **(more[0] if more else {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in parts:
                    self.wfile.write(part)
                    time.sleep(0.02 if len(parts) > 1 else 0.0)
            except OSError:
                pass  # the client has gone

        def log_message(self, *unused: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in = StandIn(f"http://127.0.0.1:{server.server_address[1]}/v1", reply)
    stand_in.held.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.held.set()
        server.shutdown()
        server.server_close()

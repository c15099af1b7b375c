"""Runs the application until a signal comes, and ends it in order."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import Callable
from pathlib import Path
from socket import AI_PASSIVE, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, getaddrinfo, socket
from typing import Any

import uvicorn

from flowact.errors import UserError
from flowact.serving.limits import Limits

GRACE_SECONDS = 5
MAX_CONNECTIONS = 512


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needed_token(host: str, token: str | None) -> str | None:
    """The token that clients must know: the given one, a new one for a server that others can reach, none for one that they cannot.

    Raises:
        UserError: one that is guessed easily, or that no header can carry.
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if len(token) < 16 or not all(c.isalnum() or c in "-._~" for c in token) or not token.isascii():
        raise UserError("--token: a token has at least 16 letters, digits, - . _ or ~; leave it out to have one made")
    return token


def address(host: str, port: int, token: str | None, secure: bool) -> str:
    """What to open in a browser. The token stands behind the #, which browsers never send."""
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http{'s' if secure else ''}://{shown}:{port}/{f'#token={token}' if token else ''}"


class AvatarServer(uvicorn.Server):
    """uvicorn that ends the sessions before it waits for connections to end, so that streams do not keep it.

    Args:
        app: of `create_app`.
        limits: of messages and heartbeats.
        place: of `bound_socket`.
        certificate: PEM file; with it the server speaks HTTPS, which browsers want for a microphone on another machine.
        key: of the certificate.
    """

    def __init__(self, app: Any, limits: Limits, place: socket, certificate: str | Path | None = None, key: str | Path | None = None) -> None:
        self._close = app.state.close
        self.when_ready: Callable[[int], None] = lambda port: None
        self._place = place
        config = uvicorn.Config(
            app,
            ws="websockets-sansio",
            ws_max_size=limits.message_bytes,
            ws_max_queue=8,
            ws_ping_interval=limits.heartbeat_seconds,
            ws_ping_timeout=limits.heartbeat_seconds,
            ws_per_message_deflate=False,  # media is compressed already, and a bomb would unfold
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            h11_max_incomplete_event_size=64 * 1024,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            server_header=False,
            access_log=False,  # addresses hold tickets
            log_level="warning",
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self.when_ready(self._place.getsockname()[1])

    def serve_until_stopped(self) -> None:
        """Run until `should_exit`, or a signal."""
        self.run([self._place])

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """See uvicorn."""
        for server in self.servers:
            server.close()  # nobody comes in any more
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._close(), GRACE_SECONDS)
        await super().shutdown(sockets)


def bound_socket(host: str, port: int) -> socket:
    """A place to listen at, taken before a model is loaded.

    Raises:
        UserError: the address is not one of this machine's, or the port is taken.
    """
    try:
        family, _, _, _, where = getaddrinfo(host, port, type=SOCK_STREAM, flags=AI_PASSIVE)[0]
        found = socket(family, SOCK_STREAM)
        found.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        found.bind(where)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port or --host") from error
    return found

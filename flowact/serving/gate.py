"""What stands before every request: who may ask, from which page, and how much it may send."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowact.serving.limits import Limits

TOKEN_PROTOCOL = "flowact.token."
#: nothing here is loaded from elsewhere, and no other site may frame the page
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Gate:
    """ASGI middleware.

    - The Host header must be an address in numbers, localhost, or an allowed name: a name that an attacker's DNS points here is none of these.
    - A request from a browser's page must come from a page of this server, or of an origin that was allowed.
    - With a token, everything below /v1 and /metrics wants it: `Authorization: Bearer TOKEN`, or the WebSocket subprotocol `flowact.token.TOKEN`.
      A session's ticket in the address stands for it, so that players can open a stream. The page itself holds no secret and wants none.
    - No body is longer than `limits.message_bytes`.

    Args:
        app: what is behind.
        limits: of bodies.
        token: None lets everybody in.
        hosts: names that the server is reached by.
        origins: of other pages that may use it, such as https://example.com.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._app = app
        self._limits = limits
        self._token = token
        self._hosts = {host.lower() for host in hosts} | {"localhost"}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message.get("headers", [])}
                message["headers"] = [*message.get("headers", []), *((name, value) for name, value in HEADERS if name not in known)]
            await send(message)

        await self._app(scope, self._bounded(receive) if scope["type"] == "http" else receive, with_headers)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self._known_host(host):
            return 403, "unknown_host", f"this server is not called '{host[:100]}'; start it with --allow-host NAME"
        origin = headers.get("origin")
        if origin is not None and not self._known_origin(origin, host):
            return 403, "unknown_origin", f"pages of '{origin[:100]}' may not use this server; start it with --allow-origin ORIGIN"
        guarded = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
        if guarded and origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "unknown_origin", "another site's page may not use this server"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.message_bytes:
            return 413, "body_too_large", f"at most {self._limits.message_bytes} bytes are taken"
        if guarded and self._token is not None and not self._knows_token(scope, headers):
            return 401, "unauthorized", "the token is missing or wrong; send `Authorization: Bearer TOKEN`"
        return None

    def _known_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _known_origin(self, origin: str, host: str) -> bool:
        if origin.lower().rstrip("/") in self._origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    def _knows_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        candidates = [given.strip()] if scheme.lower() == "bearer" else []
        protocols = [protocol.strip() for protocol in headers.get("sec-websocket-protocol", "").split(",")]
        candidates += [protocol.removeprefix(TOKEN_PROTOCOL) for protocol in protocols if protocol.startswith(TOKEN_PROTOCOL)]
        expected = (self._token or "").encode()
        if any(hmac.compare_digest(candidate.encode("latin-1", "replace"), expected) for candidate in candidates[:4]):
            return True
        # Whoever made a session had the token; the ticket itself is compared where the session is looked up.
        return scope["path"].startswith("/v1/sessions/") and bool(parse_qs(scope["query_string"].decode("latin-1")).get("ticket"))

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._limits.message_bytes:
                    return {"type": "http.disconnect"}
            return message

        return bounded


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": message[:100]})
        return
    body: dict[str, Any] = {"error": {"type": "invalid_request_error", "code": code, "message": message}}
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), (b"connection", b"close"), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})

"""The HTTP interface: page, sessions, streams and figures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from flowact.serving import realtime
from flowact.serving.announcements import SessionFacts, server_schema
from flowact.serving.controller import Controller
from flowact.serving.encoding import jpeg
from flowact.serving.events import Name, client_schema
from flowact.serving.figures import prometheus_text
from flowact.serving.frames import FrameKind
from flowact.serving.gate import Gate
from flowact.serving.limits import Refusal
from flowact.serving.manager import SessionManager
from flowact.serving.outbox import RenderedChunk
from flowact.serving.session import AvatarSession
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, STATES
from flowact.writers.base import SYNTHETIC

STATUS = {
    "unknown_session": 404,
    "unknown_character": 404,
    "session_closed": 410,
    "queue_full": 503,
    "shutting_down": 503,
    "too_many_sessions": 429,
    "not_running": 409,
    "webrtc_missing": 501,
}
Ticket = Annotated[str, Query(max_length=64, description="of the session, from when it was created")]


class SessionRequest(BaseModel):
    """What `POST /v1/sessions` takes."""

    model_config = ConfigDict(extra="forbid")

    character: Name | None = Field(default=None, description="an id of /v1/characters; the first one otherwise")


class SessionAnswer(BaseModel):
    """A session, and the ticket that lets its owner in."""

    session: SessionFacts
    ticket: str


class Offer(BaseModel):
    """A browser's WebRTC offer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["offer"] = "offer"
    sdp: str = Field(max_length=100_000)
    session: Name | None = Field(default=None, description="an own session; a new one otherwise")
    ticket: str | None = Field(default=None, max_length=64)
    character: Name | None = None


class Answer(SessionAnswer):
    """The server's answer to it."""

    type: Literal["answer"] = "answer"
    sdp: str


def create_app(
    manager: SessionManager,
    *,
    token: str | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    ice_servers: Sequence[str] = (),
    responder_name: str = "",
) -> FastAPI:
    """The application. It may be served by any ASGI server in one process.

    Args:
        manager: of the sessions; started and closed with the application.
        token: that clients must know; None lets everybody in.
        hosts: names that the server is reached by, besides addresses in numbers and localhost.
        origins: of other pages that may use it.
        ice_servers: addresses such as `stun:stun.example.org:3478`, for WebRTC across networks; none are asked otherwise.
        responder_name: for /v1/info.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        manager.start()
        yield
        await app.state.close()

    # The interactive documentation pages of FastAPI load their scripts from elsewhere, so only the schema is served.
    app = FastAPI(title="FlowAct", version=version("flowact"), lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    hub: Any = None
    if find_spec("aiortc") is not None:
        from flowact.serving.webrtc import PeerHub

        hub = PeerHub(manager, ice_servers)

    async def close() -> None:
        await manager.close()
        if hub is not None:
            await hub.close()

    app.state.close = close
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["authorization", "content-type"])
    app.add_middleware(Gate, limits=manager.limits, token=token, hosts=hosts, origins=origins)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_information(app, manager, hub is not None, ice_servers, responder_name)
    _add_sessions(app, manager)
    _add_realtime(app, manager, hub)
    page = Path(str(files("flowact.serving"))) / "page"
    app.mount("/", StaticFiles(directory=page, html=True))  # last: it takes every path that is left
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    status = STATUS.get(error.code, 400)
    content = {"error": {"type": "invalid_request_error", "code": error.code, "message": error.message}}
    return JSONResponse(content, status, headers={"retry-after": "5"} if status in (429, 503) else None)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:500]
    return JSONResponse({"error": {"type": "invalid_request_error", "code": "invalid_request", "message": message}}, 422)


def _add_information(app: FastAPI, manager: SessionManager, webrtc: bool, ice_servers: Sequence[str], responder_name: str) -> None:
    model, limits = manager.model, manager.limits

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server takes sessions."""
        if manager.closing:
            raise HTTPException(503, "the server stops")
        return {"status": "ok", "running": len(manager.running), "waiting": manager.num_waiting}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Figures for Prometheus."""
        return prometheus_text(manager)

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        """What is served, and within which limits."""
        return {
            "name": "flowact",
            "version": version("flowact"),
            "notice": SYNTHETIC,
            "model": {
                "name": model.name,
                "sha256": model.sha256,
                "picture_size": list(model.picture_size),
                "chunk_seconds": model.chunk_seconds,
                **model.facts(),
            },
            "video": {"width": manager.enlarger.width, "height": manager.enlarger.height, "frames_per_second": FRAMES_PER_SECOND},
            "audio": {"sample_rate": SAMPLE_RATE},
            "states": list(STATES),
            "responder": responder_name,
            "transports": (["webrtc"] if webrtc else []) + ["websocket"],
            "ice_servers": list(ice_servers),
            "limits": vars(limits),
        }

    @app.get("/v1/characters")
    async def characters() -> list[dict[str, str]]:
        """Whom one can talk to."""
        return [{"id": who.id, "name": who.name, "picture": f"/v1/characters/{who.id}.jpg"} for who in model.characters.values()]

    @app.get("/v1/characters/{name}.jpg", response_class=Response)
    async def character_picture(name: str) -> Response:
        """A character's reference picture."""
        if name not in model.characters:
            raise Refusal("unknown_character", f"there is no character '{name[:64]}'")
        picture = manager.enlarger.enlarge(model.characters[name].pixels_HWC[None])[0]
        return Response(jpeg(picture), media_type="image/jpeg", headers={"cache-control": "private, max-age=300"})

    @app.get("/v1/schema")
    async def schema() -> dict[str, Any]:
        """Schema of the events of /v1/realtime and of the data channel."""
        header = "big endian: u8 kind, u32 seq, u64 pts_us, payload"
        return {
            "client": client_schema(),
            "server": server_schema(),
            "binary": {"header": header, "kinds": {kind.name.lower(): kind.value for kind in FrameKind}},
        }


def _add_sessions(app: FastAPI, manager: SessionManager) -> None:
    def described(session: AvatarSession) -> SessionAnswer:
        return SessionAnswer(session=session.facts(manager.position(session)), ticket=session.ticket)

    @app.post("/v1/sessions", status_code=201)
    async def create(request: Request, wanted: SessionRequest | None = None) -> SessionAnswer:
        """Open a session. Somebody must connect to it soon, or it is closed."""
        session = manager.create(wanted.character if wanted else None, _address(request))
        return described(session)

    @app.get("/v1/sessions/{name}")
    async def look(name: str, ticket: Ticket) -> SessionFacts:
        """A session, and its place in the queue."""
        return described(manager.find(name, ticket)).session

    @app.delete("/v1/sessions/{name}", status_code=204)
    async def delete(name: str, ticket: Ticket) -> None:
        """End a session."""
        await manager.end(manager.find(name, ticket), "client")

    @app.post("/v1/sessions/{name}/events")
    async def events(name: str, ticket: Ticket, request: Request) -> list[dict[str, Any]]:
        """Do what one JSON event says, as over /v1/realtime; the answers."""
        session = manager.find(name, ticket)
        answers = await Controller(manager, session).take_text(await request.body())
        return [answer.model_dump(mode="json", exclude_none=True) for answer in answers]

    @app.get("/v1/sessions/{name}/stream.mp4", response_class=StreamingResponse)
    async def stream(name: str, ticket: Ticket) -> Response:
        """Picture and sound as fragmented MP4, for as long as the session lasts."""
        session = manager.find(name, ticket)
        headers = {"cache-control": "no-store", "accept-ranges": "none"}
        return StreamingResponse(_fragments(session), media_type="video/mp4", headers=headers)

    @app.get("/v1/sessions/{name}/snapshot.jpg", response_class=Response)
    async def snapshot(name: str, ticket: Ticket) -> Response:
        """The latest picture."""
        session = manager.find(name, ticket)
        if session.last is None or session.last.frames_THWC is None:
            raise Refusal("not_running", "no picture has left the stream yet; connect to it first")
        return Response(jpeg(session.last.frames_THWC[-1]), media_type="image/jpeg", headers={"cache-control": "no-store"})


async def _fragments(session: AvatarSession) -> AsyncIterator[bytes]:
    outbox = session.attach("fmp4")
    try:
        begun = False
        while (item := await outbox.next()) is not None:
            if isinstance(item, RenderedChunk):
                yield item.fragment if begun else item.init_segment + item.fragment
                begun = True
    finally:
        session.detach(outbox)


def _add_realtime(app: FastAPI, manager: SessionManager, hub: Any) -> None:
    @app.websocket("/v1/realtime")
    async def socket(socket: WebSocket, session: str | None = None, ticket: str = "", character: str | None = None) -> None:
        """Events and binary frames; without a session a new one begins."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(realtime.SUBPROTOCOL if realtime.SUBPROTOCOL in offered else None)
        try:
            found = manager.create(character, _address(socket)) if session is None else manager.find(session, ticket)
        except Refusal as refusal:
            await realtime.refuse(socket, refusal)
            return
        await realtime.converse(socket, manager, found)

    @app.post("/v1/webrtc/offer")
    async def offer(request: Request, wanted: Offer) -> Answer:
        """Connect by WebRTC: one video track, one sound track, the microphone, and a data channel called `events`."""
        if hub is None:
            raise Refusal("webrtc_missing", "this server has no aiortc; `pip install 'flowact[webrtc]'`, or use /v1/realtime")
        own = wanted.session is not None
        session = manager.find(wanted.session or "", wanted.ticket or "") if own else manager.create(wanted.character, _address(request))
        try:
            sdp = await hub.connect(wanted.sdp, session)
        except Refusal:
            if not own:
                await manager.end(session, "client")
            raise
        return Answer(sdp=sdp, session=session.facts(manager.position(session)), ticket=session.ticket)


def _address(connection: Request | WebSocket) -> str:
    return connection.client.host if connection.client else "unknown"

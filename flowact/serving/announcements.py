"""The JSON events that the server sends."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from flowact.serving.events import AudioInput, State, VideoOutput

Chunk = Annotated[int, Field(ge=0, description="number of a chunk on the stream's clock")]


class ServerEvent(BaseModel):
    """Anything that the server sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: str = Field(default_factory=lambda: f"event_{secrets.token_hex(6)}")
    client_event_id: str | None = Field(default=None, description="of the event that this answers")

    def line(self) -> str:
        """As it is sent."""
        return self.model_dump_json(exclude_none=True)


class SessionFacts(BaseModel):
    """A session as clients see it."""

    id: str
    status: Literal["waiting", "starting", "running", "closed"]
    character: str
    position: int | None = Field(default=None, description="in the queue, from 1; None when not waiting")
    input: AudioInput
    output: VideoOutput
    width: int
    height: int
    chunk_seconds: float
    synthetic: bool = True


class SessionCreated(ServerEvent):
    """First event of a connection."""

    type: Literal["session.created"] = "session.created"
    session: SessionFacts
    ticket: str | None = Field(default=None, description="with the id, lets the same client connect again")


class SessionUpdated(ServerEvent):
    """Settings as they are now; also when a waiting session begins."""

    type: Literal["session.updated"] = "session.updated"
    session: SessionFacts


class SessionClosed(ServerEvent):
    """Last event of a connection."""

    type: Literal["session.closed"] = "session.closed"
    reason: Literal["client", "absent", "unclaimed", "idle", "failed", "shutdown", "replaced"]
    message: str


class QueueUpdated(ServerEvent):
    """Place in the queue, first come first served."""

    type: Literal["avatar.queue.updated"] = "avatar.queue.updated"
    position: int
    waiting: int


class SpeechStarted(ServerEvent):
    """The person began to speak."""

    type: Literal["input_audio_buffer.speech_started"] = "input_audio_buffer.speech_started"
    audio_start_ms: int


class SpeechStopped(ServerEvent):
    """The person stopped speaking."""

    type: Literal["input_audio_buffer.speech_stopped"] = "input_audio_buffer.speech_stopped"
    audio_end_ms: int


class AudioCommitted(ServerEvent):
    """Answer to input_audio_buffer.commit."""

    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"
    heard_seconds: float


class AudioCleared(ServerEvent):
    """Answer to input_audio_buffer.clear."""

    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class ResponseCreated(ServerEvent):
    """The character thinks about its answer."""

    type: Literal["response.created"] = "response.created"
    response_id: str


class ResponseDone(ServerEvent):
    """The answer is on its way to being spoken, or there is none."""

    type: Literal["response.done"] = "response.done"
    response_id: str
    status: Literal["completed", "cancelled", "failed", "silent"]
    seconds: float = Field(default=0.0, description="of speech")


class OutputStarted(ServerEvent):
    """The character is heard speaking."""

    type: Literal["output_audio_buffer.started"] = "output_audio_buffer.started"
    chunk: Chunk


class OutputStopped(ServerEvent):
    """The character has stopped speaking."""

    type: Literal["output_audio_buffer.stopped"] = "output_audio_buffer.stopped"
    chunk: Chunk
    position: float = Field(description="seconds that were spoken")
    interrupted: bool


class OutputCleared(ServerEvent):
    """Answer to output_audio_buffer.clear and response.cancel."""

    type: Literal["output_audio_buffer.cleared"] = "output_audio_buffer.cleared"
    played_seconds: float


class StateUpdated(ServerEvent):
    """A state will begin on this chunk; "auto" is what is said and heard."""

    type: Literal["avatar.state.updated"] = "avatar.state.updated"
    state: State | Literal["auto"]
    chunk: Chunk


class PromptUpdated(ServerEvent):
    """A prompt will begin on this chunk."""

    type: Literal["avatar.prompt.updated"] = "avatar.prompt.updated"
    text: str
    chunk: Chunk


class ReferenceUpdated(ServerEvent):
    """A reference picture will begin on this chunk."""

    type: Literal["avatar.reference.updated"] = "avatar.reference.updated"
    character: str | None
    chunk: Chunk


class StreamNotice(ServerEvent):
    """What the stream says of itself, on the chunk where it is seen."""

    type: Literal["avatar.stream.notice"] = "avatar.stream.notice"
    name: str = Field(description="prompt.applied, reference.applied, refined, deadline.missed, degraded, or dropped")
    chunk: Chunk
    data: dict[str, Any] = {}


class VideoInit(ServerEvent):
    """What will come; for fmp4 the initialisation segment follows, or is in `delta`."""

    type: Literal["avatar.video.init"] = "avatar.video.init"
    format: Literal["fmp4", "jpeg"]
    mime: str
    width: int
    height: int
    delta: str | None = Field(default=None, description="base64, for delivery json")


class VideoDelta(ServerEvent):
    """A chunk; its binary frames follow, or are in `delta` and `audio`."""

    type: Literal["avatar.video.delta"] = "avatar.video.delta"
    chunk: Chunk
    pts_us: int
    num_frames: int
    state: State
    prompt: str
    held: bool = Field(description="a still picture, because the real chunk was late")
    format: Literal["fmp4", "jpeg"]
    delta: list[str] | None = Field(default=None, description="base64 of the fragment or of each picture, for delivery json")
    audio: str | None = Field(default=None, description="base64 of 16-bit mono at 16 kHz, for delivery json and jpeg")


class Metrics(ServerEvent):
    """Figures of the stream, about once a second."""

    type: Literal["avatar.metrics"] = "avatar.metrics"
    chunk: Chunk
    state: State
    metrics: dict[str, Any]


class Pong(ServerEvent):
    """Answer to avatar.ping."""

    type: Literal["avatar.pong"] = "avatar.pong"
    sent: float | None = None


class ErrorFacts(BaseModel):
    """What was wrong."""

    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str
    message: str


class Error(ServerEvent):
    """Something was not done. The connection goes on."""

    type: Literal["error"] = "error"
    error: ErrorFacts


RATE_CODES = frozenset({"too_many_messages", "too_much_audio", "too_many_prompts", "too_many_pictures", "queue_full"})


def error_event(code: str, message: str, client_event_id: str | None = None) -> Error:
    """An error in the words of the protocol."""
    kind: Literal["invalid_request_error", "rate_limit_error", "server_error"] = "invalid_request_error"
    if code in RATE_CODES:
        kind = "rate_limit_error"
    elif code == "internal":
        kind = "server_error"
    return Error(client_event_id=client_event_id, error=ErrorFacts(type=kind, code=code, message=message))


AnyServerEvent = Annotated[
    SessionCreated
    | SessionUpdated
    | SessionClosed
    | QueueUpdated
    | SpeechStarted
    | SpeechStopped
    | AudioCommitted
    | AudioCleared
    | ResponseCreated
    | ResponseDone
    | OutputStarted
    | OutputStopped
    | OutputCleared
    | StateUpdated
    | PromptUpdated
    | ReferenceUpdated
    | StreamNotice
    | VideoInit
    | VideoDelta
    | Metrics
    | Pong
    | Error,
    Field(discriminator="type"),
]


def server_schema() -> dict[str, Any]:
    """JSON schema of all events of the server."""
    return TypeAdapter(AnyServerEvent).json_schema()

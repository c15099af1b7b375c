"""The JSON events that a client may send, in the naming of OpenAI's Realtime interface; those of an avatar are called `avatar.*`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flowact.serving.limits import Limits, Refusal, parse_json
from flowact.types import SAMPLE_RATE, STATES

State = Literal["speaking", "listening", "thinking", "idle"]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class Strict(BaseModel):
    """A misspelt field is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputFormat(Strict):
    """Sound from the client: interleaved little-endian samples."""

    type: Literal["audio/pcm", "audio/pcm-f32"] = Field(default="audio/pcm", description="16-bit integers, or 32-bit floats in [-1, 1]")
    rate: int = Field(default=SAMPLE_RATE, ge=8000, le=96000, description="samples per second of one channel")
    channels: int = Field(default=1, ge=1, le=8, description="averaged")


class TurnDetection(Strict):
    """When a person has finished speaking."""

    type: Literal["server_vad", "none"] = Field(default="server_vad", description="by loudness; or only when input_audio_buffer.commit says so")
    silence_duration_ms: int = Field(default=600, ge=200, le=5000, description="of silence that end a turn")
    interrupt_response: bool = Field(default=True, description="a person who begins to speak interrupts the character")


class AudioInput(Strict):
    """What the client's sound is."""

    voice: Literal["person", "character"] = Field(default="person", description="what the character hears, or what it says itself")
    format: InputFormat = InputFormat()
    turn_detection: TurnDetection = TurnDetection()


class AudioSettings(Strict):
    """Sound of a session."""

    input: AudioInput = AudioInput()


class VideoOutput(Strict):
    """What the server sends over this connection."""

    format: Literal["fmp4", "jpeg", "none"] = Field(
        default="none", description="fragmented MP4 with sound; a JPEG per frame and PCM; or events alone"
    )
    delivery: Literal["binary", "json"] = Field(default="binary", description="binary frames, or base64 in avatar.video.delta")


class VideoSettings(Strict):
    """Picture of a connection."""

    output: VideoOutput = VideoOutput()


class SessionSettings(Strict):
    """What `session.update` changes; what is left out stays."""

    audio: AudioSettings | None = None
    video: VideoSettings | None = None


class ClientEvent(Strict):
    """Anything that a client sends."""

    event_id: str | None = Field(default=None, max_length=64, description="comes back in the answer")


class SessionUpdate(ClientEvent):
    """Change the session; answered by session.updated."""

    type: Literal["session.update"]
    session: SessionSettings


class SessionClose(ClientEvent):
    """End the session for everyone connected to it."""

    type: Literal["session.close"]


class AudioAppend(ClientEvent):
    """Sound in the session's input format."""

    type: Literal["input_audio_buffer.append"]
    audio: str = Field(description="base64")


class AudioCommit(ClientEvent):
    """The turn ends here: the character answers what it heard since the last one."""

    type: Literal["input_audio_buffer.commit"]


class AudioClear(ClientEvent):
    """Forget what was heard since the last turn, or what waits to be spoken."""

    type: Literal["input_audio_buffer.clear"]


class ResponseCancel(ClientEvent):
    """Stop answering: no answer is awaited, and what is being spoken ends."""

    type: Literal["response.cancel"]


class OutputClear(ClientEvent):
    """Stop speaking; answered by output_audio_buffer.cleared with the seconds that were spoken."""

    type: Literal["output_audio_buffer.clear"]


class StateUpdate(ClientEvent):
    """What the character does; answered with the chunk on which it begins."""

    type: Literal["avatar.state.update"]
    state: State | Literal["auto"] = Field(description='"auto" leaves it to what is said and heard')


class PromptUpdate(ClientEvent):
    """What the character is seen doing, in words; answered with the chunk on which it begins."""

    type: Literal["avatar.prompt.update"]
    text: str = Field(min_length=1)


class ReferenceUpdate(ClientEvent):
    """Another look: a character of /v1/characters, or a picture; answered with the chunk on which it begins."""

    type: Literal["avatar.reference.update"]
    character: Name | None = None
    image: str | None = Field(default=None, description="base64 of a JPEG, PNG or WebP file")


class Ping(ClientEvent):
    """Answered by avatar.pong."""

    type: Literal["avatar.ping"]
    sent: float | None = Field(default=None, description="comes back, to measure the way")


AnyClientEvent = Annotated[
    SessionUpdate
    | SessionClose
    | AudioAppend
    | AudioCommit
    | AudioClear
    | ResponseCancel
    | OutputClear
    | StateUpdate
    | PromptUpdate
    | ReferenceUpdate
    | Ping,
    Field(discriminator="type"),
]
_CLIENT: TypeAdapter[Any] = TypeAdapter(AnyClientEvent)
assert set(State.__args__) == set(STATES)  # type: ignore[attr-defined]


def read_event(text: str | bytes, limits: Limits) -> Any:
    """A client's event, checked.

    Raises:
        Refusal: too large, not JSON, or no event that is known; says what is wrong in which field.
    """
    value = parse_json(text, limits)
    try:
        event = _CLIENT.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "type"
        code = "unknown_event" if first["type"].startswith("union_tag") else "invalid_event"
        raise Refusal(code, f"{where}: {first['msg'][:300]}") from None
    text_of = getattr(event, "text", None)
    if text_of is not None and len(text_of) > limits.prompt_characters:
        raise Refusal("prompt_too_long", f"a prompt of {len(text_of)} characters; at most {limits.prompt_characters} are taken")
    return event


def client_schema() -> dict[str, Any]:
    """JSON schema of all events of a client."""
    return _CLIENT.json_schema()

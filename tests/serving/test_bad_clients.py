"""Clients that send garbage, flood or vanish; and a good one beside them that notices nothing."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from server_fixture import Client, Served
from websockets.exceptions import ConnectionClosed

from flowact.serving.frames import BinaryFrame, FrameKind
from flowact.serving.limits import Limits
from flowact.types import SAMPLE_RATE


@pytest.fixture
def pair(start: Callable[..., Served]) -> Iterator[tuple[Served, Client, Client]]:
    """A server, a good client that watches, and another one."""
    served = start(Limits(max_sessions=2, absent_seconds=0.3, audio_burst_seconds=20.0, violations=20))
    with served.socket() as good, served.socket() as bad:
        clients = Client(good).running(), Client(bad).running()
        clients[0].ask("session.update", "session.updated", session={"video": {"output": {"format": "fmp4"}}})
        yield served, *clients
        first = clients[0].until("avatar.video.delta")["chunk"]
        following = [clients[0].until("avatar.video.delta")["chunk"] for _ in range(3)]
        assert following == [first + 1, first + 2, first + 3]
        clients[0].ask("avatar.ping", "avatar.pong")
        chunks = [event["chunk"] for event in clients[0].events if event["type"] == "avatar.video.delta"]
        assert chunks == list(range(chunks[0], chunks[0] + len(chunks)))
    served.until(lambda: served.counts == (0, 0))
    assert all(session.closed for session in served.model.opened)


def code_of_closing(act: Callable[[], None]) -> int | None:
    """With which code the server closes the connection while something is done; None for a connection that breaks."""
    with pytest.raises(ConnectionClosed) as closed:
        act()
    return closed.value.rcvd.code if closed.value.rcvd else None


def read_on(client: Client) -> None:
    while True:
        client.read()


GARBAGE = [
    "",
    "hello",
    "[]",
    "null",
    '{"type": 7}',
    '{"type": "session.update"}',
    '{"type": "session.update", "session": {"audio": {"input": {"voice": "nobody"}}}}',
    '{"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 1}}}}}',
    '{"type": "session.update", "session": {"instructions": "x"}}',
    '{"type": "input_audio_buffer.append", "audio": "not base64!"}',
    '{"type": "input_audio_buffer.append", "audio": "AAAA"}',
    '{"type": "avatar.state.update", "state": "angry"}',
    '{"type": "avatar.prompt.update", "text": ""}',
    '{"type": "avatar.prompt.update", "text": "\\u0000\\u0007 \\n"}',
    '{"type": "avatar.prompt.update", "text": "' + "x" * 501 + '"}',
    '{"type": "avatar.reference.update"}',
    '{"type": "avatar.reference.update", "character": "green"}',
    '{"type": "avatar.reference.update", "character": "red", "image": "AAAA"}',
]


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_a_wrong_event_is_answered_and_forgotten(client, text):
    client.socket.send(text)
    error = client.until("error")["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    client.ask("avatar.state.update", "avatar.state.updated", state="idle")


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "PNG")
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", zlib.compress(b"\0" * 1000)) + piece(b"IEND", b"")


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (b"", "invalid_picture"),
        (b"GIF89a" + b"\0" * 50, "invalid_picture"),
        (os.urandom(2000), "invalid_picture"),
        (png(40, 40)[:-30], "invalid_picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_picture"),
        (bomb(100, 100), "invalid_picture"),
        (bomb(20_000, 20_000), "picture_too_large"),
        (bomb(2**31 - 1, 2**31 - 1), "picture_too_large"),
    ],
    ids=["empty", "gif", "noise", "cut", "svg", "short", "large", "huge"],
)
def test_what_is_no_picture_is_refused(client, picture, code):
    client.socket.send(BinaryFrame(FrameKind.JPEG, 0, 0, picture).pack())
    assert client.until("error")["error"]["code"] == code


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (64, 48)])
def test_any_picture_is_taken(client, mode, size):
    client.socket.send(BinaryFrame(FrameKind.JPEG, 0, 0, png(*size, mode)).pack())
    client.until("avatar.reference.updated")


def test_one_who_sends_garbage_without_end_is_hung_up_on(pair):
    _, _, bad = pair

    def send() -> None:
        for _ in range(200):
            bad.socket.send("{{{{")
            bad.until("error")

    assert code_of_closing(send) == 1008


def test_random_bytes_never_break_anything(pair):
    _, _, bad = pair
    generator = np.random.default_rng(0)

    def send() -> None:
        for k in range(300):
            data = generator.bytes(int(generator.integers(0, 200)))
            bad.socket.send(data if k % 2 else data.decode("latin-1"))
            bad.until("error", seconds=20)

    assert code_of_closing(send) == 1008


def test_one_who_floods_is_slowed_and_then_hung_up_on(pair):
    _, _, bad = pair
    stop = threading.Event()

    def flood() -> None:
        try:
            while not stop.is_set():
                bad.socket.send('{"type": "avatar.ping"}')
        except ConnectionClosed:
            pass

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    assert code_of_closing(lambda: read_on(bad)) == 1008
    stop.set()
    thread.join(10)
    assert "too_many_messages" in {event["error"]["code"] for event in bad.events if event["type"] == "error"}


def test_a_message_that_is_too_long_ends_its_connection(pair):
    served, _, bad = pair

    def send() -> None:
        bad.socket.send(b"\x03" * (served.manager.limits.message_bytes + 1))
        read_on(bad)

    assert code_of_closing(send) in (None, 1009)


def test_sound_that_comes_too_fast_is_refused(pair):
    served, _, bad = pair
    piece = np.zeros(5 * SAMPLE_RATE, "<i2").tobytes()
    for _ in range(6):
        bad.socket.send(BinaryFrame(FrameKind.PCM16, 0, 0, piece).pack())
    assert bad.until("error")["error"]["code"] == "too_much_audio"
    assert served.model.opened[1].heard.size <= 30 * SAMPLE_RATE


def test_a_queue_of_speech_is_bounded(start):
    served = start(Limits(queued_seconds=3.0, absent_seconds=0.3))
    with served.socket() as socket:
        client = Client(socket).running()
        client.ask("session.update", "session.updated", session={"audio": {"input": {"voice": "character"}}})
        for _ in range(10):
            client.socket.send(BinaryFrame(FrameKind.PCM16, 0, 0, np.zeros(SAMPLE_RATE, "<i2").tobytes()).pack())
        assert client.until("error")["error"]["code"] == "queue_full"
        assert len(served.model.opened[0].queue) <= 3 * SAMPLE_RATE


def test_numbers_that_are_none_become_silence_and_are_told(client, served):
    form = {"type": "audio/pcm-f32", "rate": 48_000, "channels": 2}
    client.ask("session.update", "session.updated", session={"audio": {"input": {"format": form}}})
    samples = np.full(9600, np.nan, "<f4")
    client.send("input_audio_buffer.append", audio=base64.b64encode(samples.tobytes()).decode())
    assert client.until("error")["error"]["code"] == "invalid_audio"
    client.ask("avatar.ping", "avatar.pong")
    assert served.model.opened[0].heard.size > 0
    assert not served.model.opened[0].heard.any()


def test_too_many_prompts_and_pictures_are_refused(client):
    for k in range(12):
        client.send("avatar.prompt.update", text=f"wish {k}")
    assert client.until("error")["error"]["code"] == "too_many_prompts"


def test_one_who_vanishes_without_a_word_is_missed(start):
    served = start(Limits(absent_seconds=0.3, heartbeat_seconds=0.5))
    place = socket.create_connection(("127.0.0.1", served.port))
    place.sendall(
        b"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert place.recv(12) == b"HTTP/1.1 101"
    served.until(lambda: served.counts == (1, 0))
    served.until(lambda: served.counts == (0, 0))  # it answers no ping
    place.close()


def test_one_who_breaks_off_is_missed(pair):
    served, _, bad = pair
    bad.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bad.socket.socket.close()  # a reset, no goodbye
    served.until(lambda: served.counts == (1, 0))


def test_broken_http_breaks_nothing(served):
    long_head = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000
    for data in (b"\x16\x03\x01\x02\x00\x01", long_head, b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", served.port)) as place, contextlib.suppress(OSError):
            place.sendall(data)
            place.shutdown(socket.SHUT_WR)
            place.settimeout(5)
            place.recv(100)
    for body in (b"[" * 50_000, b"{", b"\xff\xfe", json.dumps({"character": {"a": 1}}).encode(), b'{"character": "red", "more": 1}'):
        assert served.request("POST", "/v1/sessions", body)[0] in (400, 422)
    assert served.json("GET", "/health")["status"] == "ok"

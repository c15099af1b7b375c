"""The HTTP side: what can be asked, and a stream that any player opens."""

from __future__ import annotations

import http.client
import io
import json
import re

import av
import numpy as np
import pytest
from fake_avatar import CHUNK_FRAMES, SIZE
from jsonschema_lite import errors_of
from PIL import Image
from server_fixture import Served

from flowact.serving.server import GRACE_SECONDS
from flowact.types import STATES
from flowact.writers.base import SYNTHETIC


def opened(served: Served, **body: str) -> tuple[str, str]:
    """Path and query of a new session."""
    made = served.json("POST", "/v1/sessions", body)
    return f"/v1/sessions/{made['session']['id']}", f"?ticket={made['ticket']}"


def read_stream(served: Served, path: str, size: int) -> bytes:
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    client.request("GET", path)
    answer = client.getresponse()
    assert answer.status == 200
    assert answer.getheader("content-type") == "video/mp4"
    data = answer.read(size)
    client.close()
    return data


def test_what_is_served(served):
    info = served.json("GET", "/v1/info")
    assert info["notice"] == SYNTHETIC
    assert info["model"]["sha256"] == "0" * 64
    assert info["states"] == list(STATES)
    assert info["responder"] == ""
    assert "websocket" in info["transports"]
    assert info["limits"]["max_sessions"] == 1
    characters = served.json("GET", "/v1/characters")
    assert [who["id"] for who in characters] == ["red", "blue"]
    for who in characters:
        status, headers, data = served.request("GET", who["picture"])
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (SIZE[1] * 3, SIZE[0] * 3)
    assert served.request("GET", "/v1/characters/green.jpg")[0] == 404


def test_the_page_and_its_files(served):
    status, headers, page = served.request("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"Synthetic video" in page
    names = re.findall(rb'(?:src|href)="([\w.-]+)"', page)
    scripts = [name for name in names if name.endswith(b".js")]
    for name in scripts:
        names += re.findall(rb'"(?:\./)?([\w-]+\.js)"', served.request("GET", f"/{name.decode()}")[2])
    assert {b"app.js", b"style.css", b"connections.js"} <= set(names)
    for name in names:
        status, headers, _ = served.request("GET", f"/{name.decode()}")
        assert status == 200, name
        assert headers["content-type"].split("/")[1].startswith(("javascript", "css")), name
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page


def test_a_session_is_made_looked_at_and_ended(served):
    path, ticket = opened(served, character="blue")
    served.until(lambda: served.json("GET", path + ticket)["status"] == "running")
    assert served.json("GET", path + ticket)["character"] == "blue"
    assert served.request("GET", f"{path}?ticket=wrong")[0] == 404
    assert served.request("GET", path)[0] == 422
    assert served.request("DELETE", f"{path}?ticket=wrong")[0] == 404
    assert served.counts == (1, 0)
    assert served.request("DELETE", path + ticket)[0] == 204
    assert served.counts == (0, 0)
    assert served.request("GET", path + ticket)[0] == 404


def test_a_queue_that_is_full_says_when_to_come_back(start):
    from flowact.serving.limits import Limits

    served = start(Limits(max_waiting=1))
    opened(served)
    path, ticket = opened(served)
    assert served.json("GET", path + ticket)["position"] == 1
    status, headers, data = served.request("POST", "/v1/sessions", {})
    assert (status, headers["retry-after"]) == (503, "5")
    assert json.loads(data)["error"]["code"] == "queue_full"
    assert served.request("POST", "/v1/sessions", {"character": "green"})[0] == 404


def test_the_stream_is_a_film_that_any_player_opens(served):
    path, ticket = opened(served)
    data = read_stream(served, f"{path}/stream.mp4{ticket}", 30_000)
    with av.open(io.BytesIO(data)) as container:
        assert container.metadata["comment"] == SYNTHETIC
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert times[0] == 0.0  # it begins when it is watched
    assert len(times) >= 3 * CHUNK_FRAMES
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    served.until(lambda: served.counts == (0, 0))  # the player has gone


def test_a_snapshot_is_the_latest_picture(served):
    path, ticket = opened(served)
    assert served.request("GET", f"{path}/snapshot.jpg{ticket}")[0] == 409
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    client.request("GET", f"{path}/stream.mp4{ticket}")
    client.getresponse().read(100)
    served.until(lambda: served.request("GET", f"{path}/snapshot.jpg{ticket}")[0] == 200)
    with Image.open(io.BytesIO(served.request("GET", f"{path}/snapshot.jpg{ticket}")[2])) as image:
        assert image.size == (SIZE[1] * 3, SIZE[0] * 3)
        assert SYNTHETIC.encode() in image.info["comment"]
    client.close()


def test_events_by_http_are_those_of_the_socket(served):
    path, ticket = opened(served)
    served.until(lambda: served.json("GET", path + ticket)["status"] == "running")
    (answer,) = served.json("POST", f"{path}/events{ticket}", {"type": "avatar.prompt.update", "text": "the person smiles", "event_id": "a"})
    assert (answer["type"], answer["text"], answer["client_event_id"]) == ("avatar.prompt.updated", "the person smiles", "a")
    (answer,) = served.json("POST", f"{path}/events{ticket}", {"type": "no.such.event"})
    assert answer["error"]["code"] == "unknown_event"
    (answer,) = served.json("POST", f"{path}/events{ticket}", {"type": "session.update", "session": {"video": {"output": {"format": "fmp4"}}}})
    assert answer["error"]["code"] == "no_video_here"
    schema = served.json("GET", "/v1/schema")
    assert errors_of(answer, schema["server"]) == []


def test_figures_are_in_the_format_of_prometheus(served):
    path, ticket = opened(served)
    read_stream(served, f"{path}/stream.mp4{ticket}", 5000)
    text = served.request("GET", "/metrics")[2].decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    figures = {}
    for line in lines:
        found = re.fullmatch(r"(flowact_[a-z_]+)(\{[a-z]+=\"[\w.]+\"(?:,[a-z]+=\"[\w.]+\")*\})? ([-+.e\d]+)", line)
        assert found, line
        figures[found[1]] = float(found[3])
    assert figures["flowact_sessions_total"] == 1
    assert figures["flowact_frames_total"] >= CHUNK_FRAMES
    assert {"flowact_running_sessions", "flowact_chunk_seconds", "flowact_deadline_misses_total"} <= set(figures)
    for name in figures:
        assert f"# TYPE {name} " in text


def test_the_interface_describes_itself(served):
    paths = served.json("GET", "/v1/openapi.json")["paths"]
    assert {"/v1/sessions", "/v1/sessions/{name}/stream.mp4", "/v1/webrtc/offer", "/v1/info", "/metrics"} <= set(paths)
    assert served.request("GET", "/docs")[0] == 404  # its scripts would come from elsewhere


@pytest.mark.parametrize("watchers", [0, 2])
def test_the_server_ends_while_it_is_watched(start, watchers):
    import time

    served = start()
    path, ticket = opened(served)
    clients = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=20) for _ in range(watchers)]
    answers = []
    for client in clients:
        client.request("GET", f"{path}/stream.mp4{ticket}")
        answers.append(client.getresponse())
        answers[-1].read(1000)
    with served.socket() as socket:
        socket.recv(timeout=20)
        begin = time.monotonic()
        served.stop()
        assert time.monotonic() - begin < 3 * GRACE_SECONDS  # generous: that it ends at all is the point
        last = [json.loads(message) for message in socket if isinstance(message, str)][-1]
        assert (last["type"], last["reason"]) == ("session.closed", "shutdown")
    for answer in answers:
        answer.read()  # to its end
    assert all(session.closed for session in served.model.opened)

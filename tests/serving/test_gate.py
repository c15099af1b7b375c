"""Who is let in."""

from __future__ import annotations

import contextlib
import http.client
import json

import pytest
from websockets.exceptions import InvalidStatus

from flowact.errors import UserError
from flowact.serving.limits import Limits
from flowact.serving.server import address, bound_socket, is_loopback, needed_token

TOKEN = "a-token-of-some-length"


def code_of(answer: tuple[int, dict[str, str], bytes]) -> str:
    return json.loads(answer[2])["error"]["code"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:80", "[::1]:7860", "192.0.2.7:7860", "LOCALHOST"])
def test_addresses_in_numbers_and_localhost_are_known(served, host):
    assert served.request("GET", "/v1/info", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "a@127.0.0.1@b"])
def test_a_name_that_points_here_is_refused(served, host):
    answer = served.request("GET", "/v1/info", Host=host)
    assert answer[0] in (400, 403)
    if answer[0] == 403:
        assert code_of(answer) == "unknown_host"


def test_an_allowed_name_and_an_allowed_site(start):
    served = start(hosts=["avatar.example"], origins=["https://app.example"])
    assert served.request("GET", "/v1/info", Host="avatar.example")[0] == 200
    status, headers, _ = served.request("GET", "/v1/info", Origin="https://app.example")
    assert status == 200
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert served.request("GET", "/v1/info", Origin="https://other.example")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "file://"])
def test_pages_of_other_sites_are_refused(served, origin):
    assert code_of(served.request("POST", "/v1/sessions", {}, Origin=origin)) == "unknown_origin"
    with pytest.raises(InvalidStatus) as refused:
        served.socket(additional_headers={"Origin": origin})
    assert refused.value.response.status_code == 403
    assert served.counts == (0, 0)


def test_a_site_that_hides_its_origin_is_refused(served):
    assert served.request("GET", "/v1/info", Sec_Fetch_Site="cross-site")[0] == 403
    assert served.request("GET", "/v1/info", Sec_Fetch_Site="same-origin")[0] == 200
    assert served.request("GET", "/", Sec_Fetch_Site="cross-site")[0] == 200  # a link to the page is fine


def test_the_servers_own_page_is_let_in(served):
    own = f"http://127.0.0.1:{served.port}"
    assert served.request("GET", "/v1/info", Origin=own)[0] == 200
    with served.socket(additional_headers={"Origin": own}) as socket:
        assert json.loads(socket.recv(timeout=20))["type"] == "session.created"


def test_with_a_token_nothing_moves_without_it(start):
    served = start(token=TOKEN)
    for method, path in (
        *(("GET", path) for path in ("/v1/info", "/v1/characters", "/v1/characters/red.jpg", "/v1/schema", "/metrics", "/v1/openapi.json")),
        *(("POST", path) for path in ("/v1/sessions", "/v1/webrtc/offer")),
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": f"Bearer {TOKEN}x"}):
            assert served.request(method, path, {} if method == "POST" else None, **headers)[0] == 401, path
    assert served.request("POST", "/v1/sessions/?ticket=x", {})[0] >= 400
    assert served.request("GET", "/")[0] == 200
    assert served.request("GET", "/health")[0] == 200
    with pytest.raises(InvalidStatus):
        served.socket()
    with pytest.raises(InvalidStatus):
        served.socket(subprotocols=["flowact.realtime", "flowact.token.wrong"])
    assert served.counts == (0, 0)


def test_the_token_opens_http_sockets_and_by_the_ticket_a_players_stream(start):
    served = start(token=TOKEN)
    known = {"Authorization": f"Bearer {TOKEN}"}
    made = served.json("POST", "/v1/sessions", {}, **known)
    with served.socket(subprotocols=["flowact.realtime", f"flowact.token.{TOKEN}"]) as socket:
        assert socket.subprotocol == "flowact.realtime"
    with served.socket(additional_headers=known) as socket:
        assert json.loads(socket.recv(timeout=20))["type"] == "session.created"
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    client.request("GET", f"/v1/sessions/{made['session']['id']}/stream.mp4?ticket={made['ticket']}")
    answer = client.getresponse()
    assert answer.status == 200
    assert answer.read(8)[4:] == b"ftyp"
    client.close()
    assert served.request("GET", f"/v1/sessions/{made['session']['id']}/stream.mp4?ticket=wrong")[0] == 404


def test_bodies_are_bounded_whatever_they_claim(start):
    served = start(Limits(message_bytes=10_000, absent_seconds=0.5))
    assert code_of(served.request("POST", "/v1/sessions", b"x" * 10_001)) == "body_too_large"
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    client.request("POST", "/v1/sessions", (b"x" * 5000 for _ in range(50)), {"content-type": "application/json"}, encode_chunked=True)
    with contextlib.suppress(ConnectionError, http.client.HTTPException):  # hung up on
        assert client.getresponse().status >= 400
    client.close()
    assert served.counts == (0, 0)


def test_answers_tell_browsers_to_be_strict(served):
    for path in ("/", "/app.js", "/v1/info", "/v1/sessions/none/snapshot.jpg?ticket=x"):
        _, headers, _ = served.request("GET", path)
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/..%2f..%2fserver.py", "/%2e%2e/app.py", "/../../../../etc/passwd", "/__init__.py"])
def test_only_the_page_is_served_from_disk(served, path):
    assert served.request("GET", path)[0] == 404


def test_tokens_are_made_where_others_can_reach_the_server():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.0.2.1", "example.org")] == [True] * 3 + [False] * 3
    assert needed_token("127.0.0.1", None) is None
    assert needed_token("127.0.0.1", TOKEN) == TOKEN
    assert needed_token("0.0.0.0", None) != needed_token("0.0.0.0", None)
    assert len(needed_token("0.0.0.0", None) or "") >= 32
    for weak in ("short", "with spaces in it, long", "ünïcödé-ünïcödé-ünï"):
        with pytest.raises(UserError, match="--token"):
            needed_token("127.0.0.1", weak)


def test_addresses_for_people():
    assert address("127.0.0.1", 7860, None, False) == "http://127.0.0.1:7860/"
    assert address("::1", 7860, None, False) == "http://[::1]:7860/"
    assert address("0.0.0.0", 80, "abc", True) == "https://localhost:80/#token=abc"


def test_a_taken_port_and_a_foreign_address_are_told():
    with bound_socket("127.0.0.1", 0) as place:
        place.listen()
        with pytest.raises(UserError, match="--port"):
            bound_socket("127.0.0.1", place.getsockname()[1])
    with pytest.raises(UserError, match=r"cannot listen on 203\.0\.113\.1"):
        bound_socket("203.0.113.1", 0)

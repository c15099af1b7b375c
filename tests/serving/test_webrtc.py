"""WebRTC with another aiortc as the browser, over this machine's own network."""

from __future__ import annotations

import asyncio
import fractions
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

aiortc = pytest.importorskip("aiortc", reason="flowact[webrtc] is not installed")
av = pytest.importorskip("av")

from aioice.ice import get_host_addresses  # noqa: E402 (comes with aiortc)

from flowact.serving.limits import Limits  # noqa: E402

pytestmark = pytest.mark.skipif(not get_host_addresses(use_ipv4=True, use_ipv6=True), reason="no network but the loopback, which WebRTC leaves out")


class Tone(aiortc.MediaStreamTrack):
    """A microphone: a second of silence, a second of tone, round and round."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._sent = 0
        self._begin: float | None = None

    async def recv(self) -> Any:
        loop = asyncio.get_running_loop()
        self._begin = self._begin or loop.time()
        await asyncio.sleep(max(0.0, self._begin + self._sent / 48_000 - loop.time()))
        at = (self._sent + np.arange(960)) / 48_000
        wave = np.where(at % 2 > 1, 0.5 * np.sin(2 * np.pi * 250 * at), 0)
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._sent, fractions.Fraction(1, 48_000)
        self._sent += 960
        return frame


class Caller:
    """A browser."""

    def __init__(self, served: Any, microphone: bool = False) -> None:
        self.served = served
        self.events: list[dict[str, Any]] = []
        self.peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration([]))
        self.channel = self.peer.createDataChannel("events")
        self.channel.on("message", lambda message: self.events.append(json.loads(message)))
        self.tracks: dict[str, Any] = {}
        self.peer.on("track", lambda track: self.tracks.__setitem__(track.kind, track))
        if microphone:
            self.peer.addTrack(Tone())
        else:
            self.peer.addTransceiver("audio", direction="recvonly")
        self.peer.addTransceiver("video", direction="recvonly")

    async def call(self, **fields: Any) -> dict[str, Any]:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        body = {"type": "offer", "sdp": self.peer.localDescription.sdp, **fields}
        answer = await asyncio.to_thread(self.served.json, "POST", "/v1/webrtc/offer", body)
        await self.peer.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], "answer"))
        return answer

    async def until(self, kind: str, seconds: float = 20.0, **wanted: Any) -> dict[str, Any]:
        async def look() -> dict[str, Any]:
            while True:
                for event in self.events:
                    if event["type"] == kind and all(event.get(name) == value for name, value in wanted.items()):
                        return event
                await asyncio.sleep(0.02)

        return await asyncio.wait_for(look(), seconds)


def talk(served: Any, scene: Callable[[Caller], Awaitable[None]], microphone: bool = False) -> None:
    async def run() -> None:
        caller = Caller(served, microphone)
        try:
            await asyncio.wait_for(scene(caller), 60)
        finally:
            await caller.peer.close()

    asyncio.run(run())


def test_picture_and_sound_arrive_on_one_clock_with_events_beside(served):
    async def scene(caller: Caller) -> None:
        answer = await caller.call(character="blue")
        assert answer["session"]["character"] == "blue"

        async def read(kind: str, count: int) -> list[Any]:
            return [await caller.tracks[kind].recv() for _ in range(count)]

        pictures, sound = await asyncio.gather(read("video", 40), read("audio", 100))
        times = np.array([float(frame.pts * frame.time_base) for frame in pictures])
        np.testing.assert_allclose(np.diff(times), 0.04, atol=0.001)  # 25 frames a second by the media clock, whatever the network did
        assert (pictures[0].height, pictures[0].width) == (144, 192)
        colours = pictures[-1].to_ndarray(format="rgb24").reshape(-1, 3).mean(axis=0)
        assert colours.argmax() == 2
        blocks = np.array([float(frame.pts * frame.time_base) for frame in sound])
        np.testing.assert_allclose(np.diff(blocks), 0.02, atol=0.001)
        samples = np.concatenate([frame.to_ndarray().reshape(-1, 2)[:, 0] for frame in sound[20:]]).astype(float)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        assert np.argmax(spectrum) * 48_000 / len(samples) == pytest.approx(440, abs=4)
        assert (await caller.until("session.created"))["session"]["id"] == answer["session"]["id"]
        caller.channel.send(json.dumps({"type": "avatar.state.update", "state": "thinking", "event_id": "s"}))
        told = await caller.until("avatar.state.updated", client_event_id="s")
        await caller.until("avatar.stream.notice", name="prompt.applied", chunk=told["chunk"])
        caller.channel.send("garbage")
        assert (await caller.until("error"))["error"]["code"] == "invalid_json"

    talk(served, scene)
    served.until(lambda: served.counts == (0, 0))
    assert all(session.closed for session in served.model.opened)


def test_the_microphone_is_heard_and_answered(served):
    async def scene(caller: Caller) -> None:
        await caller.call()
        await caller.until("input_audio_buffer.speech_started")
        await caller.until("input_audio_buffer.speech_stopped")
        assert (await caller.until("response.done"))["status"] in ("completed", "cancelled")

    talk(served, scene, microphone=True)
    assert np.abs(served.model.opened[0].heard).max() > 0.3


def test_one_session_over_both_ways(served):
    """A page that was connected by a socket comes back by WebRTC and finds the same character."""
    from server_fixture import Client

    with served.socket() as place:
        made = Client(place).running().events[0]

    async def scene(caller: Caller) -> None:
        answer = await caller.call(session=made["session"]["id"], ticket=made["ticket"])
        assert answer["session"]["id"] == made["session"]["id"]
        await caller.tracks["video"].recv()

    talk(served, scene)
    assert len(served.model.opened) == 1


@pytest.mark.parametrize("sdp", ["", "v=0", "garbage\r\n" * 100, "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 9 X 96\r\n"])
def test_a_bad_offer_is_refused_and_leaves_nothing(served, sdp):
    status, _, data = served.request("POST", "/v1/webrtc/offer", {"type": "offer", "sdp": sdp})
    assert status == 400, data
    assert json.loads(data)["error"]["code"] == "invalid_offer"
    served.until(lambda: served.counts == (0, 0))
    assert served.request("POST", "/v1/webrtc/offer", {"sdp": "x" * 200_000})[0] == 422
    assert served.request("POST", "/v1/webrtc/offer", {"sdp": "v=0", "session": "sess_x", "ticket": "y"})[0] == 404


def test_the_session_is_over_when_the_server_stops(start):
    served = start(Limits(absent_seconds=0.5))

    async def scene(caller: Caller) -> None:
        await caller.call()
        await caller.tracks["video"].recv()
        await asyncio.to_thread(served.stop)
        assert (await caller.until("session.closed"))["reason"] == "shutdown"

    talk(served, scene)


def test_nobody_outside_is_asked_for_addresses(served, monkeypatch):
    """Without --ice-server no STUN server is known; aiortc's own default would be one on the internet."""
    asked: list[Any] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: (asked.append(host), real(host, *rest, **more))[1])

    async def scene(caller: Caller) -> None:
        answer = await caller.call()
        assert "srflx" not in answer["sdp"]
        await caller.tracks["video"].recv()

    talk(served, scene)
    assert {host for host in asked if host not in (None, "127.0.0.1", b"127.0.0.1")} == set()

"""The protocol of /v1/realtime over a real socket."""

from __future__ import annotations

import base64
import io
import threading
from itertools import pairwise

import av
import numpy as np
import pytest
from fake_avatar import CHUNK_FRAMES, SIZE, TONE_HZ
from jsonschema_lite import errors_of
from PIL import Image
from server_fixture import Client

from flowact.serving import NoResponder, RecordedResponder, Responder
from flowact.serving.frames import BinaryFrame, FrameKind
from flowact.types import SAMPLE_RATE


def voice(seconds: float, hertz: float = 250.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def turn(seconds: float, after: float = 1.0) -> np.ndarray:
    """Words in silence."""
    before, behind = (np.zeros(round(length * SAMPLE_RATE), np.float32) for length in (0.4, after))
    return np.concatenate([before, voice(seconds), behind])


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def say(client: Client, samples: np.ndarray) -> None:
    """As a microphone does, but faster."""
    data = pcm(samples)
    for at in range(0, len(data), 6400):
        client.socket.send(BinaryFrame(FrameKind.PCM16, 0, 0, data[at : at + 6400]).pack())


def want(client: Client, form: str, delivery: str = "binary") -> None:
    client.ask("session.update", "session.updated", session={"video": {"output": {"format": form, "delivery": delivery}}})


def test_a_session_begins_with_what_it_is(served):
    with served.socket() as socket:
        client = Client(socket).running()
    made = client.events[0]
    assert made["type"] == "session.created"
    assert made["session"]["character"] == "red"
    assert made["session"]["synthetic"] is True
    assert (made["session"]["height"], made["session"]["width"]) == (SIZE[0] * 3, SIZE[1] * 3)
    assert len(made["ticket"]) >= 20


def test_fragments_play_and_are_in_step(client):
    want(client, "fmp4")
    init = client.until("avatar.video.init")
    deltas = [client.until("avatar.video.delta") for _ in range(6)]
    client.until("avatar.video.delta")
    assert [delta["chunk"] for delta in deltas] == list(range(deltas[0]["chunk"], deltas[0]["chunk"] + 6))
    first, *fragments = client.frames[:7]
    assert [frame.seq for frame in client.frames] == list(range(len(client.frames)))
    assert [frame.pts_us for frame in fragments] == [delta["pts_us"] for delta in deltas]
    assert {one.pts_us - other.pts_us for other, one in pairwise(fragments)} == {200_000}
    data = first.payload + b"".join(frame.payload for frame in fragments)
    with av.open(io.BytesIO(data)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times[0] * 1e6 == pytest.approx(deltas[0]["pts_us"], abs=50)
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    with av.open(io.BytesIO(data)) as container:
        sound = list(container.decode(audio=0))
    assert sound[0].time == pytest.approx(times[0], abs=0.065)  # whole blocks of AAC, none before the beginning
    assert sound[0].time >= times[0] - 1e-6
    samples = np.concatenate([block.to_ndarray()[0] for block in sound])
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(samples) == pytest.approx(TONE_HZ, abs=4)
    assert init["mime"].startswith("video/mp4")


def test_pictures_and_samples_for_those_who_want_no_mp4(client):
    want(client, "jpeg")
    assert client.until("avatar.video.init")["mime"] == "image/jpeg"
    delta = client.until("avatar.video.delta")
    client.until("avatar.video.delta")
    sound, *pictures = client.frames[: CHUNK_FRAMES + 1]
    assert (sound.kind, sound.pts_us, len(sound.payload)) == (FrameKind.PCM16, delta["pts_us"], CHUNK_FRAMES * 640 * 2)
    for index, picture in enumerate(pictures):
        assert picture.kind is FrameKind.JPEG
        assert picture.pts_us == delta["pts_us"] + 40_000 * index
        with Image.open(io.BytesIO(picture.payload)) as image:
            assert image.size == (SIZE[1] * 3, SIZE[0] * 3)


@pytest.mark.parametrize("form", ["fmp4", "jpeg"])
def test_a_client_without_binary_messages_gets_the_same(client, form):
    want(client, form, "json")
    init = client.until("avatar.video.init")
    delta = client.until("avatar.video.delta")
    parts = [base64.b64decode(part) for part in delta["delta"]]
    if form == "fmp4":
        with av.open(io.BytesIO(base64.b64decode(init["delta"]) + parts[0])) as container:
            assert len(list(container.decode(video=0))) == CHUNK_FRAMES
    else:
        assert len(parts) == CHUNK_FRAMES
        assert len(base64.b64decode(delta["audio"])) == CHUNK_FRAMES * 640 * 2
    assert client.frames == []


def test_changes_are_acknowledged_with_the_chunk_they_land_on(client):
    want(client, "jpeg", "json")
    for kind, fields, answer in (
        ("avatar.state.update", {"state": "thinking"}, "avatar.state.updated"),
        ("avatar.prompt.update", {"text": "  the person \n waves\t"}, "avatar.prompt.updated"),
        ("avatar.reference.update", {"character": "blue"}, "avatar.reference.updated"),
    ):
        told = client.ask(kind, answer, **fields)
        name = "reference.applied" if "reference" in kind else "prompt.applied"
        seen = client.until("avatar.stream.notice", name=name, chunk=told["chunk"])
        if "state" in fields:
            assert client.until("avatar.video.delta", chunk=told["chunk"] + 1)["state"] == "thinking"
        if "text" in fields:
            assert seen["data"]["text"] == told["text"] == "the person waves"
    assert client.ask("avatar.state.update", "avatar.state.updated", state="auto")["state"] == "auto"


def test_a_picture_becomes_the_reference(served, client):
    image = io.BytesIO()
    Image.new("RGBA", (300, 200), (10, 200, 30, 255)).save(image, "PNG")
    client.socket.send(BinaryFrame(FrameKind.JPEG, 0, 0, image.getvalue()).pack())
    assert "character" not in client.until("avatar.reference.updated")
    (session,) = served.model.opened
    assert session.picture.mean(dim=(1, 2)).tolist() == pytest.approx([10 / 127.5 - 1, 200 / 127.5 - 1, 30 / 127.5 - 1], abs=0.02)
    client.ask("avatar.reference.update", "avatar.reference.updated", image=base64.b64encode(image.getvalue()).decode())


def test_speaking_for_it_plays_what_was_sent(served, client):
    client.ask("session.update", "session.updated", session={"audio": {"input": {"voice": "character"}}})
    want(client, "jpeg", "json")
    say(client, voice(0.5))
    assert client.ask("input_audio_buffer.commit", "input_audio_buffer.committed")["heard_seconds"] <= 0.5
    begun = client.until("output_audio_buffer.started")
    ended = client.until("output_audio_buffer.stopped")
    assert ended["position"] == pytest.approx(0.5)
    assert ended["interrupted"] is False
    assert ended["chunk"] > begun["chunk"]
    heard = b"".join(base64.b64decode(event["audio"]) for event in client.events if event["type"] == "avatar.video.delta")
    loud = np.abs(np.frombuffer(heard, "<i2").astype(float) / 32767) > 0.1
    assert np.diff(np.flatnonzero(loud)[[0, -1]])[0] / SAMPLE_RATE == pytest.approx(0.5, abs=0.02)
    assert len(served.model.opened[0].heard) == 0


def test_talking_to_it_is_heard_thought_about_and_answered(served, client):
    say(client, turn(0.8))
    kinds = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "response.created", "response.done"]
    events = [client.until(kind) for kind in kinds]
    assert events[0]["audio_start_ms"] == pytest.approx(400, abs=90)
    assert events[1]["audio_end_ms"] == pytest.approx(1200, abs=90)
    assert events[3]["status"] == "completed"
    assert events[3]["response_id"] == events[2]["response_id"]
    client.until("output_audio_buffer.started")
    assert client.until("output_audio_buffer.stopped")["position"] == pytest.approx(events[3]["seconds"], abs=0.01)
    assert len(served.model.opened[0].heard) == pytest.approx(2.2 * SAMPLE_RATE)


def test_a_commit_ends_the_turn_where_the_client_says(start):
    served = start(responder=RecordedResponder([voice(0.3)]))
    with served.socket() as socket:
        client = Client(socket).running()
        client.ask("session.update", "session.updated", session={"audio": {"input": {"turn_detection": {"type": "none"}}}})
        say(client, turn(0.5, after=2.0))
        assert client.ask("input_audio_buffer.commit", "input_audio_buffer.committed")["heard_seconds"] > 0.6
        assert client.until("response.done")["seconds"] == pytest.approx(0.3)
        say(client, voice(0.5))
        client.ask("input_audio_buffer.clear", "input_audio_buffer.cleared")
        assert client.ask("input_audio_buffer.commit", "input_audio_buffer.committed")["heard_seconds"] == 0.0


def test_one_who_begins_to_speak_interrupts(start):
    served = start(responder=NoResponder())
    with served.socket() as socket:
        client = Client(socket).running()
        client.ask("session.update", "session.updated", session={"audio": {"input": {"voice": "character"}}})
        say(client, voice(3.0))
        client.until("output_audio_buffer.started")
        client.ask("session.update", "session.updated", session={"audio": {"input": {"voice": "person"}}})
        say(client, turn(0.4))
        ended = client.until("output_audio_buffer.stopped")
        assert ended["position"] < 2.5
        assert served.model.opened[0].queue.size == 0


@pytest.mark.parametrize("kind", ["response.cancel", "output_audio_buffer.clear"])
def test_an_interruption_says_how_much_was_spoken(client, kind):
    client.ask("session.update", "session.updated", session={"audio": {"input": {"voice": "character"}}})
    say(client, voice(3.0))
    client.until("output_audio_buffer.started")
    assert 0.0 < client.ask(kind, "output_audio_buffer.cleared")["played_seconds"] < 3.0
    assert client.until("output_audio_buffer.stopped")["position"] < 3.0


class Slow(Responder):
    def __init__(self) -> None:
        self.released = threading.Event()

    def respond(self, heard: np.ndarray) -> np.ndarray:
        self.released.wait(20)
        return voice(1.0)


def test_an_answer_that_is_no_longer_wanted_is_never_spoken(start):
    responder = Slow()
    served = start(responder=responder)
    with served.socket() as socket:
        client = Client(socket).running()
        say(client, turn(0.5))
        client.until("response.created")
        client.send("response.cancel")
        assert client.until("response.done")["status"] == "cancelled"
        responder.released.set()
        client.until("avatar.metrics")
        client.until("avatar.metrics")
        assert not [event for event in client.events if event["type"] == "output_audio_buffer.started"]


class Broken(Responder):
    def respond(self, heard: np.ndarray) -> np.ndarray:
        raise RuntimeError("no answer")


def test_a_responder_that_fails_leaves_the_session_alive(start):
    served = start(responder=Broken())
    with served.socket() as socket:
        client = Client(socket).running()
        say(client, turn(0.5))
        assert client.until("response.done")["status"] == "failed"
        client.ask("avatar.ping", "avatar.pong", sent=1.5)


def test_a_page_that_is_reloaded_finds_its_character(served):
    with served.socket() as socket:
        client = Client(socket).running()
        made = client.events[0]
        client.ask("avatar.state.update", "avatar.state.updated", state="listening")
    with served.socket(f"?session={made['session']['id']}&ticket={made['ticket']}") as socket:
        again = Client(socket).running()
        assert again.events[0]["session"]["id"] == made["session"]["id"]
        want(again, "jpeg")
        assert again.until("avatar.video.delta")["chunk"] > 0
    assert len(served.model.opened) == 1
    served.until(lambda: served.counts == (0, 0))


def test_the_queue_tells_places_and_lets_the_next_one_in(served):
    with served.socket() as first, served.socket() as second, served.socket() as third:
        clients = [Client(socket) for socket in (first, second, third)]
        made = [client.until("session.created")["session"] for client in clients]
        assert [session["status"] for session in made[1:]] == ["waiting", "waiting"]
        assert [session.get("position") for session in made] == [None, 1, 2]
        clients[1].send("avatar.prompt.update", text="too early", event_id="e1")
        refused = clients[1].until("error", client_event_id="e1")
        assert refused["error"]["code"] == "not_running"
        assert "place 1" in refused["error"]["message"]
        clients[0].send("session.close")
        assert clients[0].until("session.closed")["reason"] == "client"
        assert clients[2].until("avatar.queue.updated")["position"] == 1
        while clients[1].until("session.updated")["session"]["status"] != "running":
            pass


def test_figures_come_about_once_a_second(client):
    one, other = client.until("avatar.metrics"), client.until("avatar.metrics")
    assert other["chunk"] - one["chunk"] <= 10
    assert other["metrics"]["prompt_to_motion_seconds"] is None  # not measured yet; NaN is no JSON
    assert {"ttff_seconds", "chunk_ms", "frames_per_second", "deadline_misses", "queued_seconds", "held_chunks"} <= set(other["metrics"])


def test_everything_that_is_sent_is_as_the_schema_says(served, client):
    schema = served.json("GET", "/v1/schema")
    want(client, "fmp4", "json")
    client.ask("avatar.state.update", "avatar.state.updated", state="idle")
    client.send("nonsense")
    client.until("error")
    say(client, turn(0.5))
    client.until("output_audio_buffer.stopped")
    assert len({event["type"] for event in client.events}) >= 10
    for event in client.events:
        assert errors_of(event, schema["server"]) == []
    assert errors_of({"type": "avatar.state.update", "state": "idle"}, schema["client"]) == []
    assert errors_of({"type": "avatar.state.update", "state": "angry"}, schema["client"])
    assert schema["binary"]["kinds"] == {"fmp4": 1, "jpeg": 2, "pcm16": 3}

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from flowact_vlm_captions import AskingFailed, VlmCaptions
from flowact_vlm_captions import endpoint as endpoint_module
from flowact_vlm_captions.endpoint import read_answer
from PIL import Image

from data_tools.footage import FootageError, encode_clip
from data_tools.inputs import Source
from data_tools.steps import Clip, Plan, Recording, Span
from flowact.errors import UserError
from flowact.testing import check_constructor

Reply = bytes | list[bytes] | tuple[int, dict[str, str]]


def completion(content: object, **more: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content, **more}}]}).encode()


@dataclass
class StandIn:
    """A model on loopback that answers as it is told, and notes what it was asked."""

    reply: Callable[[dict], Reply]
    url: str = ""
    requests: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(reply: Callable[[dict], Reply]) -> Iterator[StandIn]:
    model = StandIn(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model.requests.append(body)
            model.headers.append(dict(self.headers))
            answer = model.reply(body)
            status, more = answer if isinstance(answer, tuple) else (200, {})
            parts = answer if isinstance(answer, list) else [b"" if isinstance(answer, tuple) else answer]
            try:
                self.send_response(status if self.path == "/v1/chat/completions" else 404)
                for name, value in {"Content-Length": str(sum(map(len, parts))), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()
                    time.sleep(0.05 if len(parts) > 1 else 0)
            except OSError:
                pass  # it went away, which is what some tests are about

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def clip(tmp_path) -> Clip:
    """Two seconds in which frame t is grey of value 4 t on the left, black on the right."""
    frames = np.zeros((50, 48, 64, 3), np.uint8)
    frames[:, :, :32] = (4 * np.arange(50, dtype=np.uint8))[:, None, None, None]
    (tmp_path / "a.mp4").write_bytes(encode_clip(iter(frames), crf=4, preset="ultrafast"))
    recording = Recording(Source("a", str(tmp_path / "a.mp4"), "a"), None, 50, 64, 48, None, None, {})  # type: ignore[arg-type]
    return Clip(recording, Plan(Span(0, 50), states=((0, 20, "speaking"), (20, 50, "idle"))))


def pictures(request: dict) -> list[np.ndarray]:
    parts = request["messages"][0]["content"][1:]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition("base64,")[2])))) for part in parts]


# --- what is asked, and what becomes of the answer ------------------------------------------------------------------------------------------------


def test_a_clip_is_asked_about_once_and_gets_the_answer(clip):
    with serving(lambda body: completion("  A grey wall.\n\nIt\tbrightens. ")) as model:
        step = VlmCaptions(model.url, "tiny", frames=3, prompt="What is seen?", extra={"seed": 7})
        scores = step.score(clip)
        plan = step.apply(clip, scores)
    assert scores == {"text": "A grey wall. It brightens.", "characters": 26}
    assert plan.captions == ((0, 20, "speaking", "A grey wall. It brightens."), (20, 50, "idle", "A grey wall. It brightens."))
    (request,) = model.requests
    assert {name: request[name] for name in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "tiny", "temperature": 0.2, "max_tokens": 200, "seed": 7
    }
    assert request["messages"][0]["content"][0] == {"type": "text", "text": "What is seen?"}
    assert "Authorization" not in model.headers[0]


def test_pictures_are_spread_over_the_clip_cropped_and_scaled(clip):
    with serving(lambda body: completion("x")) as model:
        VlmCaptions(model.url, "tiny", frames=3).score(replace(clip, plan=replace(clip.plan, span=Span(10, 50), crop=(0, 0, 32, 48))))
        VlmCaptions(model.url, "tiny", frames=1, height=32).score(clip)
    first, second = map(pictures, model.requests)
    assert [picture.shape for picture in first] == [(48, 32, 3)] * 3
    # frames 10 + 39 * (1/6, 1/2, 5/6)
    assert [float(picture.mean()) / 4 for picture in first] == pytest.approx([16, 30, 42], abs=1)
    assert second[0].shape[:2] == (32, 42)


def test_each_state_is_asked_about_by_its_name(clip):
    with serving(lambda body: completion("talks" if "speaking" in body["messages"][0]["content"][0]["text"] else "rests")) as model:
        step = VlmCaptions(model.url, "tiny", each="state", frames=1)
        scores = step.score(clip)
        assert step.apply(clip, scores).captions == ((0, 20, "speaking", "talks"), (20, 50, "idle", "rests"))
    assert [float(pictures(request)[0][:, :28].mean()) / 4 for request in model.requests] == pytest.approx([10, 34], abs=1)


def test_imported_captions_are_not_asked_about(clip):
    told = replace(clip, plan=replace(clip.plan, captions=((0, 50, "idle", "told"),)))
    step = VlmCaptions("http://127.0.0.1:1/v1", "tiny")
    assert step.score(told)["text"] is None
    assert step.apply(told, step.score(told)) == told.plan
    partly = replace(clip, plan=replace(clip.plan, captions=((0, 20, "idle", ""), (20, 50, "idle", "told"))))
    assert step.stretches(partly) == [(0, 50, "")]


def test_who_answers_changes_no_score():
    assert {"endpoint", "key_variable", "retries", "timeout_seconds", "max_characters"} <= set(VlmCaptions.thresholds)
    assert not {"model", "prompt", "frames", "each", "temperature"} & set(VlmCaptions.thresholds)


def test_a_caption_that_is_too_long_rejects(clip):
    with serving(lambda body: completion("x" * 50)) as model:
        step = VlmCaptions(model.url, "tiny", max_characters=40)
        (rule,) = step.judge(step.score(clip))
    assert rule is not None
    assert not rule.kept
    assert "50 characters, at most 40" in step.explain(rule)


# --- the key --------------------------------------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_its_variable_and_is_sent_only(clip, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with serving(lambda body: (401, {})) as model:
        step = VlmCaptions(model.url, "tiny", key_variable="MY_KEY")
        with pytest.raises(FootageError) as failure:
            step.score(clip)
    assert model.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "secret" not in str(failure.value) + repr(vars(step))
    assert failure.value.code == "no-caption"
    assert len(model.requests) == 1  # a wrong key stays wrong


def test_a_key_that_is_not_set_is_told_before_any_work(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        VlmCaptions("http://127.0.0.1:1/v1", "tiny", key_variable="MY_KEY").check()


# --- when it fails --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_may_pass_are_asked_again_with_growing_pauses(clip, monkeypatch, status):
    slept: list[float] = []
    monkeypatch.setattr(endpoint_module.time, "sleep", slept.append)
    answers: list[Reply] = [(status, {}), (status, {"Retry-After": "7"}), (status, {"Retry-After": "9999"}), completion("at last")]
    with serving(lambda body: answers.pop(0)) as model:
        assert VlmCaptions(model.url, "tiny", backoff_seconds=1.0).score(clip)["text"] == "at last"
    assert [pause for pause in slept if pause > 0.06] == [1.0, 7.0, 60.0]
    assert len(model.requests) == 4


def test_after_the_last_try_the_recording_is_named(clip):
    with serving(lambda body: (503, {})) as model:
        with pytest.raises(FootageError, match="of a clip of a have no caption: the server answers with status 503"):
            VlmCaptions(model.url, "tiny", retries=2, backoff_seconds=0.01).score(clip)
        assert len(model.requests) == 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b'{"choices": [' + b" " * 70_000, "longer than"),
        (b"<html>", "no chat completion"),
        (b"[" * 20_000, "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (completion(None), "refuses"),
        (completion("no", refusal="I can not help with that"), "refuses"),
        (completion("  \n"), "empty"),
        ((302, {"Location": "http://127.0.0.1:1/"}), "status 302"),
    ],
)
def test_answers_that_can_not_be_used_are_not_asked_for_again(clip, reply, reason):
    with serving(lambda body: reply) as model, pytest.raises(FootageError, match=reason):
        VlmCaptions(model.url, "tiny", backoff_seconds=0.01).score(clip)
    assert len(model.requests) == 1


def test_an_answer_that_trickles_is_given_up(clip):
    with serving(lambda body: [b" "] * 100) as model, pytest.raises(FootageError, match=r"no whole answer in 0\.3 s"):
        VlmCaptions(model.url, "tiny", timeout_seconds=0.3, retries=0).score(clip)


def test_nobody_there_is_told_before_any_work():
    with pytest.raises(UserError, match=r"the model tiny at http://127.0.0.1:1/v1/chat/completions does not answer: no connection"):
        VlmCaptions("http://127.0.0.1:1/v1", "tiny", retries=0).check()
    with serving(lambda body: completion("yes")) as model:
        VlmCaptions(model.url, "tiny").check()
    assert model.requests[0]["messages"] == [{"role": "user", "content": "Answer with the word yes."}]


# --- answers and arguments ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('"A man talks."', "A man talks."),
        ("<think>a man, I see\n</think>\nA man talks.", "A man talks."),
        ("A man\x00 talks.\x1b[2J", "A man talks. [2J"),
        ([{"type": "text", "text": "A man"}, {"type": "text", "text": "talks."}], "A man talks."),
    ],
)
def test_answers_become_one_line(content, words):
    assert read_answer(completion(content)) == words


def test_a_list_without_words_is_empty():
    with pytest.raises(AskingFailed, match="empty"):
        read_answer(completion([{"type": "image"}]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"endpoint": "ftp://host/v1"}, "no http or https"),
        ({"endpoint": "https://user:pass@host/v1"}, "a user, a password"),
        ({"endpoint": "https://host/v1?key=x"}, "a query"),
        ({"endpoint": "https://ho st/v1"}, "spaces"),
        ({"model": " "}, "model"),
        ({"key_variable": "sk-123"}, "not the key"),
        ({"each": "frame"}, "each"),
        ({"frames": 0}, "frames"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"extra": {"model": "x"}}, "leave out"),
    ],
)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        VlmCaptions(**{"endpoint": "https://host/v1", "model": "tiny", **arguments})


def test_the_constructor_is_the_config():
    check_constructor(VlmCaptions)

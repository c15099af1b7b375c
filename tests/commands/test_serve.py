"""`flowact serve`: what cannot work is refused before anything is loaded, and the real command serves, is watched and ends."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowact.cli import main

pytest.importorskip("fastapi", reason="flowact[serve] is not installed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "absent"], "absent"),
        (["--port", "70000"], "--port 70000"),
        (["--reference", "absent.png"], "--reference absent.png"),
        (["--responder", "recorded"], "--answer FILE"),
        (["--answer", "absent.wav"], "--answer absent.wav"),
        (["--certificate", __file__], "go together"),
        (["--token", "short"], "--token"),
        (["--allow-origin", "example.com"], "https://example.com"),
        (["--max-sessions", "0"], "max_sessions 0"),
        (["--host", "203.0.113.1"], "cannot listen on"),
        (["--scale", "0"], "--scale 0"),
        (["--planner", "NoSuchPlanner"], "NoSuchPlanner"),
    ],
)
def test_bad_input_is_named(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["serve", "--port", "0", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch, capsys):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else real(name, *rest))
    assert main(["serve"]) == 2
    assert "pip install 'flowact[webrtc]'" in capsys.readouterr().err


def test_the_command_line_knows_serve_without_its_libraries():
    code = "import sys; from flowact.cli import main; main(['serve', '--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--max-sessions" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"fastapi", "starlette", "uvicorn", "aiortc", "pydantic", "websockets", "torch", "numpy", "av"})


@pytest.fixture
def running(tmp_path: Path):
    """The command with the model that comes along, on a free port; its first line."""
    log = tmp_path / "sessions.jsonl"
    words = ["--port", "0", "--json", "--session-log", str(log), "--responder", "none"]
    code = "import sys; from flowact.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline()), log
        finally:
            process.kill()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends_in_order(running, how):
    import av

    process, told, log = running
    assert told["token"] is None
    assert told["address"] == f"http://127.0.0.1:{told['port']}/"
    client = http.client.HTTPConnection("127.0.0.1", told["port"], timeout=60)
    client.request("POST", "/v1/sessions", json.dumps({"character": told["characters"][1]}), {"content-type": "application/json"})
    made = json.loads(client.getresponse().read())
    client.request("GET", f"/v1/sessions/{made['session']['id']}/stream.mp4?ticket={made['ticket']}")
    data = client.getresponse().read(25_000)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    assert (frame.height, frame.width) == (made["session"]["height"], made["session"]["width"])
    assert frame.to_ndarray(format="gray").std() > 10
    process.send_signal(how)
    assert process.wait(60) == 0
    (line,) = log.read_text().splitlines()
    noted = json.loads(line)
    assert (noted["reason"], noted["character"], noted["model"]) == ("shutdown", told["characters"][1], told["model"])
    assert len(noted["model_sha256"]) == 64
    assert noted["prompts_sha256"]
    assert noted["visible_watermark"] is True

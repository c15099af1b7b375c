"""The programs of the page on streaming run, on the model that comes with FlowAct."""

from __future__ import annotations

import asyncio
import re
import wave

import numpy as np
import pytest
from pages import ROOT

from flowact.sampling import StreamSession

PAGE = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
SESSION, LIVE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def names(tmp_path, monkeypatch, capsys):
    """What the first program defines."""
    monkeypatch.chdir(tmp_path)
    with wave.open("speech.wav", "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes((8_000 * np.sin(np.arange(48_000) / 20)).astype(np.int16).tobytes())
    found = {}
    exec(compile(SESSION, "docs/streaming.md", "exec"), found)
    assert "evaluations 3 per chunk" in capsys.readouterr().out
    return found


def test_the_programs_run(names):
    assert names["chunk"].state == "idle", "what was set is seen later"
    exec(compile(LIVE, "docs/streaming.md", "exec"), names)
    session, shown = StreamSession(names["pipeline"], names["picture"]), []

    def display(frames, samples):
        shown.append((len(frames), len(samples)))
        if len(shown) == 2:
            session.close()

    asyncio.run(asyncio.wait_for(names["show"](session, display), 30))
    assert shown == [(12, 12 * 640)] * len(shown)

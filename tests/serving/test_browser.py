"""The page in a real browser: a person opens it, watches, talks, changes things, reloads and leaves."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from server_fixture import Served

from flowact.serving.limits import Limits
from flowact.types import SAMPLE_RATE

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; install one, or name it in FLOWACT_TEST_BROWSER"),
    pytest.mark.timeout(180),
]
VIDEO = "document.querySelector('video')"
#: measures what is heard; returns the loudness of a second
LISTEN = """(async () => {
  const context = new AudioContext();
  await context.resume();
  const video = document.querySelector('video');
  const source = video.srcObject ? context.createMediaStreamSource(video.srcObject) : context.createMediaElementSource(video);
  const analyser = context.createAnalyser();
  source.connect(analyser);
  const wave = new Float32Array(analyser.fftSize);
  let energy = 0;
  for (let i = 0; i < 20; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    analyser.getFloatTimeDomainData(wave);
    energy = Math.max(energy, wave.reduce((sum, value) => sum + value * value, 0) / wave.length);
  }
  return Math.sqrt(energy);
})()"""


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """A person who says something every four seconds."""
    at = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    samples = np.where((at > 0.5) & (at < 1.7), 0.5 * np.sin(2 * np.pi * 220 * at) * np.sin(2 * np.pi * 4 * at), 0)
    path = tmp_path / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def opened(start: Callable[..., Served], microphone: Path) -> Iterator[tuple[Served, Browser]]:
    """A server, and a browser that has loaded its page."""
    served = start(Limits(absent_seconds=3.0))
    with Browser(str(PROGRAM), microphone) as browser:
        browser.open(f"http://127.0.0.1:{served.port}/")
        browser.until("!document.querySelector('#start').disabled")
        yield served, browser
        assert [message for message in browser.messages if message.startswith(("error", "exception"))] == []


def text(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector('{selector}').textContent"))


def begin(browser: Browser, transport: str) -> None:
    browser.run(f"document.querySelector('#transport').value = '{transport}'")
    browser.click("#start")
    browser.until("document.querySelector('#poster').hidden")


TRANSPORTS = [
    "fmp4",
    pytest.param("webrtc", marks=pytest.mark.skipif(importlib.util.find_spec("aiortc") is None, reason="flowact[webrtc] is not installed")),
]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_visit(opened, transport):
    served, browser = opened
    begin(browser, transport)
    assert text(browser, "#connection") == ("WebRTC" if transport == "webrtc" else "WebSocket")

    # it moves, and is heard
    before = browser.run(f"[{VIDEO}.currentTime, {VIDEO}.getVideoPlaybackQuality().totalVideoFrames]")
    browser.until(f"{VIDEO}.currentTime > {before[0]} + 1 && {VIDEO}.getVideoPlaybackQuality().totalVideoFrames > {before[1]} + 15")
    assert browser.run(f"{VIDEO}.videoWidth") == 192
    assert browser.run(f"{VIDEO}.muted") is False
    assert browser.run(LISTEN) > 0.01

    # it hears the microphone, and answers
    browser.click("#microphone")
    browser.until("document.querySelector('#log').textContent.includes('input_audio_buffer.speech_started')")
    browser.until("document.querySelector('#log').textContent.includes('output_audio_buffer.started')")
    assert np.abs(served.model.opened[0].heard).max() > 0.1

    # a prompt, a state, another character
    browser.run("document.querySelector('#prompt').value = 'the person waves'")
    browser.click("#prompt-form button")
    browser.until("document.querySelector('#now').textContent.includes('Now: “the person waves”')")
    browser.click("[data-state=thinking]")
    browser.until("document.querySelector('#state').textContent === 'Thinking'")
    browser.click("[data-id=blue]")
    served.until(lambda: served.model.opened[0].picture[2].mean() > 0)

    # the page is loaded again, and finds the same session
    browser.call("Page.reload")
    browser.until("document.readyState === 'complete' && document.querySelector('#poster') && !document.querySelector('#poster').hidden")
    browser.until("document.querySelector('#poster').hidden")
    assert len(served.model.opened) == 1
    assert served.counts == (1, 0)

    # and is left
    browser.open("about:blank?left")
    served.until(lambda: served.counts == (0, 0))


def test_pictures_over_a_socket_where_no_mp4_plays(opened):
    served, browser = opened
    begin(browser, "jpeg")
    browser.until("parseFloat(document.querySelector('#f-fps').textContent) > 10")
    pixel = "[...document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data]"
    red, green, blue, _ = browser.run(pixel)
    assert red > 100 > max(green, blue)
    browser.click("#stop")
    served.until(lambda: served.counts == (0, 0))
    assert browser.run("document.querySelector('#start').hidden") is False


def test_an_audio_file_comes_out_of_its_mouth_and_can_be_interrupted(opened, microphone):
    _, browser = opened
    begin(browser, "fmp4")
    browser.click("input[value=character]")
    browser.upload("#file", microphone)
    browser.until("document.querySelector('#log').textContent.includes('output_audio_buffer.started')")
    browser.click("#interrupt")
    browser.until("document.querySelector('#log').textContent.includes('output_audio_buffer.cleared')")
    browser.until("document.querySelector('#log').textContent.includes('output_audio_buffer.stopped')")
    assert browser.run("document.querySelector('#banner').hidden") is True


def test_another_picture_and_a_file_that_is_none(opened, tmp_path):
    from PIL import Image

    served, browser = opened
    begin(browser, "fmp4")
    (tmp_path / "none.png").write_bytes(b"not a picture")
    browser.upload("#picture", tmp_path / "none.png")
    browser.until("document.querySelector('#banner-text').textContent.includes('none.png')")
    Image.new("RGBA", (2000, 3000), (20, 220, 40, 255)).save(tmp_path / "green.png")
    browser.upload("#picture", tmp_path / "green.png")
    served.until(lambda: served.model.opened[0].picture[1].mean() > 0.5)


def test_what_goes_wrong_is_said(opened):
    served, browser = opened
    begin(browser, "fmp4")
    served.model.opened[0].fail_at = served.model.opened[0]._made + 2
    browser.until("document.querySelector('#banner-text').textContent.includes('the stream failed')")
    assert browser.run("document.querySelector('#start').hidden") is False
    browser.click("#start")
    browser.until("document.querySelector('#poster').hidden")
    served.server.should_exit = True
    browser.until("document.querySelector('#banner-text').textContent.includes('the server stops')")


def test_a_token_is_wanted_and_leaves_the_address(start):
    served = start(token="a-token-of-some-length")
    with Browser(str(PROGRAM)) as browser:
        browser.open(f"http://127.0.0.1:{served.port}/")
        browser.until("document.querySelector('#banner-text').textContent.includes('token')")
        browser.open(f"http://127.0.0.1:{served.port}/?again#token=a-token-of-some-length")
        browser.until("!document.querySelector('#start').disabled")
        assert browser.run("location.hash") == ""
        begin(browser, "fmp4")
        assert served.counts == (1, 0)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 820, 1280])
def test_nothing_sticks_out_on_any_screen(opened, width, dark):
    _, browser = opened
    browser.look_as(width, 800, dark, phone=width < 500)
    begin(browser, "fmp4")
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 60) is dark
    outside = """[...document.querySelectorAll('button, .button, .note, .chip, h1, h2, dd')].filter((found) => {
      const box = found.getBoundingClientRect();
      const within = found.closest('.characters');
      return !within && box.width && (box.left < 0 || box.right > document.documentElement.clientWidth + 0.5);
    }).map((found) => found.outerHTML.slice(0, 80))"""
    assert browser.run(outside) == []
    notes = """(() => {
      const box = document.querySelector('.note').getBoundingClientRect();
      return document.elementsFromPoint(box.left + 3, box.top + 3).length > 0 && box.width > 100;
    })()"""
    assert browser.run(notes) is True

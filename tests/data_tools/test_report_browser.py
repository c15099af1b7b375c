"""The report in a real browser, opened from the disk: films play, keys work, nothing is complained about."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from clip_folder import write_folder

from data_tools.cli import main


def load_helper() -> ModuleType:
    """The browser that the server's tests drive."""
    pytest.importorskip("websockets", reason="a browser is driven through a WebSocket; pip install 'flowact[dev]'")
    spec = importlib.util.spec_from_file_location("serving_browser", Path(__file__).parents[1] / "serving" / "browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    helper = load_helper()
    program = helper.find_browser()
    if program is None:
        pytest.skip("no Chromium here; install one, or name it in FLOWACT_TEST_BROWSER")
    folder = tmp_path_factory.mktemp("it's a report")
    write_folder(folder / "clips", 3)
    assert main(["pack", str(folder / "clips"), "--out", str(folder / "my data")]) == 0
    assert main(["report", str(folder / "my data")]) == 0
    with helper.Browser(program) as opened:
        opened.open((folder / "my data" / "report" / "index.html").as_uri())
        yield opened


def test_nothing_is_complained_about_and_every_picture_is_there(browser: Any) -> None:
    browser.run("document.querySelectorAll('img').forEach(image => { image.loading = 'eager' })")
    browser.until("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.run("document.images.length") >= 3
    assert browser.messages == []


def test_a_film_plays_with_its_sound_and_the_mark_follows(browser: Any) -> None:
    browser.run("document.querySelector('video').play()")
    browser.until("document.querySelector('video').ended", seconds=20)
    assert browser.run("document.querySelector('video').duration") == pytest.approx(21 / 25, abs=0.001)
    assert browser.run("document.querySelector('video').webkitAudioDecodedByteCount") > 0
    assert browser.until("parseFloat(document.querySelector('.now').style.left)") > 90


def test_the_arrow_keys_go_frame_by_frame(browser: Any) -> None:
    browser.run("document.querySelector('video').currentTime = 0.2")
    browser.until("!document.querySelector('video').seeking")
    press = "document.querySelector('.score-sheet').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
    browser.run(press)
    browser.until("!document.querySelector('video').seeking")
    assert browser.run("document.querySelector('video').currentTime") == pytest.approx(0.24, abs=0.001)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_window(browser: Any, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_light_and_dark_follow_the_system_and_the_button(browser: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        found[scheme] = browser.run(colour)
    assert found["light"] != found["dark"]
    browser.click("#theme")
    assert (browser.run("document.documentElement.dataset.theme"), browser.run(colour)) == ("light", found["light"])
    browser.click("#theme")
    assert (browser.run("document.documentElement.dataset.theme"), browser.run(colour)) == ("dark", found["dark"])

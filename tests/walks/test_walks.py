"""Three people follow the documentation by copying commands, in a fresh environment with FlowAct from its wheel.

`tox -e py311,walks`; with FLOWACT_WALKS=real every package is downloaded anew. A block that cannot be copied by everybody has a comment above it,
`<!-- not walked: REASON -->`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from walking import ROOT, blocks, lent, required, script

WALKS = {"preparer": ["docs/footage.md"], "swapper": ["docs/composing.md", "docs/plugins.md"], "finetuner": ["docs/character.md"]}
REASONS = ("needs a GPU", "needs a checkout", "needs an address", "a choice", "does not end", "takes hours")


@pytest.fixture
def here(tmp_path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def film(source: Path, target: Path, seconds: float, start: float = 0.0) -> None:
    """A part of a silent clip, with speech from the shipped set: what a camera would have recorded."""
    import av
    import numpy as np

    from flowact.characters.speech import load_speech

    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        seen = old.streams.video[0]
        picture = new.add_stream("libx264", rate=seen.average_rate, options={"crf": "18", "preset": "ultrafast"})
        picture.height, picture.pix_fmt = min(seen.height, 360), "yuv420p"
        picture.width = round(seen.width * picture.height / seen.height / 2) * 2
        sound = new.add_stream("aac", rate=16_000, layout="mono")
        for frame in old.decode(video=0):
            if frame.time is not None and start <= frame.time < start + seconds:
                smaller_HWC = frame.to_ndarray(width=picture.width, height=picture.height, format="rgb24")
                new.mux(picture.encode(av.VideoFrame.from_ndarray(smaller_HWC, "rgb24")))
        speech = np.concatenate([piece.samples for piece in load_speech()[:40]])[round(start * 16_000) :][: round(seconds * 16_000)]
        heard = av.AudioFrame.from_ndarray((speech[None] * 32767).astype(np.int16), "s16", "mono")
        heard.sample_rate = 16_000
        new.mux([*sound.encode(heard), *sound.encode(None), *picture.encode(None)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_folder_of_recordings_becomes_shards(fresh, here):
    """The preparer has two folders of recordings and nothing else."""
    sys.path.insert(0, str(ROOT / "tests" / "data_tools"))
    from real_clips import real_clip

    langer = real_clip("langer")
    film(langer, here / "videos" / "anna" / "01.mp4", 8.0)
    film(langer, here / "videos" / "anna" / "02.mp4", 8.0, start=8.0)
    film(real_clip("single_face"), here / "videos" / "ben" / "01.mp4", 4.0)
    film(langer, here / "more-videos" / "anna" / "03.mp4", 8.0, start=16.0)
    fresh().walk(WALKS["preparer"], here, timeout=3000)
    assert list((here / "runs" / "anna" / "shards" / "train").glob("*.tar"))
    assert (here / "runs" / "anna" / "shards" / "report" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_component_of_ones_own_is_trained(fresh, here):
    fresh("flowact").walk(WALKS["swapper"], here, timeout=3000)
    assert (here / "flowact-newest-frames" / "README.md").is_file()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_character_of_ones_own_speaks(fresh, here):
    fresh("flowact").walk(WALKS["finetuner"], here, timeout=7000)
    assert list(here.rglob("*.mp4"))


# --- the walks themselves ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for pages in WALKS.values() for page in pages])
def test_what_nobody_walks_has_a_reason_and_most_is_walked(page):
    found = blocks(page)
    left_out = [block for block in found if block.reason]
    assert len(left_out) <= len(found) / 3
    for block in left_out:
        assert block.reason.startswith(REASONS), f"{block.place}: {block.reason!r} is none of {REASONS}"
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- not walked") == len(left_out), f"{page}: a comment that stands above no block"


def test_files_are_written_before_the_commands_that_follow(tmp_path):
    text = script(["docs/plugins.md"])
    assert text.index("cat > my_memory.py") < text.index("flowact describe LastFrames")
    assert "END OF THE BLOCK\n" in text


def test_nothing_of_ours_and_nothing_of_a_developer_is_lent():
    names = required("flowact", ("data",))
    assert {"torch", "lightning", "deepspeed", "pyarrow"} <= set(names)
    assert not {"flowact", "pytest", "ruff"} & set(names)
    assert not [path for path in lent() if "flowact" in path.name]

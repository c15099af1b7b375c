"""MP4 fragments: decodable from any chunk on, and picture and sound stay together."""

from __future__ import annotations

import io
from itertools import pairwise

import av
import numpy as np
import pytest

from flowact.serving.encoding import Enlarger, FragmentEncoder, boxes, jpeg, pcm16
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME
from flowact.writers.base import SYNTHETIC

CHUNK = 12
NUM_CHUNKS = 8
FLASHES = (14, 31, 60, 77)  # frames that are white, with a click at their first sample


def chunk(index: int) -> tuple[np.ndarray, np.ndarray]:
    first = index * CHUNK
    frames = np.full((CHUNK, 64, 96, 3), 40, np.uint8)
    samples = np.zeros(CHUNK * SAMPLES_PER_FRAME, np.float32)
    for flash in FLASHES:
        if first <= flash < first + CHUNK:
            frames[flash - first] = 250
            at = (flash - first) * SAMPLES_PER_FRAME
            samples[at : at + 320] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(320) / SAMPLE_RATE)
    return frames, samples


@pytest.fixture(scope="module")
def stream() -> tuple[bytes, list[bytes], str]:
    encoder = FragmentEncoder(96, 64)
    fragments = [encoder.encode(k * CHUNK, *chunk(k)) for k in range(NUM_CHUNKS)]
    init, mime = encoder.init_segment, encoder.mime
    encoder.close()
    return init, fragments, mime


def decoded(data: bytes) -> tuple[list[tuple[float, float]], float, np.ndarray]:
    """(time, brightness) of the frames; time of the first sample; samples."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(float(frame.time), float(frame.to_ndarray(format="gray").mean())) for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        sound = list(container.decode(audio=0))
    times = np.array([float(block.time) for block in sound])
    np.testing.assert_allclose(np.diff(times), 1024 / SAMPLE_RATE, atol=1e-6)
    return frames, float(times[0]), np.concatenate([block.to_ndarray()[0] for block in sound])


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_viewer_may_join_at_any_chunk_and_sees_what_it_hears(stream, first):
    init, fragments, _ = stream
    frames, begin, samples = decoded(init + b"".join(fragments[first:]))
    times = [time for time, _ in frames]
    np.testing.assert_allclose(times, (first * CHUNK + np.arange(len(times))) / FRAMES_PER_SECOND, atol=1e-4)
    assert len(frames) == (NUM_CHUNKS - first) * CHUNK
    bright = [round(time * FRAMES_PER_SECOND) for time, level in frames if level > 150]
    assert bright == [flash for flash in FLASHES if flash >= first * CHUNK]
    loud = np.flatnonzero(np.abs(samples) > 0.3)
    starts = [int(loud[0]), *(int(b) for a, b in pairwise(loud) if b - a > 5000)]
    heard = [begin + start / SAMPLE_RATE for start in starts]
    assert heard == pytest.approx([flash / FRAMES_PER_SECOND for flash in bright], abs=0.004)


def test_each_fragment_is_one_moof_that_begins_with_a_key_frame(stream):
    init, fragments, mime = stream
    assert [name for name, _ in boxes(init)] == ["ftyp", "moov"]
    for fragment in fragments:
        assert [name for name, _ in boxes(fragment)] == ["moof", "mdat"]
        with av.open(io.BytesIO(init + fragment)) as container:
            packet = next(container.demux(video=0))
            assert packet.is_keyframe
    assert mime.startswith('video/mp4; codecs="avc1.42C0')


def test_the_file_says_that_it_is_synthetic(stream):
    init, fragments, _ = stream
    with av.open(io.BytesIO(init + fragments[0])) as container:
        assert container.metadata["comment"] == SYNTHETIC


def test_sound_goes_on_at_its_place_after_chunks_that_were_never_encoded():
    encoder = FragmentEncoder(96, 64)
    data = [encoder.encode(k * CHUNK, *chunk(k)) for k in (0, 1, 5, 6)]
    frames, _, _ = decoded(encoder.init_segment + data[0] + data[1])
    assert len(frames) == 2 * CHUNK
    with av.open(io.BytesIO(encoder.init_segment + data[2] + data[3])) as container:
        first = next(container.decode(audio=0))
    assert float(first.time) == pytest.approx(5 * CHUNK / FRAMES_PER_SECOND, abs=1e-6)


def test_broken_boxes_are_no_endless_loop():
    with pytest.raises(ValueError, match="a box of 0 bytes"):
        list(boxes(b"\0" * 16))


@pytest.mark.parametrize(("height", "width", "scale"), [(64, 64, None), (33, 51, 3), (48, 64, 1), (480, 832, None)])
def test_pictures_are_enlarged_to_even_sizes(height, width, scale):
    enlarger = Enlarger(height, width, scale)
    frames = np.random.default_rng(0).integers(0, 255, (2, height, width, 3), dtype=np.uint8)
    larger = enlarger.enlarge(frames)
    assert larger.shape == (2, enlarger.height, enlarger.width, 3)
    assert larger.dtype == np.uint8
    assert enlarger.height % 2 == enlarger.width % 2 == 0
    assert abs(enlarger.height / height - enlarger.width / width) < 0.07


def test_pictures_and_samples_for_those_who_want_no_mp4():
    assert b"Synthetic video" in jpeg(np.zeros((16, 16, 3), np.uint8))
    assert pcm16(np.array([0, 1, -1, 2], np.float32)) == np.array([0, 32767, -32767, 32767], "<i2").tobytes()
